"""Writing a guest's memory as an ELF core file (vmcore), which crash, drgn and gdb open.

It is what kdump writes: a segment for each range of RAM with its physical address, and its linear
one in the kernel's direct map; the registers of each CPU (NT_PRSTATUS); and VMCOREINFO. crash and
drgn walk page tables themselves. gdb does not, so further segments say where the kernel's image,
its stacks and its modules are mapped; they share the bytes of RAM in the file. Pages of zeros are
holes in the file.

Source: System V ABI, chapter 5; core(5); fs/proc/vmcore.c and include/linux/elfcore.h in the
kernel's sources.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rr86.errors import KernelError, SymbolsError
from rr86.kernel.memory import PAGE
from rr86.kernel.running import RunningKernel
from rr86.kernel.vmcoreinfo import vmcoreinfo

_HEADER, _PHDR = 64, 56
_PT_LOAD, _PT_NOTE = 1, 4
_ET_CORE, _EM_X86_64 = 4, 62
_NT_PRSTATUS = 1
_MOST_SEGMENTS = 0xFFF0
_CHUNK = 1 << 20
# From the end of the direct map's area on, without the hypervisor's hole.
_KERNEL_START = 0xFFFF_8800_0000_0000
# `struct user_regs_struct`, as `pr_reg` has it.
_PR_REG = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx"),
    *("rsi", "rdi", "orig_rax", "rip", "cs", "rflags", "rsp", "ss", "fs_base", "gs_base"),
    *("ds", "es", "fs", "gs"),
)


@dataclass(frozen=True)
class Dump:
    """A core file that was written: how many bytes of RAM it shows, how many of them are not holes,
    whether it has VMCOREINFO, without which crash and drgn take it for no kernel's, and how far the
    kernel is from its link-time addresses (KASLR)."""

    path: Path
    ram: int
    stored: int
    vmcoreinfo: bool
    offset: int = 0


@dataclass(frozen=True)
class _Segment:
    vaddr: int
    paddr: int
    size: int
    # Where the bytes are in the file.
    offset: int


def prstatus(registers: Mapping[str, int], number: int) -> bytes:
    """The content of an NT_PRSTATUS note (`struct elf_prstatus`); `number` stands for the pid."""
    values = [registers.get(name, (1 << 64) - 1) for name in _PR_REG]
    return (
        struct.pack("<3ihxxQQ4i8Q", 0, 0, 0, 0, 0, 0, number, 0, 0, 0, *([0] * 8))
        + struct.pack(f"<{len(values)}Q", *values)
        + struct.pack("<iI", 0, 0)
    )


def note(name: bytes, kind: int, content: bytes) -> bytes:
    """An ELF note."""
    owner = name + b"\0"
    return (
        struct.pack("<III", len(owner), len(content), kind)
        + owner
        + b"\0" * (-len(owner) % 4)
        + content
        + b"\0" * (-len(content) % 4)
    )


def notes_of(kernel: RunningKernel) -> tuple[bytes, bool]:
    """The notes of a core file: NT_PRSTATUS of each vCPU, and VMCOREINFO if there is one."""
    inspector = kernel.inspector
    out = b"".join(
        note(b"CORE", _NT_PRSTATUS, prstatus(inspector.registers(vcpu), vcpu + 1))
        for vcpu in range(inspector.vcpus)
    )
    try:
        return out + note(b"VMCOREINFO", 0, vmcoreinfo(kernel)), True
    except (KernelError, SymbolsError):
        return out, False


def header(segments: int) -> bytes:
    """The ELF header of a core file with so many program headers."""
    return struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01", _ET_CORE, _EM_X86_64, 1, 0, _HEADER, 0, 0, _HEADER, _PHDR,
        segments, 0, 0, 0,
    )  # fmt: skip


def note_header(offset: int, size: int) -> bytes:
    """The program header of the notes."""
    return struct.pack("<IIQQQQQQ", _PT_NOTE, 0, offset, 0, 0, size, size, 4)


def write_dump(
    kernel: RunningKernel,
    path: str | Path,
    ram: Sequence[tuple[int, int]],
    tick: Callable[[int], None] | None = None,
) -> Dump:
    """Write the memory and the registers of a stopped guest to an ELF core file.

    `ram` are the ranges of guest RAM: physical address and length of each. `tick` is called with
    the number of bytes done. A guest without a running Linux has no VMCOREINFO, and its segments
    have physical addresses only.

    Raises `OSError` where the file cannot be written.
    """
    notes, known = notes_of(kernel)
    ranges = [each for start, length in ram for each in _readable(kernel, start, length)]
    # Where RAM begins in the file depends on how many headers there are, and these on RAM alone.
    mappings = list(_mappings(kernel)) if known else []
    mappings = mappings[: _MOST_SEGMENTS - len(ranges) - 1]
    count = 1 + len(ranges) + sum(len(list(_cut(each, ranges))) for each in mappings)
    begin = _HEADER + _PHDR * count + len(notes)
    begin += -begin % PAGE
    places, at = [], begin
    for start, length in ranges:
        places.append((start, length, at))
        at += length
    segments = [
        _Segment(_direct(kernel, start, length) if known else 0, start, length, offset)
        for start, length, offset in places
    ]
    for vaddr, paddr, size in (part for each in mappings for part in _cut(each, ranges)):
        start, _, offset = next(
            each for each in places if each[0] <= paddr and paddr + size <= each[0] + each[1]
        )
        segments.append(_Segment(vaddr, paddr, size, offset + paddr - start))
    path = Path(path)
    with path.open("wb") as file:
        file.write(header(1 + len(segments)))
        file.write(note_header(_HEADER + _PHDR * (1 + len(segments)), len(notes)))
        for each in segments:
            file.write(
                struct.pack(
                    "<IIQQQQQQ",
                    _PT_LOAD, 7, each.offset, each.vaddr, each.paddr, each.size, each.size, PAGE,
                )
            )  # fmt: skip
        file.write(notes)
        stored = _write_ram(file, kernel, places, tick)
        file.truncate(at)
    offset = kernel.symbols.offset if known else 0
    return Dump(path, sum(length for _, length in ranges), stored, known, offset)


def _readable(kernel: RunningKernel, start: int, length: int) -> Iterator[tuple[int, int]]:
    """The stretches of a range that are RAM."""
    first = None
    for at in range(start, start + length, _CHUNK):
        size = min(_CHUNK, start + length - at)
        if len(kernel.read_physical(at, size)) == size:
            first = at if first is None else first
        elif first is not None:
            yield first, at - first
            first = None
    if first is not None:
        yield first, start + length - first


def _direct(kernel: RunningKernel, start: int, length: int) -> int:
    """The linear address of physical memory in the direct map."""
    base = 0xFFFF_8880_0000_0000
    if kernel.has("page_offset_base"):
        base = kernel.number(kernel.address("page_offset_base"))
    return base + start


def _mappings(kernel: RunningKernel) -> Iterator[tuple[int, int, int]]:
    """What the kernel maps besides its direct map: its image, and what its page tables say."""
    start, end = kernel.address("_text"), kernel.address("_end")
    yield start, start - kernel.bias, (end - start + PAGE - 1) & -PAGE
    first = _KERNEL_START
    if kernel.has("vmalloc_base"):
        first = kernel.number(kernel.address("vmalloc_base"))
    yield from kernel.page_tables.mapped(first, start - 1)
    yield from kernel.page_tables.mapped(end + PAGE - 1 & -PAGE, (1 << 64) - 1)


def _cut(
    piece: tuple[int, int, int], ranges: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, int, int]]:
    """The parts of a mapping that are RAM."""
    vaddr, paddr, size = piece
    for start, length in ranges:
        first, last = max(paddr, start), min(paddr + size, start + length)
        if first < last:
            yield vaddr + first - paddr, first, last - first


def _write_ram(
    file: BinaryIO,
    kernel: RunningKernel,
    places: Iterable[tuple[int, int, int]],
    tick: Callable[[int], None] | None,
) -> int:
    stored = done = 0
    zeros = bytes(PAGE)
    for start, length, offset in places:
        for at in range(0, length, _CHUNK):
            data = kernel.read_physical(start + at, min(_CHUNK, length - at))
            done += len(data)
            if tick is not None:
                tick(done)
            if not data.strip(b"\0"):
                continue
            for page in range(0, len(data), PAGE):
                part = data[page : page + PAGE]
                if part != zeros[: len(part)]:
                    file.seek(offset + at + page)
                    file.write(part)
                    stored += len(part)
    return stored
