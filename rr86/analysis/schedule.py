"""When each vCPU ran, waited and was off, from the trace alone."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rr86.analysis.timeline import Skip
from rr86.trace.vocabulary import SLICE_ENDS

if TYPE_CHECKING:
    from rr86.replay.recorded import RecordedRun

_HALT = SLICE_ENDS.index("halt")


@dataclass
class Schedule:
    """The slices and jumps of a trace, in virtual time.

    `slices` are those of each vCPU with neighbours joined, `starts` the beginnings of them all.
    `halts` are the stretches from HLT until the vCPU runs again.
    """

    vcpus: int
    slices: list[list[tuple[int, int]]] = field(default_factory=list)
    starts: list[list[int]] = field(default_factory=list)
    halts: list[list[tuple[int, int]]] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    end: int = 0

    def time_of(self, icount: int) -> int:
        """The virtual time of a moment; after a jump, if there is one there."""
        time = icount
        for skip in self.skips:
            if skip.icount > icount:
                break
            time += skip.end - skip.start
        return time

    def skipped_before(self, time: int) -> int:
        """How far virtual time is ahead of the instruction count at a time between jumps."""
        return sum(s.end - s.start for s in self.skips if s.end <= time)


def schedule_of(trace: "RecordedRun") -> Schedule:
    """The schedule of a trace. Raises `TraceError` where the file is damaged."""
    vcpus = trace.spec.vcpus
    found = Schedule(
        vcpus,
        [[] for _ in range(vcpus)],
        [[] for _ in range(vcpus)],
        [[] for _ in range(vcpus)],
    )
    halted: dict[int, int] = {}
    ahead = 0
    for event in trace.events(("slice", "time-skip")):
        now = event.icount + ahead
        if event.kind == "time-skip":
            to = int(event.fields["to_ns"])
            if to > now:
                found.skips.append(Skip(now, to, event.icount))
                ahead += to - now
            found.end = max(found.end, to)
            continue
        vcpu = event.vcpu
        if vcpu is None or vcpu >= vcpus:
            continue
        end = now + int(event.fields["instructions"])
        if vcpu in halted:
            began = halted.pop(vcpu)
            if now > began:
                found.halts[vcpu].append((began, now))
        slices = found.slices[vcpu]
        found.starts[vcpu].append(now)
        if slices and slices[-1][1] == now:
            slices[-1] = (slices[-1][0], end)
        elif end > now:
            slices.append((now, end))
        if event.fields["stop"] == _HALT:
            halted[vcpu] = end
        found.end = max(found.end, end)
    for vcpu, began in halted.items():
        if found.end > began:
            found.halts[vcpu].append((began, found.end))
    return found


class Clock:
    """Virtual times of moments that only grow."""

    def __init__(self, schedule: Schedule) -> None:
        self._skips = schedule.skips
        self._next = 0
        self._ahead = 0

    def time_of(self, icount: int) -> int:
        """The time of a moment, which is no earlier than that of the last question."""
        while self._next < len(self._skips) and self._skips[self._next].icount <= icount:
            skip = self._skips[self._next]
            self._ahead += skip.end - skip.start
            self._next += 1
        return icount + self._ahead
