"""An ELF file for debuggers, made from what a running kernel knows of itself.

No debug package is needed: symbols come from the kernel's kallsyms and from those of its modules,
unwind tables from the ORC tables of both (`rr86.kernel.eh_frame`). All addresses are those of the
running guest, so that a debugger loads the file as it is. It holds no code: sections are empty
(NOBITS), and a debugger reads memory from the guest.

Per-CPU variables have the addresses that they have in a vmlinux, small numbers to which a CPU's
offset (`__per_cpu_offset[cpu]`) has to be added, as the kernel's own gdb scripts do.

Source: System V ABI, chapter 4.
"""

import functools
import struct
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rr86.cpu.guest_symbols import symbols_of
from rr86.cpu.orc import orc_of
from rr86.cpu.symbols import Symbol
from rr86.errors import KernelError
from rr86.kernel.eh_frame import Unwinding, eh_frame
from rr86.kernel.identity import build_id, release
from rr86.kernel.modules import Module, module_orc, module_symbols, modules
from rr86.kernel.running import RunningKernel

if TYPE_CHECKING:
    from rr86.cpu.inspection import Inspector
    from rr86.cpu.vmlinux import Vmlinux

# Nothing of a guest is there: the guard hole below the direct map.
_EH_FRAME_AT = 0xFFFF_8000_0000_0000
_SHT_PROGBITS, _SHT_SYMTAB, _SHT_STRTAB, _SHT_NOTE, _SHT_NOBITS = 1, 2, 3, 7, 8
_WRITE, _ALLOC, _EXEC = 1, 2, 4
_STT_OBJECT, _STT_FUNC = 1, 2
_ABSOLUTE = 0xFFF1
_TEXT_KINDS = frozenset("tTwW")


@dataclass(frozen=True)
class SymbolFile:
    """A symbol file that was written.

    `offset` is how far the kernel moved from its link-time addresses (KASLR): the file has it
    applied, a vmlinux needs it (`add-symbol-file -o`). `modules` are those whose symbols are in the
    file; at another moment there may be others.
    """

    path: Path
    offset: int
    release: str
    build_id: str | None
    modules: tuple[Module, ...]


@dataclass(frozen=True)
class _Section:
    name: str
    start: int
    end: int
    flags: int


def write_symbol_file(
    kernel: "RunningKernel | Inspector", path: str | Path, symbols: bool = True
) -> SymbolFile:
    """Write the symbols and unwind tables of the kernel that runs in a guest to an ELF file.

    It takes the inspector of a stopped guest (`ReplaySession.inspector`), at any moment at which it
    is known where the kernel is (`Inspector.locate_kernel`): always in a finished recording, which
    says so, otherwise from the kernel's first C function on. Modules are those that are loaded at
    the moment. Without `symbols`, the file has the unwind tables and the
    modules' symbols alone, to be loaded beside a vmlinux with debugging information, which has no
    unwind tables for the kernel's entry code.

    Raises `KernelError` if that is not known, or the guest is no Linux, and `OSError` where the
    file cannot be written.
    """
    if not isinstance(kernel, RunningKernel):
        kernel = RunningKernel(kernel)
    table = kernel.symbols
    sections = _image_sections(kernel)
    found = _modules(kernel)
    rows = kernel_symbols(kernel) if symbols else []
    unwind = _of_image(
        kernel.inspector.symbols.kernel, table.offset, max(each.end for each in sections)
    )
    tables = []
    for module in found:
        sections += [
            _Section(
                f".{'text' if area.text else 'data'}.{module.name}",
                area.base,
                area.base + area.size,
                _ALLOC | (_EXEC if area.text else _WRITE),
            )
            for area in module.areas
        ]
        rows += module_symbols(kernel, module)
        own = module_orc(kernel, module)
        if own is not None:
            tables.append(Unwinding(own, 0, _end_of_code(module, own.addresses[-1])))
    content = _elf(sections, rows, eh_frame(tables, lambda _: "", unwind))
    path = Path(path)
    path.write_bytes(content)
    return SymbolFile(path, table.offset, release(kernel), build_id(kernel), tuple(found))


def _modules(kernel: RunningKernel) -> list[Module]:
    try:
        return [each for each in modules(kernel) if each.state in ("live", "coming", "going")]
    except KernelError:
        # Without types there are no modules to be seen; the kernel's own symbols are there.
        return []


def _end_of_code(module: Module, address: int) -> int:
    ends = [area.base + area.size for area in module.areas if 0 <= address - area.base < area.size]
    return ends[0] if ends else address


# Of a session it is always the same, and takes most of the time.
@functools.lru_cache(maxsize=1)
def _of_image(image: "Vmlinux", offset: int, end: int) -> bytes:
    """The unwind tables of the kernel without its modules."""
    orc = orc_of(image)
    table = symbols_of(image).moved(offset)

    def function(address: int) -> str:
        found = table.resolve(address)
        return "" if found is None else found[0].name

    return eh_frame([] if orc is None else [Unwinding(orc, offset, end)], function)


def _image_sections(kernel: RunningKernel) -> list[_Section]:
    """The kernel's image, cut where code begins or ends."""
    table = kernel.symbols

    def at(name: str) -> int | None:
        linked = table.link_address(name)
        return None if linked is None else linked + table.offset

    start, end = table.address("_text"), table.address("_end")
    cuts = [
        (".text", at("_text"), at("_etext"), _ALLOC | _EXEC),
        (".init.text", at("_sinittext"), at("_einittext"), _ALLOC | _EXEC),
    ]
    sections: list[_Section] = []
    here = start
    for name, first, last, flags in cuts:
        if first is None or last is None or not here <= first < last <= end:
            continue
        if first > here:
            sections.append(_Section(f".data{len(sections) or ''}", here, first, _ALLOC | _WRITE))
        sections.append(_Section(name, first, last, flags))
        here = last
    if here < end:
        sections.append(_Section(f".data{len(sections) or ''}", here, end, _ALLOC | _WRITE))
    return sections


def kernel_symbols(kernel: RunningKernel) -> list[Symbol]:
    """The kernel's symbols at their runtime addresses. kallsyms has no sizes: one goes up to the
    next symbol of another address."""
    rows = [symbol._replace(address=address) for address, symbol in kernel.symbols.search()]
    sized = []
    after = 0
    for index in range(len(rows) - 1, -1, -1):
        row = rows[index]
        if index + 1 < len(rows) and rows[index + 1].address != row.address:
            after = rows[index + 1].address
        size = row.size or (after - row.address if 0 < after - row.address < 1 << 24 else 0)
        sized.append(row._replace(size=size))
    sized.reverse()
    return sized


class _Strings:
    def __init__(self) -> None:
        self.data = bytearray(b"\0")

    def add(self, text: str) -> int:
        at = len(self.data)
        self.data += text.encode() + b"\0"
        return at


def _elf(sections: list[_Section], rows: list[Symbol], frames: bytes) -> bytes:
    """The file: sections without content, unwind tables, symbols."""
    names = _Strings()
    headers = [bytes(64)]
    for each in sections:
        headers.append(
            _header(names, each.name, _SHT_NOBITS, each.flags, each.start, 0, each.end - each.start)
        )
    table, strings, local = _symbol_table(sections, rows)
    out = bytearray(64)

    def place(name: str, kind: int, flags: int, at: int, data: bytes, *more: int) -> None:
        out.extend(b"\0" * (-len(out) % 8))
        headers.append(_header(names, name, kind, flags, at, len(out), len(data), *more))
        out.extend(data)

    place(".eh_frame", _SHT_PROGBITS, _ALLOC, _EH_FRAME_AT, frames)
    place(".symtab", _SHT_SYMTAB, 0, 0, table, len(headers) + 1, local, 24)
    place(".strtab", _SHT_STRTAB, 0, 0, strings)
    index = len(headers)
    name = names.add(".shstrtab")
    out.extend(b"\0" * (-len(out) % 8))
    headers.append(
        struct.pack("<IIQQQQIIQQ", name, _SHT_STRTAB, 0, 0, len(out), len(names.data), 0, 0, 1, 0)
    )
    out.extend(names.data)
    out.extend(b"\0" * (-len(out) % 8))
    # ET_EXEC for EM_X86_64: addresses are final.
    out[:64] = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01", 2, 62, 1, 0, 0, len(out), 0, 64, 0, 0, 64, len(headers), index,
    )  # fmt: skip
    return bytes(out) + b"".join(headers)


def _header(
    names: _Strings,
    name: str,
    kind: int,
    flags: int,
    at: int,
    offset: int,
    size: int,
    link: int = 0,
    info: int = 0,
    step: int = 0,
) -> bytes:
    number = names.add(name)
    return struct.pack("<IIQQQQIIQQ", number, kind, flags, at, offset, size, link, info, 8, step)


def _symbol_table(sections: list[_Section], rows: list[Symbol]) -> tuple[bytes, bytes, int]:
    """`.symtab`, its strings, and how many symbols are local: these come first."""
    order = sorted(range(len(sections)), key=lambda index: sections[index].start)
    starts = [sections[index].start for index in order]
    strings = bytearray(b"\0")
    local, other = bytearray(24), bytearray()
    for row in rows:
        found = bisect_right(starts, row.address) - 1
        index = order[found] if found >= 0 else -1
        inside = index >= 0 and row.address <= sections[index].end
        code = inside and sections[index].flags & _EXEC and row.kind in _TEXT_KINDS
        binding = 1 if row.kind.isupper() else 0
        entry = struct.pack(
            "<IBBHQQ",
            len(strings),
            binding << 4 | (_STT_FUNC if code else _STT_OBJECT),
            0,
            index + 1 if inside else _ABSOLUTE,
            row.address,
            row.size,
        )
        if binding:
            other += entry
        else:
            local += entry
        strings += row.name.encode() + b"\0"
    return bytes(local + other), bytes(strings), len(local) // 24
