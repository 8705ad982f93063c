"""Call stacks of a stopped guest by names, for profiles: from the kernel through system calls and
interrupts down to the program, and what runs there.

The kernel's part is unwound by its ORC tables, the program's by the unwind tables of its file or by
frame pointers. What has no name is `[user]` or `[no symbol]`, and neighbours of one kind are one.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from rr86.cpu.backtrace import backtrace
from rr86.cpu.orc import OrcFrame, OrcTable, orc_of
from rr86.cpu.registers import code_bits, linear_rip
from rr86.errors import KernelImageError
from rr86.kernel.tasks import Tasks

if TYPE_CHECKING:
    from rr86.cpu.inspection import Inspector
    from rr86.cpu.symbols import SymbolTable

USER, NO_SYMBOL = "[user]", "[no symbol]"
_KERNEL_HALF = 1 << 63
_DEEPEST = 128

# A frame: the address in it, and in a program the name of the function if that is known.
Place = tuple[int, str | None]


class Stacks:
    """Looks at call stacks, again and again, of one session."""

    def __init__(self, inspector: "Inspector") -> None:
        self._inspector = inspector
        self._tasks = Tasks(inspector)
        self._linux = False
        self._table: SymbolTable | None = None
        self._orc: OrcTable | None = None
        self._name = functools.cache(self._look_up)

    def look(self, vcpu: int) -> tuple[str, ...]:
        """The task that a vCPU runs, and its functions, the innermost last."""
        self._place()
        registers = self._inspector.registers(vcpu)
        read = functools.partial(self._read, vcpu)
        # Before the kernel proper: it is being unpacked.
        unpacking = self._linux and registers["cpl"] != 3 and registers["rip"] < _KERNEL_HALF
        frames = [
            NO_SYMBOL if unpacking else self._named(*each)
            for each in self._frames(vcpu, registers, read)
        ]
        merged = [
            name
            for index, name in enumerate(frames)
            if not index or name != frames[index - 1] or not name.startswith("[")
        ]
        return (self._task(vcpu), *reversed(merged))

    def _place(self) -> None:
        """Where the kernel is may be known by now."""
        if self._table is not None:
            return
        self._inspector.locate_kernel()
        self._table = table = self._inspector.symbols.table
        self._name.cache_clear()
        self._linux = table is not None and table.relocatable
        if self._linux:
            try:
                self._orc = orc_of(self._inspector.symbols.kernel)
            except KernelImageError:
                self._orc = None

    def _task(self, vcpu: int) -> str:
        task = self._tasks.current(vcpu) if self._linux else None
        if task is None:
            return "boot" if self._linux else "guest"
        return "idle" if task.idle else task.name

    def _read(self, vcpu: int, address: int, length: int) -> bytes:
        return self._inspector.read_virtual(address, length, vcpu)

    def _frames(
        self, vcpu: int, registers: dict[str, int], read: Callable[[int, int], bytes]
    ) -> list[Place]:
        """The frames, the innermost first. The addresses of callers are of their calls."""
        rip = linear_rip(registers)
        table = self._table
        if code_bits(registers) != 64:
            return [(rip, None)]
        if self._linux and rip < _KERNEL_HALF:
            return self._in_program(vcpu, registers) if registers["cpl"] == 3 else [(rip, None)]
        if self._orc is not None and table is not None and table.is_text(rip):
            return self._by_orc(vcpu, registers, read, table, self._orc)
        found = backtrace(registers, read, table, None, _DEEPEST)
        return [(rip, None), *((each.address - 1, None) for each in found[1:] if not each.doubtful)]

    def _in_program(self, vcpu: int, registers: dict[str, int]) -> list[Place]:
        """The frames of the program that a vCPU runs, from these registers on."""
        processes = self._inspector.processes
        if processes is None:
            return [(registers["rip"], None)]
        frames = processes.frames(vcpu, registers, _DEEPEST)
        return [
            (frame.address, None if frame.symbol is None else frame.symbol.partition("+0x")[0])
            for frame in frames
        ]

    def _by_orc(
        self,
        vcpu: int,
        registers: dict[str, int],
        read: Callable[[int, int], bytes],
        table: "SymbolTable",
        orc: OrcTable,
    ) -> list[Place]:
        def word(address: int) -> int | None:
            raw = read(address, 8)
            return int.from_bytes(raw, "little") if len(raw) == 8 else None

        frame = OrcFrame(registers["rip"], registers["rsp"], registers["rbp"], exact=True)
        found: list[Place] = [(frame.ip, None)]
        while len(found) < _DEEPEST:
            register = registers.__getitem__ if len(found) == 1 else None
            caller = orc.step(frame, table.offset, word, register)
            if caller is None or (caller.ip, caller.sp) == (frame.ip, frame.sp):
                break
            if 0 < caller.ip < _KERNEL_HALF:
                there = {"rip": caller.ip, "rsp": caller.sp, "rbp": caller.bp}
                return found + self._in_program(vcpu, there)
            if not table.is_text(caller.ip):
                break
            found.append((caller.ip if caller.exact else caller.ip - 1, None))
            frame = caller
        return found

    def _named(self, address: int, name: str | None) -> str:
        if self._linux and address < _KERNEL_HALF:
            return name or USER
        return self._name(address)

    def _look_up(self, address: int) -> str:
        found = None if self._table is None else self._table.resolve(address)
        return NO_SYMBOL if found is None else found[0].name
