"""Code that accesses devices at random, in ring 0 and 64-bit mode: every width, every way in.

A case is a few accesses. What faults goes on with the next case, and the guest goes on in the end.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

from tests.soak import image
from tests.soak.instructions import MSRS, PORTS, Context, number32

DESCRIPTORS = image.USER_STACKS
"""Page with descriptors for the DMA of fw_cfg."""
ENDS = frozenset((0xF4, 0x604, 0xCF9, 0x92, 0x64))
"""Ports that may end the run."""

RANGES = (
    (0xFEE00000, 0x400, 14),
    (0xFEC00000, 0x60, 8),
    (0xFED00000, 0x200, 8),
    (0xB0000000, 0x100000, 6),
    (0xB00F8000, 0x1000, 2),
    (0xA0000, 0x20000, 1),
    (0xC0000, 0x40000, 2),
    (0x80000000, 0x1000, 1),
    (0xFFFF0000, 0x10000, 1),
    (0xFEC01000, 0xFF000, 1),
    (0xFED01000, 0xFF000, 1),
    (0xFEF00000, 0x100000, 1),
)
"""Physical ranges (address, length) that are not RAM, and how often each is wanted."""


def device_address(c: Context) -> int:
    """An address in a range of MMIO, often at a register, sometimes across an end."""
    rng = c.rng
    base, length, _ = rng.choices(RANGES, [weight for _, _, weight in RANGES])[0]
    offset = rng.randrange(length)
    if rng.random() < 0.7:
        offset &= ~0xF if base == 0xFEE00000 else ~3
    if rng.random() < 0.06:
        return rng.choice((base - 2, base + 0xFFE, image.MMIO[0] + 0xFFC, (32 << 20) - 3))
    return base + offset


def value(c: Context) -> int:
    """A value to write: few bits, all, or a command that a device has."""
    rng = c.rng
    few = 1 << rng.randrange(32) | rng.getrandbits(8)
    return rng.choice(
        (rng.getrandbits(32), rng.getrandbits(8), few, 0, 0xFFFF_FFFF, 0x20, 0x10020, 0x20020)
    )


def port(c: Context) -> bytes:
    rng = c.rng
    number = rng.choice(
        (rng.choice(PORTS), rng.choice(PORTS), rng.getrandbits(11), rng.getrandbits(16))
    )
    if number in ENDS and rng.random() < 0.9:
        number = 0x80
    out = number32(c, 2, number) + number32(c, 0, value(c))
    access = bytes([rng.choice((0xEC, 0xED, 0xEE, 0xEF))])
    prefix = rng.choice((b"", b"", b"\x66"))
    if rng.random() < 0.1:
        # INS and OUTS, repeated.
        out += number32(c, 1, rng.randrange(20)) + pointer(7, image.USER_DATA + 0x1FF0)
        out += pointer(6, image.USER_DATA + 0x2FFC)
        return out + prefix + b"\xf3" + bytes([rng.choice(b"\x6c\x6d\x6e\x6f")])
    return out + prefix + access


def pointer(register: int, address: int) -> bytes:
    """MOV of an address below 4 GiB into a register."""
    return bytes([0xB8 + register]) + struct.pack("<I", address & 0xFFFF_FFFF)


def mmio(c: Context) -> bytes:
    rng = c.rng
    out = pointer(7, device_address(c)) + number32(c, 0, value(c))
    kind = rng.randrange(24)
    if kind < 8:
        return out + rng.choice(
            (b"\x8b\x07", b"\x8b\x07", b"\x66\x8b\x07", b"\x8a\x07", b"\x48\x8b\x07")
        )
    if kind < 16:
        return out + rng.choice(
            (b"\x89\x07", b"\x89\x07", b"\x66\x89\x07", b"\x88\x07", b"\x48\x89\x07")
        )
    strange = (
        *(b"\xf0\x01\x07", b"\x87\x07", b"\xff\x37", b"\x8f\x07", b"\x0f\x10\x07", b"\x0f\x11\x07"),
        *(
            b"\xd9\x07",
            b"\xdd\x1f",
            b"\x0f\xae\x07",
            b"\x0f\xae\x0f",
            b"\xf0\x48\x0f\xc7\x0f",
            b"\xff\x27",
        ),
        *(
            b"\x0f\xb1\x07",
            b"\x0f\xc1\x07",
            b"\x80\x37\x01",
            b"\xa9\0\0\0\0\x85\x07",
            b"\x0f\x01\x1f",
        ),
        *(b"\xdb\x3f", b"\x0f\xe7\x07", b"\x0f\xc3\x07", b"\xff\x1f", b"\x0f\xba\x2f\x05"),
    )
    if kind < 21:
        return out + rng.choice(strange)
    count = number32(c, 1, rng.randrange(1, 40))
    other = pointer(6, rng.choice((image.USER_DATA + 0xFF0, device_address(c))))
    return (
        out
        + other
        + count
        + b"\xf3"
        + bytes([rng.choice(b"\xa4\xa5\xaa\xab\xac\xad\xae\xaf\xa6\xa7")])
    )


def interrupts(c: Context) -> bytes:
    """The local APIC's registers that send or bring interrupts, by MMIO or as MSRs."""
    rng = c.rng
    register = rng.choice(
        (0x300, 0x310, 0x320, 0x350, 0x360, 0x370, 0x380, 0x3E0, 0x80, 0xD0, 0xE0, 0xF0)
    )
    vector = rng.choice((0x20, 0x21, 0x40, 0xFF, rng.getrandbits(8)))
    mode = rng.choice((0,) * 12 + (0x100, 0x200, 0x400, 0x400, 0x500, 0x600, 0x700))
    word = vector | mode | rng.choice((0, 0x4000, 0x20000, 0x40000, 0x80000, 0xC0000, 0x8000))
    if mode == 0x600 and rng.random() < 0.7:
        word = word & ~0xFF | 0x12
    if rng.random() < 0.25:
        index = 0x800 + (register >> 4)
        return (
            number32(c, 1, index)
            + number32(c, 0, word)
            + number32(c, 2, rng.randrange(4))
            + b"\x0f\x30"
        )
    return pointer(7, 0xFEE00000 + register) + number32(c, 0, word) + b"\x89\x07"


def ioapic(c: Context) -> bytes:
    rng = c.rng
    index = 0x10 + rng.randrange(48) if rng.random() < 0.9 else rng.getrandbits(8)
    word = rng.choice((0x20, 0x40, 0x8020, 0xA040, 0x10020, value(c)))
    out = pointer(7, 0xFEC00000) + number32(c, 0, index) + b"\x89\x07"
    return out + number32(c, 0, word) + b"\x89\x47\x10"


def pci(c: Context) -> bytes:
    rng = c.rng
    slot = rng.choice((0, 31, rng.randrange(32)))
    register = rng.choice((rng.randrange(0, 64) * 4, 4, 0x10, 0x40, 0x60))
    function = rng.choice((0, 0, 2, 3, rng.randrange(8)))
    bus = rng.choice((0, 0, 0, 1, 255))
    address = 1 << 31 | bus << 16 | slot << 11 | function << 8 | register
    if rng.random() < 0.1:
        address ^= 1 << rng.randrange(32)
    out = number32(c, 2, 0xCF8) + number32(c, 0, address) + b"\xef"
    out += number32(c, 2, 0xCFC + rng.choice((0, 0, 1, 2, 3))) + number32(c, 0, value(c))
    return out + rng.choice((b"", b"\x66")) + bytes([rng.choice((0xEC, 0xED, 0xEE, 0xEF))])


def dma(c: Context) -> bytes:
    """fw_cfg: a transfer by one of the descriptors, or by what is no descriptor."""
    rng = c.rng
    where = DESCRIPTORS + rng.randrange(64) * 16
    if rng.random() < 0.3:
        wide = (
            image.MMIO[0],
            0xFEC00000,
            32 << 20,
            (32 << 20) - 4,
            rng.getrandbits(32),
            image.TABLES,
        )
        where = rng.choice(wide)
    high = rng.choice((0, 0, 0, 1, rng.getrandbits(32)))
    out = b""
    if rng.random() < 0.7:
        out += number32(c, 2, 0x510) + number32(
            c, 0, rng.choice((0, 1, 5, 0x19, 0x20, 0x8003, rng.getrandbits(16)))
        )
        out += b"\x66\xef"
    out += (
        number32(c, 2, 0x514)
        + number32(c, 0, int.from_bytes(struct.pack(">I", high), "little"))
        + b"\xef"
    )
    swapped = int.from_bytes(struct.pack(">I", where & 0xFFFF_FFFF), "little")
    return out + number32(c, 2, 0x518) + number32(c, 0, swapped) + b"\xef"


def fw_cfg(c: Context) -> bytes:
    rng = c.rng
    key = rng.choice((0, 1, 5, 0x19, 0x20, 0x21, 0x8000, rng.getrandbits(16)))
    out = number32(c, 2, 0x510) + number32(c, 0, key) + b"\x66\xef" + number32(c, 2, 0x511)
    return out + rng.choice((b"\xec", b"\xed", b"\x66\xed", b"\xee")) * rng.randrange(1, 5)


def registers(c: Context) -> bytes:
    rng = c.rng
    index = rng.choice(
        (rng.choice(MSRS), rng.choice(MSRS), 0x800 + rng.getrandbits(8), rng.getrandbits(32))
    )
    out = number32(c, 1, index)
    if rng.random() < 0.5:
        return out + b"\x0f\x32"
    return (
        out + number32(c, 0, value(c)) + number32(c, 2, rng.choice((0, 0, value(c)))) + b"\x0f\x30"
    )


def clocks(c: Context) -> bytes:
    """Timers: PIT, RTC, HPET and the deadline, with counts that soon come, or have passed."""
    rng = c.rng
    kind = rng.randrange(4)
    if kind == 0:
        mode = rng.choice((0x30, 0x34, 0x36, 0x38, 0x70, 0xB6, 0xE2, rng.getrandbits(8)))
        out = number32(c, 0, mode) + b"\xe6\x43" + number32(c, 0, rng.getrandbits(8)) + b"\xe6\x40"
        return out + number32(c, 0, rng.getrandbits(3)) + b"\xe6\x40"
    if kind == 1:
        out = number32(c, 0, rng.choice((0xA, 0xB, 0xC, 0, 4, rng.getrandbits(7)))) + b"\xe6\x70"
        return out + number32(c, 0, rng.getrandbits(8)) + rng.choice((b"\xe6\x71", b"\xe4\x71"))
    if kind == 2:
        offset = rng.choice(
            (0x10, 0x20, 0xF0, 0xF4, 0x100, 0x108, 0x10C, 0x120, 0x128, 0x140, 0x148)
        )
        word = rng.choice((1, 3, 4, 0xC, 0x1C, 0x4E, rng.getrandbits(16), rng.getrandbits(32)))
        return pointer(7, 0xFED00000 + offset) + number32(c, 0, word) + b"\x89\x07"
    # The deadline: LVT in its mode, and then the TSC with some distance.
    out = pointer(7, 0xFEE00320) + number32(c, 0, 0x40020) + b"\x89\x07\x0f\x31"
    distance = rng.choice((1, 10, 1000, 100_000, -1, -1000))
    return out + b"\x05" + struct.pack("<i", distance) + number32(c, 1, 0x6E0) + b"\x0f\x30"


def wait(c: Context) -> bytes:
    """Time that passes: a loop, or a halt that an interrupt has to end."""
    rng = c.rng
    kind = rng.randrange(4)
    if kind == 0:
        return b"\xfb\xf4"
    if kind == 1:
        return b"\xfb" + b"\x90" * rng.randrange(1, 5)
    turns = number32(c, 1, rng.randrange(1, 2000))
    return turns + rng.choice((b"\xff\xc9\x75\xfc", b"\xf3\x90\xff\xc9\x75\xfa", b"\xe2\xfe"))


OPERATIONS: tuple[tuple[Callable[[Context], bytes], int], ...] = (
    (port, 14), (mmio, 16), (interrupts, 6), (ioapic, 4), (pci, 8), (dma, 5), (fw_cfg, 3),
    (registers, 8), (clocks, 6), (wait, 5),
)  # fmt: skip


def device_body(c: Context) -> tuple[bytes, int | None]:
    """Code of a case."""
    makers = [maker for maker, _ in OPERATIONS]
    weights = [weight for _, weight in OPERATIONS]
    number = c.rng.choice((1, 1, 2, 4, 8))
    return b"".join(maker(c) for maker in c.rng.choices(makers, weights, k=number)), None


def descriptors_in_memory(rng: Random) -> bytes:
    """A page of DMA descriptors: to RAM, code, tables, devices, beyond, and to themselves."""
    page = bytearray()
    for number in range(256):
        control = rng.choice((2, 2, 8, 0x10, 0x0A, 0x18, 0, rng.getrandbits(32)))
        if rng.random() < 0.4:
            control |= rng.choice((0, 5, 0x19, 0x20, rng.getrandbits(16))) << 16 | 8
        length = rng.choice((0, 1, 8, 64, 4096, 70_000, rng.getrandbits(20), rng.getrandbits(32)))
        own = DESCRIPTORS + number * 16
        where = rng.choice(
            (
                *(
                    own,
                    own - 8,
                    own + 4,
                    image.CODE + rng.randrange(0xF000),
                    image.USER_DATA + 0xFFC,
                ),
                *(
                    image.TABLES + 0x6000,
                    *image.MMIO,
                    32 << 20,
                    (32 << 20) - 16,
                    rng.getrandbits(64),
                ),
            )
        )
        page += struct.pack(">IIQ", control, length, where & (1 << 64) - 1)
    return bytes(page)
