"""What all Linux images share: the 64-bit boot protocol's memory and `boot_params`.

Source: Linux Documentation/x86/boot.rst ("64-bit boot protocol") and zero-page.rst. Fields of
`boot_params` are named as there.

Low memory as this loader leaves it; Linux reads all of it before it hands the space out:

    0x07000  boot_params (the "zero page")      0x08000  GDT        0x08800  setup_data
    0x09000  six page tables                    0x20000  command line
"""

import contextlib
import struct
from importlib import import_module
from typing import NamedTuple

from rr86.errors import GuestImageError
from rr86.machine.loaders import entry_state
from rr86.machine.loaders.image import PAGE, Layout, LoadedKernel
from rr86.machine.memory_map import FIRMWARE_BASE, FIRMWARE_END
from rr86.machine.spec import BoardSpec

BOOT_PARAMS = 0x7000
STACK_TOP = 0x7000
GDT = 0x8000
SETUP_DATA = 0x8800
PAGE_TABLES = 0x9000
COMMAND_LINE = 0x2_0000

RSDP = FIRMWARE_BASE
"""Where the board puts the root pointer; Linux is told, others scan for it."""

LOADER_UNDEFINED = 0xFF
"""type_of_loader of a loader without an assigned id."""
CAN_USE_HEAP = 1 << 7

SETUP_RNG_SEED = 9
"""setup_data that seeds the kernel's random numbers, so that it need not collect jitter."""


class SetupHeader(NamedTuple):
    """The part of `boot_params` that a kernel image brings, from offset 0x1f1 on."""

    raw: bytes
    command_line_max: int
    initrd_max: int
    """Highest address that the initrd's last byte may have."""


def rng_seed(seed: int) -> bytes:
    """32 bytes of entropy for the guest, a pure function of the board's seed."""
    return _sha256(b"rr86 guest entropy" + seed.to_bytes(8, "little"))


def _sha256(data: bytes) -> bytes:
    # hashlib brings OpenSSL along, which takes milliseconds of every start. As in Python's own
    # `random`, the lean module behind it comes first, whatever this version calls it.
    for name in ("_sha2", "_sha256"):
        with contextlib.suppress(ImportError):
            lean: bytes = import_module(name).sha256(data).digest()
            return lean
    import hashlib

    return hashlib.sha256(data).digest()


def finish(
    layout: Layout, header: SetupHeader, entry: int, kernel_end: int, spec: BoardSpec, initrd: bytes
) -> LoadedKernel:
    """Add everything but the kernel itself, and give the state at its 64-bit entry point."""
    command_line = spec.command_line.encode("utf-8")
    if len(command_line) > header.command_line_max:
        raise GuestImageError(
            f"the command line has {len(command_line)} bytes; this kernel takes at most "
            f"{header.command_line_max}"
        )
    initrd_address = _place_initrd(layout, header, kernel_end, initrd)
    seed = rng_seed(spec.seed)

    page = bytearray(PAGE)
    page[0x1F1 : 0x1F1 + len(header.raw)] = header.raw
    struct.pack_into("<Q", page, 0x070, RSDP)  # acpi_rsdp_addr
    entries = layout.memory.e820()
    page[0x1E8] = len(entries)  # e820_entries
    page[0x2D0 : 0x2D0 + 20 * len(entries)] = layout.memory.e820_bytes()
    page[0x210] = LOADER_UNDEFINED  # type_of_loader
    page[0x211] |= CAN_USE_HEAP  # loadflags
    struct.pack_into("<H", page, 0x224, 0xFE00)  # heap_end_ptr
    struct.pack_into("<II", page, 0x218, initrd_address, len(initrd))  # ramdisk_image, _size
    struct.pack_into("<I", page, 0x228, COMMAND_LINE)  # cmd_line_ptr
    struct.pack_into("<Q", page, 0x250, SETUP_DATA)  # setup_data

    layout.add(BOOT_PARAMS, bytes(page), "boot_params")
    layout.add(GDT, entry_state.long_mode_gdt(), "the boot GDT")
    layout.add(SETUP_DATA, struct.pack("<QII", 0, SETUP_RNG_SEED, len(seed)) + seed, "setup_data")
    layout.add(PAGE_TABLES, entry_state.identity_page_tables(PAGE_TABLES), "the boot page tables")
    layout.add(COMMAND_LINE, command_line + b"\0", "the command line")
    registers = entry_state.long_mode(
        entry=entry, rsi=BOOT_PARAMS, rsp=STACK_TOP, cr3=PAGE_TABLES, gdt=GDT
    )
    return LoadedKernel("linux", tuple(layout.loads), registers)


def _place_initrd(layout: Layout, header: SetupHeader, kernel_end: int, initrd: bytes) -> int:
    """As high as kernel and RAM allow, so that it is out of the way of the unpacked kernel."""
    if not initrd:
        return 0
    limit = min(header.initrd_max + 1, layout.memory.tables_base)
    address = (limit - len(initrd)) & -PAGE
    if address < max(kernel_end, FIRMWARE_END):
        raise GuestImageError(
            f"the initrd ({len(initrd)} bytes) does not fit between the kernel's end "
            f"({kernel_end:#x}) and {limit:#x}; give the machine more memory"
        )
    layout.add(address, initrd, "the initrd")
    return address
