"""Names for physical addresses: the kernel's image, and each CPU's variables."""

import pytest

from rr86.cpu.physical import Mapped, PhysicalNames
from rr86.cpu.symbols import Symbol, SymbolTable
from rr86.errors import SymbolsError

BASE = 0xFFFFFFFF81000000
OFFSET = 0x600000
IMAGE = 0x19000000
AREAS = (0x1F400000, None, 0x1F500000)
DIRECT = 0xFFFF8B9600000000


def names() -> PhysicalNames:
    table = SymbolTable(
        [
            Symbol(0, "A", "fixed_percpu_data"),
            Symbol(0x1980, "A", "runqueues"),
            Symbol(0x2640, "A", "clocks"),
            Symbol(0x3000, "A", "__per_cpu_end"),
            Symbol(BASE, "T", "_text"),
            Symbol(BASE + 0x1000, "D", "jiffies"),
            Symbol(BASE + 0x1008, "D", "other"),
            Symbol(BASE + 0x2000, "B", "_end"),
        ],
        OFFSET,
    )
    areas = [None if at is None else Mapped(DIRECT + at, at) for at in AREAS]
    return PhysicalNames(table, Mapped(BASE + OFFSET + 0x80, IMAGE + 0x80), areas)


@pytest.mark.parametrize(
    ("paddr", "name"),
    [
        (IMAGE + 0x1000, "jiffies"),
        (IMAGE + 0x100C, "other+0x4"),
        (IMAGE + 0x2000, None),
        (IMAGE - 1, None),
        (0x1F400000 + 0x1984, "runqueues+0x4 (CPU 0)"),
        (0x1F500000 + 0x2640, "clocks (CPU 2)"),
        (0x1F500000 + 0x3000, None),
        (0x1F480000, None),
    ],
)
def test_image_and_per_cpu_areas_have_names(paddr: int, name: str | None) -> None:
    assert names().lookup(paddr) == name


def test_a_symbol_reaches_to_the_next_one() -> None:
    assert names().ranges("jiffies") == [(IMAGE + 0x1000, 8)]


def test_a_per_cpu_variable_has_a_range_for_each_known_cpu() -> None:
    size = 0x2640 - 0x1980
    assert names().ranges("runqueues") == [(0x1F401980, size), (0x1F501980, size)]


def test_linear_addresses_of_image_and_direct_map_become_physical() -> None:
    known = names()
    assert known.physical(BASE + OFFSET + 0x1004) == IMAGE + 0x1004
    assert known.physical(DIRECT + 0x12345678) == 0x12345678
    assert known.physical(0x12345678) == 0x12345678
    assert known.physical(0xFFFFFFFFC0000000) is None


def test_a_guest_that_runs_where_it_was_linked_needs_no_places() -> None:
    table = SymbolTable([Symbol(0x100000, "D", "counter", 8)], relocatable=False)
    known = PhysicalNames(table)
    assert known.lookup(0x100004) == "counter+0x4"
    assert known.lookup(0x100008) is None
    assert known.ranges("counter") == [(0x100000, 8)]


def test_without_symbols_nothing_has_a_name() -> None:
    assert PhysicalNames(None).lookup(0x100000) is None
    with pytest.raises(SymbolsError):
        PhysicalNames(None).ranges("jiffies")


def test_pages_that_the_kernel_gave_away_have_no_name() -> None:
    """What lies there later has nothing to do with what lay there before."""
    table = SymbolTable(
        [
            Symbol(BASE, "T", "_text"),
            Symbol(BASE + 0x1800, "T", "_etext"),
            Symbol(BASE + 0x4000, "R", "__start_rodata"),
            Symbol(BASE + 0x5000, "D", "jiffies"),
            Symbol(BASE + 0x6000, "D", "__init_begin"),
            Symbol(BASE + 0x6010, "d", "early_data"),
            Symbol(BASE + 0x7000, "R", "__init_end"),
            Symbol(BASE + 0x7000, "R", "__smp_locks"),
            Symbol(BASE + 0x8800, "R", "__smp_locks_end"),
            Symbol(BASE + 0x8810, "B", "kept"),
            Symbol(BASE + 0x9000, "B", "_end"),
        ],
        OFFSET,
    )
    found = PhysicalNames(table, Mapped(BASE + OFFSET, IMAGE)).lookup
    assert [found(IMAGE + at) for at in (0x2000, 0x3FFF, 0x6000, 0x6018, 0x7123)] == [None] * 5
    # Part of a page is not given away.
    assert found(IMAGE + 0x1900) == "_etext+0x100"
    assert found(IMAGE + 0x8010) == "__init_end+0x1010"
    assert found(IMAGE + 0x5004) == "jiffies+0x4"
    assert found(IMAGE + 0x8810) == "kept"
