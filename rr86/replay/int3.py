"""INT3s: those that the guest's memory holds, and those that only a stale block holds.

At a stop before an INT3, the byte in the block and the byte in memory decide. An int3 trap that was
injected by other means never stops a run at all: no INT3 is executed for it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rr86._native import Machine

INT3 = 0xCC


@dataclass(frozen=True)
class Int3Look:
    """What is at an INT3 that is about to execute."""

    # Number of the block, and the byte that memory holds.
    block: int
    memory: int

    @property
    def stale(self) -> bool:
        """Whether memory holds something else."""
        return self.memory != INT3

    def __str__(self) -> str:
        if self.stale:
            return (
                f"stale int3: block {self.block} says cc, memory holds {self.memory:02x} "
                "(rr86 bisect-invalidation names the write that the block missed)"
            )
        return f"honest int3: memory holds cc, as block {self.block} does"


def look(machine: "Machine", vcpu: int) -> Int3Look | None:
    """The INT3 that a vCPU is about to execute; None if it is not about to execute one."""
    block = machine.current_block(vcpu)
    if block is None:
        return None
    offset = machine.registers(vcpu)["rip"] - block["rip"]
    if not 0 <= offset < len(block["source"]) or block["source"][offset] != INT3:
        return None
    return Int3Look(block["serial"], block["memory"][offset])
