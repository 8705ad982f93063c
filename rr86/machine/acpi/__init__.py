"""ACPI tables of the board, laid out for a place in guest memory."""

from typing import NamedTuple

from rr86.machine.acpi import tables
from rr86.machine.acpi.dsdt import dsdt_body

__all__ = ["AcpiImage", "build_acpi"]


class AcpiImage(NamedTuple):
    """All tables, ready to be copied to `base`, and the root pointer that leads to them."""

    base: int
    tables: bytes
    rsdp: bytes


def build_acpi(vcpus: int, base: int) -> AcpiImage:
    """The tables of a board with `vcpus` vCPUs, for the physical address `base` (page-aligned)."""
    blob = bytearray()

    def place(data: bytes, alignment: int = 16) -> int:
        blob.extend(bytes(-len(blob) % alignment))
        address = base + len(blob)
        blob.extend(data)
        return address

    # The FACS goes first: it alone needs an alignment of 64.
    facs = place(tables.facs(), 64)
    dsdt = place(tables.table(b"DSDT", 2, dsdt_body(vcpus)))
    listed = [
        place(tables.fadt(facs, dsdt)),
        place(tables.madt(vcpus)),
        place(tables.hpet()),
        place(tables.mcfg()),
    ]
    root = place(tables.xsdt(listed))
    return AcpiImage(base, bytes(blob), tables.rsdp(root))
