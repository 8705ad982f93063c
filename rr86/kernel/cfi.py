"""Unwinding the stacks of programs by the tables that their compilers made (`.eh_frame`).

Nearly all programs for x86-64 have them, whether they were built with frame pointers or not, and
`strip` leaves them in. pyelftools takes them apart; this module applies the rules.

Source: DWARF 5, section 6.4; System V ABI, AMD64 supplement, figure 3.36 (register numbers).
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from functools import cached_property
from io import BytesIO
from typing import Any

ReadWord = Callable[[int], int | None]

NAMES = (
    *("rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp"),
    *(f"r{number}" for number in range(8, 16)),
    "rip",
)
_RSP, _RIP = NAMES.index("rsp"), NAMES.index("rip")
_MASK = (1 << 64) - 1


class CallFrames:
    """The unwind tables of a program: its `.eh_frame` section, and that one's link-time address."""

    def __init__(self, section: bytes, address: int) -> None:
        self._section = section
        self._address = address

    @cached_property
    def _fdes(self) -> list[tuple[int, int, Any]]:
        """Start, end and description of each function, by address."""
        from elftools.dwarf.callframe import FDE, CallFrameInfo
        from elftools.dwarf.structs import DWARFStructs

        structs = DWARFStructs(little_endian=True, dwarf_format=32, address_size=8)
        data = self._section
        info = CallFrameInfo(BytesIO(data), len(data), self._address, structs, for_eh_frame=True)
        try:
            rows = [
                (each["initial_location"], each["initial_location"] + each["address_range"], each)
                for each in info.get_entries()
                if isinstance(each, FDE)
            ]
        except Exception:
            # A damaged table makes all kinds of errors in pyelftools; it tells nothing then.
            return []
        return sorted(rows, key=lambda row: row[0])

    @cached_property
    def _starts(self) -> list[int]:
        return [start for start, _, _ in self._fdes]

    def step(
        self, registers: Mapping[str, int], offset: int, exact: bool, read: ReadWord
    ) -> tuple[dict[str, int], bool] | None:
        """The caller's registers, as far as they are known, and whether its address is that of the
        next instruction (behind a signal) and not a return address. None where the tables say
        nothing, and at the stack's end.

        `offset` is how far the program is from its link-time addresses; `exact` says of `rip` what
        the answer says of the caller's.
        """
        pc = registers["rip"] - offset - (not exact)
        index = bisect_right(self._starts, pc) - 1
        if index < 0 or pc >= self._fdes[index][1]:
            return None
        fde = self._fdes[index][2]
        try:
            rows = fde.get_decoded().table
            row = next(each for each in reversed(rows) if each["pc"] <= pc)
            found = _apply(row, registers, read)
        except Exception:
            return None
        signal = b"S" in fde.cie.header["augmentation"]
        return None if found is None else (found, signal)


def _apply(row: Any, registers: Mapping[str, int], read: ReadWord) -> dict[str, int] | None:
    rule = row["cfa"]
    if rule.expr is not None:
        cfa = _evaluate(bytes(rule.expr), registers, read, None)
    else:
        cfa = registers[NAMES[rule.reg]] + rule.offset & _MASK
    # Those that a function has not saved are as they were, if they are the caller's to keep.
    found = {"rsp": cfa}
    for number, name in enumerate(NAMES):
        how = row.get(number)
        if how is None or how.type == "SAME_VALUE":
            if name in registers and number not in (_RSP, _RIP):
                found[name] = registers[name]
            continue
        value: int | None
        match how.type:
            case "OFFSET":
                value = read(cfa + how.arg)
            case "VAL_OFFSET":
                value = cfa + how.arg
            case "REGISTER":
                value = registers.get(NAMES[how.arg])
            case "EXPRESSION":
                value = read(_evaluate(bytes(how.arg), registers, read, cfa))
            case "VAL_EXPRESSION":
                value = _evaluate(bytes(how.arg), registers, read, cfa)
            case _:
                value = None
        if value is not None:
            found[name] = value & _MASK
        elif number == _RIP:
            return None
    return found if "rip" in found else None


def _evaluate(code: bytes, registers: Mapping[str, int], read: ReadWord, cfa: int | None) -> int:
    """A DWARF expression, of the operations that compilers and the C library use here. Whatever
    else there is raises some exception."""
    stack = [] if cfa is None else [cfa]
    at = 0

    def leb(signed: bool) -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = code[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value - (1 << shift) if signed and byte & 0x40 else value

    while at < len(code):
        operation = code[at]
        at += 1
        match operation:
            case 0x03:  # DW_OP_addr
                stack.append(int.from_bytes(code[at : at + 8], "little"))
                at += 8
            case 0x06:  # DW_OP_deref
                value = read(stack.pop())
                if value is None:
                    raise ValueError("memory that is not mapped")
                stack.append(value)
            case 0x08 | 0x09:  # DW_OP_const1u, const1s
                stack.append(int.from_bytes(code[at : at + 1], "little", signed=operation == 9))
                at += 1
            case 0x0A | 0x0B:  # DW_OP_const2u, const2s
                stack.append(int.from_bytes(code[at : at + 2], "little", signed=operation == 0xB))
                at += 2
            case 0x10 | 0x11:  # DW_OP_constu, consts
                stack.append(leb(operation == 0x11))
            case 0x1A:  # DW_OP_and
                stack.append(stack.pop() & stack.pop())
            case 0x1C:  # DW_OP_minus
                right = stack.pop()
                stack.append(stack.pop() - right)
            case 0x22:  # DW_OP_plus
                stack.append(stack.pop() + stack.pop())
            case 0x23:  # DW_OP_plus_uconst
                stack.append(stack.pop() + leb(False))
            case 0x24:  # DW_OP_shl
                right = stack.pop()
                stack.append(stack.pop() << right)
            case 0x2A:  # DW_OP_ge
                right = stack.pop()
                stack.append(int(stack.pop() >= right))
            case _ if 0x30 <= operation < 0x50:  # DW_OP_lit0 and so on
                stack.append(operation - 0x30)
            case _ if 0x70 <= operation < 0x90:  # DW_OP_breg0 and so on
                stack.append(registers[NAMES[operation - 0x70]] + leb(True))
            case _:
                raise ValueError(f"operation {operation:#x}")
    return stack[-1] & _MASK
