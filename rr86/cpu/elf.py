"""A reader for the parts of ELF files that symbols and unwinding need.

It takes a function instead of bytes, so that sections of a compressed kernel are unpacked only
when somebody looks at them. Everything in the file is checked before it is used: images come
from users and out of traces. Source: the System V ABI, chapters 4 and 5.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

from rr86.errors import KernelImageError

ReadAt = Callable[[int, int], bytes]

SHT_SYMTAB = 2
SHT_NOBITS = 8
PT_LOAD = 1
_MOST_HEADERS = 4096


@dataclass(frozen=True)
class Section:
    """A section: its name, `SHT_*` type, link-time address, place in the file and link."""

    name: str
    kind: int
    address: int
    offset: int
    size: int
    link: int


@dataclass(frozen=True)
class Segment:
    """A loadable segment: virtual and physical address, and its bytes in the file."""

    vaddr: int
    paddr: int
    offset: int
    file_size: int


@dataclass(frozen=True)
class ElfSymbol:
    """A symbol of `.symtab`: `kind` is the `STT_*` number, `local` its binding."""

    name: str
    address: int
    size: int
    kind: int
    local: bool
    executable: bool


class ElfFile:
    """An ELF file for i386 or x86-64."""

    def __init__(self, read: ReadAt) -> None:
        self._read = read
        ident = read(0, 64)
        if ident[:4] != b"\x7fELF" or len(ident) < 52:
            raise KernelImageError("not an ELF file")
        if ident[4] not in (1, 2) or ident[5] != 1:
            raise KernelImageError("not a little-endian ELF file of 32 or 64 bits")
        self.is_64 = ident[4] == 2
        try:
            self.sections, self.segments = self._headers(ident)
        except struct.error:
            raise KernelImageError("the ELF headers are cut short") from None

    def _headers(self, ident: bytes) -> tuple[list[Section], list[Segment]]:
        if self.is_64:
            machine = struct.unpack_from("<H", ident, 18)[0]
            phoff, shoff = struct.unpack_from("<QQ", ident, 32)
            phentsize, phnum, shentsize, shnum, shstrndx = struct.unpack_from("<HHHHH", ident, 54)
            ph_size, sh_size = 56, 64
        else:
            machine = struct.unpack_from("<H", ident, 18)[0]
            phoff, shoff = struct.unpack_from("<II", ident, 28)
            phentsize, phnum, shentsize, shnum, shstrndx = struct.unpack_from("<HHHHH", ident, 42)
            ph_size, sh_size = 32, 40
        if machine not in (3, 62):
            raise KernelImageError(f"an ELF file for another machine (e_machine {machine})")
        if max(phnum, shnum) > _MOST_HEADERS:
            raise KernelImageError("an ELF file with too many headers")
        segments = []
        for index in range(phnum if phentsize >= ph_size else 0):
            raw = self._read(phoff + index * phentsize, ph_size)
            if self.is_64:
                kind, _, offset, vaddr, paddr, size = struct.unpack_from("<IIQQQQ", raw)
            else:
                kind, offset, vaddr, paddr, size = struct.unpack_from("<IIIII", raw)
            if kind == PT_LOAD:
                segments.append(Segment(vaddr, paddr, offset, size))
        rows = []
        for index in range(shnum if shentsize >= sh_size else 0):
            raw = self._read(shoff + index * shentsize, sh_size)
            if self.is_64:
                name, kind, _, address, offset, size, link = struct.unpack_from("<IIQQQQI", raw)
            else:
                name, kind, _, address, offset, size, link = struct.unpack_from("<IIIIIII", raw)
            rows.append((name, Section("", kind, address, offset, size, link)))
        names = b""
        if shstrndx < len(rows):
            table = rows[shstrndx][1]
            names = self._read(table.offset, min(table.size, 1 << 20))
        sections = [
            Section(
                _string(names, name),
                row.kind,
                row.address,
                row.offset,
                row.size,
                row.link,
            )
            for name, row in rows
        ]
        return sections, segments

    def section(self, name: str) -> Section | None:
        """The first section of this name."""
        return next((each for each in self.sections if each.name == name), None)

    def section_bytes(self, section: Section) -> bytes:
        """A section's content; empty where the file holds none."""
        if section.kind == SHT_NOBITS:
            return b""
        return self._read(section.offset, section.size)

    def bytes_at(self, vaddr: int, length: int) -> bytes:
        """What the file puts at a virtual address, as far as one segment goes."""
        for segment in self.segments:
            inside = vaddr - segment.vaddr
            if 0 <= inside < segment.file_size:
                return self._read(segment.offset + inside, min(length, segment.file_size - inside))
        return b""

    def symbols(self) -> list[ElfSymbol]:
        """The symbols of `.symtab` that have a name and an address in some section."""
        table = next((each for each in self.sections if each.kind == SHT_SYMTAB), None)
        if table is None or table.link >= len(self.sections):
            return []
        names = self.section_bytes(self.sections[table.link])
        raw = self.section_bytes(table)
        step = 24 if self.is_64 else 16
        found = []
        for offset in range(0, len(raw) - len(raw) % step, step):
            if self.is_64:
                name, info, _, where, value, size = struct.unpack_from("<IBBHQQ", raw, offset)
            else:
                name, value, size, info, _, where = struct.unpack_from("<IIIBBH", raw, offset)
            kind = info & 15
            # STT_SECTION and STT_FILE name no place in the program; 0 is SHN_UNDEF.
            if where == 0 or kind in (3, 4):
                continue
            text = _string(names, name)
            if text:
                # `.text` and its kin are recognised by the type, or by where untyped labels are.
                executable = kind == 2 or (
                    kind == 0
                    and where < len(self.sections)
                    and self.sections[where].name.endswith((".text", ".boot"))
                )
                found.append(ElfSymbol(text, value, size, kind, info >> 4 == 0, executable))
        return found


def _string(table: bytes, offset: int) -> str:
    end = table.find(b"\0", offset)
    if offset >= len(table) or end < 0:
        return ""
    return table[offset:end].decode("utf-8", "replace")
