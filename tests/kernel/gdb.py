"""The real gdb in batch mode, on core files."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

# What gdb says of each thread: its frames, innermost first, as address, name and type.
_FRAMES = """
import gdb, json
found = {}
for thread in gdb.selected_inferior().threads():
    thread.switch()
    frame, rows = gdb.newest_frame(), []
    try:
        while frame is not None and len(rows) < 64:
            rows.append([frame.pc(), frame.name(), frame.type() == gdb.SIGTRAMP_FRAME])
            frame = frame.older()
    except gdb.error as error:
        rows.append([0, str(error), False])
    found[thread.ptid[1]] = rows
print("FRAMES " + json.dumps(found))
"""


def gdb(where: Path, *commands: str) -> str:
    """What gdb prints for some commands."""
    if shutil.which("gdb") is None:
        pytest.skip("gdb is not installed")
    script = where / "commands.gdb"
    script.write_text("\n".join(commands))
    done = subprocess.run(
        ["gdb", "-nx", "-batch", "-x", script], capture_output=True, text=True, timeout=120
    )
    return done.stdout + done.stderr


def frames(where: Path, symbols: Path, core: Path) -> dict[int, list[list[Any]]]:
    """The frames of each vCPU."""
    script = where / "frames.py"
    script.write_text(_FRAMES)
    said = gdb(where, f"symbol-file {symbols}", f"core {core}", f"source {script}")
    line = next((each for each in said.splitlines() if each.startswith("FRAMES ")), None)
    assert line is not None, said
    return {int(n) - 1: rows for n, rows in json.loads(line.removeprefix("FRAMES ")).items()}
