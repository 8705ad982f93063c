"""How far a run is, on stderr, for as long as somebody watches."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.status import Status

    from rr86.cli.terminal import Output
    from rr86.session.stop import Stop


def size_text(size: int) -> str:
    """A size for people, in decimal units."""
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


class Progress:
    """One status line: instructions, speed, virtual time, trace size."""

    def __init__(self, verb: str, end: int | None = None) -> None:
        """`end` is the last moment, if that is known."""
        self._verb = verb
        self._end = end
        self._status: Status | None = None
        self._started = time.monotonic()
        # The moment at which the run began.
        self.began = 0

    @contextlib.contextmanager
    def shown(self, wanted: bool, guest: "Output | None" = None) -> Iterator["Progress"]:
        """Show the line if wanted, if somebody watches, and if it would not mix with what the
        guest says to `guest`."""
        mixed = guest is not None and guest.on_terminal
        if not wanted or not sys.stderr.isatty() or mixed:
            yield self
            return
        from rich.console import Console

        with Console(stderr=True).status(self._verb) as status:
            self._status = status
            try:
                yield self
            finally:
                self._status = None

    def update(self, moment: "Stop", trace_bytes: int | None = None) -> None:
        """Show another moment."""
        if self._status is not None:
            self._status.update(f"{self._verb}: {self.text(moment, trace_bytes)}")

    def text(self, moment: "Stop", trace_bytes: int | None = None) -> str:
        """The moment, and the speed since the start, in words."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        parts = [
            f"{moment.icount / 1e6:,.1f} M instructions",
            f"{(moment.icount - self.began) / seconds / 1e6:.1f} MIPS",
            f"{moment.time_ns / 1e9:.3f} s virtual",
        ]
        if self._end:
            parts.insert(0, f"{100 * moment.icount // self._end} %")
        if trace_bytes is not None:
            parts.append(f"{size_text(trace_bytes)} trace")
        return ", ".join(parts)


class Steps:
    """One line on stderr that says what is being done, for work in a few long steps."""

    def __init__(self) -> None:
        self._status: Status | None = None

    @contextlib.contextmanager
    def shown(self, wanted: bool) -> Iterator["Steps"]:
        """Show the line if wanted and if somebody watches."""
        if not wanted or not sys.stderr.isatty():
            yield self
            return
        from rich.console import Console

        with Console(stderr=True).status("") as status:
            self._status = status
            try:
                yield self
            finally:
                self._status = None

    def __call__(self, what: str) -> None:
        """Say what comes next."""
        if self._status is not None:
            self._status.update(what)
