"""Where a slice ends, and where a run does, nothing is left open: the interrupt of a timer that was
due at the last instruction, and the marks that the last timers leave on a machine that waits for
ever."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import rr86
from tests.guests.build import build, load_manifest
from tests.guests.machines import (
    Outcome,
    Recorded,
    assert_same_run,
    outcome,
    record_guest,
    replay,
)

DEADLINES = load_manifest()["deadlines"]
IDLE = load_manifest()["idle"]


@pytest.mark.parametrize(
    ("smp", "append", "options"),
    [
        # Here the interrupt of `wrmsr; sti; hlt` comes with the last instruction of a slice.
        (1, "rounds=5 seed=1", {"seed": 0, "quantum": 50, "checkpoints": 1}),
        (1, "rounds=8 seed=1", {"quantum": 50}),
        (1, "rounds=8 seed=2", {"quantum": 300, "max_block": 3, "schedule": "random"}),
        (2, "rounds=3 seed=3 x2apic=1", {"quantum": 60, "schedule": "pct"}),
        (3, "rounds=2 seed=4", {"quantum": 200, "max_block": 1, "schedule": "starve"}),
    ],
)
def test_timers_that_are_due_at_once_replay_with_digests_at_most_slices(
    smp: int, append: str, options: dict[str, Any], tmp_path: Path
) -> None:
    guest = replace(DEADLINES, smp=smp)
    settings = {"seed": smp, "checkpoints": 40, **options}
    recorded = record_guest(guest, tmp_path / "guest.rr86", append=append, **settings)
    seen = recorded.outcome
    assert (seen.reason, seen.code) == (guest.end, guest.code), seen.console
    assert_same_run(replay(recorded), seen)


def test_vcpus_alone_take_timers_that_are_due_at_once(tmp_path: Path) -> None:
    recorded = record_guest(
        DEADLINES, tmp_path / "guest.rr86", seed=5, quantum=300, checkpoints=500
    )
    trace = recorded.trace()
    for vcpu, instructions in enumerate(trace.retired()):
        session = trace.alone(vcpu)
        assert session.run().reason == "end"
        assert session.instructions == instructions


def idle(path: Path, append: str, smp: int = 1, until: str | None = None) -> Recorded:
    """Record a machine that halts for ever, to its end or for two million instructions."""
    console = bytearray()
    recorder = rr86.start_recording(
        build(IDLE), smp=smp, memory=64 << 20, append=append, output=path, console=console.extend
    )
    with recorder:
        stop = recorder.run(until=until, limits=rr86.Limits(instructions=2_000_000))
        result = outcome(stop, recorder.machine, bytes(console), b"")
    return Recorded(path, result)


def assert_state_is_equal(replayed: Outcome, recorded: Outcome) -> None:
    assert replayed.digests == recorded.digests
    assert (replayed.icount, replayed.time_ns) == (recorded.icount, recorded.time_ns)


@pytest.mark.parametrize("lines", ["pin=0 pic=0", "pin=1 pic=0", "pin=0 pic=1"])
@pytest.mark.parametrize("timer", ["PIT", "HPET by level", "HPET by edge", "APIC"])
@pytest.mark.parametrize("interrupts", ["open=0", "open=1"])
def test_the_last_timers_of_a_machine_that_waits_for_ever_fire_in_its_replay(
    timer: str, lines: str, interrupts: str, tmp_path: Path
) -> None:
    number = {"PIT": 0, "HPET by level": 1, "HPET by edge": 2, "APIC": 4}[timer]
    append = f"timer={number} {lines} {interrupts}"
    recorded = idle(tmp_path / "guest.rr86", append, smp=1 + number % 2)
    if (number, lines, interrupts) == (1, "pin=1 pic=0", "open=1"):
        # The handler does not clear the level, so the interrupt comes back for ever.
        assert recorded.outcome.reason == "limit"
    else:
        assert recorded.outcome.reason == "deadlock"
    assert_state_is_equal(replay(recorded), recorded.outcome)


def test_a_machine_that_waits_for_ever_replays_from_older_traces(tmp_path: Path) -> None:
    path = tmp_path / "guest.rr86"
    recorder = rr86.start_recording(
        build(IDLE), memory=64 << 20, append="timer=0", output=path, semantics=1
    )
    with recorder:
        stop = recorder.run()
        recorded = Recorded(path, outcome(stop, recorder.machine, b"", b""))
    assert recorded.outcome.reason == "deadlock"
    assert_state_is_equal(replay(recorded), recorded.outcome)


@pytest.mark.parametrize("until", [None, "icount=700000", "irq=66", "console=idle"])
def test_a_beating_machine_that_is_idle_replays_to_where_its_recording_was_ended(
    until: str | None, tmp_path: Path
) -> None:
    append = "timer=0 beat=1 pin=1 open=1"
    recorded = idle(tmp_path / "guest.rr86", append, smp=2, until=until)
    assert recorded.outcome.reason == ("limit" if until is None else "condition")
    trace = recorded.trace()
    session = trace.session()
    assert session.run().reason == "end"
    if until is None:
        assert session.machine.digests() == recorded.outcome.digests
