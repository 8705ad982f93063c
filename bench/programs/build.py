"""Compiling the programs: static, for any x86-64, once per content of their sources."""

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from bench.common import BenchError

SOURCES = Path(__file__).parent / "src"
FOLDER = Path("build/bench")
FLAGS = ("-O2", "-static", "-fno-math-errno", "-Wall", "-Wextra", "-Werror")


def build(names: Iterable[str], folder: Path = FOLDER) -> dict[str, Path]:
    """The executables of these programs, by name; those built before are not built again."""
    headers = b"".join(header.read_bytes() for header in sorted(SOURCES.glob("*.h")))
    return {name: _build(name, headers, folder) for name in names}


def _build(name: str, headers: bytes, folder: Path) -> Path:
    source = SOURCES / f"{name}.c"
    content = " ".join(FLAGS).encode() + headers + source.read_bytes()
    # The name stays readable in a process list; the folder tells the contents apart.
    place = folder.resolve() / hashlib.sha256(content).hexdigest()[:16] / name
    if place.exists():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    # Under another name until it is complete, for whoever builds at the same time.
    handle, temporary = tempfile.mkstemp(dir=place.parent)
    os.close(handle)
    command = ["gcc", *FLAGS, "-o", temporary, str(source), "-lm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        Path(temporary).unlink()
        raise BenchError("the programs need gcc and the static C library to be built") from None
    if done.returncode != 0:
        Path(temporary).unlink()
        lines = done.stderr.strip().splitlines()
        raise BenchError(f"gcc cannot build {source.name}: {lines[-1] if lines else 'no reason'}")
    Path(temporary).chmod(0o755)
    return Path(temporary).rename(place)
