"""The guest that runs the programs: its initramfs, and what it says on its console.

`init` (see `src/init.c`) prints a marker before and after each program. Host time is taken when a
marker has arrived: rr86 stops at its last byte, and QEMU's pipe is read as soon as it has bytes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.initramfs import EXECUTABLE, FILE, archive

APPEND = "console=ttyS0 quiet panic=-1"
# Every marker ends with it.
MARKER_END = "]"
_MARKER = re.compile(rb"\[bench (?:(over)|(\w+) begin|(\w+) end (-?\d+) ([^\]]*))\]")


@dataclass(frozen=True)
class Outcome:
    """One run of one program: how long, how it exited (as `wait` says it), what it printed."""

    seconds: float
    status: int
    answer: str


class Markers:
    """Reads the console and keeps what became of each program."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Outcome] = {}
        # What runs now, and when the last marker came.
        self.running: str | None = None
        self.over = False
        self.moment: float | None = None
        self._text = b""

    def feed(self, data: bytes, now: float) -> None:
        """Bytes of the console that have come at this time, in seconds."""
        self._text += data
        end = 0
        for marker in _MARKER.finditer(self._text):
            end = marker.end()
            over, begun, ended, status, answer = marker.groups()
            if over:
                self.over = True
            elif begun:
                self.running = begun.decode()
            elif self.running == (name := ended.decode()) and self.moment is not None:
                said = answer.decode("utf-8", "replace")
                self.outcomes[name] = Outcome(now - self.moment, int(status), said)
                self.running = None
            self.moment = now
        self._text = self._text[end:]

    @property
    def last_words(self) -> str:
        """The last line of the console that is no marker; where a kernel has died, its reason."""
        lines = self._text.decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def initramfs(executables: dict[str, Path], programs: Sequence[tuple[str, int]]) -> bytes:
    """An archive with init, these programs, and the list (name, count) of what is to be run."""
    parts = [("init", EXECUTABLE, executables["init"].read_bytes())]
    parts += [(name, EXECUTABLE, executables[name].read_bytes()) for name, _ in programs]
    listing = "".join(f"{name} {count}\n" for name, count in programs)
    return archive([*parts, ("run.list", FILE, listing.encode())])
