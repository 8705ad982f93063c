"""Unwind tables made from ORC: for any entry and any state of a stack, they lead to the caller that
ORC leads to."""

import random
import struct
from io import BytesIO
from typing import Any

import pytest
from elftools.dwarf.callframe import FDE, CallFrameInfo
from elftools.dwarf.structs import DWARFStructs

from rr86.cpu.orc import OrcFrame, OrcLayout, OrcTable
from rr86.kernel.eh_frame import Unwinding, eh_frame, sleb, uleb

OFFSET = 0x1AC00000
CODE = 0xFFFFFFFF81000000
STACK = 0xFFFFC90000010000
RSP, RBP, RIP = 7, 6, 16
LAYOUTS = {
    "before 6.4": OrcLayout(call=0, regs=1, partial=2, kind_mask=3),
    "since 6.4": OrcLayout(call=2, regs=3, partial=4, kind_mask=7),
}


def entries(rng: random.Random, layout: OrcLayout, count: int) -> bytes:
    """ORC entries as a kernel has them, and rarer ones."""
    out = b""
    for _ in range(count):
        kind = rng.choice([layout.call] * 6 + [layout.regs, layout.partial])
        sp_reg = rng.choice([5, 5, 5, 5, 4, 4, 9, 8, 6, 0])
        sp_offset = 8 * rng.randrange(-4 if sp_reg != 5 else 0, 40)
        bp_reg = rng.choice([0, 0, 1, 1, 4]) if kind == layout.call and sp_reg != 9 else 0
        bp_reg = rng.choice([0, 1]) if sp_reg == 9 else bp_reg
        bp_offset = -8 * rng.randrange(2, 5) if bp_reg else 0
        out += struct.pack("<hhBB", sp_offset, bp_offset, sp_reg | bp_reg << 4, kind)
    return out


class Cfi:
    """A reader of call frame information that knows nothing of how ours is made."""

    def __init__(self, section: bytes) -> None:
        structs = DWARFStructs(little_endian=True, dwarf_format=32, address_size=8)
        info = CallFrameInfo(BytesIO(section), len(section), 0, structs, for_eh_frame=True)
        self.fdes = [each for each in info.get_entries() if isinstance(each, FDE)]

    def find(self, pc: int) -> FDE:
        found = [
            each for each in self.fdes if 0 <= pc - each["initial_location"] < each["address_range"]
        ]
        assert len(found) == 1
        return found[0]

    def caller(
        self, pc: int, registers: dict[int, int], memory: dict[int, int]
    ) -> tuple[int, int, int] | None:
        """The caller's instruction, stack pointer and RBP."""
        decoded = self.find(pc).get_decoded()
        row = next(each for each in reversed(decoded.table) if each["pc"] <= pc)
        rule = row["cfa"]
        if rule.expr is not None:
            cfa = evaluate(bytes(rule.expr), registers, memory, None)
        else:
            cfa = registers[rule.reg] + rule.offset

        def value(number: int, default: int) -> int | None:
            how = row.get(number)
            if how is None or how.type == "SAME_VALUE":
                return default
            if how.type == "UNDEFINED":
                return None
            if how.type == "OFFSET":
                return memory[cfa + how.arg]
            where = evaluate(bytes(how.arg), registers, memory, cfa)
            return where if how.type == "VAL_EXPRESSION" else memory[where]

        rip = value(RIP, 0)
        rsp = value(RSP, cfa) if RSP in row else cfa
        rbp = value(RBP, registers[RBP])
        return None if rip is None or rsp is None or rbp is None else (rip, rsp, rbp)


def evaluate(
    code: bytes, registers: dict[int, int], memory: dict[int, int], cfa: int | None
) -> int:
    """A DWARF expression of the few operations that there are."""
    stack = [] if cfa is None else [cfa]
    at = 0

    def signed() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = code[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value - (1 << shift if byte & 0x40 else 0)

    while at < len(code):
        operation = code[at]
        at += 1
        if 0x70 <= operation < 0x90:
            stack.append(registers[operation - 0x70] + signed())
        elif operation == 0x11:
            stack.append(signed())
        elif operation == 0x06:
            stack.append(memory[stack.pop()])
        elif operation == 0x22:
            stack.append(stack.pop() + stack.pop())
        else:
            raise AssertionError(f"operation {operation:#x}")
    return stack[-1]


class Memory(dict[int, int]):
    """Words that are different everywhere, and point into the stack."""

    def __missing__(self, address: int) -> int:
        return STACK + (address * 0x9E3779B1 & 0xFFF8)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("seed", range(4))
def test_every_entry_leads_to_the_caller_that_orc_leads_to(layout: OrcLayout, seed: int) -> None:
    rng = random.Random(seed)
    count = 400
    addresses = [CODE]
    for _ in range(count - 1):
        addresses.append(addresses[-1] + rng.choice([1, 3, 5, 70, 300, 70_000]))
    orc = OrcTable(addresses, entries(rng, layout, count), layout)
    end = addresses[-1] + 16
    cfi = Cfi(eh_frame([Unwinding(orc, OFFSET, end + OFFSET)], lambda _: ""))
    memory = Memory()
    checked = 0
    for address, following in zip(addresses, [*addresses[1:], end], strict=True):
        pc = rng.randrange(address, following) + OFFSET
        registers = {each: STACK + 8 * rng.randrange(100) for each in range(16)}
        frame = OrcFrame(pc, registers[RSP], registers[RBP], exact=True)
        named: dict[str, int] = {"r10": registers[10], "r13": registers[13]}
        found = orc.step(frame, OFFSET, memory.__getitem__, named.__getitem__)
        got = cfi.caller(pc, registers, memory)
        assert got == (None if found is None else (found.ip, found.sp, found.bp))
        checked += found is not None
    assert checked > count // 2


def orc_of(*rows: tuple[int, int, int]) -> OrcTable:
    """A table of (stack register, its offset, kind), 16 bytes of code each."""
    raw = b"".join(struct.pack("<hhBB", offset, 0, reg, kind) for reg, offset, kind in rows)
    return OrcTable([CODE + 16 * n for n in range(len(rows))], raw, LAYOUTS["before 6.4"])


def augmentation(cfi: Cfi, pc: int) -> Any:
    cie: Any = cfi.find(pc).cie
    return cie["augmentation"]


def test_interrupted_code_is_looked_up_as_it_is_and_callers_of_system_calls_are_not() -> None:
    orc = orc_of((5, 8, 0), (5, 0, 1), (5, 0, 1))
    names = {0: "schedule", 1: "asm_exc_page_fault", 2: "entry_SYSCALL_64_after_hwframe"}
    section = eh_frame([Unwinding(orc, 0, CODE + 48)], lambda pc: names[(pc - CODE) // 16])
    cfi = Cfi(section)
    assert [augmentation(cfi, CODE + 16 * n) for n in range(3)] == [b"zR", b"zRS", b"zR"]


def test_a_handlers_frame_stays_on_the_stack_for_interrupts() -> None:
    orc = orc_of((9, 0, 0), (9, 0, 0))
    names = {0: "sysvec_apic_timer_interrupt", 1: "do_softirq"}
    section = eh_frame([Unwinding(orc, 0, CODE + 32)], lambda pc: names[(pc - CODE) // 16])
    cfi = Cfi(section)
    # gdb stops where a caller's frame is below, unless one of both has an "S".
    assert [augmentation(cfi, CODE + 16 * n) for n in range(2)] == [b"zR", b"zRS"]
    row = cfi.find(CODE).get_decoded().table[-1]
    assert (row["cfa"].reg, row["cfa"].offset) == (RSP, 8)
    task = STACK - 0x4000
    memory = Memory({STACK: task})
    registers = {**dict.fromkeys(range(16), 0), RSP: STACK}
    assert cfi.caller(CODE, registers, memory) == (memory[task - 8], task, 0)


@pytest.mark.parametrize("value", [0, 1, 63, 64, 127, 128, 300, 1 << 20, -1, -64, -65, -(1 << 15)])
def test_numbers_of_variable_length_are_those_of_dwarf(value: int) -> None:
    assert evaluate(b"\x11" + sleb(value), {}, {}, None) == value
    if value >= 0:
        encoded = uleb(value)
        assert sum((byte & 0x7F) << 7 * n for n, byte in enumerate(encoded)) == value
        assert all(byte & 0x80 for byte in encoded[:-1])
        assert not encoded[-1] & 0x80


def test_a_section_can_be_gone_on_with() -> None:
    image, module = orc_of((5, 16, 0), (5, 0, 1)), orc_of((5, 24, 0))
    moved = Unwinding(module, 1 << 20, CODE + (1 << 20) + 16)
    first = eh_frame([Unwinding(image, 0, CODE + 32)], lambda _: "")
    assert eh_frame([moved], lambda _: "", first) == eh_frame(
        [Unwinding(image, 0, CODE + 32), moved], lambda _: ""
    )
