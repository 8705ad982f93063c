"""Small synthetic kernels: just enough of each format to be loaded."""

import struct


def bzimage(
    *,
    version: int = 0x020F,
    xloadflags: int = 1,
    loadflags: int = 1,
    body: bytes = b"\xf4" * 0x1000,
    init_size: int = 0x80_0000,
    preferred: int = 0x100_0000,
    relocatable: int = 1,
    initrd_max: int = 0x7FFF_FFFF,
    syssize: int | None = None,
) -> bytes:
    """A bzImage with one setup sector."""
    setup = bytearray(1024)
    setup[0x1F1] = 1
    struct.pack_into("<I", setup, 0x1F4, len(body) // 16 if syssize is None else syssize)
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x200:0x202] = b"\xeb\x66"
    struct.pack_into("<4sH", setup, 0x202, b"HdrS", version)
    setup[0x211] = loadflags
    struct.pack_into("<I", setup, 0x22C, initrd_max)
    struct.pack_into("<IBBHI", setup, 0x230, 0x20_0000, relocatable, 21, xloadflags, 2047)
    struct.pack_into("<QI", setup, 0x258, preferred, init_size)
    return bytes(setup) + body


def elf(
    *,
    bits: int = 64,
    machine: int = 62,
    kind: int = 2,
    entry: int = 0x100_0000,
    physical: int = 0x100_0000,
    virtual: int = 0xFFFF_FFFF_8100_0000,
    data: bytes = b"\xf4" * 64,
    memory_size: int = 0x4000,
) -> bytes:
    """An executable with one segment."""
    ident = b"\x7fELF" + bytes([bits // 32, 1, 1]) + bytes(9)
    if bits == 64:
        head = struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
        segment = struct.pack(
            "<IIQQQQQQ", 1, 7, 120, virtual, physical, len(data), memory_size, 4096
        )
    else:
        head = struct.pack("<HHIIIIIHHHHHH", kind, machine, 1, entry, 52, 0, 0, 52, 32, 1, 0, 0, 0)
        virtual &= 0xFFFF_FFFF
        segment = struct.pack(
            "<IIIIIIII", 1, 84, virtual, physical, len(data), memory_size, 7, 4096
        )
    return ident + head + segment + data


def multiboot_header(flags: int = 0, *addresses: int) -> bytes:
    """A Multiboot header with a right checksum."""
    return struct.pack(
        f"<III{len(addresses)}I",
        0x1BAD_B002,
        flags,
        -(0x1BAD_B002 + flags) & 0xFFFF_FFFF,
        *addresses,
    )


def multiboot_elf(flags: int = 0) -> bytes:
    """An ELF32 Multiboot kernel at 1 MiB."""
    return elf(
        bits=32,
        machine=3,
        entry=0x10_000C,
        physical=0x10_0000,
        virtual=0x10_0000,
        data=multiboot_header(flags) + b"\xf4" * 52,
    )
