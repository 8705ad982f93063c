"""Timelines of guests whose course is known."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

import rr86
from rr86.analysis.collector import _Run, collect
from rr86.analysis.schedule import schedule_of
from rr86.analysis.timeline import OWNERS, Kind, MarkKind, Skip, Timeline
from rr86.trace.vocabulary import NO_VCPU
from tests.analysis.conftest import TRACES, Record
from tests.guests.machines import Recorded


def assert_well_formed(timeline: Timeline) -> None:
    """Whose time it is is known at all times, and everything else lies within that."""
    for vcpu in range(timeline.vcpus):
        owners = timeline.of_vcpu(vcpu, 0)
        assert owners[0].start == timeline.begin
        assert owners[-1].end == timeline.end
        assert all(a.end == b.start for a, b in pairwise(owners))
        assert all(span.end > span.start for span in owners)
        assert all((span.kind in OWNERS) == (span.depth == 0) for span in timeline.of_vcpu(vcpu))
        around = owners
        depth = 1
        while inner := timeline.of_vcpu(vcpu, depth):
            assert all(a.end <= b.start for a, b in pairwise(inner))
            for span in inner:
                assert any(o.start <= span.start and span.end <= o.end for o in around), span
            around, depth = inner, depth + 1


@pytest.mark.parametrize("name", ["smp", "user", "timers", "faults", "textpoke", "asleep"])
def test_the_spans_of_a_vcpu_fill_its_time_and_nest(name: str, record: Record) -> None:
    options = {"append": "rounds=20"} if name == "textpoke" else {}
    assert_well_formed(collect(record(name, **options).trace()))


@pytest.mark.parametrize("path", sorted(TRACES.glob("*.rr86")), ids=lambda each: each.stem)
def test_reference_traces_have_timelines(path: Path) -> None:
    assert_well_formed(collect(rr86.open_trace(path)))


def test_two_timelines_of_a_trace_are_equal(smp: Recorded, smp_timeline: Timeline) -> None:
    assert collect(smp.trace()) == smp_timeline


def test_slices_are_when_the_vcpus_ran(smp: Recorded, smp_timeline: Timeline) -> None:
    begin, end = smp_timeline.begin, smp_timeline.end
    ran = [smp_timeline.ran(vcpu, begin, end) for vcpu in range(4)]
    assert ran == smp.trace().retired()
    assert sum(ran) == smp_timeline.instructions == smp.outcome.icount
    assert smp_timeline.end == smp.outcome.time_ns
    edges = sorted(piece for pieces in smp_timeline.slices for piece in pieces)
    assert all(a[1] <= b[0] for a, b in pairwise(edges))


def test_rates_add_up_to_the_instructions(smp_timeline: Timeline) -> None:
    steps = list(smp_timeline.rates(7))
    assert len(steps) == 7
    # Time is the instructions of all vCPUs, where it does not jump.
    assert all(990 <= sum(rates) <= 1000 for _, rates in steps)
    # At first vCPU 0 is alone.
    (_, first), *_ = smp_timeline.rates(100)
    assert first == [1000, 0, 0, 0]


def test_vcpus_are_off_until_they_are_started(smp: Recorded, smp_timeline: Timeline) -> None:
    firsts: dict[int | None, int] = {}
    for event in smp.trace().events(["slice"]):
        firsts.setdefault(event.vcpu, event.icount)
    for vcpu in range(1, 4):
        off, guest = smp_timeline.of_vcpu(vcpu, 0)
        assert (off.kind, off.end) == (Kind.OFF, firsts[vcpu])
        assert guest.kind is Kind.GUEST
    assert [span.kind for span in smp_timeline.of_vcpu(0, 0)] == [Kind.GUEST]


def test_interrupts_are_those_that_the_guest_sends(smp_timeline: Timeline) -> None:
    # The guest sends 20 fixed, 10 to all others, 10 to all and 10 NMIs to each other vCPU, and 10
    # to itself; one more is sent twice while it cannot be taken.
    for vcpu in range(1, 4):
        names = Counter(span.name for span in smp_timeline.of_vcpu(vcpu, 1))
        assert names["vector 64"] == 20
        assert names["vector 65"] == 10
        assert names["vector 66"] == 10
        assert names["NMI"] == 10
    own = Counter(span.name for span in smp_timeline.of_vcpu(0, 1))
    assert own["vector 64"] == 11
    assert own["vector 65"] == 0
    assert own["vector 66"] == 10


def test_ipis_lead_to_the_interrupts_that_they_cause(smp_timeline: Timeline) -> None:
    sent = Counter((ipi.name, ipi.to) for ipi in smp_timeline.ipis if ipi.source == 0)
    for vcpu in range(1, 4):
        assert sent["vector 64", vcpu] == 20
        assert sent["vector 65", vcpu] == sent["vector 66", vcpu] == sent["NMI", vcpu] == 10
        assert sent["INIT", vcpu] == 1
        assert sent["start-up", vcpu] == 1
    starts = {(s.vcpu, s.start, s.name) for s in smp_timeline.spans if s.depth}
    taken = [ipi for ipi in smp_timeline.ipis if ipi.taken is not None]
    assert len(taken) > 150
    for ipi in taken:
        assert ipi.taken is not None
        assert ipi.taken >= ipi.time
        if ipi.name == "start-up":
            assert ipi.taken == smp_timeline.of_vcpu(ipi.to, 0)[0].end
        else:
            assert (ipi.to, ipi.taken, ipi.name) in starts
    assert {ipi.name for ipi in smp_timeline.ipis if ipi.taken is None} <= {"INIT", "vector 64"}


def test_of_ipis_that_arrive_as_one_the_last_has_the_arrow(smp: Recorded) -> None:
    trace = smp.trace()
    run = _Run(trace, schedule_of(trace), smp.outcome.time_ns, 100)
    delivered = (64, False, False, 0x1000, 0x2000, 0x3000, 0, 0)
    for time, vcpu, kind, fields in [
        (1_600_000, 0, "ipi", (0, 64, 0b110)),
        (1_600_010, 3, "ipi", (0, 64, 0b010)),
        (1_600_020, 3, "ipi", (4, 2, 0b010)),
        (1_600_030, 1, "interrupt", delivered),
        (1_600_040, 1, "interrupt", delivered),
    ]:
        run._row((time, time, vcpu, kind, fields))
    assert [(ipi.time, ipi.source, ipi.to, ipi.taken) for ipi in run.ipis] == [
        (1_600_000, 0, 1, None),
        (1_600_000, 0, 2, None),
        (1_600_010, 3, 1, 1_600_030),
        (1_600_020, 3, 1, None),
    ]


def test_a_halted_vcpu_waits_until_it_runs_again(smp: Recorded, smp_timeline: Timeline) -> None:
    halted = [span for span in smp_timeline.spans if span.kind is Kind.HALTED]
    assert {span.vcpu for span in halted} >= {1, 2, 3}
    for span in halted:
        assert smp_timeline.ran(span.vcpu, span.start, span.end) == 0
    ends = Counter(
        (event.vcpu, event.icount + int(event.fields["instructions"]))
        for event in smp.trace().events(["slice"])
        if event.fields["stop"] == 2
    )
    assert {(span.vcpu, span.start) for span in halted} == set(ends)


def test_arrows_are_what_sharing_counts(smp: Recorded, smp_timeline: Timeline) -> None:
    sharing = smp.trace().sharing()
    assert smp_timeline.hand_offs == len(smp_timeline.arrows) == sharing.hand_offs > 500
    assert [(a.time, a.source, a.to, a.page, a.for_writing) for a in smp_timeline.arrows] == [
        (c.icount, c.writer, c.reader, c.page, c.for_writing) for c in smp.trace().cross_writes()
    ]
    pages = Counter(arrow.page for arrow in smp_timeline.arrows)
    assert {page.address: page.hand_offs for page in sharing.pages} == {
        page.address: pages[page.address] for page in sharing.pages
    }
    written = Counter(arrow.page for arrow in smp_timeline.arrows if arrow.for_writing)
    assert all(written[page.address] == page.for_writing for page in sharing.pages)


def test_of_many_arrows_some_are_left_out_and_that_is_said(smp: Recorded) -> None:
    full = collect(smp.trace())
    few = collect(smp.trace(), arrows=100)
    step = -(-full.hand_offs // 100)
    assert list(few.arrows) == list(full.arrows)[::step]
    assert few.hand_offs == full.hand_offs
    gone = full.hand_offs - len(few.arrows)
    assert f"{gone:,} of {full.hand_offs:,} hand-offs: one of {step:,} is an arrow" in few.left_out


def test_of_many_spans_the_shortest_are_left_out_and_that_is_said(smp: Recorded) -> None:
    full = collect(smp.trace())
    few = collect(smp.trace(), spans=50)
    assert_well_formed(few)
    inner = [span for span in few.spans if span.depth]
    assert 0 < len(inner) <= 50
    (said,) = [text for text in few.left_out if "took less than" in text]
    gone = len(full.spans) - len(few.spans)
    assert said.startswith(f"{gone:,} ")
    shortest = int(said.rsplit("than ", 1)[1].split()[0].replace(",", ""))
    assert [s for s in full.spans if s.depth and s.end - s.start >= shortest] == inner


def test_console_lines_stand_where_they_begin(smp: Recorded, smp_timeline: Timeline) -> None:
    lines = [mark for mark in smp_timeline.marks if mark.kind is MarkKind.CONSOLE]
    printed = smp.outcome.console.decode().splitlines()
    assert [mark.text for mark in lines] == [line for line in printed if line]
    for mark in lines[:3]:
        session = smp.trace().session(verify=False)
        session.run(f"icount={smp_timeline.icount_at(mark.time)}")
        before = session.console
        assert before == b"" or before.endswith(b"\n")
        session.run(f"icount={smp_timeline.icount_at(mark.time) + 1}")
        assert session.console == before + mark.text[0].encode()


def test_a_stale_execution_is_marked_where_a_replay_stops_at_it(
    stale_trace: rr86.Trace, stale_timeline: Timeline
) -> None:
    stop = stale_trace.replay(until="stale-int3", verify=False)
    marks = [m for m in stale_timeline.marks if m.kind is MarkKind.STALE_INT3]
    assert [(mark.time, mark.vcpu) for mark in marks] == [(stop.time_ns, stop.vcpu)]
    blocks = stale_trace.stale_blocks().candidates
    # The last that was entered by then.
    *_, block = (
        b for b in blocks if b.pc <= stop.rip < b.pc + b.length and b.executed <= stop.icount
    )
    assert marks[0].text == f"block {block.id} at {block.pc:#x} job10"
    entries = [m for m in stale_timeline.marks if m.kind is MarkKind.STALE]
    assert len(entries) == stale_trace.stale_executions


def test_invalidations_are_marked_at_who_wrote(
    stale_trace: rr86.Trace, stale_timeline: Timeline
) -> None:
    expected = Counter(
        None if event.fields["by"] == NO_VCPU else event.fields["by"]
        for event in stale_trace.events(["invalidate"])
    )
    found = Counter(m.vcpu for m in stale_timeline.marks if m.kind is MarkKind.INVALIDATION)
    assert found == expected
    assert found.total() > 100


def test_names_of_handlers_are_the_guests_own(stale_timeline: Timeline) -> None:
    timers = {span.name for span in stale_timeline.spans if span.kind is Kind.TIMER}
    assert timers == {"timer entry"}
    assert any(span.kind is Kind.SOFTWARE and span.name == "INT 3" for span in stale_timeline.spans)


def test_a_program_and_its_ways_into_the_kernel_are_told(record: Record) -> None:
    timeline = collect(record("user").trace())
    names = Counter(span.name for span in timeline.spans if span.kind is Kind.SYSTEM_CALL)
    # SYSCALL with 0x77, SYSENTER with 0x99, and INT 0x80.
    assert names["system call 119"]
    assert names["system call 153"]
    assert any(name.startswith("ia32 system call") for name in names)
    faults = {span.name for span in timeline.spans if span.kind is Kind.EXCEPTION}
    assert {"general protection", "page fault", "divide error"} <= faults
    assert any("in user mode" in s.detail for s in timeline.spans if s.name == "page fault")


def test_time_jumps_are_those_of_the_trace(record: Record) -> None:
    recorded = record("timers")
    timeline = collect(recorded.trace())
    jumps = list(recorded.trace().events(["time-skip"]))
    assert [skip.icount for skip in timeline.skips] == [e.icount for e in jumps]
    assert [skip.end for skip in timeline.skips] == [e.fields["to_ns"] for e in jumps]
    assert len(jumps) > 5
    # No vCPU runs meanwhile, and each moment has its time.
    for skip in timeline.skips:
        assert sum(timeline.ran(v, skip.start, skip.end) for v in range(timeline.vcpus)) == 0
        assert timeline.icount_at(skip.start) == timeline.icount_at(skip.end - 1) == skip.icount
        assert timeline.icount_at(skip.end) == skip.icount
    assert timeline.instructions == recorded.outcome.icount
    assert timeline.end == recorded.outcome.time_ns


def test_a_stretch_shows_the_same_as_the_whole_there(smp: Recorded, smp_timeline: Timeline) -> None:
    first, last = 1_000_000, 2_000_000
    part = collect(smp.trace(), first, last)
    assert_well_formed(part)
    assert (part.begin, part.end, part.instructions) == (first, last, last - first)
    whole = smp_timeline
    assert part.arrows == [a for a in whole.arrows if first <= a.time < last]
    assert [m for m in part.marks if m.kind is not MarkKind.CONSOLE] == [
        m for m in whole.marks if first <= m.time < last and m.kind is not MarkKind.CONSOLE
    ]
    inside = [s for s in whole.spans if first < s.start and s.end < last]
    assert [s for s in part.spans if first < s.start and s.end < last] == inside
    for vcpu in range(4):
        assert part.ran(vcpu, first, last) == whole.ran(vcpu, first, last)


def test_a_stretch_behind_jumps_keeps_its_moments(record: Record) -> None:
    recorded = record("timers")
    whole = collect(recorded.trace())
    moment = whole.skips[len(whole.skips) // 2].icount
    middle = [skip for skip in whole.skips if skip.icount == moment][-1]
    part = collect(recorded.trace(), middle.icount + 1)
    assert part.begin == middle.end + 1
    assert part.icount_at(part.begin) == middle.icount + 1
    assert part.icount_at(part.end) == recorded.outcome.icount
    assert part.skips == [skip for skip in whole.skips if skip.start >= part.begin]


@pytest.mark.parametrize(("first", "last"), [(10**9, None), (5, 5), (100, 50)])
def test_a_stretch_of_nothing_is_refused(smp: Recorded, first: int, last: int | None) -> None:
    with pytest.raises(rr86.UsageError, match="nothing between the moments"):
        collect(smp.trace(), first, last)


def test_an_interrupted_replay_has_the_timeline_up_to_there(smp: Recorded) -> None:
    stops: list[rr86.Stop] = []

    def enough(stop: rr86.Stop) -> bool:
        stops.append(stop)
        return stop.icount > 0

    session_end = collect(smp.trace(), tick=enough).end
    assert session_end == stops[-1].time_ns


def test_moments_and_times_follow_from_each_other() -> None:
    timeline = Timeline(
        "made", 1, 0, 1000, 0, [], [[]], skips=[Skip(100, 300, 100), Skip(400, 500, 200)]
    )
    assert [timeline.icount_at(t) for t in (0, 100, 299, 300, 399, 450, 500, 1000)] == [
        *(0, 100, 100, 100, 199, 200, 200, 700)
    ]
    assert timeline.instructions == 700


def test_the_schedule_of_a_trace_knows_the_time_of_each_moment(record: Record) -> None:
    trace = record("timers").trace()
    schedule = schedule_of(trace)
    slices = list(trace.events(["slice"]))
    session = trace.session(verify=False)
    for event in slices[:: len(slices) // 20]:
        stop = session.run(f"icount={event.icount + 1}")
        assert schedule.time_of(event.icount + 1) == stop.time_ns
