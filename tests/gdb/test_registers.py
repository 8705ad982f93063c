"""The register set is QEMU's, and each register comes from where the processor keeps it."""

from __future__ import annotations

import struct
from xml.etree import ElementTree

import pytest

from rr86.gdb.description import NUMBERS, REGISTERS, target_description
from rr86.gdb.registers import RegisterFile

# As QEMU 7.2's server describes an x86-64 machine: name and bytes, in this order.
QEMU = [
    *((n, 8) for n in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp")),
    *((f"r{n}", 8) for n in range(8, 16)),
    *(("rip", 8), ("eflags", 4)),
    *((n, 4) for n in ("cs", "ss", "ds", "es", "fs", "gs")),
    *((n, 8) for n in ("fs_base", "gs_base", "k_gs_base")),
    *((n, 8) for n in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")),
    *((f"st{n}", 10) for n in range(8)),
    *((n, 4) for n in ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")),
    *((f"xmm{n}", 16) for n in range(16)),
    ("mxcsr", 4),
]


def test_the_first_registers_are_those_of_qemu_in_its_order() -> None:
    ours = [(register.name, register.bits // 8) for register in REGISTERS]
    assert ours[: len(QEMU)] == QEMU
    assert len({name for name, _ in ours}) == len(ours)


def test_the_description_says_what_the_registers_are() -> None:
    root = ElementTree.fromstring(target_description().split(b"\n", 2)[2])
    assert root.findtext("architecture") == "i386:x86-64"
    rows = {
        int(reg.attrib["regnum"]): (reg.attrib["name"], int(reg.attrib["bitsize"]))
        for reg in root.iter("reg")
    }
    assert rows == {n: (each.name, each.bits) for n, each in enumerate(REGISTERS)}
    features = {each.attrib["name"] for each in root.iter("feature")}
    assert {"org.gnu.gdb.i386.core", "org.gnu.gdb.i386.sse"} <= features
    # Every type that is used is gdb's own, or defined in the same feature before.
    for feature in root.iter("feature"):
        known = {"int", "int32", "int64", "data_ptr", "code_ptr", "i387_ext"}
        for child in feature:
            if child.tag == "reg":
                assert child.attrib["type"] in known
            known.add(child.attrib.get("id", ""))


class Vcpus:
    """A vCPU with a number of its own in every register."""

    def __init__(self, bits: int = 64) -> None:
        names = [register.name for register in REGISTERS]
        self.values = {name: 0x1111_2222_0000_0000 + n for n, name in enumerate(names)}
        self.values |= {"rflags": 0x246, "kernel_gs_base": 0xFFFF_8888_0000_0000}
        self.values |= {"cr0": 0x8000_0033, "efer": 0x500 if bits == 64 else 0, "cs_base": 0}
        self.values |= {"cs_attr": 1 << 13 if bits == 64 else 1 << 14}
        self.area = bytearray(576)

    def registers(self, vcpu: int) -> dict[str, int]:
        return self.values

    def fpu_state(self, vcpu: int) -> bytes:
        return bytes(self.area)


def read(vcpus: Vcpus, name: str) -> int:
    return int.from_bytes(RegisterFile(vcpus, 0).named(name), "little")


def test_names_that_differ_are_matched() -> None:
    vcpus = Vcpus()
    assert read(vcpus, "eflags") == 0x246
    assert read(vcpus, "k_gs_base") == 0xFFFF_8888_0000_0000
    assert read(vcpus, "r9") == vcpus.values["r9"]
    assert read(vcpus, "cs") == vcpus.values["cs"] & 0xFFFF_FFFF


def test_all_registers_together_are_each_of_them_in_order() -> None:
    vcpus = Vcpus()
    vcpus.area[:] = bytes(n % 251 for n in range(576))
    file = RegisterFile(vcpus, 0)
    assert file.all() == b"".join(file.read(number) for number in range(len(REGISTERS)))
    assert len(file.all()) == sum(register.bits // 8 for register in REGISTERS)


def test_outside_of_64_bit_code_a_register_has_32_bits() -> None:
    vcpus = Vcpus(bits=32)
    assert read(vcpus, "rax") == vcpus.values["rax"] & 0xFFFF_FFFF
    assert read(vcpus, "rip") == vcpus.values["rip"] & 0xFFFF_FFFF
    assert read(vcpus, "r8") == 0


def test_the_fpu_registers_come_from_the_fxsave_image() -> None:
    vcpus = Vcpus()
    struct.pack_into("<HHBxHQQI", vcpus.area, 0, 0x37F, 0, 0, 0x123, 0xABCD_1234_5678, 0x9_8765, 7)
    vcpus.area[32 + 16 * 3 : 32 + 16 * 3 + 10] = bytes(range(10))
    vcpus.area[160 + 16 * 5 : 160 + 16 * 6] = bytes(range(100, 116))
    names = ("fctrl", "fop", "fioff", "fiseg", "fooff", "foseg", "mxcsr")
    assert [read(vcpus, name) for name in names] == [
        *(0x37F, 0x123, 0x1234_5678, 0xABCD, 0x9_8765, 0, 7)
    ]
    assert RegisterFile(vcpus, 0).named("st3") == bytes(range(10))
    assert RegisterFile(vcpus, 0).named("xmm5") == bytes(range(100, 116))


@pytest.mark.parametrize(
    ("exponent", "mantissa", "tag"),
    [
        (0x3FFF, 1 << 63, 0),
        (0xBFFF, 1 << 63, 0),
        (0, 0, 1),
        (0x8000, 0, 1),
        (0, 1, 2),
        (0x7FFF, 1 << 63, 2),
        (0x3FFF, 1, 2),
    ],
)
def test_the_tag_word_says_what_is_in_each_register(exponent: int, mantissa: int, tag: int) -> None:
    vcpus = Vcpus()
    # TOP is 6: st0 is physical register 6, st1 register 7. Only register 7 is in use.
    struct.pack_into("<HHB", vcpus.area, 0, 0x37F, 6 << 11, 0x80)
    struct.pack_into("<QH", vcpus.area, 32 + 16, mantissa, exponent)
    assert read(vcpus, "ftag") == 0x3FFF | tag << 14


def test_there_are_no_other_registers() -> None:
    file = RegisterFile(Vcpus(), 0)
    for number in (-1, len(REGISTERS)):
        with pytest.raises(IndexError):
            file.read(number)
    assert NUMBERS["rip"] == 16
