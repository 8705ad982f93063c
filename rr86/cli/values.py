"""Options with units, and the trace that is meant when none is named."""

import re
from pathlib import Path

from typer import BadParameter

from rr86.cli.status import fail, say
from rr86.session.units import COUNT_UNITS, count_of, scaled

_TIME_UNITS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000}
_SIZE_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def _scaled(text: str, units: dict[str, int], what: str, example: str) -> int:
    value = scaled(text, units)
    if value is None:
        raise BadParameter(f"{text!r} is not {what}; examples: {example}")
    if value >> 63:
        raise BadParameter(f"{text!r} is more than can be counted")
    if value <= 0:
        raise BadParameter(f"{what} has to be more than 0")
    return value


def parse_duration(text: str) -> int:
    """Nanoseconds of virtual time."""
    return _scaled(text, {**_TIME_UNITS, "": 10**9}, "a duration", "10s, 250ms, 2m")


def parse_bytes(text: str) -> int:
    """A file size, in units of 1024."""
    return _scaled(text, _SIZE_UNITS, "a size", "100M, 2G, 500000")


def parse_count(text: str) -> int:
    """A number of instructions."""
    return _scaled(text, COUNT_UNITS, "a number of instructions", "2000000, 500M, 2G")


def parse_moment(text: str) -> int:
    """A moment: the instruction count that `icount=` stops at."""
    value = count_of(text.removeprefix("icount="))
    if value is None or value >> 64:
        raise BadParameter(f"{text!r} is not a moment; write N or icount=N, as 2000000, 500M or 2G")
    return value


_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "0": "\0", "\\": "\\"}


def parse_typed(text: str) -> bytes:
    """What is typed into a console: text with the escapes of C."""

    def one(match: re.Match[str]) -> str:
        code = match[1]
        if code.startswith("x"):
            return (
                chr(0xDC00 + int(code[1:], 16))
                if int(code[1:], 16) > 127
                else chr(int(code[1:], 16))
            )
        if code not in _ESCAPES:
            raise BadParameter(
                f"{text!r} has an unknown escape, \\{code}; known: \\n, \\r, \\t, \\0, \\xNN"
            )
        return _ESCAPES[code]

    # Bytes that are no text come through as surrogates.
    return re.sub(r"\\(x[0-9a-fA-F]{2}|.|$)", one, text).encode("utf-8", "surrogateescape")


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
