"""Scripts of the real gdb, in batch mode, through `rr86 gdb`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import rr86
from rr86.guests import demo_build_commands, demo_folder

ROOT = Path(__file__).parents[2]
HOME = Path("/nonexistent")
COMMAND = [sys.executable, "-c", "from rr86.cli import main; main()"]

needs_gdb = pytest.mark.skipif(
    shutil.which("gdb") is None, reason="gdb is not installed (Debian: apt-get install gdb)"
)


@dataclass(frozen=True)
class Guest:
    """A recording, and its program with debugging information, if there is one."""

    trace: Path
    vmlinux: Path | None = None


def build_demo(folder: Path) -> Guest:
    """The demo guest with line numbers and types, recorded on four vCPUs."""
    source = demo_folder()
    for command in demo_build_commands(source, folder):
        debug = ["-g"] if command[0] == "gcc" else []
        subprocess.run([command[0], *debug, *command[1:]], cwd=source, check=True)
    trace = folder / "demo.rr86"
    rr86.record(folder / "demo.elf", smp=4, memory="64M", seed=1, output=trace)
    return Guest(trace, folder / "demo.elf64")


def environment(home: Path) -> dict[str, str]:
    """Of a person who has nothing in their home."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(home), "COLUMNS": "200"}


def gdb(guest: Guest, *commands: str, at: str = "begin", status: int = 0) -> list[str]:
    """What gdb prints for each command, in order; an error of gdb's is part of it."""
    words = [*COMMAND, "gdb", str(guest.trace), "--at", at]
    words += ["--vmlinux", str(guest.vmlinux)] if guest.vmlinux is not None else []
    words += ["--", "-batch", "-ex", "set width 0", "-ex", "echo <<0>>\\n"]
    for number, command in enumerate(commands, 1):
        # What fails does not keep the others from being done.
        words += ["-ex", command, "-ex", f"echo <<{number}>>\\n"]
    done = subprocess.run(
        words,
        env=environment(HOME),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=250,
    )
    assert done.returncode == status, done.stdout
    pieces = []
    rest = done.stdout.partition("<<0>>\n")[2]
    for number in range(1, len(commands) + 1):
        piece, mark, rest = rest.partition(f"<<{number}>>\n")
        assert mark, done.stdout
        pieces.append(piece)
    return pieces
