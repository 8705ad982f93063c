"""The parts of ELF files that symbols and unwinding need.

pyelftools knows the file's structures; this module reads them where it wants to, by a function
instead of a file, so that sections of a compressed kernel are unpacked only when somebody looks at
them. What pyelftools would do by itself is left out where a hostile image could make it long or
large (images come from users and out of traces): its sections look for the end of their name
through the whole file, and its segments through all sections. A symbol table is taken apart in
bulk, since an object for each of a hundred thousand symbols takes seconds. Loaders have a reader of
their own (`rr86/machine/loaders/elf.py`).

Source: the System V ABI, chapters 4 and 5.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from elftools.common.utils import struct_parse
from elftools.elf.elffile import ELFFile

from rr86.errors import KernelImageError

ReadAt = Callable[[int, int], bytes]

SHT_SYMTAB = "SHT_SYMTAB"
SHT_NOBITS = "SHT_NOBITS"
_MACHINES = ("EM_386", "EM_X86_64")
_MOST_HEADERS = 4096
# No file reaches so far. How far one does is not known before all of it is unpacked.
_END = 1 << 40


@dataclass(frozen=True)
class Section:
    """A section: its name, type as in `elf.h`, link-time address, place in the file and link."""

    name: str
    kind: str | int
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


class _Stream:
    """A file as pyelftools wants one."""

    def __init__(self, read: ReadAt) -> None:
        self._read = read
        self._at = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go there."""
        self._at = offset + (0, self._at, _END)[whence]
        return self._at

    def tell(self) -> int:
        """Where the next bytes come from."""
        return self._at

    def read(self, length: int) -> bytes:
        """Up to so many bytes."""
        data = self._read(self._at, length)
        self._at += len(data)
        return data


class ElfFile:
    """An ELF file for i386 or x86-64.

    Raises `KernelImageError` for what is none, or damaged.
    """

    def __init__(self, read: ReadAt) -> None:
        self._read = read
        if read(0, 4) != b"\x7fELF":
            _refuse("not an ELF file")
        try:
            self.is_64, self.sections, self.segments = self._headers()
        except KernelImageError:
            raise
        except Exception as error:
            # A damaged file makes all kinds of errors in pyelftools.
            raise KernelImageError(f"the ELF headers are damaged: {error}") from None

    def _headers(self) -> tuple[bool, list[Section], list[Segment]]:
        stream: Any = _Stream(self._read)
        elf: Any = ELFFile(stream)
        header, structs = elf.header, elf.structs
        if not elf.little_endian:
            _refuse("not a little-endian ELF file of 32 or 64 bits")
        if header.e_machine not in _MACHINES:
            _refuse(f"an ELF file for another machine ({header.e_machine})")
        if max(header.e_phnum, header.e_shnum) > _MOST_HEADERS:
            _refuse("an ELF file with too many headers")

        def rows(kind: Any, start: int, step: int, count: int) -> list[Any]:
            known = range(count if step >= kind.sizeof() else 0)
            return [struct_parse(kind, stream, start + index * step) for index in known]

        phdrs = rows(structs.Elf_Phdr, header.e_phoff, header.e_phentsize, header.e_phnum)
        shdrs = rows(structs.Elf_Shdr, header.e_shoff, header.e_shentsize, header.e_shnum)
        names = b""
        if header.e_shstrndx < len(shdrs):
            table = shdrs[header.e_shstrndx]
            names = self._read(table.sh_offset, min(table.sh_size, 1 << 20))
        sections = [
            Section(
                _string(names, row.sh_name),
                row.sh_type,
                row.sh_addr,
                row.sh_offset,
                row.sh_size,
                row.sh_link,
            )
            for row in shdrs
        ]
        segments = [
            Segment(row.p_vaddr, row.p_paddr, row.p_offset, row.p_filesz)
            for row in phdrs
            if row.p_type == "PT_LOAD"
        ]
        return elf.elfclass == 64, sections, segments

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


def _refuse(why: str) -> NoReturn:
    raise KernelImageError(why)
