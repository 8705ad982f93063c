"""The instructions of x86 by what they move; see `rr86.cpu.dataflow`.

Instructions that only copy are listed here one by one. Of all others capstone says what they read
and write, and that is what they compute from what.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from rr86.cpu.dataflow import GENERAL, Effect, Mem, Place, Reg, register

_STRINGS = {"b": 1, "w": 2, "d": 4, "q": 8}
_CMOV = "cmov"
# Instructions whose answer comes from outside of registers and memory, with what they write.
_ANSWERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "rdtsc": ("time-stamp counter", ("rax", "rdx")),
    "rdtscp": ("time-stamp counter", ("rax", "rdx", "rcx")),
    "cpuid": ("CPUID", ("rax", "rbx", "rcx", "rdx")),
    "rdmsr": ("MSR", ("rax", "rdx")),
    "rdpmc": ("performance counter", ("rax", "rdx")),
    "rdrand": ("random numbers", ()),
    "rdseed": ("random numbers", ()),
    "xgetbv": ("XCR", ("rax", "rdx")),
}
_ZEROING = frozenset(
    ("xor", "sub", "pxor", "xorps", "xorpd", "psubb", "psubw", "psubd", "psubq", "pandn")
)
_PLAIN_MOVES = frozenset(
    (
        *("mov", "movabs", "movaps", "movapd", "movups", "movupd", "movdqa", "movdqu", "movnti"),
        *("movntdq", "movntps", "movntpd", "movntdqa", "lddqu", "movntq"),
    )
)
# XMM registers in an FXSAVE area (SDM vol. 1, 10.5.1), and the area's size.
_FXSAVE_XMM = 160
_SAVES = frozenset(("fxsave", "fxsave64", "xsave", "xsave64", "xsaveopt", "xsaveopt64"))
_RESTORES = frozenset(("fxrstor", "fxrstor64", "xrstor", "xrstor64"))

Found = Iterator[Effect]


class Operands:
    """An instruction as capstone has it, with what is asked of its operands."""

    def __init__(self, insn: Any, bits: int) -> None:
        self.insn = insn
        self.bits = bits
        # "lock cmpxchg", "rep movsb": prefixes that matter are seen in the effects' moments.
        self.mnemonic: str = insn.mnemonic.split()[-1]
        self.places: list[Place | None] = [self._place(each) for each in insn.operands]

    @property
    def next(self) -> int:
        """The address of the next instruction."""
        end: int = self.insn.address + self.insn.size
        return end

    def _name(self, number: int) -> str | None:
        name: str | None = self.insn.reg_name(number) if number else None
        return name

    def _place(self, operand: Any) -> Place | None:
        import capstone.x86 as x86

        if operand.type == x86.X86_OP_REG:
            return register(self._name(operand.reg) or "")
        if operand.type == x86.X86_OP_MEM:
            return self._memory(operand)
        return None

    def _memory(self, operand: Any) -> Mem:
        base, index = self._name(operand.mem.base), self._name(operand.mem.index)
        segment = self._name(operand.mem.segment)
        disp = operand.mem.disp
        if base in ("rip", "eip"):
            base, disp = None, disp + self.next
        whole = [None if each is None else register(each) for each in (base, index)]
        wide = next((each for each in whole if each is not None), None)
        if segment is None and self.bits != 64:
            segment = "ss" if wide is not None and wide.name in ("rsp", "rbp") else "ds"
        if self.bits == 64 and segment not in ("fs", "gs"):
            segment = None
        return Mem(
            operand.size,
            None if whole[0] is None else whole[0].name,
            None if whole[1] is None else whole[1].name,
            operand.mem.scale,
            disp,
            segment,
            8 * wide.size if wide is not None else 64,
        )

    def immediate(self, index: int) -> int | None:
        """The value of an operand that is a constant."""
        import capstone.x86 as x86

        operand = self.insn.operands[index]
        value: int | None = operand.imm if operand.type == x86.X86_OP_IMM else None
        return value

    def size(self, index: int) -> int:
        """Bytes of an operand."""
        size: int = self.insn.operands[index].size
        return size

    def stack(self, disp: int, size: int) -> Mem:
        """Bytes at the stack pointer."""
        segment = None if self.bits == 64 else "ss"
        return Mem(size, "rsp", disp=disp, segment=segment, bits=self.bits)

    def string(self, pointer: str, size: int) -> Mem:
        """Bytes at RSI or RDI, as string instructions have them."""
        if self.bits == 64:
            segment = None
            for operand in self.insn.operands:
                name = self._name(operand.mem.segment) if operand.type == _MEM else None
                if pointer == "rsi" and name in ("fs", "gs"):
                    segment = name
            return Mem(size, pointer, segment=segment)
        return Mem(size, pointer, segment="es" if pointer == "rdi" else "ds", bits=self.bits)


_MEM = 3
_HALVES = frozenset(each for each in GENERAL.values() if (each.start, each.size) == (0, 4))


def _zeros(place: Reg, written: int) -> Found:
    """The upper half of a general register of which 32 bits are written."""
    if place.part(0, written) in _HALVES:
        yield Effect(Reg(place.name, 4, 4), constant=bytes(4))


def _copy(dest: Place, source: Place, reverse: bool = False, when: str | None = None) -> Found:
    size = min(dest.size, source.size)
    copied = Effect(dest.part(0, size), source=source.part(0, size), reverse=reverse, when=when)
    yield copied
    if isinstance(dest, Reg):
        # CMOV clears the upper half either way, CMPXCHG only where it loads.
        only = when if when in ("equal", "different") else None
        yield from (replace(each, when=only) for each in _zeros(dest, dest.size))


def _constant(dest: Place, value: int) -> Found:
    data = (value & ((1 << 8 * dest.size) - 1)).to_bytes(dest.size, "little")
    yield Effect(dest, constant=data)
    if isinstance(dest, Reg):
        yield from _zeros(dest, dest.size)


def _computed(dest: Place, *inputs: Place) -> Found:
    if isinstance(dest, Reg) and dest in _HALVES:
        # The upper half that is cleared belongs to the result.
        dest = Reg(dest.name, 0, 8)
    yield Effect(dest, inputs=inputs)


def _move(op: Operands) -> Found:
    dest, source = op.places[0], op.places[1]
    if dest is None:
        return
    value = op.immediate(1)
    if value is not None:
        yield from _constant(dest, value)
    elif source is not None:
        yield from _copy(dest, source)
    else:
        yield from _computed(dest)


def _to_xmm(dest: Reg, source: Place, size: int, clears: bool) -> Found:
    yield Effect(dest.part(0, size), source=source.part(0, size))
    if clears and dest.size > size:
        yield Effect(dest.part(size, dest.size - size), constant=bytes(dest.size - size))


def _move_part(op: Operands) -> Found:
    """MOVD, MOVQ, MOVSS, MOVSD between XMM registers and others."""
    dest, source = op.places
    if dest is None or source is None:
        return
    size = {"movd": 4, "movss": 4, "movq": 8, "movsd": 8}[op.mnemonic]
    if isinstance(dest, Reg) and dest.name.startswith(("xmm", "mm")):
        scalar = op.mnemonic in ("movss", "movsd")
        yield from _to_xmm(dest, source, size, not scalar or isinstance(source, Mem))
    else:
        yield from _copy(dest, source.part(0, min(size, source.size, dest.size)))


def _move_half(op: Operands) -> Found:
    """MOVLPS, MOVHPS and theirs: eight bytes of an XMM register."""
    dest, source = op.places
    if dest is None or source is None:
        return
    name = op.mnemonic
    high = 8 if name.startswith("movh") else 0
    if name == "movhlps":
        yield Effect(dest.part(0, 8), source=source.part(8, 8))
    elif name == "movlhps":
        yield Effect(dest.part(8, 8), source=source.part(0, 8))
    elif isinstance(dest, Mem):
        yield Effect(dest.part(0, 8), source=source.part(high, 8))
    else:
        yield Effect(dest.part(high, 8), source=source.part(0, 8))


def _shuffle(op: Operands) -> Found:
    """PSHUFD, PUNPCKLQDQ, PUNPCKHQDQ, PSRLDQ and PSLLDQ: copies within and between registers."""
    dest, source = op.places[0], op.places[1]
    value = op.immediate(len(op.places) - 1)
    if not isinstance(dest, Reg):
        return
    if op.mnemonic == "pshufd" and source is not None and value is not None:
        for n in range(4):
            yield Effect(dest.part(4 * n, 4), source=source.part(4 * (value >> 2 * n & 3), 4))
    elif op.mnemonic == "punpcklqdq" and source is not None:
        yield Effect(dest.part(8, 8), source=source.part(0, 8))
    elif op.mnemonic == "punpckhqdq" and source is not None:
        yield Effect(dest.part(0, 8), source=dest.part(8, 8))
        yield Effect(dest.part(8, 8), source=source.part(8, 8))
    elif value is not None:
        gone = min(value, 16)
        left = 16 - gone
        at, come, zero = (0, gone, left) if op.mnemonic == "psrldq" else (gone, 0, 0)
        if left:
            yield Effect(dest.part(at, left), source=dest.part(come, left))
        if gone:
            yield Effect(dest.part(zero, gone), constant=bytes(gone))


def _extract(op: Operands) -> Found:
    """PEXTRB/W/D/Q and PINSRB/W/D/Q."""
    dest, source = op.places[0], op.places[1]
    value = op.immediate(2)
    if dest is None or source is None or value is None:
        return
    size = _STRINGS[op.mnemonic[-1]]
    at = value % (16 // size) * size
    if op.mnemonic.startswith("pinsr"):
        yield Effect(dest.part(at, size), source=source.part(0, size))
        return
    yield Effect(dest.part(0, size), source=source.part(at, size))
    if isinstance(dest, Reg) and size < 8:
        yield Effect(Reg(dest.name, size, 8 - size), constant=bytes(8 - size))


def _extend(op: Operands) -> Found:
    """MOVZX and MOVSX."""
    dest, source = op.places
    if not isinstance(dest, Reg) or source is None:
        return
    size = min(source.size, dest.size)
    yield Effect(dest.part(0, size), source=source.part(0, size))
    if dest.size > size:
        rest = dest.part(size, dest.size - size)
        if op.mnemonic == "movzx":
            yield Effect(rest, constant=bytes(rest.size))
        else:
            yield Effect(rest, inputs=(source,))
    yield from _zeros(dest, dest.size)


def _sign(op: Operands) -> Found:
    """CBW, CWDE, CDQE; CWD, CDQ, CQO."""
    size = {"cbw": 1, "cwde": 2, "cdqe": 4}.get(op.mnemonic)
    if size is not None:
        yield Effect(Reg("rax", size, size), inputs=(Reg("rax", 0, size),))
        yield from _zeros(Reg("rax", 0, 4), 2 * size)
        return
    size = {"cwd": 2, "cdq": 4, "cqo": 8}[op.mnemonic]
    yield from _computed(Reg("rdx", 0, size), Reg("rax", 0, size))


def _push(op: Operands) -> Found:
    word = op.bits // 8
    if op.mnemonic.startswith("pushf"):
        yield Effect(op.stack(-word, word), inputs=())
        return
    source, value = op.places[0], op.immediate(0)
    size = word if value is not None or source is None else max(op.size(0), 2)
    size = word if isinstance(source, Reg) and source.size > 2 else size
    if isinstance(source, Reg) and source.name in ("es", "cs", "ss", "ds", "fs", "gs"):
        size = word
    dest = op.stack(-size, size)
    if value is not None:
        yield from _constant(dest, value)
    elif source is not None:
        yield Effect(dest.part(0, source.size), source=source)
        if source.size < size:
            yield Effect(dest.part(source.size, size - source.size), constant=bytes(size - 2))
    yield from _computed(Reg("rsp", 0, 8), Reg("rsp", 0, 8))


def _pop(op: Operands) -> Found:
    dest = op.places[0] if op.places else None
    if dest is None:
        yield from _computed(Reg("rsp", 0, 8), Reg("rsp", 0, 8))
        return
    size = dest.size if isinstance(dest, Mem) or dest.size > 2 else max(dest.size, 2)
    if dest != Reg("rsp", 0, 8):
        yield from _computed(Reg("rsp", 0, 8), Reg("rsp", 0, 8))
    yield from _copy(dest, op.stack(0, size).part(0, dest.size))


def _call(op: Operands) -> Found:
    word = op.bits // 8
    yield from _constant(op.stack(-word, word), op.next)
    yield from _computed(Reg("rsp", 0, 8), Reg("rsp", 0, 8))


def _leave(op: Operands) -> Found:
    word = op.bits // 8
    yield from _computed(Reg("rsp", 0, 8), Reg("rbp", 0, 8))
    segment = None if op.bits == 64 else "ss"
    frame = Mem(word, "rbp", segment=segment, bits=op.bits)
    yield from _copy(Reg("rbp", 0, word), frame)


def _exchange(op: Operands) -> Found:
    one, other = op.places
    if one is not None and other is not None:
        yield from _copy(one, other)
        yield from _copy(other, one)


def _exchange_add(op: Operands) -> Found:
    dest, source = op.places
    if dest is not None and source is not None:
        yield from _computed(dest, dest, source)
        yield from _copy(source, dest)


def _compare_exchange(op: Operands) -> Found:
    dest, source = op.places[0], op.places[1]
    if dest is None or source is None:
        return
    old = Reg("rax", 0, dest.size)
    yield from _copy(dest, source, when="equal")
    # It writes in either case (SDM vol. 2A).
    yield Effect(dest, source=dest, when="different")
    yield from _copy(old, dest, when="different")


def _compare_exchange_pair(op: Operands) -> Found:
    dest = op.places[0]
    if not isinstance(dest, Mem):
        return
    half = dest.size // 2
    for n, (new, old) in enumerate((("rbx", "rax"), ("rcx", "rdx"))):
        part = dest.part(n * half, half)
        yield Effect(part, source=Reg(new, 0, half), when="equal")
        yield Effect(part, source=part, when="different")
        yield Effect(Reg(old, 0, half), source=part, when="different")


def _string(op: Operands) -> Found:
    """MOVS, STOS, LODS, INS; the pointers are computed."""
    size = _STRINGS[op.mnemonic[-1]]
    kind = op.mnemonic[:-1]
    to, come = op.string("rdi", size), op.string("rsi", size)
    if kind == "movs":
        yield Effect(to, source=come)
    elif kind == "stos":
        yield Effect(to, source=Reg("rax", 0, size))
    elif kind == "ins":
        yield Effect(to, device="port")
    elif kind == "lods":
        yield from _copy(Reg("rax", 0, size), come)
    pointers = {"lods": ("rsi",), "movs": ("rsi", "rdi")}.get(kind, ("rdi",))
    if op.insn.mnemonic.startswith("rep"):
        pointers = (*pointers, "rcx")
    for name in pointers:
        yield Effect(Reg(name, 0, 8), inputs=(Reg(name, 0, 8),))


def _answer(op: Operands) -> Found:
    what, names = _ANSWERS[op.mnemonic]
    for name in names:
        yield Effect(Reg(name, 0, 8), device=what)
    if not names and isinstance(op.places[0], Reg):
        dest = op.places[0]
        yield Effect(dest, device=what)
        yield from _zeros(dest, dest.size)


def _in(op: Operands) -> Found:
    dest = op.places[0]
    if isinstance(dest, Reg):
        yield Effect(dest, device="port")
        yield from _zeros(dest, dest.size)


def _lea(op: Operands) -> Found:
    dest, source = op.places
    if not isinstance(dest, Reg) or not isinstance(source, Mem):
        return
    named = [each for each in (source.base, source.index) if each is not None]
    if not named:
        yield from _constant(dest, source.disp)
    elif len(named) == 1 and source.disp == 0 and source.scale == 1:
        yield from _copy(dest, Reg(named[0], 0, min(dest.size, source.bits // 8)))
    else:
        yield from _computed(dest, *(Reg(name, 0, source.bits // 8) for name in named))


def _swap(op: Operands) -> Found:
    """BSWAP and MOVBE."""
    dest = op.places[0]
    source = dest if op.mnemonic == "bswap" else op.places[1]
    if dest is not None and source is not None:
        yield from _copy(dest, source, reverse=True)


def _save(op: Operands) -> Found:
    area = op.places[0]
    if not isinstance(area, Mem):
        return
    whole = area.part(0, 0)
    for n in range(16 if op.bits == 64 else 8):
        place = whole.part(_FXSAVE_XMM + 16 * n, 16)
        if op.mnemonic in _SAVES:
            yield Effect(place, source=Reg(f"xmm{n}", 0, 16))
        else:
            yield Effect(Reg(f"xmm{n}", 0, 16), source=place)


def _system_call(op: Operands) -> Found:
    yield from _constant(Reg("rcx", 0, 8), op.next)
    yield from _computed(Reg("r11", 0, 8))


_FAMILIES: dict[str, Callable[[Operands], Found]] = {
    **dict.fromkeys(_PLAIN_MOVES, _move),
    **dict.fromkeys(("movd", "movq", "movss"), _move_part),
    **dict.fromkeys(("movlps", "movlpd", "movhps", "movhpd", "movhlps", "movlhps"), _move_half),
    **dict.fromkeys(("pshufd", "punpcklqdq", "punpckhqdq", "psrldq", "pslldq"), _shuffle),
    **dict.fromkeys((f"p{kind}{w}" for kind in ("extr", "insr") for w in "bwdq"), _extract),
    **dict.fromkeys(("movzx", "movsx", "movsxd"), _extend),
    **dict.fromkeys(("cbw", "cwde", "cdqe", "cwd", "cdq", "cqo"), _sign),
    **dict.fromkeys(("push", "pushf", "pushfd", "pushfq"), _push),
    **dict.fromkeys(("pop", "popf", "popfd", "popfq"), _pop),
    "call": _call,
    "leave": _leave,
    "xchg": _exchange,
    "xadd": _exchange_add,
    "cmpxchg": _compare_exchange,
    **dict.fromkeys(("cmpxchg8b", "cmpxchg16b"), _compare_exchange_pair),
    **dict.fromkeys((f"{s}{w}" for s in ("movs", "stos", "lods", "ins") for w in "bwdq"), _string),
    **dict.fromkeys(_ANSWERS, _answer),
    "in": _in,
    "lea": _lea,
    **dict.fromkeys(("bswap", "movbe"), _swap),
    **dict.fromkeys((*_SAVES, *_RESTORES), _save),
    "syscall": _system_call,
}


def _others(op: Operands) -> Found:
    """What is computed: all that the instruction writes, from all that it reads."""
    read, written = op.insn.regs_access()
    names = [op.insn.reg_name(each) for each in read]
    inputs: list[Place] = [each for each in map(register, names) if each is not None]
    dests: list[Place] = []
    for place, operand in zip(op.places, op.insn.operands, strict=True):
        if isinstance(place, Mem):
            if operand.access & 1:
                inputs.append(place)
            if operand.access & 2:
                dests.append(place)
    # The registers of an address are read for the address alone.
    addresses = {n for each in op.places if isinstance(each, Mem) for n in (each.base, each.index)}
    direct = {each.name for each in op.places if isinstance(each, Reg)}
    inputs = [
        each
        for each in inputs
        if isinstance(each, Mem) or each.name in direct or each.name not in addresses
    ]
    for number in written:
        place = register(op.insn.reg_name(number))
        if place is not None:
            dests.append(place)
    for dest in dict.fromkeys(dests):
        yield from _computed(dest, *dict.fromkeys(inputs))


def _is_zeroing(op: Operands) -> bool:
    same = len(op.places) == 2 and op.places[0] is not None and op.places[0] == op.places[1]
    return same and isinstance(op.places[0], Reg) and op.mnemonic in _ZEROING - {"pandn"}


@functools.cache
def _engine(bits: int) -> Any:
    import capstone

    modes = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
    engine = capstone.Cs(capstone.CS_ARCH_X86, modes[bits])
    engine.detail = True
    return engine


@functools.lru_cache(maxsize=1 << 16)
def decode(code: bytes, address: int, bits: int) -> tuple[str, int, tuple[Effect, ...]]:
    """The first instruction of `code` at a linear address: its text, its length, its effects. An
    instruction that capstone does not know has the length 0."""
    insn = next(_engine(bits).disasm(code, address, 1), None)
    if insn is None:
        return "(bad)", 0, ()
    op = Operands(insn, bits)
    text = f"{insn.mnemonic} {insn.op_str}".rstrip()
    return text, insn.size, tuple(_merged(_effects(op)))


def _merged(effects: Found) -> Found:
    """The same, with constants for neighbouring bytes of a register in one."""
    last: Effect | None = None
    for each in effects:
        if (
            last is not None
            and last.constant is not None
            and each.constant is not None
            and last.when == each.when
            and isinstance(last.dest, Reg)
            and isinstance(each.dest, Reg)
            and each.dest == Reg(last.dest.name, last.dest.start + last.dest.size, each.dest.size)
        ):
            dest = Reg(last.dest.name, last.dest.start, last.dest.size + each.dest.size)
            last = Effect(dest, constant=last.constant + each.constant, when=last.when)
            continue
        if last is not None:
            yield last
        last = each
    if last is not None:
        yield last


def _effects(op: Operands) -> Found:
    if _is_zeroing(op):
        dest = op.places[0]
        assert dest is not None
        yield from _constant(dest, 0)
    elif op.mnemonic.startswith(_CMOV):
        dest, source = op.places
        if dest is not None and source is not None:
            yield from _copy(dest, source, when=op.mnemonic[len(_CMOV) :])
    elif op.mnemonic == "movsd" and not _is_string(op):
        yield from _move_part(op)
    else:
        yield from _FAMILIES.get(op.mnemonic, _others)(op)


def _is_string(op: Operands) -> bool:
    return all(isinstance(each, Mem) for each in op.places)


__all__ = ["GENERAL", "decode"]
