"""The traces in `traces/` replay for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from rr86.replay.bisect import bisect_invalidation
from rr86.replay.trace import open_trace

FOLDER = Path(__file__).parents[2] / "traces"

# Of each trace: how it ends, after how many instructions, and words of its console.
EXPECTED = {
    "smp": ("debug-exit", 2_586_149, b"0 failed"),
    "stale-int3": ("poweroff", 13_232_332, b"int3"),
    "checkpoints": ("debug-exit", 2_723_986, b"0 failed"),
}


def test_every_reference_trace_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.rr86")} == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_reference_trace_replays_to_its_end(name: str) -> None:
    reason, icount, words = EXPECTED[name]
    session = open_trace(FOLDER / f"{name}.rr86").session()
    stop = session.run()
    assert (stop.reason, stop.icount) == (reason, icount)
    assert words in session.console


def test_the_reference_int3_is_stale_and_its_write_is_found() -> None:
    trace = open_trace(FOLDER / "stale-int3.rr86")
    stop = trace.session().run("int3")
    assert stop.reason == "condition"
    finding = bisect_invalidation(trace)
    assert finding is not None
    assert finding.proved


def test_the_reference_checkpoints_are_places_to_begin() -> None:
    trace = open_trace(FOLDER / "checkpoints.rr86")
    checkpoints = trace.checkpoints()
    assert len(checkpoints) == 2
    for checkpoint in checkpoints:
        stop = trace.session(at=checkpoint.icount).run()
        assert (stop.reason, stop.icount) == EXPECTED["checkpoints"][:2]
