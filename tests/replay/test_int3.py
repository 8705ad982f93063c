"""INT3s at which a replay stops: stale ones, honest ones, and interrupts injected with vector 3."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rr86
from rr86.cli.app import app
from rr86.record.recorder import Recorder
from rr86.replay.bisect import Choice, bisect_invalidation
from rr86.session.conditions import AnyInt3, Int3
from rr86.session.int3 import INJECTED, SHORT, explain, look
from tests.fake_core import FakeCore, Step
from tests.guests.build import build, load_manifest
from tests.guests.machines import Recorded, outcome, record_guest
from tests.images import elf


def replayed(path: Path, *until: str) -> str:
    arguments = [each for condition in until for each in ("--until", condition)]
    return CliRunner().invoke(app, ["replay", *arguments, str(path)]).output


@pytest.fixture(scope="module", params=["precise", "qemu-7.2", "qemu-10"])
def breakpoints(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A debugger at work inside of the guest."""
    path = tmp_path_factory.mktemp("breakpoints") / "breakpoint.rr86"
    guest = load_manifest()["breakpoint"]
    options = {"protocol": request.param, "quantum": 1000, "window_bias": 32768}
    recorded = record_guest(guest, path, **options)
    assert recorded.outcome.code == guest.code, recorded.outcome.console
    return path


def test_int3_passes_over_honest_ones_where_there_are_stale_ones(stale: Recorded) -> None:
    trace = stale.trace()
    assert trace.stale_int3s > 0
    session = trace.session()
    stop = session.run("int3")
    assert stop.condition == Int3()
    assert trace.session().run("stale-int3").icount == stop.icount
    seen = look(session.machine, stop.vcpu)
    assert seen is not None
    assert seen.stale
    assert seen.executed == SHORT
    assert session.read_virtual(stop.rip, 1, stop.vcpu) == seen.memory != SHORT
    assert trace.session().run("any-int3").icount < stop.icount


def test_the_count_is_that_of_the_stops(stale: Recorded) -> None:
    trace = stale.trace()
    session = trace.session()
    stops = 0
    while not session.run("int3").over:
        stops += 1
    assert stops == trace.stale_int3s
    told = [each for each in trace.events(("stale",)) if each.fields["what"] == 3]
    assert 0 < len(told) <= stops
    first = trace.session().run("int3")
    assert (told[0].icount, told[0].vcpu) == (first.icount, first.vcpu)


def test_a_recording_that_was_not_finished_tells_as_well(stale: Recorded, clean: Recorded) -> None:
    for recorded in (stale, clean):
        whole, cut = recorded.trace(), recorded.trace()
        vars(cut)["footer"] = None
        assert (cut.stale_int3s > 0) == (whole.stale_int3s > 0)


def test_replay_says_what_kind_of_int3_it_has_stopped_at(stale: Recorded, clean: Recorded) -> None:
    wrong = replayed(stale.path, "int3")
    assert re.search(r"stale int3: block \d+ says cc, memory holds (0f|e9|e8) ", wrong)
    assert "of the INT3s executed in this trace" in wrong
    assert "honest int3: memory holds cc" in replayed(stale.path, "any-int3")
    honest = replayed(clean.path, "int3")
    assert "honest int3: memory holds cc" in honest
    assert "executed in this trace" not in honest


def test_breakpoints_in_guest_code_are_honest(breakpoints: Path) -> None:
    trace = rr86.open_trace(breakpoints)
    assert trace.stale_int3s == 0
    assert bisect_invalidation(trace) is None
    session = trace.session()
    seen: dict[bytes, int] = {}
    while not (stop := session.run("int3")).over:
        what = look(session.machine, stop.vcpu)
        assert what is not None
        assert not what.stale
        assert session.read_virtual(stop.rip, len(what.executed), stop.vcpu) == what.executed
        seen[what.executed] = seen.get(what.executed, 0) + 1
    # The debugger's and those compiled in; the two-byte form.
    assert seen == {b"\xcc": 200, b"\xcd\x03": 100}
    assert trace.session().run("stale-int3").over


def test_the_two_byte_form_is_told_with_its_bytes(breakpoints: Path) -> None:
    trace = rr86.open_trace(breakpoints)
    session = trace.session()
    while True:
        stop = session.run("int3")
        text = explain(session.machine, stop.vcpu, stop.condition)
        assert text is not None
        if "cd" in text:
            break
    assert re.fullmatch(r"honest int3: memory holds cd 03, as block \d+ does", text)


def test_an_injected_int3_is_neither_honest_nor_stale(core: FakeCore, tmp_path: Path) -> None:
    core.guest.steps = [Step(0x100000), Step(0x100001, vector=3), Step(0x100002, code=b"\xcc")]
    kernel = tmp_path / "guest.elf"
    kernel.write_bytes(elf([("start", 0x100000, 64)]))
    path = tmp_path / "run.rr86"
    rr86.record(kernel, output=path)
    session = rr86.open_trace(path).session()
    stop = session.run("any-int3")
    assert (stop.icount, stop.condition) == (1, AnyInt3())
    assert explain(session.machine, stop.vcpu, stop.condition) == INJECTED
    assert INJECTED in replayed(path, "int3")
    # The same place, but no INT3 was asked for.
    assert explain(session.machine, stop.vcpu, None) is None


def test_looking_for_stale_blocks_does_not_change_the_run(stale: Recorded, tmp_path: Path) -> None:
    trace = stale.trace()
    path = tmp_path / "blind.rr86"
    images = {"kernel": trace.image("kernel")}
    with Recorder(trace.spec, images, path) as recorder:
        recorder.machine.detect_stale(False)
        stop = recorder.run()
        assert recorder.machine.digests() == stale.outcome.digests
    assert (stop.reason, stop.icount) == (stale.outcome.reason, stale.outcome.icount)
    blind = rr86.open_trace(path)
    assert blind.stale_int3s == 0
    assert not list(blind.events(("stale",)))


def stopped(path: Path, until: str) -> Recorded:
    """The recording of `stale`, stopped early."""
    guest = replace(load_manifest()["textpoke"], append="rounds=1000")
    options = {"protocol": "qemu-7.2", "seed": 3, "quantum": 2000, "window_bias": 32768}
    recorder = rr86.start_recording(
        build(guest),
        smp=guest.smp,
        memory=guest.memory << 20,
        append=guest.append,
        output=path,
        **options,  # type: ignore[arg-type]
    )
    with recorder:
        stop = recorder.run(until=until)
        assert str(stop.condition) == until
        return Recorded(path, outcome(stop, recorder.machine, b"", b""))


def test_a_trace_that_ends_at_a_stale_int3_has_it(tmp_path: Path) -> None:
    """Recording, replay and bisection tell one story, although the counters in the footer are
    those of the stop, right before the INT3 executes."""
    recorded = stopped(tmp_path / "stopped.rr86", "stale-int3")
    trace = recorded.trace()
    assert trace.footer is not None
    assert not trace.footer.statistics.get("stale_int3s")
    assert trace.stale_int3s > 0
    stop = trace.replay("int3")
    assert (stop.condition, stop.icount) == (Int3(), recorded.outcome.icount)
    # The bisection counts from the entry of the block, which has a few instructions before.
    finding = bisect_invalidation(trace, Choice(at=stop.icount - 10))
    assert finding is not None
    assert finding.proved
    assert finding.execution.int3
    assert finding.execution.address == stop.rip
    assert stop.icount - 10 <= finding.execution.icount <= stop.icount
    assert "stale int3: block" in replayed(recorded.path, "int3")


def test_int3_tells_of_stale_blocks_without_one(tmp_path: Path) -> None:
    """Where other instructions were stale, an honest INT3 is not the end of the story."""
    recorded = stopped(tmp_path / "stopped.rr86", "stale")
    trace = recorded.trace()
    assert (trace.stale_int3s, trace.stale_executions) == (0, 1)
    told = replayed(recorded.path, "int3")
    assert "honest int3: memory holds cc" in told
    assert "memory held every INT3 executed in this trace, but not 1 block of other" in told
    assert trace.replay("stale").icount == recorded.outcome.icount
