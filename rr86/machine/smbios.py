"""SMBIOS (DMI) structures: what the board calls itself (DSP0134 3.0).

Guests choose quirks and drivers by these names, so they are those of QEMU's -M q35. Two entry
points lead to one table: the 64-bit one, and the 32-bit one of version 2.8 for older guests.
"""

import struct
from typing import NamedTuple

from rr86.machine.memory_map import GIB, KIB, MIB, MemoryMap

MANUFACTURER = "QEMU"
PRODUCT = "Standard PC (Q35 + ICH9, 2009)"
VERSION = "pc-q35-rr86-1"

_DIMM_MAX = 16 * GIB
"""As QEMU does, RAM is shown as modules of up to 16 GiB."""


class SmbiosImage(NamedTuple):
    """The structure table for `base`, and the two entry points that lead to it."""

    base: int
    table: bytes
    entry_64: bytes
    entry_32: bytes


def build_smbios(memory: MemoryMap, vcpus: int, cpu_signature: int, base: int) -> SmbiosImage:
    """All structures, for the physical address `base` below 1 MiB."""
    structures = [
        _bios(),
        _system(),
        _chassis(),
        _processor(vcpus, cpu_signature),
        *_memory(memory),
        _structure(32, 0x2000, bytes(6) + b"\0"),
        _structure(127, 0x7F00, b""),
    ]
    table = b"".join(structures)
    return SmbiosImage(
        base,
        table,
        _entry_64(base, len(table)),
        _entry_32(base, table, len(structures), max(map(len, structures))),
    )


def _structure(kind: int, handle: int, body: bytes, *strings: str) -> bytes:
    """Header, formatted area and the string set, which ends with an empty string (6.1)."""
    text = b"".join(item.encode("ascii") + b"\0" for item in strings) or b"\0"
    return struct.pack("<BBH", kind, 4 + len(body), handle) + body + text + b"\0"


def _bios() -> bytes:
    characteristics = 1 << 3  # "characteristics not supported": there is no BIOS to have any
    extension = 1 << 2 | 1 << 4  # targeted content distribution; virtual machine
    body = struct.pack(
        "<BBHBBQBBBBBB", 1, 2, 0xE800, 3, 0, characteristics, 0, extension, 0, 0, 0xFF, 0xFF
    )
    # A date before 2001 (for some quirks 2008) makes Linux distrust ACPI; SeaBIOS shows this one.
    return _structure(0, 0x0000, body, "rr86", "1", "04/01/2014")


def _system() -> bytes:
    # UUID of zeros: not set, since it has to be the same in each run. Wake-up: power switch.
    body = struct.pack("<BBBB16sBBB", 1, 2, 3, 0, bytes(16), 6, 0, 0)
    return _structure(1, 0x0100, body, MANUFACTURER, PRODUCT, VERSION)


def _chassis() -> bytes:
    # Type 1 "other"; boot-up, power and thermal state 3 "safe"; security 2 "unknown".
    body = struct.pack("<BBBBBBBBBIBBBBB", 1, 1, 2, 0, 0, 3, 3, 3, 2, 0, 0, 0, 0, 0, 0)
    return _structure(3, 0x0300, body, MANUFACTURER, VERSION)


def _processor(vcpus: int, cpu_signature: int) -> bytes:
    body = struct.pack(
        "<BBBBQBBHHHBBHHHBBBBBBHHHHH",
        1,  # socket
        3,  # central processor
        1,  # family "other", as QEMU has it
        2,  # manufacturer
        cpu_signature,
        3,  # version
        0,  # voltage
        0,  # external clock: unknown
        1000,  # MHz
        1000,
        0x41,  # populated, enabled
        1,  # upgrade "other"
        0xFFFF,  # no cache structures
        0xFFFF,
        0xFFFF,
        0,
        0,
        0,
        vcpus,  # cores, enabled cores, threads
        vcpus,
        vcpus,
        2,  # characteristics unknown
        1,  # family 2
        vcpus,
        vcpus,
        vcpus,
    )
    return _structure(4, 0x0400, body, "CPU 0", MANUFACTURER, VERSION)


def _memory(memory: MemoryMap) -> list[bytes]:
    modules = [
        min(_DIMM_MAX, memory.memory - start) for start in range(0, memory.memory, _DIMM_MAX)
    ]
    total = memory.memory // KIB
    # An array in "other" location for system memory with multi-bit ECC; large sizes go to the
    # extended field.
    small = total if total < 0x8000_0000 else 0x8000_0000
    extended = 0 if total < 0x8000_0000 else memory.memory
    result = [
        _structure(
            16,
            0x1000,
            struct.pack("<BBBIHHQ", 1, 3, 6, small, 0xFFFE, len(modules), extended),
        )
    ]
    for index, size in enumerate(modules):
        result.append(
            _structure(
                17,
                0x1100 + index,
                struct.pack(
                    "<HHHHHBBBBBHHBBBBBIHHHH",
                    0x1000,
                    0xFFFE,
                    0xFFFF,  # widths unknown
                    0xFFFF,
                    size // MIB,  # MiB; below 32 GiB this field suffices
                    9,  # DIMM
                    0,
                    1,
                    0,
                    7,  # RAM
                    2,
                    0,
                    2,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                ),
                f"DIMM {index}",
                MANUFACTURER,
            )
        )
    ranges = [(0, memory.low)] + ([(4 * GIB, memory.high)] if memory.high else [])
    for index, (start, size) in enumerate(ranges):
        result.append(
            _structure(
                19,
                0x1300 + index,
                # Extended addresses are used only from 4 TiB on.
                struct.pack("<IIHBQQ", start // KIB, (start + size) // KIB - 1, 0x1000, 1, 0, 0),
            )
        )
    return result


def _entry_64(base: int, length: int) -> bytes:
    entry = bytearray(struct.pack("<5sBBBBBBBIQ", b"_SM3_", 0, 24, 3, 0, 0, 1, 0, length, base))
    entry[5] = -sum(entry) & 0xFF
    return bytes(entry)


def _entry_32(base: int, table: bytes, count: int, largest: int) -> bytes:
    middle = bytearray(struct.pack("<5sBHIHB", b"_DMI_", 0, len(table), base, count, 0x28))
    middle[5] = -sum(middle) & 0xFF
    head = struct.pack("<4sBBBBHB5x", b"_SM_", 0, 31, 2, 8, largest, 0)
    entry = bytearray(head + middle)
    entry[4] = -sum(entry) & 0xFF
    return bytes(entry)
