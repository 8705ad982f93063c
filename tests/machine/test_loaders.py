"""Loaders: what they put where, and what they refuse."""

import struct
from pathlib import Path
from typing import Any

import pytest

from rr86.errors import GuestImageError, SpecError
from rr86.machine.board import Placement, build
from rr86.machine.loaders.detect import read_image
from rr86.machine.loaders.image import BootFiles
from rr86.machine.spec import BoardSpec
from tests.machine import images

MIB = 1 << 20


def boot(kernel: bytes, *, initrd: bytes = b"", modules: Any = (), **spec: Any) -> Placement:
    return build(BoardSpec(**spec), BootFiles(kernel, initrd, modules))


def memory(placement: Placement, address: int, size: int) -> bytes:
    """Guest memory as the loads leave it."""
    result = bytearray(size)
    for item in placement.loads:
        start, end = max(item.address, address), min(item.end, address + size)
        if start < end:
            result[start - address : end - address] = item.data[
                start - item.address : end - item.address
            ]
    return bytes(result)


def boot_params(placement: Placement) -> bytes:
    return memory(placement, placement.registers["rsi"], 4096)


def program(kind: bytes) -> bytes:
    """An executable that wants a dynamic linker: its only program header is of another kind."""
    image = images.elf(kind=3, virtual=0, physical=0, entry=0)
    # Two headers: the segment, and one more in the place of the code behind it.
    header = kind.ljust(56, b"\0")
    return image[:56] + b"\x02\0" + image[58:120] + header + bytes(64)


def test_bzimage_is_entered_in_long_mode_0x200_behind_its_load_address() -> None:
    placement = boot(images.bzimage())
    registers = placement.registers
    assert registers["rip"] == 0x100_0200
    assert memory(placement, 0x100_0000, 16) == b"\xf4" * 16
    assert registers["cr0"] & 0x8000_0001 == 0x8000_0001
    assert registers["efer"] == 0x500
    assert registers["cr4"] == 0x20
    assert registers["rflags"] == 2
    assert (registers["cs"], registers["cs_attr"]) == (0x10, 0xA09B)
    for name in ("ds", "es", "ss"):
        assert (registers[name], registers[f"{name}_attr"]) == (0x18, 0xC093)


def test_gdt_in_memory_says_what_the_hidden_parts_say() -> None:
    registers = boot(images.bzimage()).registers
    gdt = memory(boot(images.bzimage()), registers["gdtr_base"], registers["gdtr_limit"] + 1)
    for name in ("cs", "ds"):
        (entry,) = struct.unpack_from("<Q", gdt, registers[name])
        assert entry >> 40 & 0xF0FF == registers[f"{name}_attr"]
        assert entry & 0xFFFF | (entry >> 32 & 0xF_0000) == 0xF_FFFF


@pytest.mark.parametrize(
    "address", [0, 0x7000, 0x100_0200, 0x3FFF_FFFF, 0x4000_0000, 0xFEE0_0000, 0xFFFF_FFFF]
)
def test_first_page_tables_map_4_gib_to_themselves(address: int) -> None:
    placement = boot(images.bzimage())
    table = placement.registers["cr3"]
    for shift in (39, 30, 21):
        (entry,) = struct.unpack("<Q", memory(placement, table + (address >> shift & 511) * 8, 8))
        assert entry & 3 == 3
        table = entry & ~0xFFF
    assert entry & 0x80
    assert table + (address & 0x1F_FFFF) == address


def test_boot_params_hold_what_the_kernel_asks_the_loader_for() -> None:
    placement = boot(images.bzimage(), initrd=b"i" * 5000, command_line="quiet äö")
    params = boot_params(placement)
    assert params[0x202:0x206] == b"HdrS"
    assert params[0x210] == 0xFF
    assert params[0x211] & 0x81 == 0x81
    (rsdp,) = struct.unpack_from("<Q", params, 0x70)
    assert memory(placement, rsdp, 8) == b"RSD PTR "
    (text,) = struct.unpack_from("<I", params, 0x228)
    assert memory(placement, text, 11) == "quiet äö".encode() + b"\0"
    address, size = struct.unpack_from("<II", params, 0x218)
    assert size == 5000
    assert address % 4096 == 0
    assert memory(placement, address, size) == b"i" * 5000


def test_e820_in_boot_params_ends_below_the_acpi_tables() -> None:
    placement = boot(images.bzimage(), memory=3 << 30)
    params = boot_params(placement)
    entries = [struct.unpack_from("<QQI", params, 0x2D0 + 20 * i) for i in range(params[0x1E8])]
    assert (4 << 30, 1 << 30, 1) in entries
    tables = next(item for item in placement.loads if item.what == "the ACPI tables")
    (owner,) = (kind for base, size, kind in entries if base <= tables.address < base + size)
    assert owner == 2


def test_guest_entropy_comes_from_the_seed() -> None:
    def entropy(seed: int) -> bytes:
        placement = boot(images.bzimage(), seed=seed)
        (node,) = struct.unpack_from("<Q", boot_params(placement), 0x250)
        following, kind, size = struct.unpack("<QII", memory(placement, node, 16))
        assert (following, kind, size) == (0, 9, 32)
        return memory(placement, node + 16, 32)

    assert entropy(1) == entropy(1)
    assert entropy(1) != entropy(2)


@pytest.mark.parametrize("limit", [0x37FF_FFFF, 0x7FFF_FFFF])
def test_initrd_goes_as_high_as_kernel_and_ram_allow(limit: int) -> None:
    placement = boot(images.bzimage(initrd_max=limit), initrd=bytes(4096), memory=2 << 30)
    address, size = struct.unpack_from("<II", boot_params(placement), 0x218)
    assert address + size == min(limit + 1, (2 << 30) - 0x1_0000)


def test_kernel_that_prefers_an_address_beyond_ram_is_relocated() -> None:
    placement = boot(images.bzimage(preferred=0x4000_0000), memory=128 * MIB)
    assert placement.registers["rip"] == 0x20_0000 + 0x200


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (images.bzimage(version=0x020B), "boot protocol 2.11"),
        (images.bzimage(xloadflags=0), "32-bit"),
        (images.bzimage(loadflags=0), "zImage"),
        (images.bzimage(syssize=0x1000), "cut off: it should have 66560 bytes and has 5120"),
        (images.bzimage()[:0x240], "cut off within its setup header"),
        (images.bzimage(init_size=0x4000_0000), "the kernel does not fit"),
        (images.bzimage(preferred=1 << 40, relocatable=0), "does not fit"),
        (images.elf(machine=183), r"another machine \(AArch64\)"),
        (images.elf(machine=9999), "machine type 9999"),
        (images.elf(kind=1), "not an executable"),
        (images.elf(entry=0x10), "entry point 0x10 is in none"),
        (images.elf(physical=0x10), r"kernel segment at 0x10 to 0x4010|in none of its segments"),
        (images.elf(data=b"")[:100], "cut off within its headers"),
        (images.elf()[:150], "cut off, or a segment"),
        (images.elf(bits=32, machine=3), "32-bit ELF file without a Multiboot header"),
        (images.elf(bits=32, machine=3), "expected: a Linux bzImage, a 64-bit vmlinux or a Multib"),
        (program(b"\x03"), "is a program or library for an operating system; expected: a Linux bz"),
        (program(b"\x02"), "is a program or library for an operating system; expected: a Linux bz"),
        (images.elf(virtual=0x40_0000), "not linked as Linux is; expected: a Linux bzImage"),
        (b"#!/bin/sh", r"a script \(expected: a Linux bzImage"),
        (b"\x7fELF\x02\x02" + bytes(60), "big-endian"),
        (b"", "is empty"),
        (b"MZ" + bytes(1000), "a PE program"),
        (b"\x1f\x8b" + bytes(1000), "gzip"),
        (b"070701" + bytes(1000), "that is an initrd"),
        (b"hello, world", "no known kind"),
    ],
)
def test_unbootable_image_is_refused_with_the_reason(image: bytes, message: str) -> None:
    with pytest.raises(GuestImageError, match=message):
        boot(image)


def test_overlong_command_line_and_initrd_are_refused() -> None:
    with pytest.raises(GuestImageError, match="2048 bytes; this kernel takes at most 2047"):
        boot(images.bzimage(), command_line="x" * 2048)
    with pytest.raises(GuestImageError, match=r"initrd .* does not fit"):
        boot(images.bzimage(), initrd=bytes(80 * MIB), memory=96 * MIB)


def test_linux_takes_neither_modules_nor_a_small_machine() -> None:
    with pytest.raises(GuestImageError, match="no Multiboot modules"):
        boot(images.bzimage(), modules=(("m", b"x"),))
    with pytest.raises(SpecError, match="at least 96M"):
        boot(images.bzimage(), memory=64 * MIB)


@pytest.mark.parametrize("entry", [0x100_0010, 0xFFFF_FFFF_8100_0010])
def test_vmlinux_is_entered_at_its_physical_entry_point(entry: int) -> None:
    placement = boot(images.elf(entry=entry), command_line="a")
    assert placement.registers["rip"] == 0x100_0010
    assert boot_params(placement)[0x202:0x206] == b"HdrS"
    assert memory(placement, 0x100_0000, 2) == b"\xf4\xf4"


def information(placement: Placement) -> tuple[int, ...]:
    return struct.unpack("<22I", memory(placement, placement.registers["rbx"], 88))


def text_at(placement: Placement, address: int) -> bytes:
    return memory(placement, address, 100).split(b"\0")[0]


def test_multiboot_kernel_is_entered_in_flat_protected_mode() -> None:
    registers = boot(images.multiboot_elf(), memory=32 * MIB).registers
    assert registers["rip"] == 0x10_000C
    assert registers["rax"] == 0x2BAD_B002
    assert registers["cr0"] & 0x8000_0001 == 1
    assert registers["efer"] == 0
    assert (registers["cs_attr"], registers["cs_limit"]) == (0xC09B, 0xFFFF_FFFF)
    assert registers["ss_attr"] == 0xC093


def test_multiboot_information_describes_memory_command_line_and_modules() -> None:
    placement = boot(
        images.multiboot_elf(),
        initrd=b"first",
        modules=(("second x=1", b"2nd"),),
        memory=64 * MIB,
        command_line="a b",
        kernel_name="hello.elf",
    )
    info = information(placement)
    assert info[0] == 0b10_0100_1111
    assert (info[1], info[2]) == (639, 63 * 1024 - 64)
    assert text_at(placement, info[4]) == b"hello.elf a b"
    assert text_at(placement, info[16]) == b"rr86"
    assert info[5] == 2
    modules = [struct.unpack("<4I", memory(placement, info[6] + 16 * i, 16)) for i in range(2)]
    assert [memory(placement, start, end - start) for start, end, _, _ in modules] == [
        b"first",
        b"2nd",
    ]
    assert all(start % 4096 == 0 and start >= 0x10_4000 for start, *_ in modules)
    assert text_at(placement, modules[1][2]) == b"second x=1"


def test_multiboot_map_can_be_walked_by_entry_sizes() -> None:
    placement = boot(images.multiboot_elf(), memory=32 * MIB)
    info = information(placement)
    data, entries = memory(placement, info[12], info[11]), []
    offset = 0
    while offset < len(data):
        (size,) = struct.unpack_from("<I", data, offset)
        entries.append(struct.unpack_from("<QQI", data, offset + 4))
        offset += 4 + size
    assert offset == len(data)
    assert (0x10_0000, 31 * MIB - 0x1_0000, 1) in entries


def test_multiboot_header_addresses_decide_for_a_flat_file() -> None:
    header = images.multiboot_header(1 << 16, 0x20_0010, 0x20_0000, 0x20_0100, 0x20_4000, 0x20_0040)
    image = bytes(32) + b"\x90" * 16 + header + b"\xf4" * 512
    placement = boot(image, memory=32 * MIB)
    assert placement.registers["rip"] == 0x20_0040
    kernel = next(item for item in placement.loads if item.what == "the kernel")
    assert (kernel.address, kernel.data) == (0x20_0000, image[32 : 32 + 0x100])


@pytest.mark.parametrize(
    ("load", "end"),
    [(0x9000, 0), (0x7000, 0x9010), (0x8000, 0), (0x1000, 0x9_F000), (0x1000, 0x9_B000)],
)
def test_multiboot_information_and_gdt_lie_where_the_kernel_does_not(load: int, end: int) -> None:
    image = images.multiboot_header(1 << 16, load, load, 0, end, load) + bytes(64)
    placement = boot(image, memory=32 * MIB)
    registers = placement.registers
    places = {
        item.what: range(item.address, item.address + len(item.data)) for item in placement.loads
    }
    kernel = range(load, max(end, places["the kernel"].stop))
    for what, start in (
        ("the Multiboot information", registers["rbx"]),
        ("the boot GDT", registers["gdtr_base"]),
    ):
        assert places[what].start == start
        assert all(byte not in kernel for byte in places[what])
    assert text_at(placement, information(placement)[16]) == b"rr86"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (images.multiboot_elf(flags=1 << 5), r"unknown features \(flags 0x20\)"),
        (images.multiboot_header() + bytes(64), "no ELF file"),
        (images.elf(data=images.multiboot_header() + bytes(64)), "64-bit ELF file"),
        (images.multiboot_header(1 << 16, 0x1000), "cut off"),
        (
            images.multiboot_header(1 << 16, 0x10_0000, 0x20_0000, 0, 0, 0x20_0000),
            "load address lies outside",
        ),
        (
            images.multiboot_header(1 << 16, 0x10_0000, 0x10_0000, 0x20_0000, 0, 0x10_0000),
            "load end lies outside",
        ),
        (
            images.multiboot_header(1 << 16, 0x10_0000, 0x10_0000, 0, 0, 0x30_0000),
            "entry point 0x300000",
        ),
        (
            images.multiboot_header(1 << 16, 0xF000_0000, 0xF000_0000, 0, 0, 0xF000_0000),
            "does not fit",
        ),
    ],
)
def test_unbootable_multiboot_image_is_refused(image: bytes, message: str) -> None:
    with pytest.raises(GuestImageError, match=message):
        boot(image, memory=32 * MIB)


def test_multiboot_magic_without_its_checksum_is_no_header() -> None:
    with pytest.raises(GuestImageError, match="no known kind"):
        boot(struct.pack("<III", 0x1BAD_B002, 0, 1) + bytes(64))


def test_kernel_over_the_firmware_tables_is_refused() -> None:
    image = images.multiboot_header(1 << 16, 0xF_0000, 0xF_0000, 0, 0, 0xF_0000)
    with pytest.raises(GuestImageError, match="would overwrite the RSDP"):
        boot(image, memory=32 * MIB)


def test_files_are_read_with_an_error_for_a_person(tmp_path: Path) -> None:
    with pytest.raises(GuestImageError, match=r"the initrd .* is a directory"):
        read_image(tmp_path, "initrd")
    with pytest.raises(GuestImageError, match=r"cannot read the kernel .*No such file"):
        read_image(tmp_path / "absent")
    (tmp_path / "empty").touch()
    with pytest.raises(GuestImageError, match="is empty"):
        read_image(tmp_path / "empty")
