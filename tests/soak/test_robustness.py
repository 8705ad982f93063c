"""The robustness tests in short, and that their own parts do what they say."""

from __future__ import annotations

import signal
from pathlib import Path
from random import Random

import pytest

import rr86
from rr86.machine.spec import PROTOCOLS
from tests.guests.machines import Outcome, finished
from tests.soak import boots, checks, code, devices, frame, image
from tests.soak.hostile import MODES, build, plain

SEEDS = 12


@pytest.mark.parametrize("mode", code.MODES)
def test_hostile_code_is_recorded_and_replayed_alike(mode: str, tmp_path: Path) -> None:
    arguments = ["--mode", mode, "--first", "0", "--seeds", str(SEEDS), "--folder", str(tmp_path)]
    assert code.main(arguments) == 0, reports(tmp_path)


# A block's number kept over a flush of the cache; a slice that went on where it would have ended;
# moments in repeated strings; a PAUSE with TF at the end of a slice; code made ahead that was
# placed twice.
@pytest.mark.parametrize(
    ("mode", "seed"),
    [
        ("16", 100_032),
        ("ring3", 200_687),
        ("ring0", 500_634),
        ("16", 500_926),
        ("16", 801_402),
    ],
)
def test_seeds_that_have_found_something_stay_clean(mode: str, seed: int, tmp_path: Path) -> None:
    arguments = ["--mode", mode, "--first", str(seed), "--seeds", "1", "--folder", str(tmp_path)]
    assert code.main(arguments) == 0, reports(tmp_path)


def test_hostile_device_accesses_are_recorded_and_replayed_alike(tmp_path: Path) -> None:
    arguments = ["--first", "0", "--seeds", str(SEEDS), "--folder", str(tmp_path)]
    assert devices.main(arguments) == 0, reports(tmp_path)


def reports(folder: Path) -> str:
    return "\n".join(report.read_text() for report in folder.glob("*/report.txt"))


@pytest.mark.parametrize("mode", MODES)
def test_a_seed_is_one_guest(mode: str) -> None:
    assert build(mode, 7) == build(mode, 7)
    assert build(mode, 7).kernel != build(mode, 8).kernel


STORE_AHEAD = b"\xc6\x05\x01\x00\x00\x00\x01" + b"\xbb\x00\x00\x00\x00"
"""MOV of 1 into the immediate of the next instruction, MOV EBX, 0."""
THROUGH_ALIAS = b"\xc6\x83\x08\x00\x00\x00\x01" + b"\xb9\x00\x00\x00\x00"
"""The same through RBX, which points to an alias of the code's beginning."""
DIVIDE = b"\x31\xc9\xf7\xf1"
MISALIGNED = b"\x0f\x28\x46\x01"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("store", [STORE_AHEAD, THROUGH_ALIAS], ids=["itself", "alias"])
@pytest.mark.parametrize("fault", [DIVIDE, MISALIGNED], ids=["divide", "misaligned"])
def test_a_block_that_changed_itself_may_fault_on_the_host_afterwards(
    protocol: str, store: bytes, fault: bytes, tmp_path: Path
) -> None:
    # Twice, so that the block exists, is linked, and is removed or checked while it runs.
    guest = plain(store + fault, protocol, cases=3)
    first = checks.record(guest, tmp_path / "a.rr86")
    assert (first.outcome.reason, first.outcome.console) == ("debug-exit", b"K\n")
    checks.replay(first)


MARK_GDT = b"\xc6\x04\x25\x00\x58\x01\x00\x01"
"""A store to the GDT's page, from which the next delivery on another vCPU takes it."""
TIMER_IN_NO_TIME = (
    b"\xbf\x20\x03\xe0\xfe"  # the local APIC's timer: its vector, and a count of 1
    b"\xc7\x07\x20\x00\x00\x00"
    b"\xc7\x47\x60\x01\x00\x00\x00"
)


@pytest.mark.parametrize("pads", range(4))
def test_a_slice_does_not_end_between_a_fault_and_the_next_instruction(
    pads: int, tmp_path: Path
) -> None:
    # The timer is due when the fault is raised, and the other vCPU's turn comes.
    code = MARK_GDT + b"\x90" * 15 + TIMER_IN_NO_TIME + b"\x90" * pads + b"\x0f\x0b"
    guest = plain(code, "precise", cases=30, vcpus=2, quantum=7)
    first = checks.record(guest, tmp_path / "a.rr86")
    assert first.outcome.console == b"K\nK\n"
    checks.replay(first)


REPEAT_FROM_NOWHERE = (
    b"\xbf\x00\x30\x21\x00"  # EDI: data that nothing has touched
    b"\x48\xbe\x00\x00\x00\x00\x00\x00\xa0\x8a"  # RSI: not canonical
    b"\xb9\x00\x10\x00\x00"
    b"\xf3\xa4"
)


def test_a_repeated_move_from_nowhere_leaves_no_marks_at_its_destination(tmp_path: Path) -> None:
    # The other vCPU takes the destination's page, which tells which lines were written.
    code = b"\x90" * 9 + REPEAT_FROM_NOWHERE
    guest = plain(code, "precise", cases=12, vcpus=2, quantum=60)
    run = checks.record(guest, tmp_path / "a.rr86")
    assert run.outcome.console == b"K\nK\n"
    checks.replay(run)
    events = rr86.open_trace(run.path).events(("hand-off",))
    assert [each for each in events if each.fields["page"] == 0x213] == []


def test_a_vcpu_that_has_shut_down_can_be_kept(tmp_path: Path) -> None:
    # LIDT of an empty table, and a fault.
    run = checks.record(plain(b"\x0f\x01\x1e\x0f\x0b", "precise"), tmp_path / "a.rr86")
    assert run.outcome.reason == "triple-fault"
    trace = rr86.open_trace(run.path)
    session = trace.session()
    session.run(max_instructions=run.outcome.icount)
    again = trace.session(snapshot=session.snapshot())
    assert finished(again, again.run()).digests == run.outcome.digests


def test_a_worker_that_dies_is_a_finding_and_the_next_seed_is_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _campaign(tmp_path, timeout=60.0) == 1
    said = capfd.readouterr().out
    assert "seed 1: crash: SIGKILL" in said
    assert "2 fine" in said
    report = (tmp_path / "made-up-1" / "report.txt").read_text()
    assert report.startswith("python -m tests.soak.test_robustness --first 1 --seeds 1")


def _campaign(folder: Path, timeout: float) -> int:
    return frame.run(
        frame.Campaign(
            module="tests.soak.test_robustness",
            name="made-up",
            arguments=[],
            first=0,
            seeds=3,
            jobs=1,
            timeout=timeout,
            folder=folder,
        )
    )


def test_a_campaign_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    assert frame.begin_at(tmp_path, "part", None) == 0
    frame.note(tmp_path, "part", 40)
    assert frame.begin_at(tmp_path, "part", None) == 40
    assert frame.begin_at(tmp_path, "part", 7) == 7


def test_traces_that_differ_in_an_event_are_told_apart(tmp_path: Path) -> None:
    halt = b"\xeb\xfe"
    one = checks.record(plain(halt, "precise"), tmp_path / "a.rr86")
    other = checks.record(plain(b"\x90" + halt, "precise"), tmp_path / "b.rr86")
    with pytest.raises(checks.DifferenceError, match="something: event"):
        checks.compare_traces(one, other, "something")
    with pytest.raises(checks.DifferenceError, match="the replay ended as"):
        checks.replay(checks.Run(one.path, Outcome("limit", 0, 1, 1, b"", b"", {})))


def test_boots_are_planned_over_all_kernels_vcpus_schedules_and_ways() -> None:
    kernels = [Path("a"), Path("b"), Path("c")]
    plans = [boots.plan(seed, kernels) for seed in range(200)]
    assert {each.kernel for each in plans} == set(kernels)
    assert {each.spec.vcpus for each in plans} == set(boots.VCPUS)
    assert {each.spec.protocol for each in plans} == set(PROTOCOLS)
    pairs = {(each.spec.vcpus, each.way) for each in plans}
    assert len(pairs) == len(boots.VCPUS) * len(boots.WAYS)
    assert plans[3] == boots.plan(3, kernels)


def test_the_stub_finds_its_tables_where_python_puts_them() -> None:
    stub = image.stub()
    assert stub.symbols["_start"] == image.STUB_BASE
    assert len(image.idt(Random(0), 64, 0.0)) == 4096
    assert image.elf({0x1000: b"x"}, 0x1000)[:4] == b"\x7fELF"


def _work(seed: int) -> str:
    """Seeds of the made-up campaign: the second one kills its process."""
    if seed == 1:
        signal.raise_signal(signal.SIGKILL)
    return "fine"


if __name__ == "__main__":
    chosen = frame.options(None, 1, 1.0).parse_args()
    raise SystemExit(frame.work(chosen.worker, _work))
