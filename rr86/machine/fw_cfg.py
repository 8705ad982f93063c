"""Contents of QEMU's firmware configuration device: what guests and firmware may ask the board.

Keys and files as in QEMU (docs/specs/fw_cfg.rst). The core answers the signature, the id with its
feature bits and the file directory by itself; everything else is data from here.
"""

import struct

from rr86.machine.acpi import AcpiImage
from rr86.machine.loaders.image import BootFiles, Bytes
from rr86.machine.memory_map import MemoryMap
from rr86.machine.smbios import SmbiosImage
from rr86.machine.spec import BoardSpec

UUID = 0x02
RAM_SIZE = 0x03
NO_GRAPHIC = 0x04
CPU_COUNT = 0x05
BOOT_MENU = 0x0E
CPU_MAX = 0x0F
KERNEL_SIZE = 0x08
COMMAND_LINE_SIZE = 0x14
COMMAND_LINE_DATA = 0x15
KERNEL_DATA = 0x11
INITRD_SIZE = 0x0B
INITRD_DATA = 0x12
SETUP_SIZE = 0x17
SETUP_DATA = 0x18
IRQ0_OVERRIDE = 0x8002


def items(spec: BoardSpec, files: BootFiles, protocol: str) -> list[tuple[int, Bytes]]:
    """(key, contents), sorted by key; integers are little-endian."""
    command_line = spec.command_line.encode("utf-8") + b"\0"
    # A bzImage is offered as QEMU does: real-mode setup and protected-mode kernel apart.
    setup = b""
    kernel: Bytes = files.kernel
    if protocol == "linux" and files.kernel[:4] != b"\x7fELF":
        setup, kernel = files.bzimage_parts
    values: dict[int, Bytes] = {
        UUID: bytes(16),
        RAM_SIZE: struct.pack("<Q", spec.memory),
        NO_GRAPHIC: struct.pack("<H", 1),
        CPU_COUNT: struct.pack("<H", spec.vcpus),
        BOOT_MENU: struct.pack("<H", 0),
        CPU_MAX: struct.pack("<H", spec.vcpus),
        KERNEL_SIZE: struct.pack("<I", len(kernel)),
        KERNEL_DATA: kernel,
        INITRD_SIZE: struct.pack("<I", len(files.initrd)),
        INITRD_DATA: files.initrd,
        COMMAND_LINE_SIZE: struct.pack("<I", len(command_line)),
        COMMAND_LINE_DATA: command_line,
        SETUP_SIZE: struct.pack("<I", len(setup)),
        SETUP_DATA: setup,
        IRQ0_OVERRIDE: struct.pack("<I", 1),
    }
    return sorted(values.items())


def named_files(memory: MemoryMap, acpi: AcpiImage, smbios: SmbiosImage) -> list[tuple[str, bytes]]:
    """(name, contents), sorted by name."""
    return [
        ("etc/acpi/rsdp", acpi.rsdp),
        ("etc/acpi/tables", acpi.tables),
        ("etc/e820", memory.e820_bytes()),
        ("etc/smbios/smbios-anchor", smbios.entry_64),
        ("etc/smbios/smbios-tables", smbios.table),
    ]
