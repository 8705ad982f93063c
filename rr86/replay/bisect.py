"""Finding the write that a stale block missed, and proving it.

The trace itself tells which blocks were executed stale, and when each was fetched and linked. One
replay logs every write to the source bytes of those blocks, from each one's fetch on, and looks at
each stale execution; the guilty write is then found by value. A second replay stops at that write,
makes the block see it, and goes on past the failure. So no search over time has to be made: the
log is exact to the instruction. The first replay takes snapshots right before the fetches, and the
second begins at one of them, so that the cost is little more than that of one replay up to the
failure.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rr86.errors import TraceContentError
from rr86.replay import staleness
from rr86.replay.finding import Execution, Finding, Proof, Step, Victim, Write
from rr86.replay.recorded import RecordedRun
from rr86.trace.survey import Candidate, StaleBlocks
from rr86.trace.vocabulary import STALE_ENTRY

if TYPE_CHECKING:
    from rr86._native import BlockInfo, Snapshot
    from rr86.replay.session import ReplaySession

# Stale executions that are looked at before the best so far is taken.
_MOST_EXECUTIONS = 5_000
# Blocks that are followed at a time.
_MOST_BLOCKS = 256
# How far beyond the failure the proving replay goes, in instructions.
_BEYOND = 1_000_000
# Instructions between two snapshots that the search takes, at the least, and the most of them.
_BETWEEN_SNAPSHOTS = 50_000_000
_MOST_SNAPSHOTS = 8

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Choice:
    """Which stale execution is meant; the failure, if nothing is said."""

    at: int | None = None
    pc: int | None = None
    block: int | None = None

    def __bool__(self) -> bool:
        return (self.at, self.pc, self.block) != (None, None, None)

    def wants(self, candidate: Candidate) -> bool:
        """Whether executions of this block are of interest at all."""
        if self.block is not None and candidate.id != self.block:
            return False
        return self.pc is None or candidate.pc <= self.pc < candidate.pc + candidate.length


@dataclass
class _Search:
    """The first replay: what was written, and which execution is the best so far."""

    session: "ReplaySession"
    choice: Choice
    waiting: list[Candidate]
    known: dict[int, Candidate]
    writes: list[Write] = field(default_factory=list)
    ranges: list[tuple[int, int]] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)
    first: dict[int, Execution] = field(default_factory=dict)
    best: tuple[Victim, Execution, Write | None] | None = None
    # Where snapshots are to be taken, and those that were.
    planned: list[int] = field(default_factory=list)
    snapshots: list["Snapshot"] = field(default_factory=list)

    def run(self) -> None:
        """Replay until the failure, or to the end."""
        self.planned = _snapshots_before(self.waiting)
        for _ in range(_MOST_EXECUTIONS):
            self._follow_due()
            conditions = ["stale"]
            if self.waiting:
                conditions.append(f"icount={self.waiting[0].fetched - 1}")
            while self.planned and self.planned[0] <= self.session.icount:
                del self.planned[0]
            limit = self.planned[0] - self.session.icount if self.planned else None
            stop = self.session.run(conditions, limit)
            if stop.over:
                return
            if stop.reason == "limit":
                self._take_snapshot()
            if str(stop.condition) == "stale" and self._look(stop.vcpu, stop.icount):
                return

    def _take_snapshot(self) -> None:
        """Keep the machine, so that the proof can begin here."""
        from rr86.errors import NativeError

        del self.planned[0]
        try:
            self.snapshots.append(self.session.snapshot())
        except NativeError:
            # A protocol with state that no snapshot holds: then the proof begins at power-on.
            self.planned.clear()
        del self.snapshots[:-_MOST_SNAPSHOTS]

    def snapshot_before(self, victim: Victim) -> "Snapshot | None":
        """The last snapshot in which the victim had not been fetched yet."""
        last = self.known[victim.id].slice
        return next((each for each in reversed(self.snapshots) if each.icount <= last), None)

    def _follow_due(self) -> None:
        """Start to log the writes to blocks that are about to be fetched."""
        machine = self.session.machine
        due = [each for each in self.waiting if each.fetched - 1 <= self.session.icount]
        if not due:
            return
        self.waiting = self.waiting[len(due) :]
        for candidate in due:
            self.ranges.append(candidate.first_range)
            if candidate.crosses:
                page = (candidate.pc + candidate.length - 1) & ~0xFFF
                second = machine.translate(candidate.vcpu, page)
                if second is not None:
                    left = candidate.length - candidate.first_range[1]
                    self.ranges.append((second, left))
        machine.log_writes(self.ranges)

    def _drain(self) -> None:
        self.writes += [
            Write(
                w["vcpu"],
                w["checked"],
                w["committed"],
                w["rip"],
                w["linear"],
                w["paddr"],
                w["old"],
                w["new"],
                w["passage"],
            )
            for w in self.session.machine.logged_writes()
        ]

    def _look(self, vcpu: int, icount: int) -> bool:
        """Look at a stale execution; true when it is the one that is meant."""
        self._drain()
        block = self.session.machine.current_block(vcpu)
        if block is None or block["serial"] not in self.known:
            return False
        candidate = self.known[block["serial"]]
        number = self.numbers[candidate.id] = self.numbers.get(candidate.id, 0) + 1
        if not self.choice.wants(candidate):
            return False
        if self.choice.at is not None and icount < self.choice.at:
            return False
        victim = _victim(candidate, block)
        write = staleness.guilty_write(victim, self.writes)
        execution = self._execution(victim, block, vcpu, icount, number, write)
        self.first.setdefault(candidate.id, execution)
        if self.best is None or _rank(execution) < _rank(self.best[1]):
            frames = self.session.backtrace(vcpu, 16)
            execution = replace(execution, stack=tuple(str(frame) for frame in frames))
            self.best = (victim, execution, write)
        if self.choice.at is not None:
            return True
        return execution.grade == "A" and (execution.int3 or bool(self.choice))

    def _execution(
        self,
        victim: Victim,
        block: "BlockInfo",
        vcpu: int,
        icount: int,
        number: int,
        write: Write | None,
    ) -> Execution:
        from rr86.cpu.disassembly import disassemble

        memory = block["memory"]
        wrong = staleness.first_difference(victim.source, memory)
        rows = disassemble(victim.source, victim.pc, victim.bits)
        row = next(r for r in rows if victim.pc + wrong < r.end)
        offset = row.address - victim.pc
        # The instruction in memory may be longer than what is left of the block.
        rest = self.session.read_virtual(row.address, 15, vcpu) or memory[offset:]
        held = disassemble(rest, row.address, victim.bits, count=1)
        serialised = self.session.machine.serialised_at(vcpu)
        return Execution(
            icount=icount,
            vcpu=vcpu,
            memory=memory,
            address=row.address,
            executed=row.text,
            held=held[0].text if held else "",
            int3=row.code == b"\xcc",
            grade=staleness.grade(serialised, write, number),
            serialised=serialised,
            number=number,
        )


def _snapshots_before(candidates: Sequence[Candidate]) -> list[int]:
    """The starts of the slices in which these blocks were fetched, of those far enough apart."""
    chosen: list[int] = []
    for start in sorted(each.slice for each in candidates):
        if not chosen or start >= chosen[-1] + _BETWEEN_SNAPSHOTS:
            chosen.append(start)
    return chosen


def _rank(execution: Execution) -> tuple[int, bool]:
    """Failures first; of those, an INT3 first. Of equals, the earliest is kept."""
    return "ABC".index(execution.grade), not execution.int3


def _victim(candidate: Candidate, block: "BlockInfo") -> Victim:
    return Victim(
        id=candidate.id,
        pc=candidate.pc,
        bits=block["bits"],
        ranges=tuple(block["ranges"]),
        source=block["source"],
        vcpu=block["vcpu"],
        fetched=block["fetched_at"],
        linked=block["linked_at"],
        born_stale=candidate.born_stale,
    )


def bisect_invalidation(
    trace: RecordedRun, choice: Choice | None = None, progress: Progress | None = None
) -> Finding | None:
    """Name the write that a stale block missed; None when no block was executed stale."""
    choice = choice or Choice()
    say = progress or (lambda _: None)
    started = time.monotonic()
    say("reading the trace")
    found = trace.stale_blocks()
    seconds = {"trace": time.monotonic() - started}
    candidates = [each for each in found.candidates if choice.wants(each)]
    if not candidates:
        _refuse_earlier(trace, found)
        return None
    if choice.at is None:
        candidates = candidates[:_MOST_BLOCKS]
    started = time.monotonic()
    say("replaying to the stale execution")
    search = _search(trace, choice, candidates)
    seconds["search"] = time.monotonic() - started
    if search.best is None:
        return None
    victim, execution, write = search.best
    finding = Finding(
        trace=str(trace.path),
        protocol=trace.spec.protocol,
        victim=victim,
        execution=execution,
        first=search.first[victim.id],
        write=write,
        vcpus=trace.spec.vcpus,
        born=found.born,
        survived=found.survived,
        executed=len(found.candidates),
        seconds=seconds,
    )
    _name_places(trace, finding, search.session)
    writes, snapshot = search.writes, search.snapshot_before(victim)
    # Before the next machine is made this one goes: each has RAM of its own.
    del search
    if write is not None:
        started = time.monotonic()
        say("proving it by a replay in which the block sees the write")
        _prove(trace, finding, write, snapshot)
        seconds["proof"] = time.monotonic() - started
    finding.timeline = _timeline(trace, finding, writes)
    return finding


def _refuse_earlier(trace: RecordedRun, found: StaleBlocks) -> None:
    """Raise `TraceContentError` if stale blocks were executed that were made before the trace
    begins."""
    if trace.begins is None:
        return
    known = {each.id for each in found.candidates}
    stale = {
        event.fields["id"]
        for event in trace.events(("stale",))
        if event.fields["what"] == STALE_ENTRY
    }
    if stale - known:
        parent = trace.header.branch
        where = "" if parent is None else f": bisect its parent '{parent.parent}'"
        raise TraceContentError(
            f"{len(stale - known):,} of the stale blocks executed in this trace were made before "
            f"it begins, at instruction {trace.begins:,}{where}"
        )


def _name_places(trace: RecordedRun, finding: Finding, session: "ReplaySession") -> None:
    victim, write = finding.victim, finding.write
    finding.victim_symbol = session.symbolize(victim.pc)
    finding.address_symbol = session.symbolize(finding.execution.address)
    if write is not None:
        protocol = trace.spec.block_protocol
        finding.window, finding.window_text = staleness.window(protocol, victim, write)
        finding.writer_symbol = None if write.rip is None else session.symbolize(write.rip)


def _search(trace: RecordedRun, choice: Choice, candidates: list[Candidate]) -> _Search:
    waiting = sorted(candidates, key=lambda each: each.fetched)
    known = {each.id: each for each in candidates}
    # What is written before the first of these blocks is fetched does not matter.
    search = _Search(trace.session(at=waiting[0].fetched - 1), choice, waiting, known)
    search.run()
    return search


def _prove(trace: RecordedRun, finding: Finding, write: Write, snapshot: "Snapshot | None") -> None:
    """Replay with the block made to see the write, past the failure."""
    victim, execution = finding.victim, finding.execution
    session = trace.session(at=write.checked - 1, snapshot=snapshot)
    if write.checked > session.icount:
        session.run(f"icount={write.checked}")
    if write.vcpu is not None:
        frames = [str(frame) for frame in session.backtrace(write.vcpu, 16)]
        if write.checked < session.began and finding.writer_symbol is not None:
            # The store was switched out in the middle: its instruction counts as done here.
            frames[:1] = [finding.writer_symbol]
        finding.writer_stack = tuple(frames)
    if victim.born_stale:
        diversion = session.divert()
        diversion.refetch_block(victim.id, victim.vcpu, victim.fetched)
        how, changed = "refetched", victim.linked
    else:
        if write.committed + 1 <= execution.icount:
            session.run(f"icount={write.committed + 1}")
        diversion = session.divert()
        diversion.invalidate_block(victim.id)
        how, changed = "invalidated", session.icount
    again: list[str] = []
    others = 0
    end = execution.icount + _BEYOND
    for _ in range(_MOST_EXECUTIONS):
        stop = session.run(["stale", f"icount={end}"])
        if str(stop.condition) != "stale":
            break
        block = diversion.current_block(stop.vcpu)
        # Made after the write, a block that goes stale is the victim of a later one.
        same = block is not None and tuple(block["ranges"]) == victim.ranges
        if same and block is not None and block["fetched_at"] <= write.committed:
            again.append(f"vCPU {stop.vcpu} executed it stale at {stop.icount:,}")
            break
        others += 1
    if again:
        what = f"the failure is still there: {again[0]}"
    elif stop.over:
        what = f"the failure is gone; the run ends with: {stop.reason}"
    else:
        what = f"the failure is gone, {stop.icount - execution.icount:,} instructions further"
    finding.proof = Proof(
        proved=not again and (stop.over or stop.icount >= execution.icount),
        how=how,
        changed=changed,
        until=stop.icount,
        what=what,
        others=others,
    )


def _timeline(trace: RecordedRun, finding: Finding, writes: list[Write]) -> list[Step]:
    """The moments of the race, in their order."""
    victim, execution, guilty = finding.victim, finding.execution, finding.write
    places = [range(start, start + length) for start, length in victim.ranges]
    steps = [
        Step(victim.fetched, victim.vcpu, f"reads the bytes of block {victim.id}", "fetch"),
        Step(victim.linked, victim.vcpu, f"links block {victim.id}", "link"),
    ]
    for event in trace.events(("slice",), first=max(0, victim.fetched - 400_000)):
        if event.icount > victim.linked:
            break
        length, stop = event.fields["instructions"], event.fields["stop"]
        assert isinstance(length, int)
        assert isinstance(stop, int)
        moment = event.icount + length
        if stop in staleness.WINDOW_ENDS and victim.fetched <= moment <= victim.linked:
            steps.append(Step(moment, event.vcpu, staleness.WINDOW_ENDS[stop], "switch"))
    touching = [
        write
        for write in writes
        if victim.fetched <= write.committed <= execution.icount
        and any(write.paddr < p.stop and p.start < write.paddr + len(write.new) for p in places)
    ]
    for write in touching[:20]:
        is_it = write == guilty
        text = f"{write.old.hex(' ')} → {write.new.hex(' ')} at physical {write.paddr:#x}"
        late = f", checked at {write.checked:,}" if write.passage == "late" else ""
        kind = "guilty" if is_it else "write"
        steps.append(Step(write.committed, write.vcpu, f"writes {text}{late}", kind))
    if guilty is not None and execution.grade == "A" and execution.serialised is not None:
        steps.append(Step(execution.serialised, execution.vcpu, "is serialised", "serialised"))
    first = finding.first
    if first.icount != execution.icount:
        text = f"executes the stale block (grade {first.grade})"
        steps.append(Step(first.icount, first.vcpu, text, "execution"))
    text = f"executes {execution.executed!r}, memory holds {execution.held!r}"
    steps.append(Step(execution.icount, execution.vcpu, text, "execution"))
    order = ("write", "fetch", "switch", "guilty", "link", "serialised", "execution")
    return sorted(steps, key=lambda step: (step.icount, order.index(step.kind)))


__all__ = ["Choice", "bisect_invalidation"]
