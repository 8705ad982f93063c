"""The guest's serial console on the user's terminal or pipes.

Guest output goes to stdout untouched; everything that rr86 itself says goes to stderr. On a
terminal, keys go to the guest one by one (Ctrl-A x leaves, as in QEMU), except for Ctrl-C, which
ends the run.
"""

import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator
from io import RawIOBase
from types import FrameType
from typing import TextIO

ESCAPE = 0x01
HELP = "Ctrl-A x leaves, Ctrl-A Ctrl-A sends Ctrl-A, Ctrl-C ends the recording"


def line_width() -> int | None:
    """The columns that a line on stdout may have: those of the terminal, or what COLUMNS says; None
    where stdout is a file or a pipe, whose reader may want all of a line."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) > 0:
        return int(columns)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except (OSError, ValueError):
        return None


def fitted(line: str, width: int | None) -> str:
    """The line, cut to `width` columns if it is longer."""
    return line if width is None or len(line) <= width else line[: max(width - 1, 0)] + "…"


class Output:
    """Guest bytes to stdout, stderr or a file, flushed at once."""

    def __init__(self, file: int | None = None, on_stderr: bool = False) -> None:
        """To an open file, which `close` closes, or to a standard stream."""
        self.closed = False
        self.is_file = file is not None
        self.on_stdout = file is None and not on_stderr
        self._file = None if file is None else os.fdopen(file, "wb", buffering=0)
        self._last = b"\n"

    @property
    def _stream(self) -> TextIO:
        return sys.stdout if self.on_stdout else sys.stderr

    def write(self, data: bytes) -> None:
        """Write guest output; once the reader has gone, drop it."""
        if self.closed or not data:
            return
        try:
            if self._file is not None:
                _write_all(self._file, data)
            else:
                self._stream.flush()
                self._stream.buffer.write(data)
                self._stream.buffer.flush()
        except BrokenPipeError:
            self.closed = True
            if self._file is None:
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        self._last = data[-1:]

    def truncate(self) -> None:
        """Empty the file, if it is one that has a length."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.truncate(0)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    @property
    def on_terminal(self) -> bool:
        """Whether somebody sees it on a terminal."""
        return self._file is None and self._stream.isatty()

    def end_line(self) -> None:
        """Before rr86 speaks on the same terminal: end the guest's line."""
        if self._last != b"\n" and self.on_terminal:
            self.write(b"\r\n")


def _write_all(file: RawIOBase, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) or 0 :]


class Keys:
    """Splits what was typed into bytes for the guest and commands for rr86."""

    def __init__(self) -> None:
        self.leave = False
        self.help = False
        self._escaped = False

    def feed(self, data: bytes) -> bytes:
        """The bytes that are meant for the guest."""
        out = bytearray()
        for byte in data:
            if not self._escaped:
                if byte == ESCAPE:
                    self._escaped = True
                else:
                    out.append(byte)
                continue
            self._escaped = False
            if byte in b"xX":
                self.leave = True
                break
            if byte in b"hH?":
                self.help = True
            elif byte in (ESCAPE, ord("a")):
                out.append(ESCAPE)
        return bytes(out)


class Input:
    """Console input from stdin: keys of a terminal, or a pipe's or file's content."""

    def __init__(self, enabled: bool) -> None:
        self._fd = -1
        self.interactive = False
        self.keys = Keys()
        if not enabled:
            return
        with contextlib.suppress(OSError, ValueError, AttributeError):
            fd = sys.stdin.fileno()
            if os.isatty(fd):
                # A background job must not touch its terminal.
                if os.tcgetpgrp(fd) != os.getpgrp():
                    return
                self.interactive = True
            self._fd = fd

    def poll(self, wait: float = 0.0) -> bytes:
        """Bytes for the guest that have arrived, waiting up to `wait` seconds for some."""
        if self._fd < 0:
            return b""
        try:
            if not select.select([self._fd], [], [], wait)[0]:
                return b""
            data = os.read(self._fd, 4096)
        except (OSError, ValueError):
            data = b""
        if not data:
            self._fd = -1
            return b""
        return self.keys.feed(data) if self.interactive else data

    @property
    def open(self) -> bool:
        """Whether more may come."""
        return self._fd >= 0

    @contextlib.contextmanager
    def raw(self) -> Iterator[None]:
        """Hand keys over unprocessed; the terminal is put back whatever happens."""
        if not self.interactive:
            yield
            return
        import termios

        before = termios.tcgetattr(self._fd)
        changed = termios.tcgetattr(self._fd)
        changed[0] &= ~(termios.ICRNL | termios.IXON)
        # ISIG stays for Ctrl-C; Ctrl-Z and Ctrl-\ belong to the guest.
        changed[3] &= ~(termios.ICANON | termios.ECHO | termios.IEXTEN)
        changed[6][termios.VSUSP] = b"\0"
        changed[6][termios.VQUIT] = b"\0"
        changed[6][termios.VMIN] = 1
        changed[6][termios.VTIME] = 0
        fd = self._fd
        termios.tcsetattr(fd, termios.TCSANOW, changed)
        try:
            yield
        finally:
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


class Interruption:
    """Remembers a request to end instead of raising in the middle of something.

    The second request raises KeyboardInterrupt, for whoever cannot wait.
    """

    def __init__(self) -> None:
        self.signal = 0

    def __bool__(self) -> bool:
        return self.signal != 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number

    @contextlib.contextmanager
    def watching(self) -> Iterator["Interruption"]:
        """Take over SIGINT, SIGTERM and SIGHUP for the time being."""
        before = {}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Only the main thread may; a library user's thread keeps its own ways.
            with contextlib.suppress(ValueError):
                before[number] = signal.signal(number, self._note)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
