"""Multiboot 1 (specification 0.6.96), as QEMU's -kernel does it.

The image is an ELF32 file, or anything with the header's address fields. Modules follow the kernel,
page-aligned; the information structure is in conventional memory.
"""

import struct
from typing import NamedTuple

from rr86.errors import GuestImageError
from rr86.machine.loaders import elf, entry_state
from rr86.machine.loaders.image import PAGE, BootFiles, Layout, LoadedKernel, align_up
from rr86.machine.memory_map import EBDA_BASE, FIRMWARE_END, KIB, MemoryMap
from rr86.machine.spec import BoardSpec

HEADER_MAGIC = 0x1BAD_B002
LOADER_MAGIC = 0x2BAD_B002
SEARCH = 8192
LOADER_NAME = b"rr86\0"

WANTS_VIDEO = 1 << 2
HAS_ADDRESSES = 1 << 16
_KNOWN_REQUIREMENTS = 1 << 0 | 1 << 1 | WANTS_VIDEO
"""Bits 0 to 15 that can be met. Like QEMU, a wish for a video mode is passed over: the guest sees
in the information structure that it has none."""

GDT = 0x8000
INFO = 0x9000
"""The information structure and all that it points to. Where the kernel is here or at the GDT's
place, they go elsewhere: the specification (3.2) leaves their places to the loader."""

INFO_SIZE = 88
_HAS = {"memory": 0, "boot_device": 1, "command_line": 2, "modules": 3, "map": 6, "name": 9}


class Header(NamedTuple):
    """The Multiboot header and where in the file it is."""

    offset: int
    flags: int
    header_address: int = 0
    load_address: int = 0
    load_end: int = 0
    bss_end: int = 0
    entry: int = 0


def find_header(data: bytes) -> Header | None:
    """The first header with a right checksum in the first 8 KiB, on a multiple of 4."""
    for offset in range(0, min(len(data), SEARCH) - 11, 4):
        magic, flags, check = struct.unpack_from("<III", data, offset)
        if magic != HEADER_MAGIC or (magic + flags + check) & 0xFFFF_FFFF:
            continue
        if not flags & HAS_ADDRESSES:
            return Header(offset, flags)
        if offset + 32 > min(len(data), SEARCH):
            raise GuestImageError("the Multiboot header is cut off")
        return Header(offset, flags, *struct.unpack_from("<IIIII", data, offset + 12))
    return None


def load(header: Header, files: BootFiles, spec: BoardSpec, memory: MemoryMap) -> LoadedKernel:
    """Place a Multiboot kernel, its modules and its information structure."""
    unknown = header.flags & 0xFFFF & ~_KNOWN_REQUIREMENTS
    if unknown:
        raise GuestImageError(
            f"the Multiboot kernel requires unknown features (flags {unknown:#x})"
        )
    layout = Layout(memory)
    if header.flags & HAS_ADDRESSES:
        entry, end = _load_by_addresses(header, files.kernel, layout)
    else:
        entry, end = _load_elf(files.kernel, layout)

    modules = [("initrd", files.initrd)] if files.initrd else []
    modules += files.modules
    placed: list[tuple[int, int, bytes]] = []
    address = align_up(max(end, FIRMWARE_END), PAGE)
    for text, data in modules:
        layout.add(address, data, f"the module {text!r}")
        placed.append((address, address + len(data), text.encode("utf-8") + b"\0"))
        address = align_up(address + len(data), PAGE)

    command_line = " ".join(filter(None, (spec.kernel_name, spec.command_line)))
    size = len(_information(INFO, memory, placed, command_line))
    info = layout.room(INFO, size, behind=address)
    layout.add(info, _information(info, memory, placed, command_line), "the Multiboot information")
    table = entry_state.protected_mode_gdt()
    gdt = layout.room(GDT, len(table), behind=align_up(max(address, info + size), PAGE))
    layout.add(gdt, table, "the boot GDT")
    registers = entry_state.protected_mode(entry=entry, eax=LOADER_MAGIC, ebx=info, gdt=gdt)
    return LoadedKernel("multiboot", tuple(layout.loads), registers)


def _load_by_addresses(header: Header, image: bytes, layout: Layout) -> tuple[int, int]:
    """The "a.out kludge": the header says which part of the file goes where (3.1.3)."""
    start = header.offset - (header.header_address - header.load_address)
    if header.header_address < header.load_address or start < 0:
        raise GuestImageError("the Multiboot header's load address lies outside of the file")
    stop = start + header.load_end - header.load_address if header.load_end else len(image)
    if not start <= stop <= len(image):
        raise GuestImageError("the Multiboot header's load end lies outside of the file")
    data = image[start:stop]
    end = max(header.bss_end, header.load_address + len(data))
    layout.add(header.load_address, data, "the kernel", size=end - header.load_address)
    if not header.load_address <= header.entry < end:
        raise GuestImageError(f"the Multiboot entry point {header.entry:#x} is not in the kernel")
    return header.entry, end


def _load_elf(image: bytes, layout: Layout) -> tuple[int, int]:
    if image[:4] != elf.MAGIC:
        raise GuestImageError(
            "the Multiboot kernel is no ELF file, and its header has no addresses"
        )
    parsed = elf.parse(image)
    if parsed.bits != 32:
        raise GuestImageError(
            "the Multiboot kernel is a 64-bit ELF file; Multiboot enters in 32-bit mode, "
            "so link it as elf32-i386 (objcopy -O elf32-i386) or give the header addresses"
        )
    for segment in parsed.segments:
        layout.add(segment.physical, segment.data, "a kernel segment", size=segment.memory_size)
    end = max(segment.physical + segment.memory_size for segment in parsed.segments)
    return parsed.physical_entry(), end


def _information(
    base: int, memory: MemoryMap, modules: list[tuple[int, int, bytes]], command_line: str
) -> bytes:
    """The information structure (3.3) for `base`, with everything it refers to behind it."""
    tail = bytearray()

    def place(data: bytes) -> int:
        tail.extend(bytes(-len(tail) % 4))
        address = base + INFO_SIZE + len(tail)
        tail.extend(data)
        return address

    command_address = place(command_line.encode("utf-8") + b"\0")
    name_address = place(LOADER_NAME)
    rows = [(start, end, place(text)) for start, end, text in modules]
    modules_address = place(b"".join(struct.pack("<IIII", *row, 0) for row in rows))
    # Each map entry is preceded by its size, which does not count itself.
    entries = b"".join(struct.pack("<I", 20) + entry.pack() for entry in memory.e820())
    map_address = place(entries)

    info = bytearray(INFO_SIZE)
    struct.pack_into(
        "<IIIIIII",
        info,
        0,
        sum(1 << bit for bit in _HAS.values()),
        EBDA_BASE // KIB,  # mem_lower
        (memory.tables_base - FIRMWARE_END) // KIB,  # mem_upper, up to the first hole
        0x8000_FFFF,  # boot_device: first disk, whole
        command_address,
        len(rows),
        modules_address,
    )
    struct.pack_into("<II", info, 44, len(entries), map_address)
    struct.pack_into("<I", info, 64, name_address)
    return bytes(info + tail)
