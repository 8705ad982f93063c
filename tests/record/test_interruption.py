"""Whatever a guest does, a run comes back to its caller, and where it does changes nothing."""

from pathlib import Path

import pytest

import rr86
from rr86.record.recorder import Recorder
from tests.guests.build import build, load_manifest
from tests.guests.machines import assert_same_run, finished, record_guest, replay

MANIFEST = load_manifest()
# Blocks, or what takes as long, between two returns of a run.
STEPS = (13, 1000)
# Guests that are short, and among them use every part of the engine.
GUESTS = ("asleep-nmi", "faults", "own-alias", "smc", "smp", "storm", "string")


def recorder(name: str, path: Path, append: str | None = None, **options: object) -> Recorder:
    guest = MANIFEST[name]
    return rr86.start_recording(
        build(guest),
        smp=guest.smp,
        memory=guest.memory << 20,
        append=guest.append if append is None else append,
        output=path,
        **options,  # type: ignore[arg-type]
    )


def record_in_steps(name: str, path: Path, steps: int | None, **options: object) -> bytes:
    """The whole trace of a guest, of which the recording comes back after so many steps."""
    guest = MANIFEST[name]
    with recorder(name, path, None, **options) as run:
        if steps is not None:
            run.machine.set_call_limit(steps)
        if guest.input:
            run.run(until="console=ready")
            run.send(guest.input.encode())
        assert run.run().reason == guest.end
    return path.read_bytes()


@pytest.mark.parametrize("name", GUESTS)
def test_where_a_run_comes_back_shows_in_no_byte_of_its_trace(name: str, tmp_path: Path) -> None:
    whole = record_in_steps(name, tmp_path / "whole.rr86", None)
    for steps in STEPS:
        assert record_in_steps(name, tmp_path / f"{steps}.rr86", steps) == whole, steps


@pytest.mark.parametrize("protocol", ["qemu-7.2", "chain-kept", "same-block-ignored"])
def test_runs_come_back_unseen_under_other_protocols(protocol: str, tmp_path: Path) -> None:
    options = {"protocol": protocol, "quantum": 2000}
    whole = record_in_steps("smp", tmp_path / "whole.rr86", None, **options)
    assert record_in_steps("smp", tmp_path / "steps.rr86", 13, **options) == whole


def test_runs_come_back_inside_of_long_slices(tmp_path: Path) -> None:
    long = 50_000_000
    whole = record_in_steps("string", tmp_path / "whole.rr86", None, quantum=long)
    assert record_in_steps("string", tmp_path / "steps.rr86", 13, quantum=long) == whole


@pytest.mark.parametrize("name", ["faults", "smp", "storm", "string"])
def test_a_replay_that_comes_back_at_every_turn_is_the_recorded_run(
    name: str, tmp_path: Path
) -> None:
    recorded = record_guest(MANIFEST[name], tmp_path / "guest.rr86")
    session = recorded.trace().session()
    session.machine.set_call_limit(13)
    assert_same_run(finished(session, session.run()), recorded.outcome)


@pytest.mark.parametrize(
    ("name", "append"),
    [("storm", f"kind={kind} stay=1") for kind in range(5)] + [("hang", "")],
)
def test_instruction_limits_end_whatever_is_executed(
    name: str, append: str, tmp_path: Path
) -> None:
    limits = rr86.Limits(instructions=1_000_000)
    with recorder(name, tmp_path / "guest.rr86", append) as run:
        stop = run.run(limits=limits)
        assert (stop.reason, stop.detail) == ("limit", "1,000,000 instructions")
        end = run.icount
    trace = rr86.open_trace(tmp_path / "guest.rr86")
    replayed = trace.session().run()
    assert (replayed.reason, replayed.icount) == ("end", end)


@pytest.mark.parametrize("name", ["asleep", "asleep-init", "asleep-priority"])
def test_a_deadlock_behind_running_timers_is_found(name: str, tmp_path: Path) -> None:
    recorded = record_guest(MANIFEST[name], tmp_path / "guest.rr86")
    assert recorded.outcome.reason == "deadlock"
    # Few jumps of time lead there, however fast the timers are.
    assert len(list(recorded.trace().events(["time-skip"]))) < 100
    assert_same_run(replay(recorded), recorded.outcome)


def test_an_hour_of_timers_without_effect_is_one_jump(tmp_path: Path) -> None:
    recorded = record_guest(MANIFEST["asleep-nmi"], tmp_path / "guest.rr86")
    assert recorded.outcome.time_ns > 3600 * 10**9
    assert len(list(recorded.trace().events(["time-skip"]))) < 100


def test_a_run_without_end_can_be_interrupted(tmp_path: Path) -> None:
    ticks: list[rr86.Stop] = []

    def enough(stop: rr86.Stop) -> bool:
        ticks.append(stop)
        return len(ticks) == 3

    with recorder("storm", tmp_path / "guest.rr86", "kind=0 stay=1") as run:
        run.machine.set_call_limit(1000)
        assert run.run(tick=enough).reason == "interrupted"
    assert len(ticks) == 3
    assert rr86.open_trace(tmp_path / "guest.rr86").session().run().reason == "end"


def test_a_block_that_ends_early_leaves_a_slice_nothing(tmp_path: Path) -> None:
    """The first block of a slice runs whether it fits or not; what it has left over when it changes
    itself is not the slice's, wherever the recording comes back."""
    options = {"quantum": 1, "schedule": "pct"}
    whole = record_in_steps("smc", tmp_path / "whole.rr86", None, **options)
    for steps in (1, 13):
        assert record_in_steps("smc", tmp_path / f"{steps}.rr86", steps, **options) == whole, steps


def test_a_guest_that_ends_in_the_slice_of_its_last_line_has_ended(tmp_path: Path) -> None:
    """Not at the limit that the same slice reaches; its replay says the same."""
    ends = []
    for limit in (None, 1000):
        path = tmp_path / f"{limit}.rr86"
        seen = bytearray()
        guest = build(load_manifest()["hello"])
        with rr86.start_recording(
            guest, output=path, memory=64 << 20, quantum=10**8, console=seen.extend
        ) as recorder:
            stop = recorder.run(limits=rr86.Limits(instructions=limit))
        assert seen
        ends.append((stop.reason, stop.icount))
        assert rr86.open_trace(path).replay().reason == stop.reason
    assert ends[0] == ends[1]
    assert ends[0][0] == "poweroff"
