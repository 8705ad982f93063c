"""SMBIOS structures."""

import struct

import pytest

from rr86.machine.memory_map import MemoryMap
from rr86.machine.smbios import SmbiosImage, build_smbios

GIB = 1 << 30


def structures(image: SmbiosImage) -> list[tuple[int, bytes, list[str]]]:
    """(type, formatted area with header, strings), as a guest walks the table."""
    found, offset = [], 0
    while offset < len(image.table):
        kind, length = image.table[offset], image.table[offset + 1]
        end = image.table.index(b"\0\0", offset + length)
        text = image.table[offset + length : end].decode()
        found.append((kind, image.table[offset : offset + length], text.split("\0")))
        offset = end + 2
    return found


def test_both_entry_points_lead_to_the_table() -> None:
    image = build_smbios(MemoryMap(GIB), 4, 0x806F8, 0xF0100)
    assert image.entry_64[:5] == b"_SM3_"
    assert len(image.entry_64) == image.entry_64[6] == 24
    assert sum(image.entry_64) % 256 == 0
    assert struct.unpack_from("<IQ", image.entry_64, 12) == (len(image.table), 0xF0100)

    assert image.entry_32[:4] == b"_SM_"
    assert len(image.entry_32) == image.entry_32[5] == 31
    assert sum(image.entry_32) % 256 == 0
    assert image.entry_32[16:21] == b"_DMI_"
    assert sum(image.entry_32[16:]) % 256 == 0
    length, address, count = struct.unpack_from("<HIH", image.entry_32, 22)
    assert (length, address) == (len(image.table), 0xF0100)
    assert count == len(structures(image))


@pytest.mark.parametrize("memory", [GIB // 2, 3 * GIB, 64 * GIB])
def test_table_has_the_required_types_in_their_3_0_lengths(memory: int) -> None:
    image = build_smbios(MemoryMap(memory), 4, 0x806F8, 0xF0100)
    lengths = {0: 0x18, 1: 0x1B, 3: 0x16, 4: 0x30, 16: 0x17, 17: 0x28, 19: 0x1F, 32: 0x0B, 127: 4}
    found = structures(image)
    assert {kind for kind, _, _ in found} == set(lengths)
    for kind, area, _ in found:
        assert len(area) == lengths[kind]
    handles = [struct.unpack_from("<H", area, 2)[0] for _, area, _ in found]
    assert len(set(handles)) == len(handles)
    assert found[-1][0] == 127


def test_system_is_named_as_qemus_q35() -> None:
    image = build_smbios(MemoryMap(GIB), 1, 0x806F8, 0xF0100)
    (system,) = (text for kind, _, text in structures(image) if kind == 1)
    assert system[:2] == ["QEMU", "Standard PC (Q35 + ICH9, 2009)"]


@pytest.mark.parametrize("memory", [GIB // 2, 16 * GIB, 40 * GIB])
def test_memory_devices_add_up_to_the_ram(memory: int) -> None:
    image = build_smbios(MemoryMap(memory), 1, 0x806F8, 0xF0100)
    sizes = [
        struct.unpack_from("<H", area, 0x0C)[0] for kind, area, _ in structures(image) if kind == 17
    ]
    assert sum(sizes) << 20 == memory
    mapped = [
        struct.unpack_from("<II", area, 4) for kind, area, _ in structures(image) if kind == 19
    ]
    assert sum(last - first + 1 for first, last in mapped) << 10 == memory
