"""Starting the installed gdb on a recording."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from types import FrameType

from rr86.errors import Error
from rr86.gdb.debuggee import Debuggee
from rr86.gdb.server import Address, listening, serve

ACKNOWLEDGED = "set remote noack-packet off"
"""For gdb: keep acknowledging packets. Where Ctrl-C makes it not wait for the end of a monitor
verb, it then sees that what comes late is no answer to its next question."""
# Seconds between looks whether gdb still runs while it is not connected.
_LOOK = 0.2


class GdbError(Error):
    """A gdb that cannot be started."""


def find_gdb() -> str:
    """The gdb on PATH. Raises `GdbError` if there is none."""
    found = shutil.which("gdb")
    if found is None:
        raise GdbError("gdb is not installed, or not on PATH (Debian: apt-get install gdb)")
    return found


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder of this process's own for a socket and symbols, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="rr86-gdb-") as name:
        yield Path(name)


def run_gdb(
    debuggee: Debuggee, commands: Sequence[str], arguments: Sequence[str], folder: Path
) -> int:
    """Start gdb, connected through a socket in `folder`, after `commands`; serve it until it ends.
    Its own `arguments` come last. The exit status is gdb's.

    Raises `GdbError` if there is no gdb.
    """
    program = find_gdb()
    interrupts = _Interrupts()
    inside = files("rr86.gdb").joinpath("inside.py")
    with (
        listening(Address(path=str(folder / "socket"))) as (listener, address),
        as_file(inside) as script,
        interrupts.watched(),
    ):
        words = [program, "-q", "-x", str(script)]
        for command in (
            *commands,
            ACKNOWLEDGED,
            f"target remote {address.target()}",
            "python rr86_connected()",
        ):
            words += ["-ex", command]
        listener.settimeout(_LOOK)
        process = subprocess.Popen([*words, *arguments])
        try:
            serve(
                listener,
                debuggee,
                say=_tell,
                interrupted=interrupts.take,
                wanted=lambda: process.poll() is None,
            )
        finally:
            if process.poll() is None:
                process.terminate()
            status = process.wait()
    return 128 - status if status < 0 else status


def _tell(line: str) -> None:
    """gdb has the same terminal, and the protocol no word for it."""
    os.write(2, f"rr86: {line}\n".encode())


class _Interrupts:
    """Ctrl-C while gdb has the terminal: gdb gets it too, and tells the server by the protocol
    unless it waits for the answer to a monitor verb."""

    def __init__(self) -> None:
        self._pending = False

    def take(self) -> bool:
        """Whether there was one since the last call."""
        pending, self._pending = self._pending, False
        return pending

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note SIGINT instead of being ended by it."""
        before = signal.signal(signal.SIGINT, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._pending = True
