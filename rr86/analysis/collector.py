"""Makes the timeline of a trace, by one replay that stops nowhere.

What happened comes from three places: slices, jumps, hand-offs and blocks from the trace; interrupts,
exceptions, system calls and console output from the core's journal of the replay; task switches
from probes of that journal in the kernel. Names are looked up at the end, in memory as it is then,
so that the same trace gives the same timeline every time.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rr86.analysis.linux import (
    IDLE,
    RENAME,
    SWITCH,
    LinuxNames,
    LinuxProbes,
    Named,
    handler_name,
)
from rr86.analysis.schedule import Schedule, schedule_of
from rr86.analysis.timeline import Arrow, Ipi, Kind, Mark, MarkKind, Span, Timeline, first_after
from rr86.analysis.tracks import Frame, Owner, Track
from rr86.errors import KernelError, KernelImageError, UsageError
from rr86.kernel.running import RunningKernel
from rr86.session.conditions import AtSymbol
from rr86.trace.vocabulary import NO_VCPU, STALE_ENTRY, STALE_INT3

if TYPE_CHECKING:
    from rr86._native import _JournalRow
    from rr86.replay.recorded import RecordedRun
    from rr86.replay.session import ReplaySession
    from rr86.session.execution import Tick
    from rr86.session.stop import Stop

MOST_ARROWS = 60_000
MOST_SPANS = 400_000
"""Spans of depth 1 and more that are kept."""
MOST_MARKS = 60_000
"""Marks of one kind that are kept."""

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
        self.tracks = [Track(vcpu, off) for vcpu in range(schedule.vcpus)]
        self.probes: LinuxProbes | None = None
        self.problem: str | None = None
        self.ipis: list[Ipi] = []
        self.sent: dict[tuple[int, str], list[int]] = {}
        self.lines: list[Mark] = []
        self.line = _Line()
        self.handlers: dict[int, int] = {}
        self.lost = 0
        self.idle: set[int] = set()
        self.spans = _Longest(most_spans)
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
        names = _Names(session, self.handlers)
        spans = [names.span(each) for each in _clipped(self.spans.all(), begin, end)]
        spans.sort(key=lambda each: (each.vcpu, each.start, each.depth))
        left_out: list[str] = []
        arrows, hand_offs = _arrows(self.trace, self.schedule, begin, end, most_arrows, left_out)
        marks = _marks(self.trace, self.schedule, session, begin, end, left_out)
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


class _Longest:
    """Spans, of which the shortest are left out where there are too many. Those of depth 0 stay."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._owners: list[Span] = []
        self._inner: list[Span] = []
        self.shortest = 0
        self.left_out = 0

    def take(self, track: Track) -> None:
        """Takes the spans that a vCPU has completed."""
        for span in track.spans:
            if not span.depth:
                self._owners.append(span)
            elif span.end - span.start >= self.shortest:
                self._inner.append(span)
            else:
                self.left_out += 1
        track.spans.clear()
        while len(self._inner) > self._most:
            self.shortest = max(64, self.shortest * 2)
            kept = [span for span in self._inner if span.end - span.start >= self.shortest]
            self.left_out += len(self._inner) - len(kept)
            self._inner = kept

    def all(self) -> Iterator[Span]:
        """All that are there."""
        yield from self._owners
        yield from self._inner


class _Names:
    """Puts names in place of the numbers that a replay tells of."""

    def __init__(self, session: "ReplaySession", handlers: dict[int, int]) -> None:
        self._symbols = session.inspector.symbols
        self._handlers = handlers
        self._linux = LinuxNames(RunningKernel(session.inspector))
        # One answer for all spans of one kind and name: there are few of them.
        self._of = functools.cache(self._look_up)

    def span(self, span: Span) -> Span:
        """The span with the name that a person knows."""
        if span.kind not in (Kind.SYSTEM_CALL, Kind.INTERRUPT, Kind.TIMER):
            return span
        name = self._of(span.vcpu, span.name)
        return span if name == span.name else replace(span, name=name)

    def ipi(self, ipi: Ipi) -> Ipi:
        """The same for an IPI."""
        name = self._of(ipi.to, ipi.name)
        return ipi if name == ipi.name else replace(ipi, name=name)

    def _look_up(self, vcpu: int, name: str) -> str:
        what, _, number = name.rpartition(" ")
        found = None
        if what == "system call":
            found = self._linux.system_call(int(number))
        elif what == "ia32 system call":
            found = self._linux.system_call(int(number), 32)
        elif what == "vector":
            found = self._interrupt(vcpu, int(number))
        return found or name

    def _interrupt(self, vcpu: int, vector: int) -> str | None:
        table = self._symbols.table
        handler = self._handlers.get(vector)
        found = None if table is None or handler is None else table.resolve(handler)
        if found is None:
            return None
        if table is not None and table.relocatable and found[0].name.startswith("irq_entries"):
            device = self._linux.interrupt(vcpu, vector)
            return None if device is None else f"{device} (vector {vector})"
        return handler_name(found[0].name) if not found[1] else None


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


class _Clock:
    """Virtual times of moments that only grow."""

    def __init__(self, schedule: Schedule) -> None:
        self._skips = schedule.skips
        self._next = 0
        self._ahead = 0

    def time_of(self, icount: int) -> int:
        while self._next < len(self._skips) and self._skips[self._next].icount <= icount:
            skip = self._skips[self._next]
            self._ahead += skip.end - skip.start
            self._next += 1
        return icount + self._ahead


def _arrows(
    trace: "RecordedRun",
    schedule: Schedule,
    begin: int,
    end: int,
    most: int,
    left_out: list[str],
) -> tuple[list[Arrow], int]:
    """Hand-offs as arrows, and how many there are."""
    clock = _Clock(schedule)
    timed = ((clock.time_of(each.icount), each) for each in trace.cross_writes())
    all_of_them = [(time, each) for time, each in timed if begin <= time < end]
    step = -(-len(all_of_them) // max(most, 1))
    names = functools.cache(trace.names().lookup)
    arrows = []
    for time, each in all_of_them[:: max(step, 1)]:
        lines = each.addresses
        name = names(lines[0]) if lines else None
        arrows.append(
            Arrow(time, each.writer, each.reader, each.page, each.for_writing, name or "")
        )
    if len(arrows) < len(all_of_them):
        left_out.append(
            f"{len(all_of_them) - len(arrows):,} of {len(all_of_them):,} hand-offs: "
            f"one of {step:,} is an arrow"
        )
    return arrows, len(all_of_them)


def _marks(
    trace: "RecordedRun",
    schedule: Schedule,
    session: "ReplaySession",
    begin: int,
    end: int,
    left_out: list[str],
) -> list[Mark]:
    """What the trace tells of blocks and input."""
    clock = _Clock(schedule)
    found: dict[MarkKind, list[Mark]] = {}
    total: dict[MarkKind, int] = {}
    places = {each.id: each.pc for each in trace.stale_blocks().candidates}
    for event in trace.events(("invalidate", "flush", "stale", "input")):
        time = clock.time_of(event.icount)
        if not begin <= time < end:
            continue
        fields = event.fields
        vcpu = event.vcpu
        if event.kind == "invalidate":
            kind = MarkKind.INVALIDATION
            by = int(fields["by"])
            vcpu = None if by == NO_VCPU else by
            text = f"block {fields['id']}, {fields['len']} bytes at {int(fields['paddr']):#x}"
        elif event.kind == "flush":
            kind, text = MarkKind.FLUSH, "all blocks: the cache was full"
        elif event.kind == "input":
            kind = MarkKind.INPUT
            text = bytes(fields["bytes"]).decode("utf-8", "replace")  # type: ignore[arg-type]
        elif fields["what"] in (STALE_ENTRY, STALE_INT3):
            kind = MarkKind.STALE if fields["what"] == STALE_ENTRY else MarkKind.STALE_INT3
            place = places.get(int(fields["id"]))
            name = None if place is None else session.symbolize(place)
            text = f"block {fields['id']}"
            text += f" at {place:#x}" if place is not None else ""
            text += f" {name}" if name else ""
        else:
            continue
        total[kind] = total.get(kind, 0) + 1
        if total[kind] <= MOST_MARKS:
            found.setdefault(kind, []).append(Mark(time, vcpu, kind, text))
    for kind, count in total.items():
        if count > MOST_MARKS:
            left_out.append(f"the last {count - MOST_MARKS:,} of {count:,}: {kind}")
    return [mark for each in found.values() for mark in each]


def _facts(trace: "RecordedRun") -> dict[str, str]:
    spec = trace.spec
    return {"vCPUs": str(spec.vcpus), "memory": f"{spec.memory >> 20} MiB"}
