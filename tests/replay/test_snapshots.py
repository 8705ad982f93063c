"""Replays that begin at snapshots of another replay are the rest of the recorded run."""

from pathlib import Path

import pytest

from rr86.errors import NativeError
from rr86.replay.bisect import bisect_invalidation
from tests.guests.build import load_manifest
from tests.guests.machines import Recorded, finished, record_guest
from tests.guests.test_guests import short

MANIFEST = load_manifest()


def record(name: str, path: Path, protocol: str = "qemu-7.2") -> Recorded:
    """Slices short enough, and windows often enough, that much is under way at any moment."""
    guest, append = MANIFEST[name], short(name)
    return record_guest(
        guest, path, append=append, protocol=protocol, quantum=3000, window_bias=20_000
    )


@pytest.mark.parametrize("name", ["textpoke", "xmod", "xmod-atomic", "xmod-shared", "smp"])
def test_a_replay_from_any_snapshot_ends_as_the_recording(name: str, tmp_path: Path) -> None:
    recorded = record(name, tmp_path / "guest.rr86")
    trace, whole = recorded.trace(), recorded.outcome
    session = trace.session()
    step = whole.icount // 7
    snapshots = [session.snapshot()]
    while not session.run(max_instructions=step).over:
        snapshots.append(session.snapshot())
    assert finished(session, session.run()).digests == whole.digests
    assert len(snapshots) >= 5
    for snapshot in snapshots:
        again = trace.session(snapshot=snapshot)
        assert again.began == again.icount == snapshot.icount
        seen = finished(again, again.run())
        assert (seen.icount, seen.time_ns, seen.code) == (whole.icount, whole.time_ns, whole.code)
        assert seen.digests == whole.digests
        assert whole.console.endswith(seen.console)


def test_a_snapshot_is_only_taken_between_two_slices(stale: Recorded) -> None:
    session = stale.trace().session()
    session.run(f"icount={stale.outcome.icount // 2}")
    with pytest.raises(NativeError, match="between two recorded slices"):
        session.snapshot()
    session.divert()
    session.run(max_instructions=1)
    with pytest.raises(NativeError, match="left for a diversion"):
        session.snapshot()


def test_a_protocol_whose_state_no_snapshot_holds_is_bisected_from_the_start(
    tmp_path: Path,
) -> None:
    recorded = record_guest(MANIFEST["rel-chain"], tmp_path / "guest.rr86", protocol="chain-kept")
    with pytest.raises(NativeError, match="chain-kept"):
        recorded.trace().session().snapshot()
    finding = bisect_invalidation(recorded.trace())
    assert finding is not None
    assert finding.proved
