"""Resource descriptors for _CRS (ACPI 6.4, section 6.4)."""

import struct

from rr86.machine.acpi.aml import Aml, buffer

_FIXED = 1 << 2 | 1 << 3
"""General flags: minimum and maximum are fixed; positive decode; a producer."""


def template(*descriptors: bytes) -> Aml:
    """ResourceTemplate () { descriptors }, closed by an end tag without checksum."""
    return buffer(b"".join(descriptors) + b"\x79\x00")


def io(base: int, length: int) -> bytes:
    """IO (Decode16, base, base, 0, length): fixed ports."""
    return struct.pack("<BBHHBB", 0x47, 1, base, base, 0, length)


def irq(number: int) -> bytes:
    """IRQNoFlags () {number}: an ISA interrupt, edge-triggered and active high."""
    return struct.pack("<BH", 0x22, 1 << number)


def memory32(base: int, length: int, writable: bool = True) -> bytes:
    """Memory32Fixed (ReadWrite or ReadOnly, base, length)."""
    return struct.pack("<BHBII", 0x86, 9, writable, base, length)


def bus_window(first: int, last: int) -> bytes:
    """WordBusNumber of a host bridge."""
    return _window("<BHBBBHHHHH", 0x88, 2, 0, first, last)


def io_window(first: int, last: int) -> bytes:
    """WordIO of a host bridge: the entire range, ISA and non-ISA ports."""
    return _window("<BHBBBHHHHH", 0x88, 1, 3, first, last)


def memory_window(first: int, last: int, cacheable: bool = False) -> bytes:
    """DWordMemory of a host bridge, writable."""
    return _window("<BHBBBIIIII", 0x87, 0, 1 | cacheable << 1, first, last)


def memory_window_64(first: int, last: int) -> bytes:
    """QWordMemory of a host bridge, writable and cacheable."""
    return _window("<BHBBBQQQQQ", 0x8A, 0, 1 | 1 << 1, first, last)


def _window(layout: str, tag: int, kind: int, flags: int, first: int, last: int) -> bytes:
    size = struct.calcsize(layout) - 3
    return struct.pack(layout, tag, size, kind, _FIXED, flags, 0, first, last, 0, last - first + 1)
