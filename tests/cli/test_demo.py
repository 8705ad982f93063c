"""What `make demo` runs, and what its guest has to be good for."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rr86
from rr86.replay.bisect import bisect_invalidation
from tests.demo import record_demo

ROOT = Path(__file__).parents[2]


def test_the_demo_tells_the_whole_story(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rr86.guests"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    text = done.stdout
    assert done.returncode == 0, text
    parts = re.split(r"^\d\. .*\n-+\n", text, flags=re.MULTILINE)[1:]
    assert [re.findall(r"\$ rr86 (\S+)", part)[0] for part in parts] == [
        *("record", "replay", "bisect-invalidation"),
        *("record", "replay", "bisect-invalidation"),
    ]
    buggy, stop, cause, healthy, again, nothing = parts
    met = re.search(r"int3 on vCPU (\d) at (0x[0-9a-f]+): nobody is patching there", buggy)
    assert met is not None
    assert re.search(r"stale int3: block \d+ says cc, memory holds (0f|e9)", stop)
    assert "poke" in cause.partition("Writer's call stack")[2]
    assert "proved: with the block refetched" in cause
    assert "All is well" in healthy
    assert "All is well" in again
    assert "no block was executed that memory did not hold" in nothing


def test_most_seeds_find_the_bug_where_there_is_one(tmp_path: Path) -> None:
    found = 0
    for seed in range(6):
        recording = record_demo(tmp_path, seed=seed, protocol="qemu-7.2")
        trace = rr86.open_trace(recording.path)
        if trace.stale_int3s == 0:
            continue
        found += 1
        finding = bisect_invalidation(trace)
        assert finding is not None
        assert finding.proved
        assert (finding.execution.int3, finding.execution.grade) == (True, "A")
        assert finding.write is not None
        assert finding.write.old == b"\xcc"
        assert finding.alias
    assert found >= 4


@pytest.mark.parametrize("vcpus", [1, 2, 4, 8])
def test_the_demo_guest_is_well_where_there_is_none(tmp_path: Path, vcpus: int) -> None:
    console = bytearray()
    recording = record_demo(tmp_path, smp=vcpus, console=console.extend)
    assert recording.stop is not None
    assert recording.stop.reason == "poweroff"
    assert b"All is well" in console
    assert bisect_invalidation(rr86.open_trace(recording.path)) is None
