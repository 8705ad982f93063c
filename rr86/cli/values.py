"""Options with units, and the trace that is meant when none is named."""

import re
from pathlib import Path

from rr86.cli.status import BadCall, fail, say

_TIME_UNITS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000}
_COUNT_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_SIZE_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def _scaled(text: str, units: dict[str, int], what: str, example: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([a-zA-Z]*)", text.strip().replace("_", ""))
    scale = units.get(match[2].lower()) if match is not None else None
    if match is None or scale is None:
        raise BadCall(f"{text!r} is not {what}; examples: {example}")
    whole, _, fraction = match[1].partition(".")
    value = int(whole) * scale
    if fraction:
        value += int(fraction) * scale // 10 ** len(fraction)
    if value <= 0:
        raise BadCall(f"{what} has to be more than 0")
    return value


def parse_duration(text: str) -> int:
    """Nanoseconds of virtual time."""
    return _scaled(text, {**_TIME_UNITS, "": 10**9}, "a duration", "10s, 250ms, 2m")


def parse_bytes(text: str) -> int:
    """A file size, in units of 1024."""
    return _scaled(text, _SIZE_UNITS, "a size", "100M, 2G, 500000")


def parse_count(text: str) -> int:
    """A number of instructions."""
    return _scaled(text, _COUNT_UNITS, "a number of instructions", "2000000, 500M, 2G")


def newest_trace(folder: Path) -> Path | None:
    """The trace that was changed last."""
    found = [each for each in folder.glob("*.rr86") if each.is_file()]
    return max(found, key=lambda each: (each.stat().st_mtime_ns, each.name), default=None)


def trace_or_newest(trace: Path | None) -> Path:
    """The named trace; without a name the newest one here, which is then said."""
    if trace is not None:
        return trace
    found = newest_trace(Path())
    if found is None:
        fail("no trace named, and there is no *.rr86 in the current folder")
    say(f"using the newest trace here: {found}")
    return found
