"""Checkpoints of a trace: the moments from which a replay can begin, besides power-on."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint of a trace: its number there, its moment, and what it costs."""

    number: int
    icount: int
    stored_bytes: int
    # Pages of RAM that changed since the checkpoint before.
    pages: int


def nearest(checkpoints: Sequence[Checkpoint], icount: int) -> Checkpoint | None:
    """The last checkpoint at or before a moment; None is power-on."""
    before = [each for each in checkpoints if each.icount <= icount]
    return max(before, key=lambda each: each.icount, default=None)
