"""Linux bzImage: the boot protocol's 64-bit entry, from version 2.12 on.

The real-mode part of the image is not run; its header says what the loader has to know. Source:
Linux Documentation/x86/boot.rst.
"""

import struct

from rr86.errors import GuestImageError
from rr86.machine.loaders import linux
from rr86.machine.loaders.image import BootFiles, Layout, LoadedKernel, align_up
from rr86.machine.memory_map import FIRMWARE_END, MemoryMap
from rr86.machine.spec import BoardSpec

HEADER = 0x1F1
MAGIC_OFFSET = 0x202
MAGIC = b"HdrS"
BOOT_FLAG = 0xAA55
MIN_VERSION = 0x020C
LOADED_HIGH = 1 << 0
XLF_KERNEL_64 = 1 << 0
ENTRY_64 = 0x200
"""Offset of the 64-bit entry point from the load address."""


def is_bzimage(data: bytes) -> bool:
    """Whether the boot flag and the setup header's magic are there."""
    return data[MAGIC_OFFSET : MAGIC_OFFSET + 4] == MAGIC and data[0x1FE:0x200] == b"\x55\xaa"


def load(files: BootFiles, spec: BoardSpec, memory: MemoryMap) -> LoadedKernel:
    """Place a bzImage, its command line and its initrd."""
    image = files.kernel
    if len(image) < 0x268:
        raise GuestImageError("the kernel is cut off within its setup header")
    (version,) = struct.unpack_from("<H", image, 0x206)
    if version < MIN_VERSION:
        raise GuestImageError(
            f"the kernel speaks boot protocol {version >> 8}.{version & 0xFF:02}; "
            "2.12 (Linux 3.8) or later is needed"
        )
    (loadflags,) = struct.unpack_from("<B", image, 0x211)
    (xloadflags,) = struct.unpack_from("<H", image, 0x236)
    if not loadflags & LOADED_HIGH:
        raise GuestImageError("the kernel is a zImage, which loads low; a bzImage is needed")
    if not xloadflags & XLF_KERNEL_64:
        raise GuestImageError("the kernel is a 32-bit one (it has no 64-bit entry point)")

    (paragraphs,) = struct.unpack_from("<I", image, 0x1F4)
    setup, body = files.bzimage_parts
    # syssize counts the protected-mode part; behind it there may be a signature.
    if len(body) < paragraphs * 16 or len(body) <= ENTRY_64:
        raise GuestImageError(
            f"the kernel is cut off: it should have {len(setup) + paragraphs * 16} bytes and has "
            f"{len(image)}"
        )

    layout = Layout(memory)
    (init_size,) = struct.unpack_from("<I", image, 0x260)
    address = _load_address(image, init_size, memory)
    # The kernel unpacks itself within init_size bytes from its load address.
    layout.add(address, body, "the kernel", size=init_size)

    header = image[HEADER : MAGIC_OFFSET + image[0x201]]
    (initrd_max, command_line_max) = (
        struct.unpack_from("<I", image, 0x22C)[0],
        struct.unpack_from("<I", image, 0x238)[0],
    )
    kernel_end = address + max(init_size, len(body))
    return linux.finish(
        layout,
        linux.SetupHeader(header, command_line_max, initrd_max),
        address + ENTRY_64,
        kernel_end,
        spec,
        files.initrd,
    )


def _load_address(image: bytes, init_size: int, memory: MemoryMap) -> int:
    """The preferred address, or for a relocatable kernel the lowest one if RAM ends before it."""
    (alignment, relocatable) = struct.unpack_from("<IB", image, 0x230)
    (preferred,) = struct.unpack_from("<Q", image, 0x258)
    if preferred + init_size <= memory.tables_base or not relocatable:
        return int(preferred)
    if alignment == 0 or alignment & (alignment - 1):
        raise GuestImageError(f"the kernel's alignment is not a power of two: {alignment:#x}")
    return align_up(FIRMWARE_END, alignment)
