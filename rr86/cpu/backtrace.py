"""Call stacks.

Three ways, from good to bad: the kernel's ORC tables; the chain of frame pointers, where it looks
like one; and a scan of the stack for return addresses, whose finds are marked `?` as in Linux's
own call traces, because some are left over from calls that have returned.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from rr86.cpu.orc import OrcFrame, OrcTable
from rr86.cpu.registers import code_bits, linear_rip, linear_rsp
from rr86.cpu.symbols import SymbolTable

ReadVirtual = Callable[[int, int], bytes]

_KERNEL_HALF = 1 << 63
_DEEPEST = 64
_SCANNED = 4096
_LONGEST_CALL = 7


@dataclass(frozen=True)
class Frame:
    """One line of a call stack; a doubtful one was found by scanning."""

    address: int
    symbol: str | None
    doubtful: bool = False

    def __str__(self) -> str:
        return f"{'? ' if self.doubtful else ''}{self.symbol or f'{self.address:#x}'}"


def _follows_call(read: ReadVirtual, address: int) -> bool:
    """Whether the bytes before a return address can end with a CALL."""
    code = b""
    # The page before may be unmapped; then there is less to look at.
    for length in (_LONGEST_CALL, 5, 2):
        code = read(address - length, length)
        if len(code) == length:
            break
    if len(code) >= 5 and code[-5] == 0xE8:
        return True
    # FF /2: two bytes plus an addressing form of up to five more.
    return any(
        len(code) >= length and code[-length] == 0xFF and code[-length + 1] >> 3 & 7 == 2
        for length in (2, 3, 4, 6, 7)
    )


# The part of a call stack that is in a program: from registers on, so many frames.
InProgram = Callable[[Mapping[str, int], int], list[Frame]]


class Modules(Protocol):
    """What is known of a kernel's modules."""

    def module_symbol(self, address: int) -> str | None:
        """The name of a place in a module's code."""

    def module_orc(self, address: int) -> OrcTable | None:
        """The unwind table of the module that an address is in, with runtime addresses."""


@dataclass(frozen=True)
class _Code:
    """A kernel's code: its image, and its modules."""

    table: SymbolTable
    image: OrcTable
    modules: Modules | None

    def name(self, address: int) -> str | None:
        """The name of a place in code; None for what is no code."""
        if self.table.is_text(address):
            return self.table.lookup(address)
        return None if self.modules is None else self.modules.module_symbol(address)

    def orc(self, address: int) -> tuple[OrcTable | None, int]:
        """The unwind table for a place in code, and how far that is from the table's addresses."""
        if self.modules is None or self.table.is_text(address):
            return self.image, self.table.offset
        return self.modules.module_orc(address), 0


class _Stack:
    def __init__(self, registers: Mapping[str, int], read: ReadVirtual) -> None:
        self.width = 8 if code_bits(registers) == 64 else 4
        self.top = linear_rsp(registers)
        self.read = read

    def word(self, address: int) -> int | None:
        raw = self.read(address, self.width)
        return int.from_bytes(raw, "little") if len(raw) == self.width else None


def backtrace(
    registers: Mapping[str, int],
    read: ReadVirtual,
    table: SymbolTable | None,
    orc: OrcTable | None = None,
    limit: int = 32,
    program: InProgram | None = None,
    modules: Modules | None = None,
) -> list[Frame]:
    """The call stack of a vCPU, innermost frame first; at least that frame. `program` has the part
    that is in a program of a guest with ORC tables, `modules` knows what is outside of its kernel's
    image."""
    rip = linear_rip(registers)
    name = None if table is None else table.lookup(rip)
    if name is None and modules is not None and rip >= _KERNEL_HALF:
        name = modules.module_symbol(rip)
    frames = [Frame(rip, name)]
    limit = min(limit, _DEEPEST)
    bits = code_bits(registers)
    if bits == 16:
        return frames
    stack = _Stack(registers, read)
    if table is None:
        return frames + _by_frame_pointer(registers, stack, None, limit - 1)
    if orc is not None and bits == 64 and rip < _KERNEL_HALF and program is not None:
        return program(registers, limit)
    callers: list[Frame] = []
    if orc is not None and bits == 64 and (table.is_text(rip) or name is not None):
        code = _Code(table, orc, modules)
        callers = _by_orc(registers, stack, code, limit - 1, program)
    if not callers:
        callers = _by_frame_pointer(registers, stack, table, limit - 1)
    if not callers and (table.is_text(rip) or not table.relocatable):
        callers = _by_scan(stack, table, limit - 1)
    return frames + callers


def _by_orc(
    registers: Mapping[str, int],
    stack: _Stack,
    code: _Code,
    limit: int,
    program: InProgram | None,
) -> list[Frame]:
    frame = OrcFrame(linear_rip(registers), registers["rsp"], registers["rbp"], exact=True)
    frames: list[Frame] = []
    while len(frames) < limit:
        register = registers.__getitem__ if not frames else None
        orc, offset = code.orc(frame.ip)
        caller = None if orc is None else orc.step(frame, offset, stack.word, register)
        if caller is not None and caller.exact and caller.ip < _KERNEL_HALF and program is not None:
            # The kernel was entered from there.
            there = {"rip": caller.ip, "rsp": caller.sp, "rbp": caller.bp}
            return frames + (program(there, limit - len(frames)) if caller.ip else [])
        name = None if caller is None else code.name(caller.ip)
        if caller is None or name is None:
            break
        frames.append(Frame(caller.ip, name))
        if (caller.ip, caller.sp) == (frame.ip, frame.sp):
            break
        frame = caller
    return frames


def _by_frame_pointer(
    registers: Mapping[str, int], stack: _Stack, table: SymbolTable | None, limit: int
) -> list[Frame]:
    frames: list[Frame] = []
    pointer = registers["rbp"]
    if stack.width == 4:
        pointer = registers["ss_base"] + pointer & 0xFFFF_FFFF
    lowest = stack.top
    while len(frames) < limit:
        # A frame is above the one it called, aligned, and returns behind a CALL instruction.
        if pointer < lowest or pointer - lowest > 1 << 20 or pointer % stack.width:
            break
        saved, return_to = stack.word(pointer), stack.word(pointer + stack.width)
        if saved is None or return_to is None:
            break
        if table is not None and not table.is_text(return_to):
            break
        if not _follows_call(stack.read, return_to):
            break
        frames.append(Frame(return_to, None if table is None else table.lookup(return_to)))
        lowest = pointer + stack.width
        pointer = saved
    return frames


def _by_scan(stack: _Stack, table: SymbolTable, limit: int) -> list[Frame]:
    frames: list[Frame] = []
    raw = stack.read(stack.top, _SCANNED)
    for offset in range(0, len(raw) - stack.width + 1, stack.width):
        if len(frames) == limit:
            break
        value = int.from_bytes(raw[offset : offset + stack.width], "little")
        if table.is_text(value) and _follows_call(stack.read, value):
            frames.append(Frame(value, table.lookup(value), doubtful=True))
    return frames
