"""The fixed ACPI tables: FADT, FACS, MADT, HPET, MCFG, XSDT and the RSDP (ACPI 6.4, chapter 5)."""

import struct

from rr86.machine import memory_map as mm

OEM_ID = b"RR86  "
OEM_TABLE_ID = b"RR86Q35 "
CREATOR_ID = b"RR86"

PM_BASE = 0x600
"""I/O base of ICH9's power management block."""
SCI_IRQ = 9
SMI_COMMAND = 0xB2
ACPI_ENABLE = 2
ACPI_DISABLE = 3
RESET_PORT = 0xCF9
RESET_VALUE = 0x0F

X2APIC_FIRST_ID = 255
"""Ids from here on do not fit an xAPIC id, and take x2APIC entries."""

_SYSTEM_IO = 1


def checksum(data: bytes) -> int:
    """The byte that makes the sum of `data` and itself 0 modulo 256."""
    return -sum(data) & 0xFF


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A system description table: 36 bytes of header, then `body` (5.2.6)."""
    head = struct.pack(
        "<4sIBB6s8sI4sI",
        signature,
        36 + len(body),
        revision,
        0,
        OEM_ID,
        OEM_TABLE_ID,
        1,
        CREATOR_ID,
        1,
    )
    whole = bytearray(head + body)
    whole[9] = checksum(bytes(whole))
    return bytes(whole)


def rsdp(xsdt: int) -> bytes:
    """The root pointer, revision 2 (5.2.5.3). There is no RSDT: everything is 64-bit here."""
    first = struct.pack("<8sB6sBI", b"RSD PTR ", 0, OEM_ID, 2, 0)
    first = first[:8] + bytes([checksum(first)]) + first[9:]
    whole = first + struct.pack("<IQB3x", 36, xsdt, 0)
    return whole[:32] + bytes([checksum(whole)]) + whole[33:]


def xsdt(addresses: list[int]) -> bytes:
    """The list of tables (5.2.8)."""
    return table(b"XSDT", 1, struct.pack(f"<{len(addresses)}Q", *addresses))


def facs() -> bytes:
    """The firmware control structure (5.2.10), version 2, all idle. Aligned to 64 by its placer."""
    return struct.pack("<4sIIIIIQB31x", b"FACS", 64, 0, 0, 0, 0, 0, 2)


def _register(address: int, width: int, access: int) -> bytes:
    """A generic address in I/O space (5.2.3.2); access 1 byte, 2 word, 3 dword."""
    return struct.pack("<BBBBQ", _SYSTEM_IO if address else 0, width, 0, access, address)


def fadt(facs_address: int, dsdt_address: int) -> bytes:
    """The fixed description table, revision 6 (5.2.9)."""
    flags = (
        1 << 0  # WBINVD works
        | 1 << 2  # C1 (HLT) on all processors
        | 1 << 5  # no sleep button
        | 1 << 6  # the RTC's wake status is not in the fixed registers
        | 1 << 10  # reset register
    )
    # Legacy devices behind the LPC bridge; no i8042 to probe (bit 1 clear), no VGA (bit 2).
    boot_architecture = 1 << 0 | 1 << 2
    body = struct.pack(
        "<IIBBHIBBBBIIIIIIIIBBBBBBBBHHHHBBBBBHBI",
        facs_address,
        dsdt_address,
        0,  # reserved (was: interrupt model)
        0,  # preferred profile: unspecified
        SCI_IRQ,
        SMI_COMMAND,
        ACPI_ENABLE,
        ACPI_DISABLE,
        0,  # S4BIOS
        0,  # P-state control
        PM_BASE + 0x00,  # PM1a event block
        0,
        PM_BASE + 0x04,  # PM1a control block
        0,
        0,  # PM2
        PM_BASE + 0x08,  # PM timer
        PM_BASE + 0x20,  # GPE0
        0,
        4,  # lengths: PM1 event, PM1 control, PM2, timer, GPE0, GPE1
        2,
        0,
        4,
        16,
        0,
        0,  # GPE1 base
        0,  # C-state control
        0xFFF,  # latencies of C2 and C3 in µs: not supported
        0xFFF,
        0,  # flush size and stride: WBINVD is used
        0,
        0,  # duty cycle
        0,
        0,  # day and month alarm
        0,
        0x32,  # century in CMOS
        boot_architecture,
        0,
        flags,
    )
    body += _register(RESET_PORT, 8, 1) + struct.pack("<BHB", RESET_VALUE, 0, 3)
    # 64-bit addresses. X_FIRMWARE_CTRL is 0 because FIRMWARE_CTRL is used: both must not be set.
    body += struct.pack("<QQ", 0, dsdt_address)
    for address, width, access in (
        (PM_BASE + 0x00, 32, 2),
        (0, 0, 0),
        (PM_BASE + 0x04, 16, 2),
        (0, 0, 0),
        (0, 0, 0),
        (PM_BASE + 0x08, 32, 3),
        (PM_BASE + 0x20, 128, 1),
        (0, 0, 0),
        (0, 0, 0),  # sleep control and status: for hardware-reduced ACPI only
        (0, 0, 0),
    ):
        body += _register(address, width, access)
    body += bytes(8)  # hypervisor vendor: none that a guest would know
    return table(b"FACP", 6, body)


def madt(vcpus: int) -> bytes:
    """Interrupt controllers (5.2.12): local APICs, one IOAPIC, overrides and the NMI pin."""
    body = struct.pack("<II", mm.LAPIC_BASE, 1)  # 1: there are 8259s to mask
    for index in range(vcpus):
        if index < X2APIC_FIRST_ID:
            body += struct.pack("<BBBBI", 0, 8, index, index, 1)
        else:
            body += struct.pack("<BBHIII", 9, 16, 0, index, 1, index)
    # The IOAPIC's id does not share a number space with local APICs on this bus.
    body += struct.pack("<BBBBII", 1, 12, 0, 0, mm.IOAPIC_BASE, 0)
    # ISA IRQ 0 is wired to input 2; the SCI is level-triggered and active high.
    body += struct.pack("<BBBBIH", 2, 10, 0, 0, 2, 0)
    body += struct.pack("<BBBBIH", 2, 10, 0, SCI_IRQ, SCI_IRQ, 0x000D)
    # NMI at LINT1 of all processors.
    body += struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1)
    return table(b"APIC", 4, body)


def hpet() -> bytes:
    """The HPET (IA-PC HPET specification 1.0a, 3.2.4): 8086:a2, 3 comparators, 64 bits, legacy."""
    block_id = 0x8086_A201
    address = struct.pack("<BBBBQ", 0, 64, 0, 0, mm.HPET_BASE)
    return table(b"HPET", 1, struct.pack("<I", block_id) + address + struct.pack("<BHB", 0, 0, 0))


def mcfg() -> bytes:
    """Memory-mapped configuration space of segment 0 (PCI Firmware Specification 3.2, 4.1.2)."""
    last_bus = mm.MMCONFIG_SIZE // mm.MIB - 1
    return table(b"MCFG", 1, struct.pack("<QQHBB4x", 0, mm.MMCONFIG_BASE, 0, 0, last_bus))
