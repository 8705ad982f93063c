"""Call stacks of a stopped guest by names, for profiles: from the kernel through system calls and
interrupts down to the program, and what runs there.

The kernel's part is unwound by its ORC tables, the program's by frame pointers, as far as it has
them. What has no name is `[user]` or `[no symbol]`, and neighbours of one kind are one.
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
_LARGEST_FRAME = 1 << 20

# Names an address of the program that a vCPU runs; None where it has none.
UserNames = Callable[[int, int], str | None]


class Stacks:
    """Looks at call stacks, again and again, of one session."""

    def __init__(self, inspector: "Inspector", user_names: UserNames | None = None) -> None:
        """`user_names` is called with a vCPU and an address below the kernel's half."""
        self._inspector = inspector
        self._tasks = Tasks(inspector)
        self._user_names = user_names
        self._linux = False
        self._table: SymbolTable | None = None
        self._orc: OrcTable | None = None
        self._name = functools.cache(self._look_up)

    def look(self, vcpu: int) -> tuple[str, ...]:
        """The task that a vCPU runs, and its functions, the innermost last."""
        self._place()
        registers = self._inspector.registers(vcpu)
        read = functools.partial(self._read, vcpu)
        started = self._linux and (registers["cpl"] == 3 or registers["rip"] >= _KERNEL_HALF)
        frames = [
            self._named(vcpu, each) if started or not self._linux else NO_SYMBOL
            for each in self._addresses(registers, read)
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

    def _addresses(self, registers: dict[str, int], read: Callable[[int, int], bytes]) -> list[int]:
        """Code addresses, the innermost first. Those of callers are of their calls."""
        rip = linear_rip(registers)
        table = self._table
        if code_bits(registers) != 64:
            return [rip]
        if rip < _KERNEL_HALF and (self._linux or table is None):
            if registers["cpl"] != 3:
                # Before the kernel proper: it is being unpacked.
                return [rip]
            return [rip, *_by_frame_pointers(registers["rsp"], registers["rbp"], read)]
        if self._orc is not None and table is not None and table.is_text(rip):
            return self._by_orc(registers, read, table, self._orc)
        frames = backtrace(registers, read, table, None, _DEEPEST)
        return [rip, *(frame.address - 1 for frame in frames[1:] if not frame.doubtful)]

    def _by_orc(
        self,
        registers: dict[str, int],
        read: Callable[[int, int], bytes],
        table: "SymbolTable",
        orc: OrcTable,
    ) -> list[int]:
        def word(address: int) -> int | None:
            raw = read(address, 8)
            return int.from_bytes(raw, "little") if len(raw) == 8 else None

        frame = OrcFrame(registers["rip"], registers["rsp"], registers["rbp"], exact=True)
        found = [frame.ip]
        while len(found) < _DEEPEST:
            register = registers.__getitem__ if len(found) == 1 else None
            caller = orc.step(frame, table.offset, word, register)
            if caller is None or (caller.ip, caller.sp) == (frame.ip, frame.sp):
                break
            if 0 < caller.ip < _KERNEL_HALF:
                found.append(caller.ip)
                found += _by_frame_pointers(caller.sp, caller.bp, read)
                break
            if not table.is_text(caller.ip):
                break
            found.append(caller.ip if caller.exact else caller.ip - 1)
            frame = caller
        return found

    def _named(self, vcpu: int, address: int) -> str:
        if self._linux and address < _KERNEL_HALF:
            name = None if self._user_names is None else self._user_names(vcpu, address)
            return name or USER
        return self._name(address)

    def _look_up(self, address: int) -> str:
        found = None if self._table is None else self._table.resolve(address)
        return NO_SYMBOL if found is None else found[0].name


def _by_frame_pointers(lowest: int, pointer: int, read: Callable[[int, int], bytes]) -> list[int]:
    """The calls that a chain of frame pointers tells of."""
    found: list[int] = []
    while len(found) < _DEEPEST:
        if not lowest <= pointer < lowest + _LARGEST_FRAME or pointer % 8:
            break
        raw = read(pointer, 16)
        if len(raw) < 16:
            break
        lowest, pointer = pointer + 16, int.from_bytes(raw[:8], "little")
        back = int.from_bytes(raw[8:], "little")
        if not 0 < back < _KERNEL_HALF:
            break
        found.append(back - 1)
    return found
