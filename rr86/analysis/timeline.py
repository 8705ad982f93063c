"""The timeline of a run, as data: what each vCPU did when, and what passed between them.

It is what the collector makes of one replay and what the writers draw, and it knows neither. All
times are nanoseconds of virtual time since power-on, which is the number of retired instructions
plus the jumps made while all vCPUs waited. So a time is a moment: `Timeline.icount_at` gives what
`--until icount=` takes.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise


class Kind(StrEnum):
    """What a span is."""

    # Whose time it is: exactly one of these at any time, at depth 0.
    OFF = "off"
    """The vCPU waits for its start (INIT, SIPI)."""
    GUEST = "guest"
    """A guest of whose tasks nothing is known: no Linux, or none yet."""
    BOOT = "boot"
    """The kernel starts the CPU; its idle task has not come to its loop."""
    IDLE = "idle"
    """The idle task."""
    TASK = "task"
    """Another task."""
    # What it does in that time, at depths from 1.
    SYSTEM_CALL = "system call"
    INTERRUPT = "interrupt"
    TIMER = "timer interrupt"
    NMI = "nmi"
    EXCEPTION = "exception"
    SOFTWARE = "software interrupt"
    """INT n, INT3, INTO, INT1."""
    HALTED = "halted"
    """From HLT until the vCPU runs again."""


OWNERS = frozenset({Kind.OFF, Kind.GUEST, Kind.BOOT, Kind.IDLE, Kind.TASK})
"""The kinds of depth 0."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a vCPU's time, from `start` up to but not including `end`.

    Spans of depth 0 say whose time it is. They follow one another without a gap from the
    timeline's begin to its end. A span of another depth lies within one of the depth before.
    `pid` is the task's, None for what has none. `detail` says more, for a person.
    """

    vcpu: int
    start: int
    end: int
    depth: int
    kind: Kind
    name: str
    pid: int | None = None
    detail: str = ""

    @property
    def title(self) -> str:
        """The name, with the pid of a task."""
        return self.name if self.pid is None else f"{self.name} ({self.pid})"


@dataclass(frozen=True, slots=True)
class Arrow:
    """Memory that went from one agent to another: `page`, a physical address, changed hands for
    `to` to read it, or to write it if `for_writing`. None is a device or a loader. `name` is a
    variable of the kernel's in a line that was written, if one is known there."""

    time: int
    source: int | None
    to: int | None
    page: int
    for_writing: bool
    name: str = ""


@dataclass(frozen=True, slots=True)
class Ipi:
    """An interprocessor interrupt to one vCPU. It was taken at `taken`: None if it never was, or
    arrived together with one that was sent later."""

    time: int
    source: int
    to: int
    name: str
    taken: int | None = None


class MarkKind(StrEnum):
    """What a mark is."""

    CONSOLE = "console"
    INPUT = "input"
    INVALIDATION = "invalidation"
    """A write removed a block."""
    FLUSH = "flush"
    """All blocks were removed because the cache was full."""
    STALE = "stale execution"
    """A block was executed that memory no longer held; told for each block once."""
    STALE_INT3 = "stale int3"
    """An INT3 was executed that memory did not hold."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at one time. `vcpu` is who did it, None for a device."""

    time: int
    vcpu: int | None
    kind: MarkKind
    text: str


@dataclass(frozen=True, slots=True)
class Skip:
    """A jump of virtual time, when no vCPU could run. `icount` instructions had retired."""

    start: int
    end: int
    icount: int


@dataclass(frozen=True)
class Timeline:
    """A run, from `begin` to `end`.

    `spans` are in the order of vCPU, start and depth. `slices` says for each vCPU when it ran:
    disjoint (start, end), in order, neighbours joined. The lists of arrows, IPIs, marks and skips
    are in the order of time. `hand_offs` counts all hand-offs between different agents in this
    time, whether or not they are among the arrows; `left_out` says in words what is not there.
    """

    title: str
    vcpus: int
    begin: int
    end: int
    skipped_before: int
    """How far virtual time was ahead of the instruction count at `begin`."""
    spans: Sequence[Span]
    slices: Sequence[Sequence[tuple[int, int]]]
    arrows: Sequence[Arrow] = ()
    hand_offs: int = 0
    ipis: Sequence[Ipi] = ()
    marks: Sequence[Mark] = ()
    skips: Sequence[Skip] = ()
    left_out: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    """What else is worth knowing of the recording, by its name."""

    def icount_at(self, time: int) -> int:
        """How many instructions had retired at a time; in a jump, those before it."""
        index = bisect_right(self.skips, time, key=lambda skip: skip.start)
        if index and time < self.skips[index - 1].end:
            return self.skips[index - 1].icount
        return time - self.skipped_before - sum(s.end - s.start for s in self.skips[:index])

    @property
    def instructions(self) -> int:
        """Instructions retired from begin to end."""
        return self.icount_at(self.end) - self.icount_at(self.begin)

    def of_vcpu(self, vcpu: int, depth: int | None = None) -> list[Span]:
        """The spans of a vCPU in the order of their starts, of all depths or of one."""
        return [s for s in self.spans if s.vcpu == vcpu and depth in (None, s.depth)]

    def ran(self, vcpu: int, start: int, end: int) -> int:
        """Instructions that a vCPU retired in a stretch of time."""
        slices = self.slices[vcpu]
        index = bisect_right(slices, start, key=lambda each: each[1])
        total = 0
        while index < len(slices) and slices[index][0] < end:
            total += min(slices[index][1], end) - max(slices[index][0], start)
            index += 1
        return total

    def rates(self, steps: int = 1000) -> Iterator[tuple[int, list[int]]]:
        """The instruction rate of each vCPU, in instructions per microsecond of virtual time
        (1,000 if it alone runs), in so many steps of equal length: (start, rates)."""
        bounds = [self.begin + (self.end - self.begin) * n // steps for n in range(steps + 1)]
        for start, end in pairwise(bounds):
            if end > start:
                ran = (self.ran(vcpu, start, end) for vcpu in range(self.vcpus))
                yield start, [1000 * n // (end - start) for n in ran]


def first_after(times: Sequence[int], time: int) -> int | None:
    """The first of these at or after a time; None if there is none."""
    index = bisect_left(times, time)
    return times[index] if index < len(times) else None
