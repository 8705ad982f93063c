"""The last writer that a debugger finds is the one that who-wrote names."""

from __future__ import annotations

from pathlib import Path

import pytest

import rr86
from rr86.replay import WriteHistory
from tests.gdb.conftest import TRACES
from tests.gdb.watching import compare
from tests.guests.build import load_manifest
from tests.guests.machines import record_guest
from tests.guests.test_guests import short


@pytest.mark.parametrize("name", ["smp", "old"])
def test_going_back_to_a_watched_write_finds_the_last_writer(name: str, tmp_path: Path) -> None:
    path = TRACES / "smp.rr86"
    if name != "old":
        path = tmp_path / "guest.rr86"
        record_guest(load_manifest()[name], path, append=short(name), quantum=3000)
    recorded = rr86.open_trace(path)
    history = WriteHistory(recorded, tmp_path / "expansion")
    history.expand()
    count = 100 if name != "old" else 30
    written, untouched = compare(recorded, history, seed=1, count=count)
    assert written > count // 5
    assert untouched > 0
