"""Loops that end where a page ends do in a guest what they do on the host."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.guests.build import GUESTS, load_manifest, run, tool
from tests.guests.machines import assert_same_run, record_guest, replay

SOURCES = ("host/page-loops.c", "page-loops-code.S")


def lines_of_the_host(folder: Path) -> list[str]:
    program = folder / "page-loops"
    # Linked at low addresses: 32-bit code reaches its arrays.
    flags = ("-O2", "-static", "-no-pie", "-DHOST", "-I", str(GUESTS))
    run(tool("gcc"), *flags, *(str(GUESTS / name) for name in SOURCES), "-o", str(program))
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize("max_block", [64, 5])
@pytest.mark.parametrize("quantum", [100_000, 700])
def test_loops_at_the_end_of_a_page_print_what_the_host_prints(
    quantum: int, max_block: int, tmp_path: Path
) -> None:
    guest = load_manifest()["page-loops"]
    recorded = record_guest(guest, tmp_path / "guest.rr86", quantum=quantum, max_block=max_block)
    lines = recorded.outcome.console.decode("ascii").splitlines()
    assert [line for line in lines if "_" in line] == lines_of_the_host(tmp_path)
    assert_same_run(replay(recorded), recorded.outcome)
