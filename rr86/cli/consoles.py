"""Where a guest's consoles go: stdout, stderr, or files."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

from typer import BadParameter

from rr86.cli.status import fail, say
from rr86.cli.terminal import Output

_STDOUT = "-"


class Consoles:
    """The serial console and the debug console of a guest, as `--console`, `--debugcon`, `--json`
    and `--quiet` ask for.

    The serial console is on stdout, or on stderr where stdout is for JSON. The debug console is
    shown there too as long as the guest has not used the serial one; after that, only where it was
    asked for.
    """

    def __init__(
        self,
        console: str | None,
        debugcon: str | None,
        as_json: bool,
        quiet: bool,
        taken: Iterable[Path] = (),
    ) -> None:
        """Open the files. `taken` are those that must not be overwritten."""
        for name, value in (("--console", console), ("--debugcon", debugcon)):
            if value == _STDOUT and as_json:
                raise BadParameter(
                    f"{name} - does not go with --json, which needs stdout for itself"
                )
        kept = list(taken)
        self._files: dict[str, Output] = {}
        self._serial: Output | None = None
        if console is not None:
            self._serial = self._to(console, kept)
        elif not quiet:
            self._serial = Output(on_stderr=as_json)
        self._debug = None if debugcon is None else self._to(debugcon, kept)
        self._unseen = 0
        self.muted = False
        """Whether output is dropped for now: a replay has not come to where it is to be shown."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._files.values():
            each.close()

    def _to(self, place: str, taken: list[Path]) -> Output:
        if place == _STDOUT:
            # One object for one stream: it knows whether a line is under way.
            serial = self._serial
            return serial if serial is not None and serial.on_stdout else Output()
        if place not in self._files:
            self._files[place] = Output(_opened(Path(place), taken))
        return self._files[place]

    def begin(self) -> None:
        """Empty the files: there will be output."""
        for each in self._files.values():
            each.truncate()

    def serial(self, data: bytes) -> None:
        """The guest has sent this to its serial console."""
        if self._serial is not None and not self.muted:
            self._serial.write(data)

    def debugcon(self, data: bytes, alone: int) -> None:
        """The guest has sent this to its debug consoles; `alone` bytes of it before it used its
        serial console."""
        if self.muted:
            return
        if self._debug is not None:
            self._debug.write(data)
            return
        if self._serial is not None:
            self._serial.write(data[:alone])
        self._unseen += len(data) - alone

    @property
    def sinks(self) -> tuple[Callable[[bytes], None] | None, Callable[[bytes, int], None] | None]:
        """What gets the output of the serial console, and of the debug console; None where nothing
        becomes of it."""
        somewhere = self._serial is not None or self._debug is not None
        return (
            None if self._serial is None else self.serial,
            self.debugcon if somewhere else None,
        )

    @property
    def shown(self) -> Output | None:
        """The serial console on a standard stream; None where it is in a file or nowhere."""
        serial = self._serial
        return serial if serial is not None and not serial.is_file else None

    @property
    def closed(self) -> bool:
        """Whether somebody who read a console has gone."""
        return any(each is not None and each.closed for each in (self._serial, self._debug))

    def end_line(self) -> None:
        """Before rr86 speaks on the same terminal: end the guest's line."""
        for each in (self._serial, self._debug):
            if each is not None:
                each.end_line()

    def tell_unseen(self) -> None:
        """Say what the guest has said that was shown nowhere."""
        if self._unseen:
            say(
                f"the guest sent {self._unseen:,} bytes to its debug console, which are not shown: "
                "--debugcon FILE (or -) shows them"
            )


def _opened(path: Path, taken: list[Path]) -> int:
    """A descriptor of a file that may be written to; its content stays for now."""
    from rr86.trace.place import is_trace

    for each in taken:
        if each == path or (path.exists() and each.exists() and path.samefile(each)):
            fail(f"the console would overwrite '{each}'")
    if is_trace(path):
        fail(f"'{path}' is a trace, and is left as it is: choose another name for the console")
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
