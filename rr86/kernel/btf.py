"""The types of a Linux kernel, from the BTF that it carries (CONFIG_DEBUG_INFO_BTF).

BTF is a list of types, numbered from 1 in the order in which they stand (0 is void), and a table of
strings. Types have different lengths, so where each one begins is found by one walk; everything
else is read when it is asked for, since a kernel has 150,000 types. A module has only its own
types, whose numbers and strings go on where those of the kernel end.

Source: Documentation/bpf/btf.rst in the kernel's sources.
"""

import functools
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from rr86.errors import KernelImageError

if TYPE_CHECKING:
    from rr86.cpu.vmlinux import Vmlinux

_MAGIC = 0xEB9F
# No chain of typedefs, pointers or anonymous members is longer; a damaged one may be endless.
_DEEPEST = 64


class Kind(IntEnum):
    """What a type is."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


# Words behind the three that each type has: fixed ones, and those for each member.
_FIXED = {Kind.INT: 1, Kind.ARRAY: 3, Kind.VAR: 1, Kind.DECL_TAG: 1}
_EACH = {
    **dict.fromkeys((Kind.STRUCT, Kind.UNION, Kind.DATASEC, Kind.ENUM64), 3),
    **dict.fromkeys((Kind.ENUM, Kind.FUNC_PROTO), 2),
}
_SIZED = frozenset(
    {Kind.INT, Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.ENUM64, Kind.FLOAT, Kind.DATASEC}
)
_MODIFIERS = frozenset(
    {Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG, Kind.VAR}
)
_POINTER = 8


@dataclass(frozen=True, slots=True)
class BtfType:
    """A type. `size` is in bytes for those that have one of their own, `target` the number of the
    type that a pointer, modifier or function leads to; `count` members, values or parameters."""

    id: int
    kind: Kind
    name: str
    size: int
    target: int
    count: int
    flag: bool


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a struct or union, or what a path of members leads to.

    `offset` is in bytes from the start of the outermost type. Of a bit field, `bits` is its width
    and `bit` the lowest bit's place from `offset` on; `bits` is 0 for everything else.
    """

    name: str
    type_id: int
    offset: int
    size: int
    bit: int = 0
    bits: int = 0


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a function; one without a type (0) stands for `...`."""

    name: str
    type_id: int


class Btf:
    """The types of a kernel, or with `base`, those that a module adds to its kernel's.

    Raises `KernelImageError` for what is no BTF, or damaged.
    """

    def __init__(self, data: bytes, base: "Btf | None" = None) -> None:
        if len(data) < 24:
            raise KernelImageError("the kernel's BTF is cut short")
        magic, _, _, header, types_at, types, strings_at, strings = struct.unpack_from(
            "<HBBIIIII", data
        )
        if magic != _MAGIC:
            raise KernelImageError("the kernel's BTF does not begin as BTF does")
        start = header + types_at
        if max(start + types, header + strings_at + strings) > len(data):
            raise KernelImageError("the kernel's BTF is cut short")
        self.base = base
        self._strings = data[header + strings_at : header + strings_at + strings]
        self._words = memoryview(data[start : start + types - types % 4]).cast("I")
        self._first = 1 if base is None else base.end
        self._first_string = 0 if base is None else base._end_of_strings
        self._starts, self._named = self._walk()

    @classmethod
    def of(cls, kernel: "Vmlinux") -> "Btf | None":
        """The types of a kernel image; None if it carries none."""
        section = kernel.section(".BTF")
        return None if section is None else cls(kernel.section_bytes(section))

    def _walk(self) -> tuple[list[int], dict[tuple[int, int], int]]:
        """Where each type begins, and the first type of each kind and name."""
        words = self._words
        end = len(words)
        extra = [(_FIXED.get(Kind(k), 0), _EACH.get(Kind(k), 0)) for k in range(len(Kind))]
        starts: list[int] = []
        named: dict[tuple[int, int], int] = {}
        at, number = 0, self._first
        while at + 3 <= end:
            info = words[at + 1]
            kind = info >> 24 & 31
            if not 0 < kind < len(extra):
                raise KernelImageError(f"the kernel's BTF has a type of unknown kind {kind}")
            starts.append(at)
            name = words[at]
            if name:
                named.setdefault((kind, name), number)
            fixed, each = extra[kind]
            at += 3 + fixed + each * (info & 0xFFFF)
            number += 1
        if at != end:
            raise KernelImageError("the kernel's BTF ends within a type")
        return starts, named

    @property
    def end(self) -> int:
        """The number behind that of the last type."""
        return self._first + len(self._starts)

    @property
    def _end_of_strings(self) -> int:
        return self._first_string + len(self._strings)

    def _string(self, offset: int) -> str:
        if offset < self._first_string and self.base is not None:
            return self.base._string(offset)
        at = offset - self._first_string
        end = self._strings.find(b"\0", at)
        if not 0 <= at < len(self._strings) or end < 0:
            return ""
        return self._strings[at:end].decode("utf-8", "replace")

    def _strings_of(self, name: str) -> int | None:
        """The offset of a name in the strings of this BTF."""
        found = self._strings.find(b"\0%b\0" % name.encode())
        if found < 0:
            return None
        return self._first_string + found + 1

    def _at(self, type_id: int) -> "tuple[Btf, int]":
        """Who has a type, and where it begins there."""
        if type_id < self._first and self.base is not None:
            return self.base._at(type_id)
        index = type_id - self._first
        if not 0 <= index < len(self._starts):
            raise KernelImageError(f"the kernel's BTF has no type {type_id}")
        return self, self._starts[index]

    def type(self, type_id: int) -> BtfType:
        """A type by its number; 0 is void."""
        if type_id == 0:
            return BtfType(0, Kind.VOID, "void", 0, 0, 0, False)
        owner, at = self._at(type_id)
        words = owner._words
        info, last = words[at + 1], words[at + 2]
        kind = Kind(info >> 24 & 31)
        sized = kind in _SIZED
        return BtfType(
            type_id,
            kind,
            owner._string(words[at]),
            last if sized else 0,
            0 if sized else last,
            info & 0xFFFF,
            bool(info >> 31),
        )

    def find(self, name: str, *kinds: Kind) -> int | None:
        """The number of the first type of this name and of one of these kinds."""
        offsets = [self._strings_of(name)]
        if self.base is not None:
            # A module shares the strings of its kernel.
            offsets.append(self.base._strings_of(name))
        for kind in kinds:
            for offset in offsets:
                found = None if offset is None else self._named.get((kind, offset))
                if found is not None:
                    return found
        return None if self.base is None else self.base.find(name, *kinds)

    def types(self) -> Iterator[BtfType]:
        """All types of this BTF, without those of its base."""
        return map(self.type, range(self._first, self.end))

    def resolve(self, type_id: int) -> BtfType:
        """What is behind typedefs, `const` and the like."""
        for _ in range(_DEEPEST):
            found = self.type(type_id)
            if found.kind not in _MODIFIERS:
                return found
            type_id = found.target
        raise KernelImageError("the kernel's BTF has an endless chain of typedefs")

    def size_of(self, type_id: int) -> int:
        """The size of a type in bytes; 0 of what has none (void, functions)."""
        count = 1
        for _ in range(_DEEPEST):
            found = self.resolve(type_id)
            if found.kind is Kind.ARRAY:
                type_id, number = self.array(found.id)
                count *= number
                continue
            return count * (_POINTER if found.kind is Kind.PTR else found.size)
        raise KernelImageError("the kernel's BTF has an endless array of arrays")

    def array(self, type_id: int) -> tuple[int, int]:
        """An array's element type and number of elements."""
        owner, at = self._at(type_id)
        return owner._words[at + 3], owner._words[at + 5]

    def integer(self, type_id: int) -> tuple[int, int, int]:
        """An integer's encoding (1: signed, 2: char, 4: bool), first bit and number of bits."""
        owner, at = self._at(type_id)
        word = owner._words[at + 3]
        return word >> 24 & 15, word >> 16 & 255, word & 255

    def members(self, type_id: int) -> list[Member]:
        """The direct members of a struct or union; an anonymous one has an empty name."""
        owner, at = self._at(type_id)
        words = owner._words
        info = words[at + 1]
        if info >> 24 & 31 not in (Kind.STRUCT, Kind.UNION):
            raise KernelImageError(f"type {type_id} of the kernel's BTF has no members")
        found = []
        for place in range(at + 3, at + 3 + 3 * (info & 0xFFFF), 3):
            name, member, offset = owner._string(words[place]), words[place + 1], words[place + 2]
            # With the flag, the upper eight bits are the width of a bit field.
            bits = offset >> 24 if info >> 31 else 0
            bit = offset & 0xFFFFFF if info >> 31 else offset
            size = self.size_of(member)
            found.append(Member(name, member, bit // 8, size, bit % 8 if bits else 0, bits))
        return found

    def values(self, type_id: int) -> dict[str, int]:
        """The names of an enumeration and their values."""
        owner, at = self._at(type_id)
        words = owner._words
        info = words[at + 1]
        kind, count, signed = info >> 24 & 31, info & 0xFFFF, bool(info >> 31)
        found = {}
        if kind == Kind.ENUM:
            for place in range(at + 3, at + 3 + 2 * count, 2):
                value = words[place + 1]
                # Old BTF has no flag, and negative values all the same.
                negative = value >> 31 and (signed or self.type(type_id).size == 4)
                found[owner._string(words[place])] = value - (1 << 32) if negative else value
        elif kind == Kind.ENUM64:
            for place in range(at + 3, at + 3 + 3 * count, 3):
                value = words[place + 1] | words[place + 2] << 32
                found[owner._string(words[place])] = (
                    value - (1 << 64) if signed and value >> 63 else value
                )
        else:
            raise KernelImageError(f"type {type_id} of the kernel's BTF is no enumeration")
        return found

    def parameters(self, type_id: int) -> list[Parameter]:
        """The parameters of a function's prototype."""
        owner, at = self._at(type_id)
        words = owner._words
        last = at + 3 + 2 * (words[at + 1] & 0xFFFF)
        return [
            Parameter(owner._string(words[place]), words[place + 1])
            for place in range(at + 3, last, 2)
        ]

    def struct(self, name: str) -> BtfType:
        """The struct or union of this name. Raises `KernelImageError` if there is none."""
        found = self.find(name, Kind.STRUCT, Kind.UNION)
        if found is None:
            raise KernelImageError(f"the kernel has no struct {name}")
        return self.type(found)

    def has(self, struct_name: str, path: str = "") -> bool:
        """Whether there is such a struct, with what the path leads to."""
        found = self.find(struct_name, Kind.STRUCT, Kind.UNION)
        return found is not None and (not path or self._follow(found, path) is not None)

    def member(self, struct_name: str, path: str) -> Member:
        """What a path of members leads to, such as `se.vruntime` or `comm` or `files[2].name`.

        Members of anonymous structs count as those of the struct around them. Raises
        `KernelImageError` if there is no such struct or member.
        """
        found = self._follow(self.struct(struct_name).id, path)
        if found is None:
            raise KernelImageError(f"the kernel's struct {struct_name} has no member {path}")
        return found

    def offset(self, struct_name: str, path: str) -> int:
        """Where in a struct the path leads to, in bytes; see `member`."""
        return self.member(struct_name, path).offset

    def _follow(self, type_id: int, path: str) -> Member | None:
        here = Member("", type_id, 0, 0)
        for name, index in re.findall(r"([A-Za-z_]\w*)|\[(\d+)\]", path):
            if name:
                found = self._member_of(here.type_id, name)
            else:
                found = self._element_of(here.type_id, int(index))
            if found is None:
                return None
            here = Member(
                path,
                found.type_id,
                here.offset + found.offset,
                found.size,
                found.bit,
                found.bits,
            )
        return here

    def _member_of(self, type_id: int, name: str, depth: int = 0) -> Member | None:
        outer = self.resolve(type_id)
        if outer.kind not in (Kind.STRUCT, Kind.UNION) or depth > _DEEPEST:
            return None
        for each in self.members(outer.id):
            if each.name == name:
                return each
            if not each.name:
                inner = self._member_of(each.type_id, name, depth + 1)
                if inner is not None:
                    return Member(
                        name,
                        inner.type_id,
                        each.offset + inner.offset,
                        inner.size,
                        inner.bit,
                        inner.bits,
                    )
        return None

    def _element_of(self, type_id: int, index: int) -> Member | None:
        outer = self.resolve(type_id)
        if outer.kind is not Kind.ARRAY:
            return None
        element, _ = self.array(outer.id)
        size = self.size_of(element)
        return Member("", element, index * size, size)

    @functools.cached_property
    def _enumerators(self) -> Mapping[str, int]:
        return {
            name: value
            for each in self.types()
            if each.kind in (Kind.ENUM, Kind.ENUM64)
            for name, value in self.values(each.id).items()
        }

    def enumerator(self, name: str) -> int | None:
        """The value of a name in any enumeration, or None."""
        found = self._enumerators.get(name)
        return found if found is not None or self.base is None else self.base.enumerator(name)


# Sessions of one trace have the same kernel.
@functools.lru_cache(maxsize=2)
def btf_of(kernel: "Vmlinux") -> Btf | None:
    """`Btf.of`, read once for each kernel."""
    return Btf.of(kernel)
