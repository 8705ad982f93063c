"""The DSDT's code: the devices that a guest cannot find by looking at the bus.

It describes the same board as QEMU's -M q35, less what is not there. Interrupt routing is static:
every slot goes straight to an IOAPIC input (`memory_map.pci_gsi`), so there are no link devices.
"""

from rr86.machine import memory_map as mm
from rr86.machine.acpi import aml, resources
from rr86.machine.acpi.aml import Aml

OSC_PCI = bytes.fromhex("5b4ddb33 f71f 1c40 9657 7441c03dd766")
"""33DB4D5B-1FF7-401C-9657-7441C03DD766 as ACPI stores it, the first three groups little-endian: the
_OSC interface of PCI host bridges (PCI Firmware Specification 3.2, 4.5.1)."""

OSC_GRANTED = 0x1D
"""Controls that the OS may have: native hot-plug, PME, AER and the PCIe capability; not SHPC."""


def dsdt_body(vcpus: int) -> bytes:
    """The AML behind the table's header."""
    return aml.block(
        # S5 is "soft off": sleep type 0 in PM1a_CNT, as on QEMU's ICH9.
        aml.name("\\_S5", aml.package(*[aml.integer(0)] * 4)),
        aml.scope(
            "\\_SB",
            _host_bridge(),
            _motherboard(),
            _hpet(),
            _processors(vcpus),
        ),
    )


def _host_bridge() -> Aml:
    return aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A08")),
        aml.name("_CID", aml.eisa_id("PNP0A03")),
        aml.name("_SEG", aml.integer(0)),
        aml.name("_BBN", aml.integer(0)),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", _host_bridge_windows()),
        aml.name("_PRT", _routing()),
        _osc(),
        _isa_bridge(),
    )


def _host_bridge_windows() -> Aml:
    return resources.template(
        resources.bus_window(0, 255),
        resources.io(0xCF8, 8),
        resources.io_window(0x0000, 0x0CF7),
        resources.io_window(0x0D00, 0xFFFF),
        resources.memory_window(mm.VIDEO_BASE, 0xB_FFFF, cacheable=True),
        *(resources.memory_window(first, last) for first, last in mm.PCI_WINDOWS_32),
        resources.memory_window_64(*mm.PCI_WINDOW_64),
    )


def _routing() -> Aml:
    """One entry for each pin of each slot: {address, pin, no link device, GSI} (6.2.13)."""
    return aml.package(
        *(
            aml.package(
                aml.integer(slot << 16 | 0xFFFF),
                aml.integer(pin),
                aml.integer(0),
                aml.integer(mm.pci_gsi(slot, pin)),
            )
            for slot in range(mm.PCI_SLOTS)
            for pin in range(mm.PCI_PINS)
        )
    )


def _osc() -> Aml:
    """_OSC (uuid, revision, count, capabilities): grant `OSC_GRANTED`, refuse the rest."""
    status, control = aml.path("CDW1"), aml.path("CDW3")
    wanted = aml.local(0)
    return aml.method(
        "_OSC",
        4,
        aml.create_dword_field(aml.arg(3), 0, "CDW1"),
        aml.if_(
            aml.equal(aml.arg(0), aml.buffer(OSC_PCI)),
            aml.create_dword_field(aml.arg(3), 8, "CDW3"),
            aml.and_(control, aml.integer(OSC_GRANTED), wanted),
            # Unknown revision.
            aml.if_(
                aml.not_equal(aml.arg(1), aml.integer(1)),
                aml.or_(status, aml.integer(0x08), status),
            ),
            # Capabilities masked.
            aml.if_(
                aml.not_equal(control, wanted),
                aml.or_(status, aml.integer(0x10), status),
            ),
            aml.store(wanted, control),
        ),
        # Unrecognised UUID.
        aml.else_(aml.or_(status, aml.integer(0x04), status)),
        aml.return_(aml.arg(3)),
        serialized=True,
    )


def _isa_bridge() -> Aml:
    return aml.device(
        "ISA",
        aml.name("_ADR", aml.integer(0x1F_0000)),
        aml.device(
            "COM1",
            aml.name("_HID", aml.eisa_id("PNP0501")),
            aml.name("_UID", aml.integer(1)),
            aml.name("_STA", aml.integer(0x0F)),
            aml.name("_CRS", resources.template(resources.io(0x3F8, 8), resources.irq(4))),
        ),
        aml.device(
            "RTC",
            aml.name("_HID", aml.eisa_id("PNP0B00")),
            aml.name("_CRS", resources.template(resources.io(0x70, 2), resources.irq(8))),
        ),
    )


def _motherboard() -> Aml:
    """Claims MMCONFIG: Linux uses it only where a PNP0C02 device (or e820) reserves it."""
    return aml.device(
        "MBRD",
        aml.name("_HID", aml.eisa_id("PNP0C02")),
        aml.name("_UID", aml.integer(0)),
        aml.name(
            "_CRS", resources.template(resources.memory32(mm.MMCONFIG_BASE, mm.MMCONFIG_SIZE))
        ),
    )


def _hpet() -> Aml:
    return aml.device(
        "HPET",
        aml.name("_HID", aml.eisa_id("PNP0103")),
        aml.name("_UID", aml.integer(0)),
        aml.name(
            "_CRS", resources.template(resources.memory32(mm.HPET_BASE, 0x400, writable=False))
        ),
    )


def _processors(vcpus: int) -> Aml:
    """A container with one device per vCPU, whose _UID is the MADT's processor id."""
    return aml.device(
        "CPUS",
        aml.name("_HID", aml.string("ACPI0010")),
        aml.name("_CID", aml.eisa_id("PNP0A05")),
        *(
            aml.device(
                f"C{index:03X}",
                aml.name("_HID", aml.string("ACPI0007")),
                aml.name("_UID", aml.integer(index)),
            )
            for index in range(vcpus)
        ),
    )
