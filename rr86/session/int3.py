"""The ways to a #BP: INT3s that the guest's memory holds, those that only a stale block holds, and
interrupts that somebody injects with vector 3.

At a stop before an instruction, its bytes in the block and in memory decide.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rr86.session.conditions import AnyInt3, Condition, Int3, StaleInt3

if TYPE_CHECKING:
    from rr86._native import Session

# INT3, and INT with vector 3.
SHORT, LONG = b"\xcc", b"\xcd\x03"

INJECTED = (
    "injected: this is the handler of an interrupt that came with vector 3; "
    "no INT3 was executed, honest or stale"
)


@dataclass(frozen=True)
class Int3Look:
    """What is at a breakpoint instruction that is about to execute."""

    # Number of the block, the instruction in it, and the bytes that memory holds there.
    block: int
    executed: bytes
    memory: bytes

    @property
    def stale(self) -> bool:
        """Whether memory holds something else."""
        return self.memory != self.executed

    def __str__(self) -> str:
        says, holds = self.executed.hex(" "), self.memory.hex(" ")
        if self.stale:
            return (
                f"stale int3: block {self.block} says {says}, memory holds {holds} "
                "(rr86 bisect-invalidation names the write that the block missed)"
            )
        return f"honest int3: memory holds {holds}, as block {self.block} does"


def look(machine: "Session", vcpu: int) -> Int3Look | None:
    """The INT3 that a vCPU is about to execute; None if it is not about to execute one."""
    block = machine.current_block(vcpu)
    if block is None:
        return None
    offset = machine.registers(vcpu)["rip"] - block["rip"]
    if not 0 <= offset < len(block["source"]):
        return None
    for code in (SHORT, LONG):
        end = offset + len(code)
        if block["source"][offset:end] == code:
            return Int3Look(block["serial"], code, block["memory"][offset:end])
    return None


def explain(machine: "Session", vcpu: int, condition: Condition | None) -> str | None:
    """What kind of INT3 a run has stopped at; None if it stopped for something else."""
    if not isinstance(condition, Int3 | AnyInt3 | StaleInt3):
        return None
    found = look(machine, vcpu)
    return INJECTED if found is None else str(found)
