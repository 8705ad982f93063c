"""Which vCPU executes which instruction: the slices of a trace, looked up by moment.

Chunks are read when they are asked for, so that a question about a long trace costs one chunk.
"""

from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple, Protocol


class Slice(NamedTuple):
    """A stretch of one vCPU: `instructions` from the moment `start` on."""

    start: int
    vcpu: int
    instructions: int

    @property
    def end(self) -> int:
        """The moment behind its last instruction."""
        return self.start + self.instructions


class SliceSource(Protocol):
    """What a trace reader offers of its slices."""

    def chunk_count(self) -> int:
        """Number of chunks."""

    def chunk_moments(self, chunk: int) -> tuple[int, int]:
        """The lowest and the highest moment of a chunk."""

    def slices(self, chunk: int) -> list[tuple[int, int, int]]:
        """(icount, vcpu, instructions) of a chunk's slices."""


class Slices:
    """The slices of a trace that have instructions, in the order of the run."""

    def __init__(self, source: SliceSource) -> None:
        self._source = source
        count = source.chunk_count()
        # A chunk may begin with an event of a slice that is before its first one: the highest
        # moment so far keeps them in order.
        self._firsts: list[int] = []
        for chunk in range(count):
            first = source.chunk_moments(chunk)[0]
            self._firsts.append(max(first, self._firsts[-1] if self._firsts else 0))
        self._chunk = lru_cache(maxsize=64)(self._read)

    def _read(self, chunk: int) -> list[Slice]:
        return [Slice(*row) for row in self._source.slices(chunk) if row[2]]

    def at(self, icount: int) -> Slice | None:
        """The slice that executes instruction `icount`, counted from 0; None behind the last."""
        found = next(self.backward(icount), None)
        return found if found is not None and icount < found.end else None

    def backward(self, icount: int) -> Iterator[Slice]:
        """Slices from the last that starts at or before a moment, back to the first."""
        chunk = bisect_right(self._firsts, icount) - 1
        # Events of a slice come before the slice itself, which may be in the next chunk.
        chunk = min(chunk + 1, len(self._firsts) - 1)
        for number in range(chunk, -1, -1):
            for each in reversed(self._chunk(number)):
                if each.start <= icount:
                    yield each

    def forward(self, icount: int) -> Iterator[Slice]:
        """Slices from the one that executes a moment on."""
        chunk = max(0, bisect_right(self._firsts, icount) - 2)
        for number in range(chunk, len(self._firsts)):
            for each in self._chunk(number):
                if each.end > icount:
                    yield each

    def next_of(self, vcpu: int, icount: int) -> int | None:
        """The first moment after `icount` at which a vCPU executes an instruction."""
        for each in self.forward(icount + 1):
            if each.vcpu == vcpu:
                return max(each.start, icount + 1)
        return None

    def previous_of(self, vcpu: int, icount: int) -> int | None:
        """The last moment before `icount` at which a vCPU executes an instruction."""
        for each in self.backward(icount - 1):
            if each.vcpu == vcpu:
                return min(each.end, icount) - 1
        return None
