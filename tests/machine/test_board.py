"""Boards: what goes into a machine, and that it is the same every time."""

import itertools
import struct
import sys
import types
from typing import Any

import msgpack
import pytest

from rr86.errors import SpecError
from rr86.machine.board import Placement, build, power_on
from rr86.machine.loaders.image import BootFiles
from rr86.machine.spec import BoardSpec
from tests.machine import images

SPEC = BoardSpec(vcpus=4, memory=1 << 30, command_line="console=ttyS0", seed=5, quantum=1234)
FILES = BootFiles(images.bzimage(), b"initrd" * 1000)


class FakeMachine:
    """Takes what a native machine takes."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.memory: dict[int, bytes] = {}
        self.registers: dict[int, dict[str, int]] = {}

    def load(self, paddr: int, data: bytes) -> None:
        self.memory[paddr] = data

    def set_registers(self, vcpu: int, values: dict[str, int]) -> None:
        self.registers[vcpu] = values


def test_equal_input_gives_equal_bytes() -> None:
    first, second = build(SPEC, FILES), build(SPEC, FILES)
    assert first == second
    assert first.digest() == second.digest()


@pytest.mark.parametrize(
    "change", [{"vcpus": 3}, {"memory": 1 << 29}, {"command_line": "x"}, {"seed": 6}]
)
def test_digest_tells_machines_apart(change: dict[str, Any]) -> None:
    other = BoardSpec(**(SPEC.to_dict() | change))
    assert build(other, FILES).digest() != build(SPEC, FILES).digest()


def test_loads_do_not_overlap_and_stay_in_ram() -> None:
    loads = sorted(build(SPEC, FILES).loads, key=lambda item: item.address)
    for left, right in itertools.pairwise(loads):
        assert left.end <= right.address, (left.what, right.what)
    assert loads[-1].end <= SPEC.memory


def test_firmware_segment_can_be_scanned() -> None:
    found = {
        item.data[:4]: item.address
        for item in build(SPEC, FILES).loads
        if 0xF_0000 <= item.address < 0x10_0000 and item.address % 16 == 0
    }
    assert {b"RSD ", b"_SM3", b"_SM_"} <= set(found)


def test_power_on_hands_everything_to_the_native_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    native = types.ModuleType("rr86._native")
    native.Machine = FakeMachine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rr86._native", native)
    machine: Any = power_on(SPEC, FILES)
    placement = build(SPEC, FILES)
    assert machine.memory == {item.address: item.data for item in placement.loads}
    assert machine.registers == {0: placement.registers}
    assert machine.arguments["vcpus"] == 4
    assert machine.arguments["memory"] == SPEC.memory
    assert dict(machine.arguments["msrs"])[0x10A] >> 1 & 1
    assert any(row[0] == 0x4000_0000 for row in machine.arguments["cpuid"])


def test_msrs_are_unique() -> None:
    indices = [index for index, _ in build(SPEC, FILES).msrs]
    assert len(set(indices)) == len(indices)


def test_fw_cfg_offers_the_kernel_in_two_parts() -> None:
    items = dict(build(SPEC, FILES).fw_cfg)
    assert bytes(items[0x18]) + bytes(items[0x11]) == FILES.kernel
    assert items[0x12] == FILES.initrd
    assert items[0x15] == b"console=ttyS0\0"
    for size, data in ((0x17, 0x18), (0x08, 0x11), (0x0B, 0x12), (0x14, 0x15)):
        assert struct.unpack("<I", items[size])[0] == len(items[data])
    assert struct.unpack("<H", items[0x05])[0] == 4
    # Answered by the device itself.
    assert not {0x00, 0x01, 0x19} & items.keys()


def test_fw_cfg_files_are_sorted_by_name() -> None:
    names = [name for name, _ in build(SPEC, FILES).fw_cfg_files]
    assert names == sorted(names)
    assert {"etc/e820", "etc/acpi/rsdp", "etc/acpi/tables"} <= set(names)


@pytest.mark.parametrize(
    "files",
    [
        FILES,
        BootFiles(images.elf(data=bytes(9000), memory_size=9000)),
        BootFiles(images.multiboot_elf(), b"m", (("n", b"o"),)),
    ],
)
def test_placement_survives_the_trace(files: BootFiles) -> None:
    placement = build(SPEC, files)
    header = msgpack.packb(placement.manifest())
    stored = dict(placement.images())
    again = Placement.from_manifest(msgpack.unpackb(header), stored.__getitem__)
    assert again == placement
    assert again.digest() == placement.digest()


@pytest.mark.parametrize(
    "kernel",
    [
        images.bzimage(body=b"k" * (1 << 20)),
        images.elf(data=b"k" * (1 << 20), memory_size=1 << 20),
    ],
)
def test_manifest_does_not_repeat_the_images(kernel: bytes) -> None:
    files = BootFiles(kernel, bytes(1 << 20))
    contents = [data for _, data in build(SPEC, files).images()]
    assert len(set(contents)) == len(contents)
    assert len(msgpack.packb(build(SPEC, files).manifest())) < 16384


def test_damaged_manifest_is_a_spec_error() -> None:
    placement = build(SPEC, FILES)
    manifest = placement.manifest()
    for key in manifest:
        with pytest.raises(SpecError):
            Placement.from_manifest(manifest | {key: 7.5}, dict(placement.images()).__getitem__)
    no_images: dict[str, bytes] = {}
    with pytest.raises(SpecError, match="damaged"):
        Placement.from_manifest(manifest, no_images.__getitem__)
