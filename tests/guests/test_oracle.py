"""The oracle, over every guest: no cross-vCPU write is missing from a trace, under any schedule,
block length or block protocol, and the slow replay is the recorded run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rr86.errors import TraceContentError
from rr86.replay.oracle import OracleReport
from tests.guests.build import load_manifest
from tests.guests.machines import (
    Recorded,
    assert_same_run,
    finished,
    record_guest,
)

MANIFEST = load_manifest()
SHORT = {"textpoke": "rounds=20"}
SMP = sorted(name for name, guest in MANIFEST.items() if guest.smp > 1)
SCHEDULES = ("uniform", "random", "pct", "starve")
# The guest that goes stale under each protocol.
STALE = {
    "chain-kept": "rel-chain",
    "crossing-untracked": "rel-crossing",
    "dma-unchecked": "rel-dma",
    "helper-unchecked": "rel-helper",
    "qemu-10": "xmod-shared",
    "qemu-7.2": "xmod",
    "same-block-ignored": "rel-same",
    "virtual-keyed": "rel-alias",
    "walk-unchecked": "rel-walk",
}


def asked(recorded: Recorded) -> OracleReport:
    """What the oracle says of a recording, which its replay has to repeat."""
    session = recorded.trace().session(oracle=True)
    assert_same_run(finished(session, session.run()), recorded.outcome)
    return session.oracle_report()


def assert_nothing_is_missing(report: OracleReport) -> None:
    assert [gap.describe() for gap in report.gaps] == []
    assert report.missing == 0
    assert report.unseen is None
    assert report.clean
    # Images are loaded by no vCPU, so every guest meets bytes of another.
    assert 0 < report.foreign < report.accesses
    assert report.hand_offs > 0


@pytest.mark.parametrize("name", sorted(MANIFEST))
def test_nothing_is_missing_from_a_guest_s_trace(name: str, tmp_path: Path) -> None:
    append = SHORT.get(name)
    recorded = record_guest(MANIFEST[name], tmp_path / "guest.rr86", append=append)
    report = asked(recorded)
    assert_nothing_is_missing(report)
    assert report.hand_offs == len(list(recorded.trace().events(["hand-off"])))


@pytest.mark.parametrize("quantum", [2_000, 50])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", SMP)
def test_nothing_is_missing_under_any_schedule(
    name: str, schedule: str, quantum: int, tmp_path: Path
) -> None:
    guest = MANIFEST[name]
    append = "rounds=4" if name == "textpoke" else guest.append.replace("rounds=1000", "rounds=50")
    recorded = record_guest(
        guest, tmp_path / "guest.rr86", append=append, schedule=schedule, quantum=quantum, seed=5
    )
    assert_nothing_is_missing(asked(recorded))


@pytest.mark.parametrize("options", [{"max_block": 1}, {"block_capacity": 16}])
@pytest.mark.parametrize("name", ["smc", "smp", "xmod-shared"])
def test_nothing_is_missing_with_short_blocks_and_small_caches(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    append = MANIFEST[name].append.replace("rounds=1000", "rounds=50")
    recorded = record_guest(MANIFEST[name], tmp_path / "guest.rr86", append=append, **options)
    assert_nothing_is_missing(asked(recorded))


@pytest.mark.parametrize("protocol", sorted(STALE))
def test_nothing_is_missing_where_blocks_go_stale(protocol: str, tmp_path: Path) -> None:
    guest = MANIFEST[STALE[protocol]]
    recorded = record_guest(guest, tmp_path / "guest.rr86", protocol=protocol, quantum=1_000)
    assert_nothing_is_missing(asked(recorded))


def test_a_stop_on_the_way_changes_nothing(tmp_path: Path) -> None:
    recorded = record_guest(MANIFEST["smp"], tmp_path / "guest.rr86")
    whole = asked(recorded)
    session = recorded.trace().session(oracle=True)
    for moment in range(100_001, recorded.outcome.icount, 200_003):
        session.run(f"icount={moment}")
    session.run()
    pieces = session.oracle_report()
    assert_nothing_is_missing(pieces)
    assert pieces.hand_offs == whole.hand_offs


def test_a_trace_without_the_log_is_refused(tmp_path: Path) -> None:
    recorded = record_guest(MANIFEST["hello"], tmp_path / "guest.rr86", cross_writes=False)
    with pytest.raises(TraceContentError, match="without cross-vCPU writes"):
        recorded.trace().session(oracle=True)
