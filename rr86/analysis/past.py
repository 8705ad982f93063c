"""The past of bytes in memory and of a vCPU: the last writes before a moment, and the instructions
that led up to it.

Both look back in stretches that grow, the latest first, so that what lies near costs little.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from rr86.session.conditions import Before

if TYPE_CHECKING:
    from rr86._native import LoggedWrite
    from rr86.replay.session import Executed
    from rr86.replay.travel import TimeTravel
    from rr86.session.execution import Tick
    from rr86.session.stop import Stop

# Instructions of all vCPUs in the first stretch that is searched for writes, and how they grow.
_FIRST_WRITES, _MORE_WRITES = 1_000_000, 8
# Instructions of the vCPU in the first stretch of its path, and how they grow.
_FIRST_PATH, _MORE_PATH = 400, 4


class Written(NamedTuple):
    """Bytes at `paddr` that one write left; `write` is None where there was none."""

    paddr: int
    size: int
    write: "LoggedWrite | None"


class Step(NamedTuple):
    """An instruction of a vCPU, and where the next one of it is (None: not known)."""

    executed: "Executed"
    following: "Executed | None"


class Past:
    """What came before, in a recording in which one can move."""

    def __init__(self, travel: "TimeTravel", far: int, tick: "Tick | None" = None) -> None:
        """`far` is how many instructions of a vCPU are looked at, at the most."""
        self._travel = travel
        self._far = far
        self._tick = tick
        # Of each vCPU, the last stretch of its path that was looked at: (begin, end, path).
        self._paths: dict[int, tuple[int, int, list[Executed]]] = {}

    def told(self, stop: "Stop") -> bool:
        """Hand a moment on to whoever watches; whether that wants an end."""
        return self._tick is not None and bool(self._tick(stop))

    # -- memory ----------------------------------------------------------------------------------

    def writers(self, paddr: int, size: int, before: int) -> list[Written]:
        """The last writes to these bytes before the instruction at a moment, in the order of the
        addresses. What the delivery of an interrupt wrote right before it counts.

        Raises `KeyboardInterrupt` if whoever watches wants an end.
        """
        travel = self._travel
        missing = set(range(paddr, paddr + size))
        found: dict[int, LoggedWrite] = {}
        end, span, latest = before, _FIRST_WRITES, True
        while missing and end > travel.first:
            begin = max(travel.first, end - span)
            # Something may have been written at the very moment where the later stretch began,
            # before that did.
            seen = self._logged(missing, begin, end if latest else min(end + 1, before))
            for write in seen:
                for place in range(write["paddr"], write["paddr"] + len(write["new"])):
                    if place in missing:
                        found[place] = write
            missing -= found.keys()
            end, span, latest = begin, span * _MORE_WRITES, False
        return list(_runs(paddr, size, found))

    def _logged(self, places: Iterable[int], begin: int, end: int) -> "list[LoggedWrite]":
        """The last writes to these bytes in a stretch, and some of those before them."""
        travel = self._travel
        wanted = sorted(places)
        travel.goto(begin)
        machine = travel.session.machine
        machine.log_writes(list(_ranges(wanted)))
        last: dict[int, LoggedWrite] = {}

        def drain() -> None:
            for write in machine.logged_writes():
                for place in range(write["paddr"], write["paddr"] + len(write["new"])):
                    last[place] = write

        def between(stop: "Stop") -> bool:
            drain()
            return self.told(stop)

        try:
            stop = travel.run(Before(end), tick=between)
            drain()
        finally:
            machine.log_writes([])
        if stop.reason == "interrupted":
            raise KeyboardInterrupt
        unique = {id(write): write for write in last.values()}
        return sorted(unique.values(), key=lambda write: write["committed"])

    # -- a vCPU ----------------------------------------------------------------------------------

    def path_back(self, vcpu: int, before: int) -> Iterator[Step]:
        """The instructions that a vCPU executed before a moment, which is one of its own, the last
        one first. Ends where the recording begins, or when so many have been looked at.

        Raises `KeyboardInterrupt` if whoever watches wants an end.
        """
        count, seen = _FIRST_PATH, 0
        following: Executed | None = None
        end = before
        while end > self._travel.first and seen < self._far:
            path = self._path(vcpu, end, count)
            for executed in reversed(path):
                yield Step(executed, following)
                following = executed
                seen += 1
            begin = path[0].icount if path else None
            if begin is None:
                return
            end, count = begin, min(count * _MORE_PATH, self._far)

    def _path(self, vcpu: int, end: int, count: int) -> "list[Executed]":
        """At least so many instructions of a vCPU before a moment, if there are so many."""
        known = self._paths.get(vcpu)
        if known is not None and known[0] < end <= known[1]:
            path = known[2]
            cut = bisect_left([each.icount for each in path], end)
            if cut:
                return path[:cut]
        begin = self._begin(vcpu, end, count)
        if begin >= end:
            return []
        path = self._travel.path(vcpu, begin, end)
        if self._travel.stop is not None and self.told(self._travel.stop):
            raise KeyboardInterrupt
        self._paths[vcpu] = (begin, end, path)
        return path

    def _begin(self, vcpu: int, end: int, count: int) -> int:
        """The moment from which a vCPU executes so many instructions before another one."""
        left = count
        begin = end
        for each in self._travel.slices.backward(end - 1):
            if each.vcpu != vcpu:
                continue
            own = min(each.end, end) - each.start
            begin = max(each.start, min(each.end, end) - left)
            left -= own
            if left <= 0:
                break
        return max(begin, self._travel.first)


def _ranges(places: list[int]) -> Iterator[tuple[int, int]]:
    """Ascending bytes as (address, length)."""
    start = previous = None
    for place in places:
        if start is not None and previous is not None and place != previous + 1:
            yield start, previous + 1 - start
            start = None
        start = place if start is None else start
        previous = place
    if start is not None and previous is not None:
        yield start, previous + 1 - start


def _runs(paddr: int, size: int, found: "dict[int, LoggedWrite]") -> Iterator[Written]:
    """Neighbouring bytes of one write together."""
    start = paddr
    for place in range(paddr + 1, paddr + size + 1):
        if place == paddr + size or found.get(place) is not found.get(start):
            yield Written(start, place - start, found.get(start))
            start = place
