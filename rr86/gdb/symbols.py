"""Symbols for gdb, out of the guest itself.

gdb takes names from ELF files alone, and the images that guests boot from mostly do not serve: a
bzImage is none, a Multiboot image is a 32-bit one with 64-bit code. So a file is written that has
the symbols where the running guest has them, and no contents: code and data gdb reads from the
machine. Linux has a file of its own kind, with unwind tables (`rr86.kernel.symbol_file`).
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rr86.errors import SymbolsError

if TYPE_CHECKING:
    from rr86.cpu.symbols import SymbolTable
    from rr86.gdb.debuggee import Debuggee
    from rr86.replay.travel import TimeTravel

_ENTRY = "symbol=start_kernel"
_X86_64 = 62
_EXECUTABLE = 2
_SYMTAB, _STRTAB, _NOBITS = 2, 3, 8
_WRITE, _ALLOC, _EXEC = 1, 2, 4
_ABSOLUTE = 0xFFF1
_HEADER, _SECTION, _SYMBOL = 64, 64, 24
_U64 = (1 << 64) - 1


def commands(debuggee: "Debuggee", vmlinux: Path | None, folder: Path) -> list[str]:
    """The gdb commands that load a guest's symbols, of which what is made lies in `folder`.

    Of a Linux: the `vmlinux` that was named or that an installed debug package has, if it is of the
    same build, with unwind tables beside it; or else what the kernel knows of itself. Of other
    guests: a file that was named, or the image's symbols. No commands where nothing is known.

    Raises `KernelError` for a vmlinux of another build, `SymbolsError` where it is not known how
    far a kernel has moved.
    """
    made = folder / "guest.elf"
    symbols = debuggee.travel.session.inspector.symbols
    if symbols.linked is not None and symbols.linked.relocatable:
        with _where_the_kernel_runs(debuggee.travel):
            return _of_linux(debuggee, vmlinux, made)
    if vmlinux is not None:
        return [f"file {quoted(vmlinux.resolve())}"]
    if symbols.table is None or not len(symbols.table):
        return []
    made.write_bytes(elf_of(symbols.table))
    return [f"file {quoted(made)}"]


@contextmanager
def _where_the_kernel_runs(travel: "TimeTravel") -> Iterator[None]:
    """At the present moment, or where Linux has entered its own code if that is later: only from
    there on its memory tells which kernel it is, and where."""
    from rr86.kernel.identity import build_id
    from rr86.kernel.running import RunningKernel

    inspector, origin = travel.session.inspector, travel.icount
    if inspector.locate_kernel() is None or build_id(RunningKernel(inspector)) is None:
        stop = travel.run(_ENTRY)
        if stop.reason != "condition" or travel.session.inspector.locate_kernel() is None:
            travel.goto(origin)
            raise SymbolsError("where the kernel is cannot be told: it never came to its entry")
    try:
        yield
    finally:
        travel.goto(origin)


def _of_linux(debuggee: "Debuggee", vmlinux: Path | None, made: Path) -> list[str]:
    from rr86.kernel.identity import debug_kernel
    from rr86.kernel.running import RunningKernel
    from rr86.kernel.symbol_file import write_symbol_file

    kernel = RunningKernel(debuggee.travel.session.inspector)
    found = debug_kernel(kernel, vmlinux)
    if found is None:
        write_symbol_file(kernel, made)
        return [f"file {quoted(made)}"]
    write_symbol_file(kernel, made, symbols=False)
    path = quoted(found.path.resolve())
    loads = [f"exec-file {path}", f"symbol-file -o {found.offset:#x} {path}"]
    loads.append(f"add-symbol-file {quoted(made)}")
    return loads if found.scripts is None else [*loads, f"source {quoted(found.scripts)}"]


def quoted(path: Path) -> str:
    """A path as a word of a gdb command line."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


@dataclass
class _Section:
    name: str
    kind: int
    flags: int = 0
    address: int = 0
    size: int = 0
    data: bytes = b""
    link: int = 0
    info: int = 0
    entry: int = 0


def elf_of(table: "SymbolTable") -> bytes:
    """A 64-bit ELF file with a table's symbols at their runtime addresses."""
    rows = [(address, symbol) for address, symbol in table.search() if symbol.name]
    code = [address for address, symbol in rows if symbol.is_text and address > 0]
    first = min(code, default=0)
    # gdb wants code in a section; the last function is at most a page long.
    text = _Section(".text", _NOBITS, _ALLOC | _EXEC, first, max(code, default=0) + 4096 - first)
    names, symbols = bytearray(b"\0"), bytearray(_SYMBOL)
    ordered = sorted(rows, key=lambda row: row[1].kind.isupper())
    for address, symbol in ordered:
        inside = 0 <= address - text.address < text.size
        kind = (1 if symbol.kind.isupper() else 0) << 4 | (2 if symbol.is_text else 1)
        place = 1 if inside else _ABSOLUTE
        entry = (len(names), kind, 0, place, address & _U64, _size(table, address, symbol.size))
        symbols += struct.pack("<IBBHQQ", *entry)
        names += symbol.name.encode("utf-8", "replace") + b"\0"
    locals_ = 1 + sum(not symbol.kind.isupper() for _, symbol in rows)
    return _elf(
        [
            text,
            _Section(".symtab", _SYMTAB, data=bytes(symbols), link=3, info=locals_, entry=_SYMBOL),
            _Section(".strtab", _STRTAB, data=bytes(names)),
        ]
    )


def _size(table: "SymbolTable", address: int, size: int) -> int:
    return size or min(table.distance_to_next(address) or 0, 1 << 24)


def _elf(sections: list[_Section]) -> bytes:
    """A file of these sections, numbered from 1, and of their names behind them."""
    sections = [*sections, _Section(".shstrtab", _STRTAB)]
    strings = bytearray(b"\0")
    places = []
    for section in sections:
        places.append(len(strings))
        strings += section.name.encode() + b"\0"
    sections[-1].data = bytes(strings)
    body = bytearray()
    headers = bytearray(_SECTION)
    for place, section in zip(places, sections, strict=True):
        body += bytes(-len(body) % 8)
        headers += struct.pack(
            "<IIQQQQIIQQ",
            *(place, section.kind, section.flags, section.address, _HEADER + len(body)),
            *(section.size or len(section.data), section.link, section.info, 8, section.entry),
        )
        body += section.data
    body += bytes(-len(body) % 8)
    # 64 bits, little-endian, version 1.
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    fields = (_EXECUTABLE, _X86_64, 1, 0, 0, _HEADER + len(body), 0, _HEADER, 0, 0, _SECTION)
    header = ident + struct.pack("<HHIQQQIHHHHHH", *fields, len(sections) + 1, len(sections))
    return header + bytes(body) + bytes(headers)
