"""What the oracle found: cross-vCPU writes that a trace's hand-offs do not tell of.

The oracle is a slow way of replaying that keeps the last writer of every byte of RAM. Whenever a
vCPU or a device meets bytes that another wrote, the trace must hold a hand-off between the two
moments that names the page, the writer and the line. See docs/determinism.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rr86._native import OracleVerdict


def agent_name(agent: int | None) -> str:
    """A vCPU, or a device, in words."""
    return "a device" if agent is None else f"vCPU {agent}"


@dataclass(frozen=True, slots=True)
class Gap:
    """Accesses of one agent to bytes of one page that another wrote, and that the log lacks.

    Agents are vCPU numbers, None for a device or a loader. `written` is the moment of the write
    that was met first; `access` ("read", "write", "fetch"), `icount`, `rip` and `paddr` are those
    of the first access. Bit n of `lines` stands for the page's 64-byte line n.
    """

    writer: int | None
    written: int
    agent: int | None
    access: str
    icount: int
    rip: int | None
    paddr: int
    lines: int
    accesses: int

    def describe(self, symbolize: Callable[[int], str | None] | None = None) -> str:
        """One line for a person."""
        where = ""
        if self.rip is not None:
            symbol = symbolize(self.rip) if symbolize is not None else None
            where = f" at rip {self.rip:#x}" + (f" <{symbol}>" if symbol else "")
        more = "" if self.accesses == 1 else f", {self.accesses:,} accesses like it"
        return (
            f"written by {agent_name(self.writer)} at {self.written}, {self.access} by "
            f"{agent_name(self.agent)} at {self.icount}{where}: physical {self.paddr:#x}, "
            f"lines {self.lines:#x} of its page{more}"
        )


@dataclass(frozen=True, slots=True)
class OracleReport:
    """What the oracle saw of a replay: how many accesses, how many of them met bytes that another
    agent wrote last (`foreign`), how many of those the trace does not tell of (`missing`), the
    trace's hand-offs, and the gaps, at most a hundred.

    `unseen` is the physical address of a byte that changed without the oracle having seen a write;
    then it was not told of everything, and its report is worth nothing. None as it should be."""

    accesses: int
    foreign: int
    missing: int
    hand_offs: int
    unseen: int | None
    gaps: tuple[Gap, ...]

    @property
    def clean(self) -> bool:
        """Whether the oracle saw everything, and the trace tells of all of it."""
        return self.missing == 0 and self.unseen is None

    @classmethod
    def from_native(cls, verdict: "OracleVerdict") -> "OracleReport":
        """A report from what the core says."""
        return cls(
            accesses=verdict["accesses"],
            foreign=verdict["foreign"],
            missing=verdict["missing"],
            hand_offs=verdict["hand_offs"],
            unseen=verdict["unseen"],
            gaps=tuple(Gap(**gap) for gap in verdict["gaps"]),
        )
