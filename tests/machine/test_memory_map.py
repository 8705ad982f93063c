"""The physical address map."""

import itertools

import pytest

from rr86.cpu.model import DEFAULT
from rr86.machine.memory_map import E820Type, MemoryMap, mtrr_rows, pci_gsi

GIB = 1 << 30


@pytest.mark.parametrize(
    ("memory", "low", "high"),
    [(GIB // 2, GIB // 2, 0), (2 * GIB, 2 * GIB, 0), (3 * GIB, 2 * GIB, GIB),
     (64 * GIB, 2 * GIB, 62 * GIB)],
)  # fmt: skip
def test_memory_beyond_2_gib_goes_above_4_gib(memory: int, low: int, high: int) -> None:
    layout = MemoryMap(memory)
    assert (layout.low, layout.high) == (low, high)


@pytest.mark.parametrize("memory", [32 << 20, GIB, 2 * GIB, 8 * GIB])
def test_e820_is_sorted_without_overlap_and_offers_nearly_all_ram(memory: int) -> None:
    entries = MemoryMap(memory).e820()
    for left, right in itertools.pairwise(entries):
        assert left.base + left.size <= right.base
    assert all(entry.size > 0 for entry in entries)
    usable = sum(entry.size for entry in entries if entry.kind is E820Type.RAM)
    assert memory - (1 << 20) < usable < memory
    assert len(MemoryMap(memory).e820_bytes()) == 20 * len(entries)


def test_mmconfig_is_reserved_in_e820() -> None:
    assert any(
        entry.base == 0xB000_0000 and entry.size == 1 << 28 and entry.kind is E820Type.RESERVED
        for entry in MemoryMap(GIB).e820()
    )


def test_mtrrs_make_the_pci_hole_uncacheable_and_the_rest_write_back() -> None:
    rows = dict(mtrr_rows(DEFAULT))
    assert rows[0x2FF] == 0xC06
    assert rows[0x200] == 0x8000_0000
    assert rows[0x201] == 0xFF_8000_0800
    assert rows[0x250] == 0x0606_0606_0606_0606
    assert rows[0x259] == 0


def test_interrupt_routing_is_that_of_ich9() -> None:
    assert [pci_gsi(0, pin) for pin in range(4)] == [20, 21, 22, 23]
    assert [pci_gsi(3, pin) for pin in range(4)] == [23, 20, 21, 22]
    assert [pci_gsi(31, pin) for pin in range(4)] == [16, 17, 18, 19]
    with pytest.raises(ValueError, match="slot 32"):
        pci_gsi(32, 0)
