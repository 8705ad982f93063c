"""Looking at a stopped guest: registers, memory, code, names and call stacks of its vCPUs.

`Inspector` needs only the few methods of a machine that look and change nothing, so it works the
same on a recording and on a replay, and never disturbs either.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from rr86.cpu import registers as regs
from rr86.cpu.guest_symbols import GuestSymbols
from rr86.cpu.kaslr import offset_from_registers
from rr86.errors import KernelImageError

# What only a look needs is imported when somebody looks: most runs just run.
if TYPE_CHECKING:
    from rr86.cpu.backtrace import Frame
    from rr86.cpu.disassembly import Instruction
    from rr86.cpu.orc import OrcTable


_KERNEL_HALF = 1 << 63


class Guest(Protocol):
    """What a machine has to offer to be looked at."""

    def registers(self, vcpu: int) -> dict[str, int]:
        """Registers by name."""

    def read_physical(self, paddr: int, length: int) -> bytes:
        """Guest RAM."""

    def read_virtual(self, vcpu: int, address: int, length: int) -> bytes:
        """Linear memory, short where a page is not mapped."""


class Processes(Protocol):
    """What is known of the processes of a guest's kernel."""

    def running(self, vcpu: int) -> str | None:
        """What a vCPU runs, as it is put behind its name: `in init (pid 1)`."""

    def as_dict(self, vcpu: int) -> dict[str, object] | None:
        """The same as plain data."""

    def symbolize(self, vcpu: int, address: int) -> str | None:
        """`PROGRAM:function+0x1c` for an address of the program that a vCPU runs."""

    def module_symbol(self, address: int) -> str | None:
        """`function+0x1c [module]` for an address in one of the kernel's modules."""

    def module_orc(self, address: int) -> "OrcTable | None":
        """The unwind table of the module that an address is in."""

    def frames(self, vcpu: int, registers: Mapping[str, int], limit: int) -> "list[Frame]":
        """The call stack in the program that a vCPU runs, from a frame with these registers on."""

    def is_running(self, vcpu: int, name: str) -> bool:
        """Whether a vCPU runs a process of this name."""

    def is_at(self, vcpu: int, program: str, function: str, offset: int, rip: int) -> bool:
        """Whether a vCPU runs a program and is about to execute this place in it."""

    def addresses(self, program: str, function: str, offset: int) -> list[int] | None:
        """Where a function is in each process that runs the program now; None before there are
        processes."""

    def beginnings(self) -> list[int]:
        """Where programs are started; empty while the kernel has not placed itself."""


class Inspector:
    """A view of a guest with symbols."""

    def __init__(self, guest: Guest, symbols: GuestSymbols, vcpus: int) -> None:
        self.guest = guest
        self.symbols = symbols
        self.vcpus = vcpus
        self.processes: Processes | None = None
        self._orc: OrcTable | None = None
        self._orc_tried = False

    def registers(self, vcpu: int = 0) -> dict[str, int]:
        """All registers of a vCPU, by name."""
        return self.guest.registers(vcpu)

    def memory(self, paddr: int, length: int) -> bytes:
        """Bytes of guest RAM at a physical address."""
        return self.guest.read_physical(paddr, length)

    def read_virtual(self, address: int, length: int, vcpu: int = 0) -> bytes:
        """Bytes at a linear address as the vCPU maps it; short where a page is not mapped."""
        return self.guest.read_virtual(vcpu, address, length)

    def _read_for(self, vcpu: int, address: int, length: int) -> bytes:
        return self.guest.read_virtual(vcpu, address, length)

    def locate_kernel(self) -> int | None:
        """The kernel's KASLR offset, looked for in every vCPU until it is known."""
        table = self.symbols.linked
        if table is None or self.symbols.offset is not None:
            return self.symbols.offset
        for vcpu in range(self.vcpus):
            reader = functools.partial(self._read_for, vcpu)
            offset = offset_from_registers(table, self.registers(vcpu), reader)
            if offset is not None:
                self.symbols.offset = offset
                return offset
        return None

    def symbolize(self, address: int, vcpu: int | None = None) -> str | None:
        """`function+0x1c` for a linear address, or None where no symbol covers it. Of the program
        that `vcpu` runs, `PROGRAM:function+0x1c`."""
        self.locate_kernel()
        if vcpu is not None and address < _KERNEL_HALF and self.processes is not None:
            found = self.processes.symbolize(vcpu, address)
            if found is not None:
                return found
        name = self.symbols.lookup(address)
        if name is None and address >= _KERNEL_HALF and self.processes is not None:
            return self.processes.module_symbol(address)
        return name

    def symbolizer(self, vcpu: int) -> Callable[[int], str | None]:
        """`symbolize` for what a vCPU runs."""
        return functools.partial(self.symbolize, vcpu=vcpu)

    def disassemble(
        self, vcpu: int = 0, address: int | None = None, count: int = 8
    ) -> "list[Instruction]":
        """Instructions at an address, by default the vCPU's next ones, in its current mode."""
        from rr86.cpu import disassembly

        registers = self.registers(vcpu)
        start = regs.linear_rip(registers) if address is None else address
        code = self.read_virtual(start, 15 * count, vcpu)
        return disassembly.disassemble(
            code, start, regs.code_bits(registers), self.symbolizer(vcpu), count
        )

    def listing(self, vcpu: int = 0) -> list[str]:
        """Disassembly around the vCPU's next instruction, which is marked `=>`."""
        from rr86.cpu import disassembly

        registers = self.registers(vcpu)
        rip = regs.linear_rip(registers)
        self.locate_kernel()
        table = self.symbols.table
        found = None if table is None else table.resolve(rip)
        return disassembly.listing(
            functools.partial(self._read_for, vcpu),
            rip,
            regs.code_bits(registers),
            self.symbolizer(vcpu),
            function_start=None if found is None else rip - found[1],
        )

    def backtrace(self, vcpu: int = 0, limit: int = 32) -> "list[Frame]":
        """The vCPU's call stack, innermost frame first."""
        from rr86.cpu import backtrace as stacks

        self.locate_kernel()
        table = self.symbols.table
        return stacks.backtrace(
            self.registers(vcpu),
            functools.partial(self._read_for, vcpu),
            table,
            self._orc_table() if table is not None and table.relocatable else None,
            limit,
            None if self.processes is None else functools.partial(self.processes.frames, vcpu),
            self.processes,
        )

    def _orc_table(self) -> "OrcTable | None":
        from rr86.cpu.orc import orc_of

        if not self._orc_tried:
            self._orc_tried = True
            try:
                self._orc = orc_of(self.symbols.kernel)
            except KernelImageError:
                self._orc = None
        return self._orc

    def summary_line(self, vcpu: int) -> str:
        """One line for a vCPU: where it is and what it does."""
        registers = self.registers(vcpu)
        rip = regs.linear_rip(registers)
        activity = regs.ACTIVITIES.get(registers["activity"], "in an unknown state")
        process = self.running(vcpu)
        name = f"vCPU {vcpu}, {process}" if process else f"vCPU {vcpu}"
        return f"{name}: {activity} at {rip:#x} {self.symbolize(rip, vcpu) or ''}".rstrip()

    def process(self, vcpu: int) -> dict[str, object] | None:
        """The process that a vCPU runs, as plain data; None where that is not known."""
        return None if self.processes is None else self.processes.as_dict(vcpu)

    def running(self, vcpu: int) -> str | None:
        """What a vCPU runs: `in init (pid 1)`, or `idle`; None where that is not known."""
        return None if self.processes is None else self.processes.running(vcpu)

    def report(self, vcpu: int, others: Sequence[int] | None = None) -> list[str]:
        """What a person wants to see at a stop: registers, code and call stack of one vCPU.

        The other vCPUs (all, unless `others` says which) get one line each.
        """
        registers = self.registers(vcpu)
        rip = regs.linear_rip(registers)
        name = self.symbolize(rip, vcpu)
        lines = [f"RIP: {registers['cs']:04x}:{registers['rip']:016x} {name or ''}".rstrip()]
        lines += regs.dump(registers)
        lines += ["Code:", *(f"  {line}" for line in self.listing(vcpu))]
        lines += ["Call stack:", *(f"  {frame}" for frame in self.backtrace(vcpu))]
        rest = [v for v in range(self.vcpus) if v != vcpu] if others is None else others
        lines += [self.summary_line(other) for other in rest]
        return lines
