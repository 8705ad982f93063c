"""Stale blocks as a trace tells of them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A block that was executed while memory held something else."""

    id: int
    pc: int
    paddr: int
    length: int
    vcpu: int
    fetched: int
    linked: int
    # Start of the slice in which it was fetched.
    slice: int
    born_stale: bool
    executed: int
    executed_by: int

    @property
    def first_range(self) -> tuple[int, int]:
        """Physical range of the bytes in the first page."""
        return self.paddr, min(self.length, 4096 - self.paddr % 4096)

    @property
    def crosses(self) -> bool:
        """Whether there are bytes in a second page."""
        return self.first_range[1] < self.length


@dataclass(frozen=True, slots=True)
class StaleBlocks:
    """All stale blocks of a trace."""

    born: int
    survived: int
    # Those that were executed, in the order of their first stale executions.
    candidates: list[Candidate]
