"""The snapshots of a recording in which one moves: where to begin for a moment, and which to keep.

What they may take of memory is limited. Beyond that the snapshot goes whose loss costs least where
people look: the one that leaves the smallest gap in relation to its distance from the present
moment. So spacing grows with distance, about in proportion, and the last steps of a debugger are
close to a snapshot.
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rr86._native import Snapshot


@dataclass(frozen=True)
class Kept:
    """A snapshot, how many bytes the guest had sent to its consoles (None: what it sent before is
    not known), and the memory it takes."""

    icount: int
    snapshot: "Snapshot"
    console: int | None
    debugcon: int | None
    size: int


class Snapshots:
    """Snapshots by their moments. The first one stays."""

    def __init__(self, memory: int) -> None:
        """`memory` is how many bytes they may take together."""
        self._memory = memory
        self._moments: list[int] = []
        self._kept: list[Kept] = []
        self.size = 0
        """Bytes that they take, as far as each does not share pages with the one before."""

    def __len__(self) -> int:
        return len(self._kept)

    def moments(self) -> list[int]:
        """Their moments, in order."""
        return list(self._moments)

    def at_or_before(self, icount: int) -> Kept | None:
        """The last one at or before a moment."""
        place = bisect_right(self._moments, icount)
        return self._kept[place - 1] if place else None

    def before(self, icount: int) -> Kept | None:
        """The last one before a moment."""
        place = bisect_left(self._moments, icount)
        return self._kept[place - 1] if place else None

    def add(self, snapshot: "Snapshot", console: int | None, debugcon: int | None) -> None:
        """Keep a snapshot that was just taken; others may have to go."""
        icount = snapshot.icount
        place = bisect_left(self._moments, icount)
        if place < len(self._moments) and self._moments[place] == icount:
            return
        before = self._kept[place - 1].snapshot if place else None
        size = snapshot.bytes_beside(before)
        self._moments.insert(place, icount)
        self._kept.insert(place, Kept(icount, snapshot, console, debugcon, size))
        self.size += size
        while self.size > self._memory and len(self._kept) > 2:
            self._drop_one(icount)

    def _drop_one(self, present: int) -> None:
        def cost(place: int) -> float:
            moments = self._moments
            behind = moments[place + 1] if place + 1 < len(moments) else moments[place]
            gap = behind - moments[place - 1]
            return gap / (abs(present - moments[place]) + 1)

        # The one at the present moment was made because somebody is there.
        choices = [p for p in range(1, len(self._kept)) if self._moments[p] != present]
        place = min(choices, key=cost)
        gone = self._kept.pop(place)
        del self._moments[place]
        self.size -= gone.size
        if place < len(self._kept):
            # What it shared with the next one is now that one's alone.
            after = self._kept[place]
            size = after.snapshot.bytes_beside(self._kept[place - 1].snapshot)
            self.size += size - after.size
            self._kept[place] = Kept(
                after.icount, after.snapshot, after.console, after.debugcon, size
            )
