"""A server for debuggers: one at a time, one after the other, for as long as it is wanted.

Whatever a debugger does, its connection is all that it can end. The machine stays where it was, and
the next debugger finds it there.
"""

import contextlib
import os
import re
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rr86.errors import Error, UsageError
from rr86.gdb.commands import Commands
from rr86.gdb.debuggee import Debuggee
from rr86.gdb.link import Link

DEFAULT = "localhost:1234"
"""Where QEMU's `-s` listens, too."""


class ServerError(Error):
    """A place at which no server can listen."""


@dataclass(frozen=True)
class Address:
    """Where to listen: a TCP port of one host, or a socket in the file system."""

    host: str = "localhost"
    port: int = 1234
    path: str | None = None

    def target(self) -> str:
        """What gdb's `target remote` takes."""
        if self.path is not None:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """`HOST:PORT`, `:PORT` or `PORT` (of localhost), or `unix:PATH`.

    Raises `UsageError` for anything else.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path:
            raise UsageError(f"{text!r} names no socket; write unix:PATH")
        return Address(path=path)
    match = re.fullmatch(r"(?:(?:\[(?P<six>[^\]]+)\]|(?P<host>[^:\[\]]*)):)?(?P<port>[0-9]+)", text)
    if match is None or int(match["port"]) > 0xFFFF:
        raise UsageError(f"{text!r} is no address; write HOST:PORT or unix:PATH")
    return Address(match["six"] or match["host"] or "localhost", int(match["port"]))


@contextlib.contextmanager
def listening(address: Address) -> Iterator[tuple[socket.socket, Address]]:
    """A socket that listens, and its address with the port that it got. A socket in the file system
    goes with it.

    Raises `ServerError` where that is not possible.
    """
    try:
        if address.path is not None:
            listener = _listen_at_path(address.path)
        else:
            family = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0][0]
            listener = socket.create_server((address.host, address.port), family=family, backlog=1)
            address = Address(address.host, listener.getsockname()[1])
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ServerError(f"cannot listen at {address.target()}: {reason}") from None
    try:
        yield listener, address
    finally:
        listener.close()
        if address.path is not None:
            with contextlib.suppress(OSError):
                Path(address.path).unlink()


def _listen_at_path(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_abandoned(path):
            Path(path).unlink()
        listener.bind(path)
        # For this user alone.
        os.chmod(path, 0o600)  # noqa: PTH101
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener


def _is_abandoned(path: str) -> bool:
    """Whether there is a socket at which no one listens any more."""
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
            trial.connect(path)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def serve(
    listener: socket.socket,
    debuggee: Debuggee,
    say: Callable[[str], None] = lambda _: None,
    interrupted: Callable[[], bool] = lambda: False,
    wanted: Callable[[], bool] = lambda: True,
) -> None:
    """Serve one debugger after the other for as long as the server is `wanted`, which is asked
    between them. `say` gets a line of what they can't be told, `interrupted` tells of interrupts
    that do not come through the connection.
    """
    while wanted():
        try:
            connected, _ = listener.accept()
        except TimeoutError:
            continue
        except ConnectionError:
            # It had gone before it was taken.
            continue
        with connected:
            _keep_alive(connected)
            serve_one(connected, debuggee, say, interrupted)


def serve_one(
    connected: socket.socket,
    debuggee: Debuggee,
    say: Callable[[str], None] = lambda _: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> None:
    """Serve a debugger until it goes, or until it makes no sense."""
    try:
        link = Link(connected)
        commands = Commands(debuggee, link, say, interrupted)
        while not commands.over:
            packet = link.receive()
            if packet is None:
                return
            answer = commands.answer(packet)
            if answer is not None:
                link.send(answer)
        link.finish()
    except ConnectionError as error:
        say(f"connection ended: {error}")


def _keep_alive(connected: socket.socket) -> None:
    """Notice a debugger whose host has gone, and do not wait to fill up segments."""
    if connected.family in (socket.AF_INET, socket.AF_INET6):
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
