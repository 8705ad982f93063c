"""Unwind tables for debuggers (`.eh_frame`), made from a kernel's ORC tables.

Linux drops the tables that its compiler made, and has ORC instead, which says of every code
address where the caller's frame is. That is what DWARF's call frame information says too, so each
run of ORC entries becomes a frame description (FDE). ORC knows only the stack pointer, RBP and the
return address, or that all registers lie in memory (`struct pt_regs`); what else a function has
saved is not known, and marked so.

A frame behind an interrupt or an exception stands before an instruction and not behind a call. The
augmentation "S" says so: a debugger then looks the address up as it is. gdb shows the frame that
saved the registers, which is one of the kernel's entry code, as `<signal handler called>`.

Where Linux changes to another stack, callers may lie below the frames that they called, at which
gdb stops ("previous frame inner to this frame"), unless one of the two frames has an "S". Between
an interrupt's handler on the stack for interrupts and the entry code there is one. The handler's
frame address (CFA), of which DWARF lets one say what one likes, therefore stays on the stack for
interrupts. Others that change stacks (softirqs that a task runs) get an "S" themselves.

Source: DWARF 5, section 6.4; System V ABI, AMD64 supplement, figure 3.36 (register numbers);
arch/x86/include/asm/orc_types.h in the kernel's sources.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from rr86.cpu.orc import OrcLayout, OrcTable

# DWARF numbers.
_RAX, _RDX, _RCX, _RBX, _RSI, _RDI, _RBP, _RSP = range(8)
_R8, _R9, _R10, _R11, _R12, _R13, _R14, _R15 = range(8, 16)
_RIP, _RFLAGS, _CS, _SS = 16, 49, 51, 52
_UNKNOWN = (_RBX, _R12, _R13, _R14, _R15, _RAX, _RCX, _RDX, _RSI, _RDI, _R8, _R9, _R10, _R11)

_SAME_VALUE, _UNDEFINED = 0x08, 0x07
_DEF_CFA, _DEF_CFA_EXPRESSION = 0x0C, 0x0F
_EXPRESSION, _VALUE_EXPRESSION = 0x10, 0x16
_OFFSET_SIGNED = 0x11
_ADVANCE, _ADVANCE_1, _ADVANCE_2, _ADVANCE_4 = 0x40, 0x02, 0x03, 0x04
_OP_DEREF, _OP_PLUS, _OP_CONST, _OP_REGISTER = 0x06, 0x22, 0x11, 0x70
_DATA_ALIGN = -8
# The augmentation's data: addresses are eight bytes (DW_EH_PE_absptr).
_ABSOLUTE = b"\x01\x00"

# ORC's registers that a frame can be counted from.
_FROM = {2: _RDX, 3: _RDI, 4: _RBP, 5: _RSP, 6: _R10, 7: _R13}
_BP, _SP, _BP_INDIRECT, _SP_INDIRECT = 4, 5, 8, 9
# Those where ORC adds no offset.
_PLAIN = frozenset({2, 3, 6, 7})
_PREVIOUS_SP = 1

# Where `struct pt_regs` has each register, and where its IRET frame begins.
_PT_REGS = {
    _R15: 0, _R14: 8, _R13: 16, _R12: 24, _RBP: 32, _RBX: 40, _R11: 48, _R10: 56, _R9: 64, _R8: 72,
    _RAX: 80, _RCX: 88, _RDX: 96, _RSI: 104, _RDI: 112,
}  # fmt: skip
_IRET = {_RIP: 0, _CS: 8, _RFLAGS: 16, _RSP: 24, _SS: 32}
_IRET_OFFSET = 128

_TERMINATOR = b"\0\0\0\0"
# A debugger walks an FDE from its start, so none is long.
_ROWS = 48


def uleb(value: int) -> bytes:
    """An unsigned number in DWARF's variable length."""
    out = bytearray()
    while True:
        byte, value = value & 0x7F, value >> 7
        out.append(byte | 0x80 if value else byte)
        if not value:
            return bytes(out)


def sleb(value: int) -> bytes:
    """A signed number in DWARF's variable length."""
    out = bytearray()
    while True:
        byte, value = value & 0x7F, value >> 7
        if value == (-1 if byte & 0x40 else 0):
            out.append(byte)
            return bytes(out)
        out.append(byte | 0x80)


class _Frame(Enum):
    """What is at a code address: the frame of a function that was called, on its own stack or on
    another one; saved registers, or only the part that the CPU saved; or the stack's end."""

    CALL = 0
    SWITCH = 1
    REGS = 2
    PARTIAL = 3
    END = 4


# Of SYSCALL and its kin, the saved address is that behind the instruction, as of a call.
_CALLS = ("entry_SYSCALL", "entry_SYSENTER", "entry_INT80", "syscall_return", "ret_from_fork")
# Handlers of interrupts, whose callers are entry code.
_HANDLERS = ("sysvec_", "common_interrupt", "spurious_interrupt", "fred_")


def _entry(instructions: bytes, augmentation: bytes = b"zR\0") -> bytes:
    """A CIE."""
    body = (
        b"\x01" + augmentation + uleb(1) + sleb(_DATA_ALIGN) + uleb(_RIP) + _ABSOLUTE + instructions
    )
    body = struct.pack("<I", 0) + body
    body += b"\0" * (-(len(body) + 4) % 8)
    return struct.pack("<I", len(body)) + body


def _at(register: int, offset: int) -> bytes:
    """A register saved at a distance from the frame's address."""
    return bytes((_OFFSET_SIGNED,)) + uleb(register) + sleb(offset // _DATA_ALIGN)


def _each(rule: int, registers: Iterable[int]) -> bytes:
    return b"".join(bytes((rule,)) + uleb(each) for each in registers)


def _cies() -> list[tuple[tuple[_Frame, bool], bytes]]:
    """The CIEs: what all frames of a kind have in common, by kind and by whether what is behind
    them was interrupted."""
    start = bytes((_DEF_CFA,)) + uleb(_RSP) + uleb(8)
    saved = b"".join(_at(each, _IRET_OFFSET + offset) for each, offset in _IRET.items())
    saved += b"".join(_at(each, offset) for each, offset in _PT_REGS.items())
    partly = b"".join(_at(each, offset) for each, offset in _IRET.items())
    partly += _each(_SAME_VALUE, _PT_REGS)
    call = start + _at(_RIP, -8) + _each(_UNDEFINED, _UNKNOWN)
    return [
        ((_Frame.CALL, False), _entry(call)),
        ((_Frame.SWITCH, True), _entry(call, augmentation=b"zRS\0")),
        ((_Frame.SWITCH, False), _entry(call)),
        ((_Frame.REGS, True), _entry(start + saved, augmentation=b"zRS\0")),
        ((_Frame.REGS, False), _entry(start + saved)),
        ((_Frame.PARTIAL, True), _entry(start + partly, augmentation=b"zRS\0")),
        ((_Frame.PARTIAL, False), _entry(start + partly)),
        ((_Frame.END, False), _entry(start + _each(_UNDEFINED, (_RIP,)))),
    ]


@dataclass(frozen=True, slots=True)
class _Row:
    frame: _Frame
    rules: bytes


def _row(raw: bytes, layout: OrcLayout) -> _Row:
    """The rules for one ORC entry."""
    sp_offset, bp_offset, regs, kind = struct.unpack("<hhBB", raw)
    sp_reg, bp_reg = regs & 15, regs >> 4
    kind &= layout.kind_mask
    frame = {
        layout.call: _Frame.CALL,
        layout.regs: _Frame.REGS,
        layout.partial: _Frame.PARTIAL,
    }.get(kind)
    if frame is None or (sp_reg not in _FROM and sp_reg not in (_BP_INDIRECT, _SP_INDIRECT)):
        return _Row(_Frame.END, b"")
    if sp_reg == _SP_INDIRECT and frame is _Frame.CALL:
        return _Row(
            _Frame.SWITCH, _switch(sp_offset, bp_offset if bp_reg == _PREVIOUS_SP else None)
        )
    if sp_reg == _SP_INDIRECT:
        rules = _expression(_behind_top(sp_offset))
    elif sp_reg == _BP_INDIRECT:
        rules = _expression(bytes((_OP_REGISTER + _RBP,)) + sleb(sp_offset) + bytes((_OP_DEREF,)))
    elif sp_reg in _PLAIN or sp_offset < 0:
        offset = 0 if sp_reg in _PLAIN else sp_offset
        rules = _expression(bytes((_OP_REGISTER + _FROM[sp_reg],)) + sleb(offset))
    else:
        rules = bytes((_DEF_CFA,)) + uleb(_FROM[sp_reg]) + uleb(sp_offset)
    if frame is _Frame.REGS:
        return _Row(frame, rules)
    if bp_reg == _PREVIOUS_SP and bp_offset % 8 == 0:
        rules += _at(_RBP, bp_offset)
    elif bp_reg == _BP:
        where = bytes((_OP_REGISTER + _RBP,)) + sleb(bp_offset)
        rules += bytes((_EXPRESSION,)) + uleb(_RBP) + uleb(len(where)) + where
    else:
        rules += bytes((_SAME_VALUE,)) + uleb(_RBP)
    return _Row(frame, rules)


def _behind_top(offset: int) -> bytes:
    """What the stack's top points to, and so much further."""
    top = bytes((_OP_REGISTER + _RSP,)) + sleb(0) + bytes((_OP_DEREF,))
    return top + bytes((_OP_CONST,)) + sleb(offset) + bytes((_OP_PLUS,))


def _switch(offset: int, bp_offset: int | None) -> bytes:
    """The rules where the caller is on another stack; the frame's address stays on this one."""
    saved = {_RIP: offset - 8}
    if bp_offset is not None:
        saved[_RBP] = offset + bp_offset
    out = b""
    for register, distance in saved.items():
        where = _behind_top(distance)
        out += bytes((_EXPRESSION,)) + uleb(register) + uleb(len(where)) + where
    if bp_offset is None:
        out += bytes((_SAME_VALUE,)) + uleb(_RBP)
    where = _behind_top(offset)
    return out + bytes((_VALUE_EXPRESSION,)) + uleb(_RSP) + uleb(len(where)) + where


def _expression(where: bytes) -> bytes:
    return bytes((_DEF_CFA_EXPRESSION,)) + uleb(len(where)) + where


def _advance(distance: int) -> bytes:
    if distance < 0x40:
        return bytes((_ADVANCE | distance,))
    if distance < 0x100:
        return bytes((_ADVANCE_1, distance))
    if distance < 0x10000:
        return struct.pack("<BH", _ADVANCE_2, distance)
    return struct.pack("<BI", _ADVANCE_4, distance)


@dataclass(frozen=True)
class Unwinding:
    """ORC tables, how far the code has moved from their addresses, and where it ends."""

    orc: OrcTable
    offset: int
    end: int


def eh_frame(
    tables: Iterable[Unwinding], function: Callable[[int], str], before: bytes = b""
) -> bytes:
    """An `.eh_frame` section with absolute addresses. `function` names the function at a runtime
    address, or says an empty string. `before` is another such section, to be gone on with."""
    out = bytearray(before[: -len(_TERMINATOR)])
    cies, place = {}, 0
    for key, cie in _cies():
        cies[key] = place
        place += len(cie)
        if not before:
            out += cie
    for table in tables:
        for frame, signal, start, end, rules in _runs(table, function):
            if end <= start:
                continue
            body = struct.pack(
                "<IQQ", len(out) + 4 - cies[frame, signal], start, end - start
            ) + uleb(0)
            body += rules
            body += b"\0" * (-(len(body) + 4) % 8)
            out += struct.pack("<I", len(body))
            out += body
    return bytes(out) + _TERMINATOR


def _runs(
    table: Unwinding, function: Callable[[int], str]
) -> Iterator[tuple[_Frame, bool, int, int, bytes]]:
    """Stretches of code with one kind of frame: kind, whether it has an "S", first address, end,
    and the rules on the way."""
    rows: dict[bytes, _Row] = {}
    layout, entries = table.orc.layout, table.orc.entries
    rules = bytearray()
    state = (_Frame.END, False)
    start = before = count = 0
    for at, address in enumerate(table.orc.addresses):
        raw = entries[6 * at : 6 * at + 6]
        row = rows.get(raw)
        if row is None:
            row = rows[raw] = _row(raw, layout)
        frame = row.frame
        signal = False
        if frame in (_Frame.SWITCH, _Frame.REGS, _Frame.PARTIAL):
            plain = _HANDLERS if frame is _Frame.SWITCH else _CALLS
            signal = not function(address + table.offset).startswith(plain)
        if count and (frame, signal) == state and count < _ROWS:
            rules += _advance(address - before)
            rules += row.rules
            count += 1
        else:
            if count:
                yield (*state, start + table.offset, address + table.offset, bytes(rules))
            start, state, count = address, (frame, signal), 1
            rules = bytearray(row.rules)
        before = address
    if count and table.end > start + table.offset:
        yield (*state, start + table.offset, table.end, bytes(rules))
