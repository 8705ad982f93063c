"""Every test guest does what it must, and its run replays exactly: whatever the schedule, the block
length and the cache's size, and however the replay is watched, stopped or cut into pieces."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rr86
from tests.guests.build import Guest, build, load_manifest
from tests.guests.machines import (
    Recorded,
    assert_same_run,
    finished,
    record_guest,
    replay,
)

MANIFEST = load_manifest()
# Fewer rounds of the long guests, for tests that run them many times.
SHORT = {
    "textpoke": "rounds=20",
    "xmod": "variant=alone rounds=50",
    "xmod-shared": "variant=shared rounds=50",
}
# Guests that run patched code, one for each way in which a machine can miss the patch.
RELATIVES = tuple(sorted(name for name in MANIFEST if name.startswith("rel-")))
# Guests that are short, and among them use every part of the engine.
SMALL = (
    *("faults", "hello", "modes", "paging", "panic", "smc", "smp", "smp-x2apic", "triple"),
    *RELATIVES,
)
SMP = ("smp", "textpoke")


def short(name: str) -> str:
    return SHORT.get(name, MANIFEST[name].append)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Recorded]:
    """Each guest recorded once, with the defaults."""
    folder = tmp_path_factory.mktemp("recordings")
    known: dict[str, Recorded] = {}

    def recorded(name: str) -> Recorded:
        if name not in known:
            path = folder / f"{name}.rr86"
            known[name] = record_guest(MANIFEST[name], path, append=short(name), seed=1)
        return known[name]

    return recorded


def assert_lines_match(patterns: tuple[str, ...], text: bytes) -> None:
    lines = iter(text.decode("latin-1").splitlines())
    for pattern in patterns:
        assert any(re.fullmatch(pattern, line) for line in lines), (
            f"no line {pattern!r} in its place among:\n{text.decode('latin-1')}"
        )


def assert_guest_is_content(guest: Guest, recorded: Recorded) -> None:
    seen = recorded.outcome
    assert_lines_match(guest.console, seen.console)
    assert_lines_match(guest.debugcon, seen.debugcon)
    end = "limit" if guest.end == "never" else guest.end
    assert (seen.reason, seen.code) == (end, guest.code)


@pytest.mark.parametrize("name", sorted(MANIFEST))
def test_guest_passes_and_replays_from_its_trace_alone(name: str, tmp_path: Path) -> None:
    guest = MANIFEST[name]
    recorded = record_guest(guest, tmp_path / "guest.rr86")
    assert_guest_is_content(guest, recorded)
    trace = recorded.trace()
    assert trace.complete
    assert len(list(trace.events(["digests"]))) >= 2
    assert_same_run(replay(recorded), recorded.outcome)


@pytest.mark.parametrize("name", ["smp", "textpoke", "user", "paging"])
def test_the_same_seed_makes_the_same_trace(
    name: str, recordings: Callable[[str], Recorded], tmp_path: Path
) -> None:
    first = recordings(name)
    second = record_guest(MANIFEST[name], tmp_path / "again.rr86", append=short(name), seed=1)
    assert second.outcome == first.outcome
    assert second.events() == first.events()


@pytest.mark.parametrize("quantum", [100_000, 1_000, 50])
@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
@pytest.mark.parametrize("name", [*SMP, "xmod", "xmod-shared"])
def test_smp_guests_pass_under_every_schedule(
    name: str, seed: int, quantum: int, tmp_path: Path
) -> None:
    guest = MANIFEST[name]
    append = "rounds=4" if name == "textpoke" else short(name)
    recorded = record_guest(
        guest, tmp_path / "guest.rr86", append=append, seed=seed, quantum=quantum
    )
    seen = recorded.outcome
    assert (seen.reason, seen.code) == (guest.end, guest.code), seen.console
    assert_same_run(replay(recorded), seen)


def test_another_seed_makes_another_schedule(
    recordings: Callable[[str], Recorded], tmp_path: Path
) -> None:
    other = record_guest(MANIFEST["smp"], tmp_path / "other.rr86", seed=2)
    assert other.events() != recordings("smp").events()


@pytest.mark.parametrize("options", [{"max_block": 1}, {"max_block": 3}, {"block_capacity": 16}])
@pytest.mark.parametrize("name", [*SMALL, "textpoke"])
def test_guests_pass_with_short_blocks_and_small_caches(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    guest = MANIFEST[name]
    append = "rounds=4" if name == "textpoke" else short(name)
    recorded = record_guest(guest, tmp_path / "guest.rr86", append=append, quantum=2_000, **options)
    seen = recorded.outcome
    assert (seen.reason, seen.code) == (guest.end, guest.code), seen.console
    assert_same_run(replay(recorded), seen)


def hot_addresses(recorded: Recorded, count: int) -> list[int]:
    """Addresses where blocks start: the most linked ones, and some drawn from all."""
    trace = recorded.trace()
    places: dict[int, int] = {}
    for event in trace.events(["link"]):
        pc = event.fields["pc"]
        assert isinstance(pc, int)
        places[pc] = places.get(pc, 0) + 1
    often = sorted(places, key=lambda pc: (-places[pc], pc))[: count // 2]
    return [*often, *random.Random(7).sample(sorted(places), min(count - count // 2, len(places)))]


def interrupts_and_writes(recorded: Recorded) -> list[str]:
    """Conditions on pages that change hands, and on the vectors that the guests use."""
    pages = []
    for event in recorded.trace().events(["hand-off"]):
        page = event.fields["page"]
        assert isinstance(page, int)
        if page not in pages:
            pages.append(page)
    picked = random.Random(3).sample(pages, min(4, len(pages)))
    # The unit is the page number or its address; both name RAM that the guest has.
    writes = [f"write={page * 4096 if page < 1 << 20 else page:#x}:256" for page in picked]
    vectors = [f"irq={vector}" for vector in (*range(0x30, 0x42), 0x50, 0xF0, 0xF1, 0xFD)]
    return [*writes, *vectors]


def run_through(
    session: rr86.ReplaySession, conditions: list[str], most: int
) -> tuple[int, rr86.Stop]:
    """Stop at `conditions` up to `most` times, then run freely to the end."""
    stops = 0
    stop = session.run(conditions)
    while stop.reason == "condition" and stops < most:
        stops += 1
        stop = session.run(conditions)
    if stop.reason == "condition":
        stop = session.run()
    return stops, stop


@pytest.mark.parametrize("kind", ["rip", "irq-write", "int3", "all"])
@pytest.mark.parametrize("name", ["smp", "textpoke", "faults", "user", "smc"])
def test_conditions_do_not_change_a_replay(
    name: str, kind: str, recordings: Callable[[str], Recorded]
) -> None:
    recorded = recordings(name)
    total = recorded.outcome.icount
    rips = [f"rip={address:#x}" for address in hot_addresses(recorded, 12)]
    conditions = {
        "rip": rips,
        "irq-write": interrupts_and_writes(recorded),
        "int3": ["int3"],
        "all": [*rips, *interrupts_and_writes(recorded), "int3", f"icount={total // 2}"],
    }[kind]
    session = recorded.trace().session()
    stops, stop = run_through(session, conditions, 1500)
    if kind in ("rip", "all"):
        assert stops > 5
    assert_same_run(finished(session, stop), recorded.outcome)


@pytest.mark.parametrize("name", ["smp", "textpoke", "faults"])
def test_conditions_do_not_change_a_recording(
    name: str, recordings: Callable[[str], Recorded], tmp_path: Path
) -> None:
    plain = recordings(name)
    moments = random.Random(5).sample(range(plain.outcome.icount), 60)
    watched = record_guest(
        MANIFEST[name],
        tmp_path / "watched.rr86",
        append=short(name),
        seed=1,
        until=[*(f"icount={n}" for n in moments), *interrupts_and_writes(plain)],
    )
    assert watched.outcome == plain.outcome
    assert watched.events() == plain.events()


@pytest.mark.parametrize("name", ["smp", "textpoke", "faults", "triple", "string"])
def test_stops_at_many_moments_do_not_change_a_replay(
    name: str, recordings: Callable[[str], Recorded]
) -> None:
    recorded = recordings(name)
    draw = random.Random(11)
    session = recorded.trace().session()
    total = recorded.outcome.icount
    moments = sorted(draw.sample(range(1, total), min(150, total - 1)))
    # Neighbours, too: each one instruction after the last.
    moments = sorted({*moments, *range(total // 3, total // 3 + 40)})
    for moment in moments:
        stop = session.run(f"icount={moment}")
        assert (stop.reason, stop.icount) == ("condition", moment)
    assert_same_run(finished(session, session.run()), recorded.outcome)


@pytest.mark.parametrize(
    "options", [{"quantum": 50}, {"quantum": 700, "max_block": 3}, {"block_capacity": 16}]
)
@pytest.mark.parametrize("name", SMP)
def test_a_restless_schedule_replays_under_random_conditions(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    append = "rounds=2" if name == "textpoke" else MANIFEST[name].append
    recorded = record_guest(
        MANIFEST[name], tmp_path / "guest.rr86", append=append, seed=9, **options
    )
    draw = random.Random(13)
    addresses = [f"rip={address:#x}" for address in hot_addresses(recorded, 40)]
    others = [*interrupts_and_writes(recorded), "int3"]
    session = recorded.trace().session()
    for _ in range(150):
        moment = session.icount + draw.randrange(1, 2 * recorded.outcome.icount // 150)
        picked = [*draw.sample(addresses, 3), *draw.sample(others, 4), f"icount={moment}"]
        stop = session.run(picked)
        if stop.over:
            break
    else:
        stop = session.run()
    assert_same_run(finished(session, stop), recorded.outcome)


@pytest.mark.parametrize("name", ["smp", "hello", "triple"])
def test_a_replay_in_pieces_equals_one_piece(
    name: str, recordings: Callable[[str], Recorded]
) -> None:
    recorded = recordings(name)
    session = recorded.trace().session()
    stop = session.run(max_instructions=1)
    pieces = 1
    while not stop.over:
        stop = session.run(max_instructions=997)
        pieces += 1
    assert pieces > 1
    assert_same_run(finished(session, stop), recorded.outcome)


def test_sessions_of_one_trace_do_not_disturb_each_other(
    recordings: Callable[[str], Recorded],
) -> None:
    recorded = recordings("smp")
    trace = recorded.trace()
    sessions = [trace.session() for _ in range(3)]
    stops = [session.run(max_instructions=100_000) for session in sessions]
    assert len({stop.icount for stop in stops}) == 1
    for session in sessions:
        assert_same_run(finished(session, session.run()), recorded.outcome)


@pytest.mark.parametrize("until", ["irq=0x40", "write=0x8000:64", "icount=123457", "console=vCPUs"])
@pytest.mark.parametrize("name", SMP)
def test_a_recording_that_ended_at_a_condition_replays_to_it(
    name: str, until: str, tmp_path: Path
) -> None:
    guest = MANIFEST[name]
    path = tmp_path / "part.rr86"
    recorder = rr86.start_recording(
        build(guest), smp=4, memory="64M", append=short(name), output=path
    )
    with recorder:
        stop = recorder.run(until=until)
    assert stop.reason == "condition"
    assert_ends_alike(path, stop, recorder)


def assert_ends_alike(path: Path, stop: rr86.Stop, recorder: rr86.Recorder) -> None:
    """The trace replays to where its recorder ended, and the condition is found again before."""
    session = rr86.open_trace(path).session()
    again = session.run(str(stop.condition))
    assert (again.icount, again.vcpu, again.rip) == (stop.icount, stop.vcpu, stop.rip)
    # The slice that was under way has come to its end.
    assert session.run().icount >= stop.icount
    assert session.machine.digests() == recorder.machine.digests()


@pytest.mark.parametrize("seed", range(6))
def test_a_recording_that_ended_at_any_address_replays_to_it(
    seed: int, recordings: Callable[[str], Recorded], tmp_path: Path
) -> None:
    name = "faults"
    places = hot_addresses(recordings(name), 60)
    place = places[random.Random(seed).randrange(len(places))]
    path = tmp_path / "part.rr86"
    recorder = rr86.start_recording(build(MANIFEST[name]), memory="64M", output=path)
    with recorder:
        stop = recorder.run(until=f"rip={place:#x}")
    assert stop.reason == "condition"
    assert_ends_alike(path, stop, recorder)


def test_a_guest_that_gets_input_replays_without_any(
    recordings: Callable[[str], Recorded],
) -> None:
    recorded = recordings("echo")
    inputs = list(recorded.trace().events(["input"]))
    assert b"".join(bytes(event.fields["bytes"]) for event in inputs) == b"hello world\nabc\nquit\n"
    session = recorded.trace().session()
    stop = session.run()
    assert b"> dlrow olleh" in session.console
    assert_same_run(finished(session, stop), recorded.outcome)


def test_input_piped_into_the_command_is_recorded_and_replayed(tmp_path: Path) -> None:
    def command(*words: str, data: bytes) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-c", "from rr86.cli import main; main()", *words],
            input=data,
            capture_output=True,
            timeout=120,
            check=False,
        )

    trace = tmp_path / "echo.rr86"
    image = build(MANIFEST["echo"])
    typed = command("record", "-o", str(trace), str(image), data=b"hello world\nabc\nquit\n")
    assert b"> dlrow olleh" in typed.stdout, typed.stderr
    again = command("replay", str(trace), data=b"")
    assert again.returncode == typed.returncode, again.stderr
    assert b"> dlrow olleh" in again.stdout
    assert b"echo: 2 lines" in again.stdout


KILLED = """
import sys, rr86
recorder = rr86.start_recording(sys.argv[1], smp=4, memory="64M", quantum=50, output=sys.argv[2])
shown = 0
with recorder:
    while True:
        recorder.run(max_instructions=200_000)
        if recorder.trace_bytes() > shown:
            shown = recorder.trace_bytes()
            print(shown, flush=True)
"""


@pytest.mark.parametrize("name", ["hang", "textpoke"])
def test_a_killed_recorder_leaves_a_trace_that_replays(name: str, tmp_path: Path) -> None:
    path = tmp_path / "killed.rr86"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(build(MANIFEST[name])), str(path)],
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        # The opening chunks come first; then wait for events to have reached the file twice.
        for _ in range(3):
            assert process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        process.stdout.read()
    trace = rr86.open_trace(path)
    assert not trace.complete
    assert trace.footer is None
    last = max(
        event.icount + int(event.fields["instructions"]) for event in trace.events(["slice"])
    )
    session = trace.session()
    stop = session.run()
    assert stop.reason == "end"
    assert stop.icount == last
    assert session.icount > 0
