"""Branches: going live from any moment of a replay, and traces that begin there."""

from pathlib import Path

import pytest

import rr86
from rr86.replay.diversion import RECORDED
from rr86.replay.trace import Trace, open_trace
from tests.demo import record_demo
from tests.guests.build import load_manifest
from tests.guests.machines import Recorded, record_guest

MANIFEST = load_manifest()
# A moment of the demo guest in which all vCPUs run, that lies inside a slice.
MOMENT = 2_000_003
SOME = rr86.Limits(instructions=MOMENT + 600_000)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return open_trace(record_demo(tmp_path_factory.mktemp("parent"), seed=3).path)


@pytest.fixture(scope="module")
def standing(parent: Trace) -> rr86.ReplaySession:
    session = parent.session()
    session.run(f"icount={MOMENT}")
    return session


def digests_of_end(path: Path) -> dict[str, int]:
    session = open_trace(path).session()
    session.run()
    return session.machine.digests()


def test_a_branch_begins_with_the_machine_of_its_moment(standing: rr86.ReplaySession) -> None:
    with standing.branch(seed=5) as branch:
        assert branch.icount == branch.began == MOMENT
        for vcpu in range(4):
            assert branch.inspector.registers(vcpu) == standing.registers(vcpu)
        assert branch.inspector.memory(0x100000, 1 << 16) == standing.memory(0x100000, 1 << 16)
        stop = branch.run(limits=SOME)
        assert stop.reason == "limit"
        assert stop.icount > MOMENT
    # What the branch does is no matter of the replay's.
    assert standing.icount == MOMENT


def test_a_replay_that_has_moved_on_branches_off_from_there(parent: Trace) -> None:
    session = parent.session()
    moments = [1_000_000, 1_000_001, 1_500_000]
    for moment in moments:
        session.run(f"icount={moment}")
        branch = session.branch()
        assert branch.began == moment
        assert branch.inspector.registers(0) == session.registers(0)


def test_a_trace_of_a_branch_replays_by_itself_and_names_its_parent(
    standing: rr86.ReplaySession, parent: Trace, tmp_path: Path
) -> None:
    path = tmp_path / "branch.rr86"
    heard = bytearray()
    with standing.branch(
        output=path, console=heard.extend, seed=5, schedule="random", quantum=2000, input=b"hi"
    ) as branch:
        stop = branch.run()
        digests = branch.machine.digests()
    trace = open_trace(path)
    assert trace.begins == MOMENT
    origin = trace.header.branch
    assert origin is not None
    assert (origin.parent, origin.content_id) == (parent.path.name, parent.content_id)
    assert (origin.icount, origin.vcpu) == (MOMENT, standing.stop.vcpu if standing.stop else None)
    assert origin.changed == {"seed": 5, "schedule": "random", "quantum": 2000, "input": b"hi"}
    assert (trace.spec.seed, trace.spec.schedule) == (5, "random")
    moved = path.rename(tmp_path / "moved.rr86")
    session = open_trace(moved).session()
    assert session.began == session.icount == MOMENT
    assert session.run().icount == stop.icount
    assert session.compared_digests()[0] > 0
    assert session.machine.digests() == digests
    assert session.console == bytes(heard)
    assert heard


def test_equal_branches_have_equal_traces_and_other_seeds_do_not(
    standing: rr86.ReplaySession, tmp_path: Path
) -> None:
    contents = []
    for name, seed in (("one", 5), ("same", 5), ("other", 6)):
        path = tmp_path / f"{name}.rr86"
        with standing.branch(output=path, seed=seed) as branch:
            branch.run(limits=SOME)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_a_branch_of_a_branch_of_a_branch_replays(
    standing: rr86.ReplaySession, tmp_path: Path
) -> None:
    session, moment = standing, MOMENT
    names = ["first.rr86", "second.rr86", "third.rr86"]
    for number, name in enumerate(names):
        with session.branch(output=tmp_path / name, seed=number) as branch:
            branch.run(limits=rr86.Limits(instructions=moment + 300_000))
            digests = branch.machine.digests()
        trace = open_trace(tmp_path / name)
        assert trace.begins == moment
        assert digests_of_end(tmp_path / name) == digests
        session = trace.session()
        moment += 100_001
        session.run(f"icount={moment}")
    origin = open_trace(tmp_path / "third.rr86").header.branch
    assert origin is not None
    assert origin.parent == "second.rr86"


def test_a_branch_that_follows_the_recording_ends_as_the_parent_did(
    standing: rr86.ReplaySession, parent: Trace, tmp_path: Path
) -> None:
    path = tmp_path / "same.rr86"
    with standing.branch(output=path, schedule=RECORDED) as branch:
        stop = branch.run()
        digests = branch.machine.digests()
    recorded = parent.session()
    assert recorded.run().icount == stop.icount
    assert recorded.machine.digests() == digests
    assert digests_of_end(path) == digests


def test_what_is_written_is_there_from_the_beginning_on(
    standing: rr86.ReplaySession, tmp_path: Path
) -> None:
    path = tmp_path / "written.rr86"
    place = 0x3F00000
    before = standing.memory(place, 4)
    with standing.branch(output=path, writes=[(place, b"\x12\x34\x56\x78")]) as branch:
        branch.run(limits=SOME)
    trace = open_trace(path)
    assert trace.session().memory(place, 4) == b"\x12\x34\x56\x78"
    assert standing.memory(place, 4) == before
    origin = trace.header.branch
    assert origin is not None
    assert origin.changed == {"writes": [(place, 4, b"\x12\x34\x56\x78")]}
    # No write to it since the trace begins.
    (record,) = trace.who_wrote(place, 4)
    assert record.by == "none"
    assert record.after == b"\x12\x34\x56\x78"


def test_another_protocol_holds_from_the_branch_on(
    standing: rr86.ReplaySession, tmp_path: Path
) -> None:
    path = tmp_path / "qemu.rr86"
    with standing.branch(
        output=path, protocol="qemu-7.2", window_bias=60_000, quantum=300
    ) as branch:
        branch.run()
        digests = branch.machine.digests()
    trace = open_trace(path)
    assert trace.spec.protocol == "qemu-7.2"
    assert any(event.fields["stop"] in (5, 6, 7) for event in trace.events(("slice",)))
    assert digests_of_end(path) == digests


def test_checkpoints_of_a_branch_and_those_added_later(
    standing: rr86.ReplaySession, tmp_path: Path
) -> None:
    from rr86.replay.checkpoints import add_checkpoints

    path = tmp_path / "kept.rr86"
    with standing.branch(output=path, checkpoints=400_000, seed=2) as branch:
        branch.run()
        digests = branch.machine.digests()
    trace = open_trace(path)
    content_id = trace.content_id
    own = trace.checkpoints()
    assert own[0].icount == MOMENT
    assert len(own) > 2
    session = trace.session(at=own[-1].icount)
    assert session.began == own[-1].icount
    session.run()
    assert session.machine.digests() == digests
    again = add_checkpoints(trace, 1)
    assert [again.checkpoints()[0].icount, again.begins] == [MOMENT, MOMENT]
    assert again.content_id == content_id
    last = again.checkpoints()[-1]
    assert len(again.checkpoints()) > 1
    assert last.pages < again.checkpoints()[0].pages
    session = again.session(at=last.icount)
    session.run()
    assert session.machine.digests() == digests


def test_vcpus_of_a_branch_are_replayed_alone(standing: rr86.ReplaySession, tmp_path: Path) -> None:
    path = tmp_path / "alone.rr86"
    with standing.branch(output=path, seed=8) as branch:
        branch.run()
    trace = open_trace(path)
    done = trace.replay_parallel(jobs=1)
    assert [each.instructions for each in done.vcpus] == trace.retired()
    assert all(each.instructions for each in done.vcpus)


def test_who_wrote_looks_as_far_back_as_the_trace_goes(
    standing: rr86.ReplaySession, tmp_path: Path
) -> None:
    from rr86.replay import WriteHistory

    path = tmp_path / "asked.rr86"
    with standing.branch(output=path, seed=8) as branch:
        branch.run()
    trace = open_trace(path)
    history, logged = WriteHistory(trace), WriteHistory(trace)
    cross = [each for each in trace.cross_writes() if each.writer is not None and each.addresses]
    asked = [(each.addresses[0], each.icount) for each in cross[:: len(cross) // 3]]
    replayed = [history.who_wrote(paddr, 64, at) for paddr, at in asked]
    assert any(record.by == "vcpu" for records in replayed for record in records)
    logged.expand()
    for (paddr, at), records in zip(asked, replayed, strict=True):
        found = logged.who_wrote(paddr, 64, at)
        assert [(r.by, r.vcpu, r.moment, r.after) for r in found] == [
            (r.by, r.vcpu, r.moment, r.after) for r in records
        ]
        assert all(r.moment is None or r.moment >= MOMENT for r in found)


def test_a_stale_block_from_before_the_branch_is_the_parents(
    stale: Recorded, tmp_path: Path
) -> None:
    from rr86.replay.bisect import Choice, bisect_invalidation

    trace = stale.trace()
    finding = bisect_invalidation(trace)
    assert finding is not None
    victim = finding.victim
    # Between the link of the block that was born stale and its execution.
    session = trace.session()
    session.run(f"icount={victim.linked + 1}")
    path = tmp_path / "branch.rr86"
    with session.branch(output=path, schedule=RECORDED) as branch:
        stop = branch.run(until="stale-int3")
    assert stop.icount == trace.replay(until="stale-int3").icount
    with pytest.raises(rr86.TraceContentError, match=f"bisect its parent '{trace.path.name}'"):
        bisect_invalidation(open_trace(path), Choice(block=victim.id))
    # From before the fetch, the branch has all of the story.
    session = trace.session()
    session.run(f"icount={victim.fetched - 5000}")
    path = tmp_path / "whole.rr86"
    with session.branch(output=path, schedule=RECORDED) as branch:
        branch.run(until="stale-int3")
    again = bisect_invalidation(open_trace(path))
    assert again is not None
    assert again.proved
    assert again.write == finding.write


def test_under_a_precise_protocol_the_stale_int3_is_gone(stale: Recorded) -> None:
    trace = stale.trace()
    session = trace.session()
    stop = session.run("stale-int3")
    session = trace.session()
    session.run(f"icount={stop.icount - 3000}")
    same = session.branch(schedule=RECORDED)
    assert same.run(until="stale-int3").icount == stop.icount
    precise = session.branch(schedule=RECORDED, protocol="precise")
    ended = precise.run(until="stale-int3", limits=rr86.Limits(instructions=stop.icount + 500_000))
    assert ended.condition is None


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record_guest(MANIFEST["echo"], tmp_path_factory.mktemp("echo") / "echo.rr86")


def test_input_reaches_a_branch_at_once_and_is_recorded(echo: Recorded, tmp_path: Path) -> None:
    session = echo.trace().session()
    session.run("console=ready")
    path = tmp_path / "typed.rr86"
    with session.branch(output=path, input=MANIFEST["echo"].input.encode()) as branch:
        stop = branch.run(limits=rr86.Limits(instructions=50_000_000))
    trace = open_trace(path)
    typed = [event.fields["bytes"] for event in trace.events(("input",))]
    assert b"".join(each for each in typed if isinstance(each, bytes)) == (
        MANIFEST["echo"].input.encode()
    )
    assert trace.replay().icount == stop.icount


def test_where_nothing_can_begin_and_what_cannot_be_changed(
    parent: Trace, standing: rr86.ReplaySession, tmp_path: Path
) -> None:
    ended = parent.session()
    ended.run()
    with pytest.raises(rr86.NativeError, match="the machine ends"):
        ended.branch()
    with pytest.raises(rr86.NativeError, match="no RAM"):
        standing.branch(writes=[(1 << 40, b"\0")])
    with pytest.raises(rr86.SpecError, match="schedule"):
        standing.branch(schedule="none such")
    with pytest.raises(rr86.NativeError, match="chain-kept"):
        standing.branch(protocol="chain-kept", output=tmp_path / "no.rr86")
    with pytest.raises(rr86.RecordingError, match="overwrite its parent"):
        standing.branch(output=parent.path)
    (tmp_path / "text").write_text("no trace")
    with pytest.raises(rr86.RecordingError, match="not a trace"):
        standing.branch(output=tmp_path / "text")
    begun = standing.branch()
    begun.run(1000)
    with pytest.raises(rr86.RecordingError, match="has begun"):
        begun.record(tmp_path / "late.rr86")
    with pytest.raises(rr86.RecordingError, match="keeps no trace"):
        begun.finish()


def test_the_oracle_needs_a_trace_from_power_on(
    standing: rr86.ReplaySession, tmp_path: Path
) -> None:
    with standing.branch(output=tmp_path / "short.rr86") as branch:
        branch.run(1000)
    with pytest.raises(rr86.TraceContentError, match="begins at instruction 2,000,003"):
        open_trace(tmp_path / "short.rr86").session(oracle=True)


def resident() -> int:
    """Bytes of memory that this process has for itself, and its parts of what it shares."""
    text = Path("/proc/self/smaps_rollup").read_text()
    line = next(line for line in text.splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) << 10


def test_ten_branches_of_one_moment_share_its_memory(tmp_path: Path) -> None:
    size = 96 << 20
    recorded = record_demo(tmp_path, memory="256M")
    session = open_trace(recorded.path).session()
    session.run("icount=1000000")
    # As a large guest would have it: all of this is part of the moment.
    with session.branch(writes=[(0x4000000, bytes(range(1, 256)) * (size // 255))]) as big:
        big.record(tmp_path / "big.rr86")
        big.run(1000)
    big_session = open_trace(tmp_path / "big.rr86").session()
    first = big_session.branch(seed=0)
    before = resident()
    others = [big_session.branch(seed=seed) for seed in range(1, 11)]
    for each in (first, *others):
        assert each.run(200_000).icount > first.began
        assert each.inspector.memory(0x4000000, 255) == bytes(range(1, 256))
    ten = resident() - before
    assert ten < 2 * size, f"ten branches of {size:,} bytes took {ten:,}"
