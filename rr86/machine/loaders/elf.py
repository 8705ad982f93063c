"""ELF images: segments of any executable, and Linux's own `vmlinux`.

A vmlinux is entered through the 64-bit boot protocol as a bzImage is, only that it is unpacked
already: its entry point `startup_64` gets `boot_params` in RSI.

The file is read here, and not by pyelftools (as in `rr86/cpu/elf.py`), because this is on the way
to the guest's first instruction, and importing that takes as long as all else on it; and because
every field decides what goes into guest memory, so each is checked, and what is wrong is said in a
loader's words.
"""

import struct
from typing import NamedTuple

from rr86.errors import GuestImageError
from rr86.machine.loaders import linux
from rr86.machine.loaders.image import EXPECTED, BootFiles, Layout, LoadedKernel
from rr86.machine.memory_map import MemoryMap
from rr86.machine.spec import BoardSpec

MAGIC = b"\x7fELF"
EM_386 = 3
EM_X86_64 = 62
ET_EXEC = 2
ET_DYN = 3
PT_LOAD = 1
PT_DYNAMIC = 2
PT_INTERP = 3
_KERNEL_HALF = 1 << 63

_MACHINES = {2: "SPARC", 8: "MIPS", 20: "PowerPC", 21: "PowerPC 64", 22: "S/390", 40: "Arm",
             183: "AArch64", 243: "RISC-V", 258: "LoongArch"}  # fmt: skip


class Segment(NamedTuple):
    """A PT_LOAD program header and its bytes."""

    virtual: int
    physical: int
    data: bytes
    memory_size: int


class Elf(NamedTuple):
    """The parts of an executable that matter for loading it."""

    bits: int
    machine: int
    entry: int
    segments: tuple[Segment, ...]
    interpreted: bool = False
    """Whether it wants to be loaded by a dynamic linker."""

    def physical_entry(self) -> int:
        """The entry point as a physical address, whether the file names it so or virtually."""
        for segment in self.segments:
            if segment.physical <= self.entry < segment.physical + segment.memory_size:
                return self.entry
        for segment in self.segments:
            if segment.virtual <= self.entry < segment.virtual + segment.memory_size:
                return self.entry - segment.virtual + segment.physical
        raise GuestImageError(f"the ELF entry point {self.entry:#x} is in none of its segments")


def parse(data: bytes) -> Elf:
    """Read header and program headers; raises `GuestImageError` on anything out of place."""
    if data[:4] != MAGIC or len(data) < 52:
        raise GuestImageError("the kernel is not a whole ELF file")
    if data[4] not in (1, 2):
        raise GuestImageError("the ELF file is neither a 32-bit nor a 64-bit one")
    if data[5] != 1:
        raise GuestImageError("the ELF file is big-endian, so it is not for x86")
    wide = data[4] == 2
    kind, machine = struct.unpack_from("<HH", data, 16)
    if machine not in (EM_386, EM_X86_64):
        name = _MACHINES.get(machine, f"machine type {machine}")
        raise GuestImageError(f"the ELF file is for another machine ({name}), not for x86")
    if kind not in (ET_EXEC, ET_DYN):
        raise GuestImageError("the ELF file is not an executable (an object file or a core dump?)")
    try:
        if wide:
            entry, table = struct.unpack_from("<QQ", data, 24)
            entry_size, count = struct.unpack_from("<HH", data, 54)
        else:
            entry, table = struct.unpack_from("<II", data, 24)
            entry_size, count = struct.unpack_from("<HH", data, 42)
        places = [table + i * entry_size for i in range(count)]
        headers = [_program_header(data, place, wide) for place in places]
        kinds = {struct.unpack_from("<I", data, place)[0] for place in places}
    except struct.error:
        raise GuestImageError("the ELF file is cut off within its headers") from None
    segments = tuple(header for header in headers if header is not None)
    if not segments:
        raise GuestImageError("the ELF file has nothing to load")
    interpreted = not kinds.isdisjoint((PT_DYNAMIC, PT_INTERP))
    return Elf(64 if wide else 32, machine, entry, segments, interpreted)


def _program_header(data: bytes, offset: int, wide: bool) -> Segment | None:
    if wide:
        kind, _, start, virtual, physical, in_file, in_memory = struct.unpack_from(
            "<IIQQQQQ", data, offset
        )
    else:
        kind, start, virtual, physical, in_file, in_memory = struct.unpack_from(
            "<IIIIII", data, offset
        )
    if kind != PT_LOAD or in_memory == 0:
        return None
    if in_file > in_memory or start + in_file > len(data):
        raise GuestImageError("the ELF file is cut off, or a segment's size is wrong")
    return Segment(virtual, physical, data[start : start + in_file], in_memory)


def load_vmlinux(files: BootFiles, spec: BoardSpec, memory: MemoryMap) -> LoadedKernel:
    """Place an uncompressed x86-64 kernel, its command line and its initrd."""
    elf = parse(files.kernel)
    if elf.machine != EM_X86_64 or elf.bits != 64:
        raise GuestImageError(
            f"the kernel is a 32-bit ELF file without a Multiboot header; {EXPECTED}"
        )
    if elf.interpreted:
        raise GuestImageError(
            f"the kernel is a program or library for an operating system; {EXPECTED}"
        )
    if not any(segment.virtual >= _KERNEL_HALF for segment in elf.segments):
        raise GuestImageError(
            "the kernel is an ELF file without a Multiboot header, and not linked as Linux is; "
            f"{EXPECTED}"
        )
    layout = Layout(memory)
    for segment in elf.segments:
        layout.add(segment.physical, segment.data, "a kernel segment", size=segment.memory_size)
    end = max(segment.physical + segment.memory_size for segment in elf.segments)
    return linux.finish(
        layout,
        linux.SetupHeader(_setup_header(), 2047, 0x7FFF_FFFF),
        elf.physical_entry(),
        end,
        spec,
        files.initrd,
    )


def _setup_header() -> bytes:
    """What a bzImage would have brought and the kernel proper checks: flags, magic, version."""
    raw = bytearray(0x268 - 0x1F1)
    struct.pack_into("<H", raw, 0x1FE - 0x1F1, 0xAA55)
    struct.pack_into("<4sH", raw, 0x202 - 0x1F1, b"HdrS", 0x020F)
    raw[0x211 - 0x1F1] = 1  # LOADED_HIGH
    struct.pack_into("<I", raw, 0x22C - 0x1F1, 0x7FFF_FFFF)
    struct.pack_into("<I", raw, 0x230 - 0x1F1, 0x20_0000)
    struct.pack_into("<I", raw, 0x238 - 0x1F1, 2047)
    return bytes(raw)
