"""Images handed to the core as views of larger files."""

import pytest

from rr86._native import Machine

MEMORY = 32 << 20


def test_a_view_loads_the_part_that_it_shows() -> None:
    machine = Machine(memory=MEMORY, vcpus=1, cpuid=[])
    whole = bytes(range(200))
    machine.load(0x1000, memoryview(whole)[3:70])
    machine.load(0x2000, memoryview(whole)[200:])
    assert machine.read_physical(0x1000, 68) == whole[3:70] + b"\0"


def test_a_view_outlives_the_names_of_its_file() -> None:
    view = memoryview(b"x" * 100_000 + b"kernel")[100_000:]
    machine = Machine(memory=MEMORY, vcpus=1, cpuid=[], fw_cfg=[(0x11, view)])
    del view
    machine.load(0x1000, memoryview(b"code"))
    assert machine.read_physical(0x1000, 4) == b"code"


def test_views_that_may_change_or_have_gaps_are_refused() -> None:
    machine = Machine(memory=MEMORY, vcpus=1, cpuid=[])
    with pytest.raises(TypeError, match="memoryview of bytes"):
        machine.load(0x1000, memoryview(bytearray(16)))
    with pytest.raises(ValueError, match="one piece"):
        machine.load(0x1000, memoryview(bytes(16))[::2])
    with pytest.raises(ValueError, match="one piece"):
        machine.load(0x1000, memoryview(bytes(16))[::-1])
