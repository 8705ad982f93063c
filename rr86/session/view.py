"""The guest at a moment where a condition is asked."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rr86.cpu.inspection import Inspector

if TYPE_CHECKING:
    from rr86.cpu.backtrace import Frame
    from rr86.cpu.disassembly import Instruction


@dataclass(frozen=True)
class GuestView:
    """Where a run is, and the guest as it stands there. All that it offers looks and changes
    nothing; it is of use until the condition has answered.

    `icount` instructions have retired over all vCPUs, `vcpu` is about to run the one at `rip`, and
    `time_ns` is virtual time.
    """

    vcpu: int
    icount: int
    time_ns: int
    rip: int
    inspector: Inspector

    def registers(self, vcpu: int | None = None) -> dict[str, int]:
        """All registers by name, of the vCPU that runs if no other is named."""
        return self.inspector.registers(self.vcpu if vcpu is None else vcpu)

    def memory(self, paddr: int, length: int) -> bytes:
        """Bytes of guest RAM at a physical address. Raises `NativeError` where there is none."""
        return self.inspector.memory(paddr, length)

    def read_virtual(self, address: int, length: int, vcpu: int | None = None) -> bytes:
        """Bytes at a linear address as the vCPU maps it; short where a page is not mapped."""
        return self.inspector.read_virtual(address, length, self.vcpu if vcpu is None else vcpu)

    def symbolize(self, address: int) -> str | None:
        """`function+0x1c` for a linear address, or None where no symbol covers it."""
        return self.inspector.symbolize(address)

    def disassemble(self, address: int | None = None, count: int = 8) -> "list[Instruction]":
        """Instructions at a linear address, by default the next ones."""
        return self.inspector.disassemble(self.vcpu, address, count)

    def backtrace(self, limit: int = 32) -> "list[Frame]":
        """The call stack of the vCPU that runs, innermost frame first."""
        return self.inspector.backtrace(self.vcpu, limit)
