"""A vCPU's registers in the form that gdb reads them: little-endian, by the number of the target
description.

The x87 and SSE registers come out of the vCPU's XSAVE area (SDM, volume 1, section 13.4.1). Its
tag byte says only which registers are empty, so the full tag word is made from their contents
(volume 1, section 8.1.7), as gdb makes it from a process's.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from rr86.cpu.registers import code_bits
from rr86.gdb.description import MORE, NUMBERS, REGISTERS

_ST = 32
_XMM = 160
_VALID, _ZERO, _SPECIAL, _EMPTY = range(4)
# What QEMU's names are called here, where that is something else.
_HERE = {"eflags": "rflags", "k_gs_base": "kernel_gs_base"}


class Vcpus(Protocol):
    """Where registers come from."""

    def registers(self, vcpu: int) -> dict[str, int]:
        """Registers by name."""

    def fpu_state(self, vcpu: int) -> bytes:
        """The XSAVE area."""


class RegisterFile:
    """The registers of one vCPU at one moment."""

    def __init__(self, machine: Vcpus, vcpu: int) -> None:
        self._values: Mapping[str, int] = machine.registers(vcpu)
        self._fpu = machine.fpu_state(vcpu)

    def all(self) -> bytes:
        """What `g` answers: all of them, one behind the other."""
        return b"".join(self.read(number) for number in range(len(REGISTERS)))

    def read(self, number: int) -> bytes:
        """What `p` answers. Raises `IndexError` for a number that no register has."""
        if number < 0:
            raise IndexError(number)
        register = REGISTERS[number]
        return _READERS[number](self, register.name).ljust(register.bits // 8, b"\0")

    def named(self, name: str) -> bytes:
        """`read`, by the name in the target description."""
        return self.read(NUMBERS[name])

    def _integer(self, name: str) -> bytes:
        value = self._values[_HERE.get(name, name)]
        return value.to_bytes(8, "little")

    def _general(self, name: str) -> bytes:
        # As QEMU does: outside of 64-bit code no more than 32 bits can be seen.
        bits = code_bits(self._values)
        number = int(name[1:]) if name[1:].isdigit() else 0
        if bits != 64 and number >= 8:
            return b""
        mask = (1 << 64) - 1 if bits == 64 else 0xFFFF_FFFF
        return (self._values[name] & mask).to_bytes(8, "little")

    def _word(self, name: str) -> bytes:
        return self._integer(name)[:4]

    def _st(self, name: str) -> bytes:
        start = _ST + 16 * int(name[2:])
        return self._fpu[start : start + 10]

    def _xmm(self, name: str) -> bytes:
        start = _XMM + 16 * int(name[3:])
        return self._fpu[start : start + 16]

    def _control(self, name: str) -> bytes:
        start, length = _FXSAVE[name]
        return self._fpu[start : start + length]

    def _tags(self, _: str) -> bytes:
        top = int.from_bytes(self._fpu[2:4], "little") >> 11 & 7
        word = 0
        for physical in range(8):
            used = self._fpu[4] >> physical & 1
            stored = self._st(f"st{(physical - top) % 8}")
            word |= (_tag(stored) if used else _EMPTY) << 2 * physical
        return word.to_bytes(4, "little")


def _tag(stored: bytes) -> int:
    mantissa = int.from_bytes(stored[:8], "little")
    exponent = int.from_bytes(stored[8:10], "little") & 0x7FFF
    if exponent == 0:
        return _ZERO if mantissa == 0 else _SPECIAL
    # An integer bit of 0 makes it an unnormal, which is no number any more.
    return _VALID if exponent != 0x7FFF and mantissa >> 63 else _SPECIAL


# Where the control registers are in an FXSAVE image of 64-bit mode, and how long.
_FXSAVE = {
    **{"fctrl": (0, 2), "fstat": (2, 2), "fop": (6, 2), "fioff": (8, 4), "fiseg": (12, 2)},
    **{"fooff": (16, 4), "foseg": (20, 2), "mxcsr": (24, 4)},
}
_WIDE = {name for name, _, bits in MORE if bits == 64}


def _reader(name: str, bits: int) -> Callable[[RegisterFile, str], bytes]:
    if name == "ftag":
        return RegisterFile._tags
    if name in _FXSAVE:
        return RegisterFile._control
    if name.startswith("xmm"):
        return RegisterFile._xmm
    if bits == 80:
        return RegisterFile._st
    if bits == 32:
        return RegisterFile._word
    if name in _WIDE or name in ("fs_base", "gs_base", "k_gs_base", "efer"):
        return RegisterFile._integer
    return RegisterFile._integer if name.startswith("cr") else RegisterFile._general


_READERS = [_reader(register.name, register.bits) for register in REGISTERS]
