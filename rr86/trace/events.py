"""One event of a trace; see docs/trace-format.md for the kinds and their fields."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its kind, its moment (`vcpu` None: the machine as a whole), and its fields."""

    kind: str
    icount: int
    vcpu: int | None
    fields: Mapping[str, int | bytes]
