"""Numbers as people write them: with a unit, and with marks between their digits."""

import re
from collections.abc import Mapping

# Instructions, in decimal units.
COUNT_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def scaled(text: str, units: Mapping[str, int]) -> int | None:
    """`500M`, `1.5G`, `1,234,567` or `1_000` as a number; None if it is none.

    `units` are in lower case; what is said in either case is understood.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([a-zA-Z]*)", re.sub("[_,]", "", text.strip()))
    scale = units.get(match[2].lower()) if match is not None else None
    if match is None or scale is None:
        return None
    whole, _, fraction = match[1].partition(".")
    value = int(whole) * scale
    if fraction:
        value += int(fraction) * scale // 10 ** len(fraction)
    return value


def count_of(text: str) -> int | None:
    """A number of instructions, such as `icount=` takes; None if the text is none."""
    return scaled(text, COUNT_UNITS)
