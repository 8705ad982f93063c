"""What one instruction moves where: bytes that it copies, constants that it writes, and what it
computes from what.

That is all that is needed to follow a value backwards. Flags are not followed. Operands in memory
are kept as the registers and the displacement that make their address, so that the answer depends
on the instruction alone; `Mem.address` gives the linear address with a vCPU's registers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

_MASK = (1 << 64) - 1
_CARRY, _PARITY, _ZERO, _SIGN, _OVERFLOW = 1 << 0, 1 << 2, 1 << 6, 1 << 7, 1 << 11


class Reg(NamedTuple):
    """`size` bytes of a register from byte `start` on. `name` is that of the whole: rax, xmm3."""

    name: str
    start: int
    size: int

    def part(self, offset: int, size: int) -> "Reg":
        """Some of these bytes."""
        return Reg(self.name, self.start + offset, size)

    def __str__(self) -> str:
        if self.name in NAMES and (self.start, self.size) in NAMES[self.name]:
            return NAMES[self.name][self.start, self.size]
        whole = WIDTHS.get(self.name, 8)
        if (self.start, self.size) == (0, whole):
            return self.name
        return f"{self.name}[{self.start}:{self.start + self.size}]"


@dataclass(frozen=True)
class Mem:
    """`size` bytes of memory at segment base + base + index * scale + displacement."""

    size: int
    base: str | None = None
    index: str | None = None
    scale: int = 1
    disp: int = 0
    segment: str | None = None
    # Bits of the address before the segment's base is added.
    bits: int = 64

    def part(self, offset: int, size: int) -> "Mem":
        """Some of these bytes."""
        return replace(self, disp=self.disp + offset, size=size)

    def address(self, registers: Mapping[str, int]) -> int:
        """The linear address."""
        at = self.disp
        if self.base is not None:
            at += registers[self.base]
        if self.index is not None:
            at += registers[self.index] * self.scale
        at &= (1 << self.bits) - 1
        if self.segment is not None:
            at += registers[f"{self.segment}_base"]
        return at & _MASK


Place = Reg | Mem


@dataclass(frozen=True)
class Effect:
    """What an instruction does to the bytes of `dest`: exactly one of the others says where they
    come from.

    `source` is copied, byte by byte or, if `reverse`, last byte first; `constant` is written;
    `inputs` are what it is computed from; `device` is what answered from outside. With `when` it
    happens only if that holds: a condition code, or for CMPXCHG "equal" or "different".
    """

    dest: Place
    source: Place | None = None
    reverse: bool = False
    constant: bytes | None = None
    inputs: tuple[Place, ...] | None = None
    device: str | None = None
    when: str | None = None

    def part(self, offset: int, size: int) -> "Effect":
        """The same for some of the bytes."""
        dest = self.dest.part(offset, size)
        if self.source is not None:
            begin = self.dest.size - offset - size if self.reverse else offset
            return replace(self, dest=dest, source=self.source.part(begin, size))
        if self.constant is not None:
            return replace(self, dest=dest, constant=self.constant[offset : offset + size])
        return replace(self, dest=dest)


def _general() -> dict[str, Reg]:
    found: dict[str, Reg] = {}
    for letter in "abcd":
        whole = f"r{letter}x"
        found |= {whole: Reg(whole, 0, 8), f"e{letter}x": Reg(whole, 0, 4)}
        found |= {f"{letter}x": Reg(whole, 0, 2), f"{letter}l": Reg(whole, 0, 1)}
        found[f"{letter}h"] = Reg(whole, 1, 1)
    for name in ("si", "di", "bp", "sp"):
        whole = f"r{name}"
        found |= {whole: Reg(whole, 0, 8), f"e{name}": Reg(whole, 0, 4)}
        found |= {name: Reg(whole, 0, 2), f"{name}l": Reg(whole, 0, 1)}
    for number in range(8, 16):
        whole = f"r{number}"
        found |= {whole: Reg(whole, 0, 8), f"{whole}d": Reg(whole, 0, 4)}
        found |= {f"{whole}w": Reg(whole, 0, 2), f"{whole}b": Reg(whole, 0, 1)}
    return found


GENERAL = _general()
"""General-purpose registers and their parts by name."""
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
WIDTHS = {
    **{each.name: 8 for each in GENERAL.values()},
    **{f"xmm{n}": 16 for n in range(16)},
    **{f"mm{n}": 8 for n in range(8)},
    **{f"cr{n}": 8 for n in (0, 2, 3, 4, 8)},
    **{f"dr{n}": 8 for n in range(8)},
    **dict.fromkeys(SEGMENTS, 2),
}
"""Bytes of each register that is followed."""
NAMES: dict[str, dict[tuple[int, int], str]] = {}
for _name, _reg in GENERAL.items():
    NAMES.setdefault(_reg.name, {})[_reg.start, _reg.size] = _name


def register(name: str) -> Reg | None:
    """The register of a name as capstone has it; None if it is not followed."""
    if name in GENERAL:
        return GENERAL[name]
    width = WIDTHS.get(name)
    return None if width is None else Reg(name, 0, width)


def holds(condition: str, rflags: int) -> bool:
    """Whether a condition code (`e`, `nle`…) holds (SDM vol. 1, appendix B)."""
    carry, zero = bool(rflags & _CARRY), bool(rflags & _ZERO)
    sign, overflow = bool(rflags & _SIGN), bool(rflags & _OVERFLOW)
    plain = {
        "o": overflow,
        "b": carry,
        "e": zero,
        "be": carry or zero,
        "s": sign,
        "p": bool(rflags & _PARITY),
        "l": sign != overflow,
        "le": zero or sign != overflow,
    }
    name = _SYNONYMS.get(condition, condition)
    return not plain[name[1:]] if name not in plain else plain[name]


_SYNONYMS = {
    **{"c": "b", "nae": "b", "nc": "nb", "ae": "nb", "z": "e", "ne": "ne", "nz": "ne"},
    **{"na": "be", "a": "nbe", "pe": "p", "po": "np", "np": "np", "nge": "l", "ge": "nl"},
    **{"ng": "le", "g": "nle"},
}
