"""Instructions for people: capstone in Intel syntax, with symbols for branch targets.

Listings around rip need a start before it. Instructions have no way to be read backwards, so
several starts are tried and the one whose instructions fall exactly on rip wins; inside a known
function the listing starts from a function's first byte, which is always right.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Symbolize = Callable[[int], str | None]
ReadVirtual = Callable[[int, int], bytes]

_TARGET = re.compile(r"^0x[0-9a-f]+$")
_RIP_RELATIVE = re.compile(r"\[rip ([+-]) (0x[0-9a-f]+|\d+)\]")
_LONGEST_INSTRUCTION = 15


@dataclass(frozen=True)
class Instruction:
    """One instruction as text; `target` is the symbol of its branch or memory operand."""

    address: int
    code: bytes
    text: str
    target: str | None = None

    @property
    def end(self) -> int:
        """The address of the next instruction."""
        return self.address + len(self.code)


@functools.cache
def _engine(bits: int) -> Any:
    import capstone

    modes = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
    return capstone.Cs(capstone.CS_ARCH_X86, modes[bits])


def disassemble(
    code: bytes,
    address: int,
    bits: int = 64,
    symbolize: Symbolize | None = None,
    count: int = 0,
) -> list[Instruction]:
    """Disassemble `code`, which is at linear `address`; `count` 0 means all of it.

    Bytes that are no instruction come out as `(bad)`, one at a time.
    """
    found: list[Instruction] = []
    engine = _engine(bits)
    position = 0
    while position < len(code) and (count == 0 or len(found) < count):
        progressed = False
        rows = engine.disasm_lite(code[position:], address + position, max(0, count - len(found)))
        for place, size, mnemonic, operands in rows:
            start = place - address
            text = f"{mnemonic} {operands}".rstrip()
            target = _target(operands, place + size, symbolize)
            found.append(Instruction(place, bytes(code[start : start + size]), text, target))
            position = start + size
            progressed = True
        if position < len(code) and (count == 0 or len(found) < count):
            found.append(Instruction(address + position, code[position : position + 1], "(bad)"))
            position += 1
        elif not progressed:
            break
    return found


def _target(operands: str, after: int, symbolize: Symbolize | None) -> str | None:
    if symbolize is None:
        return None
    if _TARGET.match(operands):
        return symbolize(int(operands, 16))
    relative = _RIP_RELATIVE.search(operands)
    if relative:
        distance = int(relative[2], 0)
        place = after + distance if relative[1] == "+" else after - distance
        return symbolize(place & 0xFFFF_FFFF_FFFF_FFFF)
    return None


def _before(
    read: ReadVirtual,
    rip: int,
    bits: int,
    symbolize: Symbolize | None,
    count: int,
    function_start: int | None,
) -> list[Instruction]:
    """Up to `count` instructions that end exactly at `rip`."""
    if function_start is not None and 0 < rip - function_start <= 4096:
        code = read(function_start, rip - function_start)
        rows = disassemble(code, function_start, bits, symbolize)[-count:]
        # Data in between, or a jump into the middle of an instruction, gets out of step.
        if rows and rows[-1].end == rip and all(row.text != "(bad)" for row in rows):
            return rows
    window = read(rip - count * _LONGEST_INSTRUCTION, count * _LONGEST_INSTRUCTION)
    if len(window) < count * _LONGEST_INSTRUCTION:
        window = b""
    best: list[Instruction] = []
    # The longest run wins: code falls into step after a few instructions from any start.
    for skip in range(min(len(window), 2 * _LONGEST_INSTRUCTION)):
        start = rip - len(window) + skip
        rows = disassemble(window[skip:], start, bits, symbolize)
        if rows and rows[-1].end == rip and all(row.text != "(bad)" for row in rows):
            best = rows
            break
    return best[-count:]


def listing(
    read: ReadVirtual,
    rip: int,
    bits: int,
    symbolize: Symbolize | None = None,
    before: int = 4,
    after: int = 5,
    function_start: int | None = None,
) -> list[str]:
    """Lines of disassembly around `rip`, which is marked with `=>`."""
    rows = [
        *_before(read, rip, bits, symbolize, before, function_start),
        *disassemble(
            read(rip, (after + 1) * _LONGEST_INSTRUCTION), rip, bits, symbolize, after + 1
        ),
    ]
    lines = []
    for row in rows:
        mark = "=>" if row.address == rip else "  "
        code = row.code.hex(" ")
        target = f"  <{row.target}>" if row.target else ""
        lines.append(f"{mark} {row.address:#x}: {code:<30} {row.text}{target}")
    if not any(row.address == rip for row in rows):
        lines.append(f"=> {rip:#x}: (not mapped)")
    return lines
