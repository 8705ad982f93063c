"""Makes the timeline of a trace, by one replay that stops nowhere.

What happened comes from three places: slices, jumps, hand-offs and blocks from the trace;
interrupts, exceptions, system calls and console output from the core's journal of the replay; task
switches from probes of that journal in the kernel. Names are looked up at the end, in memory as it
is then, so that the same trace gives the same timeline every time.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rr86.analysis.linux import IDLE, RENAME, SWITCH, LinuxProbes, Named
from rr86.analysis.naming import Names
from rr86.analysis.schedule import Schedule, schedule_of
from rr86.analysis.timeline import Ipi, Kind, Mark, MarkKind, Span, Timeline, first_after
from rr86.analysis.traced import arrows_of, marks_of
from rr86.analysis.tracks import Frame, Longest, Owner, Track
from rr86.errors import KernelError, KernelImageError, UsageError
from rr86.kernel.running import RunningKernel
from rr86.session.conditions import AtSymbol

if TYPE_CHECKING:
    from rr86._native import _JournalRow
    from rr86.replay.recorded import RecordedRun
    from rr86.replay.session import ReplaySession
    from rr86.session.execution import Tick
    from rr86.session.stop import Stop

MOST_ARROWS = 100_000
MOST_SPANS = 400_000
"""Spans of depth 1 and more that are kept."""

_NMI, _INIT, _STARTUP = 4, 5, 6
_IA32_CALL = 0x80
_EXCEPTIONS = (
    *("divide error", "debug", "nmi", "breakpoint", "overflow", "bound range", "invalid opcode"),
    *("device not available", "double fault", "coprocessor segment", "invalid TSS"),
    *("segment not present", "stack fault", "general protection", "page fault", "reserved"),
    *("x87 error", "alignment check", "machine check", "SIMD error", "virtualization"),
    "control protection",
)
_PAGE_FAULT = 14


def collect(
    trace: "RecordedRun",
    first: int = 0,
    last: int | None = None,
    verify: bool = True,
    arrows: int = MOST_ARROWS,
    spans: int = MOST_SPANS,
    tick: "Tick | None" = None,
) -> Timeline:
    """The timeline of a trace from moment `first` to `last` (None: the trace's end).

    Of hand-offs at most `arrows` become arrows: of more, every second, third, … one. Of spans
    within a task's at most `spans` are kept: the longest. `tick` watches the replay; a true answer
    of it ends the timeline there.

    Raises `UsageError` if there is nothing between the two moments, and what
    `rr86.Trace.session` and `ReplaySession.run` raise.
    """
    schedule = schedule_of(trace)
    end = schedule.end if last is None else min(schedule.end, schedule.time_of(last))
    begin = schedule.time_of(first)
    if begin >= end:
        raise UsageError(
            f"the trace has nothing between the moments {first:,} and "
            f"{'its end' if last is None else f'{last:,}'}"
        )
    run = _Run(trace, schedule, end, spans)
    session = trace.session(verify=verify)
    ended = run.replay(session, last, tick)
    end = min(end, ended)
    if begin >= end:
        raise UsageError("the replay was interrupted before the timeline begins")
    return run.timeline(session, begin, end, arrows)


@dataclass
class _Line:
    """A line of console output under way."""

    time: int = 0
    vcpu: int = 0
    text: bytearray = field(default_factory=bytearray)


class _Run:
    """What a replay has told so far."""

    def __init__(self, trace: "RecordedRun", schedule: Schedule, end: int, most_spans: int) -> None:
        self.trace = trace
        self.schedule = schedule
        self.end = end
        off = Owner(Kind.OFF, "off")
        waiting: dict[int, tuple[int | None, list[Frame]]] = {}
        self.tracks = [Track(vcpu, off, waiting=waiting) for vcpu in range(schedule.vcpus)]
        self.probes: LinuxProbes | None = None
        self.problem: str | None = None
        self.ipis: list[Ipi] = []
        self.sent: dict[tuple[int, str], list[int]] = {}
        self.lines: list[Mark] = []
        self.line = _Line()
        self.handlers: dict[int, int] = {}
        self.lost = 0
        self.idle: set[int] = set()
        self.spans = Longest(most_spans)
        # What comes from the schedule alone, latest first, so that the next one is the last.
        self.waits: list[list[tuple[int, int]]] = [list(reversed(each)) for each in schedule.halts]

    # -- the replay --------------------------------------------------------------------------------

    def replay(self, session: "ReplaySession", last: int | None, tick: "Tick | None") -> int:
        """Replays up to a moment; returns the virtual time at which it ended."""
        self._probe_kernel(session)

        def watch(stop: "Stop") -> bool | None:
            self._take(session)
            return tick(stop) if tick is not None else None

        if self.probes is None and self._may_be_linux(session):
            # It is not known yet where the kernel goes.
            stop = session.run([AtSymbol("start_kernel"), *_at(last)], tick=watch)
            self._take(session)
            if str(stop.condition) != "symbol=start_kernel":
                return stop.time_ns
            self._probe_kernel(session)
            for track in self.tracks:
                if track.owner.kind is Kind.GUEST:
                    track.switch(stop.time_ns, self._first_owner(track.vcpu))
        stop = session.run(_at(last), tick=watch)
        self._take(session)
        return stop.time_ns

    def _probe_kernel(self, session: "ReplaySession") -> None:
        rows = []
        try:
            self.probes = LinuxProbes(RunningKernel(session.inspector))
            rows = self.probes.rows
            self.problem = None
        except (KernelError, KernelImageError) as error:
            self.problem = str(error)
        session.machine.keep_journal(rows)

    def _may_be_linux(self, session: "ReplaySession") -> bool:
        linked = session.inspector.symbols.linked
        return (
            linked is not None
            and linked.relocatable
            and session.inspector.symbols.offset is None
            and linked.link_address("start_kernel") is not None
        )

    def _take(self, session: "ReplaySession") -> None:
        rows, left_out = session.machine.take_journal()
        self.lost += left_out
        for row in rows:
            self._row(row)
        for track in self.tracks:
            self.spans.take(track)

    # -- the journal -------------------------------------------------------------------------------

    def _row(self, row: "_JournalRow") -> None:
        time, _, vcpu, kind, fields = row
        track = self.tracks[vcpu]
        self._catch_up(track, time)
        match kind, fields:
            case "return", (user, _, int(stack)):
                if user:
                    track.to_user(time)
                elif track.frames:
                    track.iret(time, stack)
            case "exception" | "interrupt" | "nmi" | "software", _:
                self._delivered(track, time, kind, [int(each) for each in fields])
            case "system-call", (int(number), _):
                track.to_user(time)
                track.begin(time, Frame(Kind.SYSTEM_CALL, f"system call {number}"))
            case "system-return", _:
                track.to_user(time)
            case "ipi", (int(mode), int(vector), int(targets)):
                self._sent(time, vcpu, mode, vector, targets)
            case "output", (int(byte),):
                self._output(time, vcpu, byte)
            case "probe", (int(number), bytes(noted)) if self.probes is not None:
                self._probed(track, time, self.probes.names[number], self.probes.tasks(noted))

    def _catch_up(self, track: Track, time: int) -> None:
        """Puts in what the schedule says of a vCPU up to a time."""
        starts = self.schedule.starts[track.vcpu]
        if track.owner.kind is Kind.OFF and starts:
            began = first_after(starts, track.began)
            if began is not None and began <= time:
                track.switch(began, self._first_owner(track.vcpu))
        waits = self.waits[track.vcpu]
        while waits and waits[-1][0] <= time:
            start, end = waits.pop()
            track.begin(start, Frame(Kind.HALTED, "halted"))
            track.end(min(end, self.end), Kind.HALTED)

    def _delivered(self, track: Track, time: int, cause: str, fields: list[int]) -> None:
        vector, timer, user, origin, handler, stack, accumulator, address = fields
        if user:
            track.to_user(time)
        frame = Frame(Kind.EXCEPTION, "", stack, bool(user), f"vector {vector}")
        if cause == "interrupt":
            self.handlers[vector] = handler
            frame.kind = Kind.TIMER if timer else Kind.INTERRUPT
            frame.name = f"vector {vector}"
            self._arrived(time, track.vcpu, f"vector {vector}")
        elif cause == "nmi":
            frame.kind, frame.name = Kind.NMI, "NMI"
            self._arrived(time, track.vcpu, "NMI")
        elif cause == "software" and vector == _IA32_CALL and user:
            frame.kind, frame.name = Kind.SYSTEM_CALL, f"ia32 system call {accumulator}"
        elif cause == "software":
            frame.kind, frame.name = Kind.SOFTWARE, f"INT {vector}"
        else:
            names = _EXCEPTIONS
            frame.name = names[vector] if vector < len(names) else f"exception {vector}"
        if cause == "exception":
            frame.detail += f", at {origin:#x}" + (" in user mode" if user else "")
            if vector == _PAGE_FAULT:
                frame.detail += f", address {address:#x}"
        track.begin(time, frame)

    def _probed(self, track: Track, time: int, name: str, tasks: list[Named]) -> None:
        if name == SWITCH:
            before, after = tasks
            if not track.owner.key:
                # The first task of a CPU has had it since it was started.
                track.owner = replace(track.owner, key=before.address)
            track.switch(time, self._owner(track.vcpu, after))
        elif name == RENAME:
            (task,) = tasks
            for each in self.tracks:
                if each.owner.kind is Kind.TASK and each.owner.key == task.address:
                    self._catch_up(each, time)
                    each.rename(time, self._owner(each.vcpu, task))
        elif name == IDLE:
            self.idle.add(track.vcpu)
            if track.owner.kind is Kind.BOOT:
                track.rename(time, Owner(Kind.IDLE, "idle", None, track.owner.key))

    def _owner(self, vcpu: int, task: Named) -> Owner:
        if task.pid:
            return Owner(Kind.TASK, task.name, task.pid, task.address)
        if vcpu in self.idle or self.probes is None or IDLE not in self.probes.names:
            return Owner(Kind.IDLE, "idle", None, task.address)
        return Owner(Kind.BOOT, f"boot of CPU {vcpu}", None, task.address)

    def _first_owner(self, vcpu: int) -> Owner:
        if self.probes is None:
            return Owner(Kind.GUEST, "guest")
        return Owner(Kind.BOOT, f"boot of CPU {vcpu}")

    def _sent(self, time: int, vcpu: int, mode: int, vector: int, targets: int) -> None:
        names = {_NMI: "NMI", _INIT: "INIT", _STARTUP: "start-up"}
        name = names.get(mode, f"vector {vector}")
        for to in range(self.schedule.vcpus):
            if not targets >> to & 1:
                continue
            taken = None
            if mode == _STARTUP:
                taken = first_after(self.schedule.starts[to][:1], time)
            elif mode == _INIT:
                self._catch_up(self.tracks[to], time)
                if self.tracks[to].owner.kind is not Kind.OFF:
                    self.tracks[to].switch(time, Owner(Kind.OFF, "off"))
            else:
                self.sent.setdefault((to, name), []).append(len(self.ipis))
            self.ipis.append(Ipi(time, vcpu, to, name, taken))

    def _arrived(self, time: int, vcpu: int, name: str) -> None:
        waiting = self.sent.pop((vcpu, name), None)
        if waiting:
            # Several that waited are one interrupt.
            self.ipis[waiting[-1]] = replace(self.ipis[waiting[-1]], taken=time)

    def _output(self, time: int, vcpu: int, byte: int) -> None:
        if byte == ord("\n"):
            self._end_line()
        elif byte != ord("\r"):
            if not self.line.text:
                self.line.time, self.line.vcpu = time, vcpu
            self.line.text.append(byte)

    def _end_line(self) -> None:
        if self.line.text:
            text = self.line.text.decode("utf-8", "replace")
            self.lines.append(Mark(self.line.time, self.line.vcpu, MarkKind.CONSOLE, text))
            self.line = _Line()

    # -- what comes of it --------------------------------------------------------------------------

    def timeline(
        self, session: "ReplaySession", begin: int, end: int, most_arrows: int
    ) -> Timeline:
        """All of it, from `begin` to `end`."""
        for track in self.tracks:
            self._catch_up(track, end)
            track.finish(end)
            self.spans.take(track)
        self._end_line()
        names = Names(session, self.handlers)
        spans = [names.span(each) for each in _clipped(self.spans.all(), begin, end)]
        spans.sort(key=lambda each: (each.vcpu, each.start, each.depth))
        left_out: list[str] = []
        arrows, hand_offs = arrows_of(self.trace, self.schedule, begin, end, most_arrows, left_out)
        symbolize = session.symbolize
        marks = marks_of(self.trace, self.schedule, symbolize, begin, end, left_out)
        marks += [mark for mark in self.lines if begin <= mark.time < end]
        left_out += self._left_out()
        return Timeline(
            title=self.trace.path.name,
            vcpus=self.schedule.vcpus,
            begin=begin,
            end=end,
            skipped_before=self.schedule.skipped_before(begin),
            spans=spans,
            slices=[list(_within(each, begin, end)) for each in self.schedule.slices],
            arrows=arrows,
            hand_offs=hand_offs,
            ipis=[names.ipi(each) for each in self.ipis if begin <= each.time < end],
            marks=sorted(marks, key=lambda mark: mark.time),
            skips=[s for s in self.schedule.skips if s.start >= begin and s.end <= end],
            left_out=left_out,
            facts=_facts(self.trace),
        )

    def _left_out(self) -> Iterator[str]:
        if self.problem is not None:
            yield f"tasks: {self.problem}"
        if self.spans.left_out:
            yield (
                f"{self.spans.left_out:,} system calls, interrupts and the like that took less "
                f"than {self.spans.shortest:,} ns"
            )
        if self.lost:
            yield f"{self.lost:,} entries of the journal that did not fit"
        ignored = sum(track.ignored for track in self.tracks)
        if ignored:
            yield f"{ignored:,} handlers that were nested too deeply"


def _at(last: int | None) -> list[str]:
    return [] if last is None else [f"icount={last}"]


def _within(pieces: Iterable[tuple[int, int]], begin: int, end: int) -> Iterator[tuple[int, int]]:
    for start, stop in pieces:
        if stop > begin and start < end:
            yield max(start, begin), min(stop, end)


def _clipped(spans: Iterable[Span], begin: int, end: int) -> Iterator[Span]:
    for span in spans:
        if span.end > begin and span.start < end:
            if span.start < begin or span.end > end:
                yield replace(span, start=max(span.start, begin), end=min(span.end, end))
            else:
                yield span


def _facts(trace: "RecordedRun") -> dict[str, str]:
    spec = trace.spec
    return {"vCPUs": str(spec.vcpus), "memory": f"{spec.memory >> 20} MiB"}
