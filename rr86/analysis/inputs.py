"""What is at the ports and addresses from which a value can come in."""

COM1 = 0x3F8
"""The serial console's receive buffer."""
_PORTS = {
    COM1: "COM1's receive buffer",
    0x60: "the keyboard controller's data",
    0x64: "the keyboard controller's status",
    0x71: "CMOS and RTC data",
    0x40: "PIT channel 0",
    0x42: "PIT channel 2",
    0x511: "fw_cfg data",
    0x608: "the ACPI PM timer",
    0xCFC: "PCI configuration data",
    **{COM1 + n: "COM1" for n in range(1, 8)},
}
_MMIO = (
    (0xFEC00000, 0x1000, "the I/O APIC"),
    (0xFED00000, 0x1000, "the HPET"),
    (0xFEE00000, 0x1000, "the local APIC"),
)


def mmio(paddr: int) -> str:
    """What is at a physical address that is no RAM."""
    name = next((name for at, size, name in _MMIO if at <= paddr < at + size), None)
    return f"memory-mapped I/O at {paddr:#x}" + (f", {name}" if name else "")


def port(number: int) -> str:
    """What is at a port."""
    name = _PORTS.get(number)
    return f"port {number:#x}" + (f", {name}" if name else "")
