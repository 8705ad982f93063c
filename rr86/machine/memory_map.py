"""Where things are in the guest's physical address space.

The one formula that loader and core share: RAM is `[0, low)` and `[4 GiB, 4 GiB + high)` with
`low = min(memory, 2 GiB)` and `high = memory - low`. Q35 leaves the space from 2 GiB to 4 GiB to
MMCONFIG, PCI windows, and the IOAPIC, HPET and local APIC near the top.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from rr86.cpu.model import CpuModel, MsrRow

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

LOW_RAM_MAX = 2 * GIB
HIGH_RAM_BASE = 4 * GIB

EBDA_BASE = 0x9_FC00
"""End of conventional memory; the kilobyte above belongs to firmware by custom."""
VIDEO_BASE = 0xA_0000
FIRMWARE_BASE = 0xF_0000
"""The 64 KiB that guests scan for the RSDP and the SMBIOS entry points."""
FIRMWARE_END = 0x10_0000

MMCONFIG_BASE = 0xB000_0000
MMCONFIG_SIZE = 256 * MIB
IOAPIC_BASE = 0xFEC0_0000
HPET_BASE = 0xFED0_0000
LAPIC_BASE = 0xFEE0_0000

PCI_WINDOWS_32 = ((0x8000_0000, 0xAFFF_FFFF), (0xC000_0000, 0xFEBF_FFFF))
"""First and last address of the 32-bit windows for BARs, around MMCONFIG."""
PCI_WINDOW_64 = (0x80_0000_0000, 0xFF_FFFF_FFFF)
"""From 512 GiB to the end of 40 bits: above any RAM that a board can have."""

TABLES_SIZE = 64 * KIB
"""Reserved for ACPI tables at the top of low RAM, where SeaBIOS also puts them."""

PCI_SLOTS = 32
PCI_PINS = 4


class E820Type(IntEnum):
    """Address range types (ACPI 6.4, table 15.374)."""

    RAM = 1
    RESERVED = 2
    ACPI = 3
    NVS = 4


class E820Entry(NamedTuple):
    """One range of the e820 map."""

    base: int
    size: int
    kind: E820Type

    def pack(self) -> bytes:
        """The 20 bytes of INT 15h E820 and of `boot_params`."""
        return struct.pack("<QQI", self.base, self.size, self.kind)


@dataclass(frozen=True)
class MemoryMap:
    """The address space of a board with `memory` bytes of RAM."""

    memory: int

    @property
    def low(self) -> int:
        """Bytes of RAM from address 0."""
        return min(self.memory, LOW_RAM_MAX)

    @property
    def high(self) -> int:
        """Bytes of RAM from 4 GiB on."""
        return self.memory - self.low

    def ram(self) -> list[tuple[int, int]]:
        """Start and length of each range of RAM."""
        ranges = [(0, self.low)]
        return [*ranges, (HIGH_RAM_BASE, self.high)] if self.high else ranges

    @property
    def tables_base(self) -> int:
        """Where the ACPI tables are; also the end of low RAM that a loader may use."""
        return self.low - TABLES_SIZE

    def e820(self) -> list[E820Entry]:
        """The map that a guest is told, sorted by address."""
        entries = [
            E820Entry(0, EBDA_BASE, E820Type.RAM),
            E820Entry(EBDA_BASE, VIDEO_BASE - EBDA_BASE, E820Type.RESERVED),
            E820Entry(FIRMWARE_BASE, FIRMWARE_END - FIRMWARE_BASE, E820Type.RESERVED),
            E820Entry(FIRMWARE_END, self.tables_base - FIRMWARE_END, E820Type.RAM),
            E820Entry(self.tables_base, TABLES_SIZE, E820Type.RESERVED),
            E820Entry(MMCONFIG_BASE, MMCONFIG_SIZE, E820Type.RESERVED),
        ]
        if self.high:
            entries.append(E820Entry(HIGH_RAM_BASE, self.high, E820Type.RAM))
        return entries

    def e820_bytes(self) -> bytes:
        """The packed map."""
        return b"".join(entry.pack() for entry in self.e820())


def mtrr_rows(model: CpuModel) -> list[MsrRow]:
    """MTRR values as firmware leaves them, the same on each vCPU.

    Everything is write-back but the video memory and the PCI hole, as SeaBIOS sets it. Without
    enabled MTRRs Linux also refuses to use the PAT.
    """
    uncacheable, write_protect, write_back = 0x00, 0x05, 0x06
    every = 0x0101_0101_0101_0101
    address_mask = (1 << model.physical_bits) - 1
    hole = HIGH_RAM_BASE - LOW_RAM_MAX
    return [
        (0x200, LOW_RAM_MAX | uncacheable),
        (0x201, (address_mask & ~(hole - 1)) | 1 << 11),
        (0x250, every * write_back),
        (0x258, every * write_back),
        (0x259, every * uncacheable),
        *((index, every * write_protect) for index in range(0x268, 0x270)),
        # IA32_MTRR_DEF_TYPE: enabled, fixed ranges enabled, write-back.
        (0x2FF, 1 << 11 | 1 << 10 | write_back),
    ]


def pci_gsi(slot: int, pin: int) -> int:
    """IOAPIC input of a PCI slot's pin (0 = INTA).

    ICH9's reset routing (ICH9 datasheet, 10.1 "DxxIR"): slots below 25 rotate over PIRQE to PIRQH,
    the chipset's own slots use PIRQA to PIRQD directly; PIRQA is input 16.
    """
    if not (0 <= slot < PCI_SLOTS and 0 <= pin < PCI_PINS):
        raise ValueError(f"no PCI slot {slot} with pin {pin}")
    return 20 + (slot + pin) % PCI_PINS if slot < 25 else 16 + pin
