"""vCPUs replayed alone and side by side, and the expansion they are replayed from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rr86
from rr86.errors import ExpansionError, UsageError
from rr86.replay import expansion
from rr86.replay.alone import replay_parallel
from rr86.replay.trace import open_trace
from tests.guests.build import load_manifest
from tests.guests.machines import Recorded, record_guest

MANIFEST = load_manifest()
# Name and command line of guests with more than one vCPU that come to an end.
GUESTS = {
    "smp": "",
    "smp-x2apic": "x2apic=1",
    "textpoke": "rounds=20",
    "xmod": "variant=alone rounds=50",
    "xmod-shared": "variant=shared rounds=50",
}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Recorded]:
    """Each guest recorded once."""
    folder = tmp_path_factory.mktemp("alone")
    known: dict[str, Recorded] = {}

    def recorded(name: str) -> Recorded:
        if name not in known:
            path = folder / f"{name}.rr86"
            known[name] = record_guest(MANIFEST[name], path, append=GUESTS[name], seed=7)
        return known[name]

    return recorded


@pytest.fixture
def smp(recordings: Callable[[str], Recorded], tmp_path: Path) -> rr86.Trace:
    """A copy of its own, without an expansion."""
    path = tmp_path / "smp.rr86"
    path.write_bytes(recordings("smp").path.read_bytes())
    return open_trace(path)


@pytest.mark.parametrize("name", sorted(GUESTS))
def test_each_vcpu_alone_retires_what_it_retired_in_company(
    recordings: Callable[[str], Recorded], name: str
) -> None:
    trace = recordings(name).trace()
    whole = trace.session()
    whole.run()
    for vcpu, instructions in enumerate(trace.retired()):
        session = trace.alone(vcpu)
        stop = session.run()
        assert stop.reason == "end"
        assert session.instructions == instructions
        assert session.registers() == whole.registers(vcpu)


@pytest.mark.parametrize("name", sorted(GUESTS))
@pytest.mark.parametrize("jobs", [None, 1, 4])
def test_a_parallel_replay_is_of_the_whole_run(
    recordings: Callable[[str], Recorded], name: str, jobs: int | None
) -> None:
    trace = recordings(name).trace()
    done = trace.replay_parallel(jobs)
    assert [each.vcpu for each in done.vcpus] == list(range(trace.spec.vcpus))
    assert done.instructions == sum(trace.retired())
    assert done.jobs <= trace.spec.vcpus


def test_a_vcpu_alone_can_be_run_in_pieces(smp: rr86.Trace) -> None:
    direct, stepwise = smp.alone(1), smp.alone(1)
    direct.run()
    pieces = 0
    before = 0
    while not stepwise.run(max_instructions=5_000).over:
        assert stepwise.instructions > before
        before = stepwise.instructions
        pieces += 1
    assert pieces > 3
    assert stepwise.registers() == direct.registers()
    assert stepwise.icount == direct.icount


def test_a_vcpu_that_is_not_there_is_refused(smp: rr86.Trace) -> None:
    with pytest.raises(UsageError, match="no vCPU 4: the trace has 0 to 3"):
        smp.alone(4)
    assert not expansion.beside(smp).exists()


def test_an_expansion_is_made_once_and_again_when_it_will_not_do(smp: rr86.Trace) -> None:
    made: list[int] = []

    def tick(stop: rr86.Stop) -> None:
        made.append(stop.icount)

    place = expansion.expand(smp)
    assert place == smp.path.with_name("smp.rr86.expansion")
    first = place.stat()
    assert expansion.expand(smp, tick=tick) == place
    assert place.stat().st_ino == first.st_ino
    # With stores, it serves both purposes.
    expansion.expand(smp, stores=True)
    second = place.stat()
    assert second.st_ino != first.st_ino
    expansion.expand(smp)
    assert place.stat().st_ino == second.st_ino
    assert [each.name for each in place.parent.iterdir() if "unfinished" in each.name] == []


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 0.999])
def test_an_expansion_that_was_cut_short_is_made_again(smp: rr86.Trace, share: float) -> None:
    place = expansion.expand(smp)
    whole = place.read_bytes()
    place.write_bytes(whole[: int(len(whole) * share)])
    assert expansion.find(smp) is None
    smp.replay_parallel()
    assert place.read_bytes() == whole


def test_an_expansion_of_another_trace_is_made_again(
    smp: rr86.Trace, recordings: Callable[[str], Recorded]
) -> None:
    other = recordings("xmod").trace()
    foreign = expansion.expand(other).read_bytes()
    place = expansion.beside(smp)
    place.write_bytes(foreign)
    smp.replay_parallel()
    assert place.read_bytes() != foreign


def test_a_flipped_bit_is_told_with_what_to_do(smp: rr86.Trace) -> None:
    place = expansion.expand(smp)
    whole = place.read_bytes()
    told = 0
    for at in range(40, len(whole), len(whole) // 23):
        damaged = bytearray(whole)
        damaged[at] ^= 4
        place.write_bytes(damaged)
        if expansion.find(smp) is None:
            # Not even an expansion any more; it would be made again.
            continue
        with pytest.raises(ExpansionError, match="delete the expansion, and it is made again"):
            smp.replay_parallel()
        told += 1
    assert told > 10


def test_a_foreign_file_is_not_overwritten(smp: rr86.Trace, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    diary.write_text("Dear diary")
    with pytest.raises(ExpansionError, match="not an expansion, and is left as it is"):
        smp.alone(0, expansion=diary)
    assert diary.read_text() == "Dear diary"


def test_a_place_that_cannot_be_written_is_told_with_the_way_out(
    smp: rr86.Trace, tmp_path: Path
) -> None:
    with pytest.raises(ExpansionError, match=r"cannot be written .* --expansion PATH"):
        smp.alone(0, expansion=tmp_path / "missing" / "x.expansion")


def test_an_interrupted_expansion_leaves_nothing(smp: rr86.Trace) -> None:
    before = sorted(smp.path.parent.iterdir())
    with pytest.raises(KeyboardInterrupt):
        expansion.expand(smp, tick=lambda _: True)
    assert sorted(smp.path.parent.iterdir()) == before


def test_an_interrupted_parallel_replay_ends(smp: rr86.Trace) -> None:
    with pytest.raises(KeyboardInterrupt):
        replay_parallel(smp, watch=lambda _: True)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"protocol": "qemu-7.2"}, "block protocol is qemu-7.2"),
        ({"cross_writes": False}, "without the log of cross-vCPU writes"),
    ],
)
def test_traces_that_cannot_be_taken_apart_are_refused(
    tmp_path: Path, options: dict[str, Any], why: str
) -> None:
    trace = record_guest(MANIFEST["xmod"], tmp_path / "x.rr86", append=GUESTS["xmod"], **options)
    with pytest.raises(ExpansionError, match=why):
        trace.trace().alone(0)


def test_checkpoints_are_no_matter_to_a_vcpu_alone(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints.rr86"
    trace = record_guest(MANIFEST["smp"], path, checkpoints=200_000).trace()
    assert trace.checkpoints()
    assert trace.replay_parallel().instructions == sum(trace.retired())
