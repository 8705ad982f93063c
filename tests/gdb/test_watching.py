"""The last writer that a debugger finds is the one that who-wrote names."""

from __future__ import annotations

from pathlib import Path

import rr86
from rr86.replay import WriteHistory
from tests.gdb.conftest import TRACES
from tests.gdb.watching import compare


def test_going_back_to_a_watched_write_finds_the_last_writer(
    tmp_path: Path,
) -> None:
    recorded = rr86.open_trace(TRACES / "smp.rr86")
    history = WriteHistory(recorded, tmp_path / "expansion")
    history.expand()
    written, untouched = compare(recorded, history, seed=1, count=100)
    assert written > 50
    assert untouched > 0
