"""Translated code that fails on the host, as a user meets it."""

import os
import subprocess
import sys
from pathlib import Path

import rr86
from rr86.guests import demo_image
from rr86.trace.vocabulary import STOP_REASONS

ROOT = Path(__file__).parents[2]
# Records with UD2 in front of the copy of one instruction of the guest.
PROGRAM = """
from rr86.cli import main
import rr86.machine.board as board

power_on = board.power_on

def failing(*arguments):
    machine = power_on(*arguments)
    machine.plant(PLACE, b"\\x0f\\x0b")
    return machine

board.power_on = failing
main()
"""


def executed_later(folder: Path) -> int:
    """An address that the demo guest executes for the first time well into its run."""
    recording = rr86.record(folder / "demo.elf", smp=2, memory="64M", output=folder / "good.rr86")
    trace = rr86.open_trace(recording.path)
    links = [(e.icount, e.fields["pc"]) for e in trace.events(["link"])]
    first: dict[object, int] = {}
    for icount, rip in links:
        first.setdefault(rip, icount)
    return next(int(str(rip)) for rip, icount in first.items() if icount > 300_000)


def test_a_failure_of_translated_code_is_one_line_and_leaves_a_trace_that_replays(
    tmp_path: Path,
) -> None:
    (tmp_path / "demo.elf").write_bytes(demo_image())
    place = executed_later(tmp_path)
    options = [
        "record",
        "-q",
        "--no-input",
        "--smp",
        "2",
        "-m",
        "64M",
        "-o",
        "bad.rr86",
        "demo.elf",
    ]
    program = PROGRAM.replace("PLACE", hex(place))
    done = subprocess.run(
        [sys.executable, "-c", program, *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert "translated code raised #UD on the host" in lines[0]
    assert f"rip {place:#x}, bytes " in lines[0]
    trace = rr86.open_trace(tmp_path / "bad.rr86")
    assert trace.complete
    (stop,) = trace.events(["stop"])
    assert STOP_REASONS[int(str(stop.fields["reason"]))] == "host-fault"
    replayed = trace.replay()
    assert (replayed.reason, replayed.icount) == ("end", stop.icount)
    assert replayed.icount > 200_000
