"""Instructions for hostile guests, drawn from a seed: one function for each family.

Most are well formed, so that a case gets far; operands lie around pointers that the case was given.
Nothing here says what an instruction does: only the engine's own answers are compared.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.soak import image

POINTERS = (3, 6, 7, 5)
"""Numbers of RBX, RSI, RDI and RBP, which hold pointers in every mode."""
WIDE_POINTERS = (8, 9, 10, 11)
CX, SP = 1, 4


@dataclass
class Context:
    """What a case's code may be."""

    rng: Random
    bits: int
    system: bool
    real: bool = False

    def imm(self, size: int) -> bytes:
        """An immediate of so many bytes: often small, or all ones."""
        rng = self.rng
        value = rng.choice((rng.getrandbits(8 * size), rng.randrange(16), -rng.randrange(1, 16)))
        return (value & (1 << 8 * size) - 1).to_bytes(size, "little")

    def address(self) -> int:
        """A linear address that is worth an access, for this case's data segment."""
        rng = self.rng
        near = rng.choice((-1, -2, -3, -4, -7, -8, -15, -16, -17, -32, 0, 1, 8, 64, -64, -200))
        if self.bits == 16:
            return rng.randrange(1, 16) * image.PAGE + near & 0xFFFF
        where = rng.random()
        if where < 0.45:
            page = image.USER_DATA + rng.randrange(1, 16) * image.PAGE
        elif where < 0.6:
            page = image.CODE + rng.randrange(1, 16) * image.PAGE
        elif where < 0.9:
            page = image.WINDOW + rng.randrange(1, image.WINDOW_PAGES) * image.PAGE
        elif where < 0.96:
            page = 0x100_0000 + rng.randrange(1, 48) * image.PAGE
        else:
            return rng.getrandbits(rng.choice((16, 24, 32, 32, 48 if self.bits == 64 else 32)))
        return page + near


def operand(c: Context, reg: int, memory: float = 0.65) -> tuple[int, bytes]:
    """REX bits, and ModRM with what follows, for a register number of 0 to 15."""
    rng = c.rng
    rex = 4 if reg & 8 else 0
    reg = (reg & 7) << 3
    if rng.random() >= memory:
        other = rng.randrange(16 if c.bits == 64 else 8)
        return rex | (other >> 3), bytes([0xC0 | reg | other & 7])
    if c.bits == 16:
        rm = rng.choice((4, 5, 7, 6, 0, 1, 2, 3))
        return 0, bytes([0x40 | reg | rm]) + struct.pack("<b", rng.randrange(-8, 9))
    disp = rng.choice((0, 0, 1, 2, 3, 4, 7, 8, 12, 16, -1, -4, -8, -16, rng.randrange(-128, 128)))
    kind = rng.random()
    if kind < 0.72:
        base = rng.choice(POINTERS + (WIDE_POINTERS if c.bits == 64 else ()))
        if base & 7 == SP:
            base = 3
        if disp == 0 and base & 7 != 5 and rng.random() < 0.5:
            return rex | base >> 3, bytes([reg | base & 7])
        return rex | base >> 3, bytes([0x40 | reg | base & 7]) + struct.pack("<b", disp)
    if kind < 0.82:
        base = rng.choice(POINTERS)
        index = rng.choice((0, 1, 2, 4))
        sib = rng.randrange(4) << 6 | index << 3 | base
        return rex, bytes([0x44 | reg, sib]) + struct.pack("<b", disp)
    if kind < 0.9 and c.bits == 64:
        # Relative to RIP: code that comes soon, or a page away.
        near = rng.choice(
            (rng.randrange(0, 64), rng.randrange(-64, 64), rng.randrange(-5000, 5000))
        )
        return rex, bytes([reg | 5]) + struct.pack("<i", near)
    if kind < 0.95:
        absolute = struct.pack("<I", c.address() & 0xFFFF_FFFF)
        return rex, bytes([reg | 4, 0x25]) + absolute if c.bits == 64 else bytes(
            [reg | 5]
        ) + absolute
    base = rng.choice(POINTERS)
    return rex, bytes([0x80 | reg | base]) + struct.pack(
        "<i", rng.choice((disp, 4096, -4096, 65536))
    )


def encode(c: Context, opcode: bytes, reg: int | None = None, memory: float = 0.65) -> bytes:
    """An instruction with ModRM: sometimes with a 66 prefix, REX.W, LOCK or a segment."""
    rng = c.rng
    number = rng.randrange(16 if c.bits == 64 else 8) if reg is None else reg
    rex, rest = operand(c, number, memory)
    out = bytearray()
    if rng.random() < 0.02:
        out.append(rng.choice((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65)))
    if rng.random() < 0.02:
        out.append(0x67)
    if rng.random() < 0.04:
        out.append(0xF0)
    if rng.random() < 0.15:
        out.append(0x66)
    if opcode[0] in (0x66, 0xF2, 0xF3) and len(opcode) > 1 and opcode[1] == 0x0F:
        out.append(opcode[0])
        opcode = opcode[1:]
    if c.bits == 64:
        rex |= 8 if rng.random() < 0.4 else 0
        if rex or rng.random() < 0.05:
            out.append(0x40 | rex)
    return bytes(out) + opcode + rest


def _wide_imm(c: Context, code: bytes) -> bytes:
    """Length of an immediate that follows the operand size of `code`."""
    prefixes = code[:6]
    narrow = 0x66 in prefixes[: max(1, len(code) - 3)]
    size = (2 if not narrow else 4) if c.bits == 16 else (2 if narrow else 4)
    return c.imm(size)


def alu(c: Context) -> bytes:
    rng = c.rng
    kind = rng.randrange(14)
    if kind < 4:
        return encode(c, bytes([rng.randrange(8) * 8 + rng.randrange(4)]))
    if kind < 6:
        return encode(c, b"\x83", rng.randrange(8)) + c.imm(1)
    if kind == 6:
        code = encode(c, b"\x81", rng.randrange(8))
        return code + _wide_imm(c, code)
    if kind == 7:
        return encode(c, bytes([rng.choice((0xC0, 0xC1))]), rng.randrange(8)) + c.imm(1)
    if kind == 8:
        return encode(c, bytes([0xD0 + rng.randrange(4)]), rng.randrange(8))
    if kind == 9:
        return encode(c, bytes([rng.choice((0xF6, 0xF7))]), rng.randrange(2, 8))
    if kind == 10:
        return encode(c, bytes([rng.choice((0xFE, 0xFF))]), rng.randrange(2))
    if kind == 11:
        return encode(c, bytes([rng.choice((0x84, 0x85, 0x86, 0x87, 0x8D))]))
    if kind == 12:
        return encode(
            c, bytes([rng.choice((0x6B, 0x80))]), None if rng.random() < 0.5 else 0
        ) + c.imm(1)
    single = b"\x98\x99\x9e\x9f\xf5\xf8\xf9\xfc" + (
        b"" if c.bits == 64 else b"\x27\x2f\x37\x3f\x40\x4b"
    )
    return bytes([rng.choice(single)])


def move(c: Context) -> bytes:
    rng = c.rng
    kind = rng.randrange(8)
    if kind < 5:
        return encode(c, bytes([rng.choice((0x88, 0x89, 0x89, 0x8A, 0x8B, 0x8B))]), None, 0.85)
    if kind == 5:
        return encode(c, b"\xc6", 0, 0.9) + c.imm(1)
    if kind == 6:
        code = encode(c, b"\xc7", 0, 0.9)
        return code + _wide_imm(c, code)
    number = rng.choice((0, 2, 1))
    return bytes([0xB8 + number]) + c.imm(2 if c.bits == 16 else 4)


TWO_BYTE = (
    *(0xB6, 0xB7, 0xBE, 0xBF, 0xAF, 0xA3, 0xAB, 0xB3, 0xBB, 0xBC, 0xBD, 0xC0, 0xC1, 0xB0, 0xB1),
    *(0xA5, 0xAD, 0x1F, 0x0D, 0x18),
)


def more(c: Context) -> bytes:
    rng = c.rng
    kind = rng.randrange(12)
    if kind < 5:
        return encode(c, bytes([0x0F, rng.choice(TWO_BYTE)]))
    if kind == 5:
        return encode(c, bytes([0x0F, 0x40 + rng.randrange(16)]))
    if kind == 6:
        return encode(c, bytes([0x0F, 0x90 + rng.randrange(16)]))
    if kind == 7:
        return encode(c, b"\x0f\xba", rng.randrange(4, 8)) + c.imm(1)
    if kind == 8:
        return encode(c, bytes([0x0F, rng.choice((0xA4, 0xAC))])) + c.imm(1)
    if kind == 9:
        return encode(c, b"\x0f\xc7", rng.choice((1, 1, 1, 6, 7, 3, 4)))
    if kind == 10:
        return rng.choice(
            (
                encode(c, b"\xf3\x0f\xb8"),
                encode(c, b"\xf2\x0f\x38" + bytes([0xF0 + rng.randrange(2)])),
            )
        )
    return encode(c, bytes([rng.choice((0xF2, 0xF3)), 0x0F, rng.choice((0xBC, 0xBD, 0xB8, 0xC7))]))


SSE = (
    *range(0x10, 0x18),
    *range(0x28, 0x30),
    *range(0x50, 0x70),
    *range(0x74, 0x77),
    0x7E,
    0x7F,
    0x7C,
    0x7D,
    0xC3,
    *range(0xD0, 0x100),
)


def sse(c: Context) -> bytes:
    rng = c.rng
    prefix = rng.choice((b"", b"\x66", b"\x66", b"\xf2", b"\xf3"))
    kind = rng.randrange(12)
    if kind < 8:
        return encode(c, prefix + bytes([0x0F, rng.choice(SSE)]))
    if kind == 8:
        return encode(
            c, prefix + bytes([0x0F, rng.choice((0x70, 0xC2, 0xC4, 0xC5, 0xC6))])
        ) + c.imm(1)
    if kind == 9:
        low = rng.choice(
            (
                *range(0x0C),
                *range(0x1C, 0x1F),
                *range(0x20, 0x26),
                *range(0x28, 0x42),
                0x10,
                0x14,
                0x17,
            )
        )
        return encode(c, b"\x66\x0f\x38" + bytes([low]))
    if kind == 10:
        low = rng.choice(
            (
                *range(8, 16),
                0x14,
                0x15,
                0x16,
                0x17,
                0x20,
                0x21,
                0x22,
                0x40,
                0x41,
                0x42,
                *range(0x60, 0x64),
            )
        )
        return encode(c, b"\x66\x0f\x3a" + bytes([low])) + c.imm(1)
    return encode(c, b"\x0f\xae", rng.randrange(8), 0.85)


def x87(c: Context) -> bytes:
    return encode(c, bytes([0xD8 + c.rng.randrange(8)]), c.rng.randrange(8), 0.6)


def string(c: Context) -> bytes:
    rng = c.rng
    out = b""
    if rng.random() < 0.6:
        count = rng.choice((rng.randrange(1, 9), rng.randrange(40), rng.randrange(600)))
        out += bytes([0xB9]) + struct.pack("<H" if c.bits == 16 else "<I", count)
    if rng.random() < 0.3:
        # The pointers anew, since strings move them.
        for number in (6, 7):
            out += load(c, number, c.address())
    if rng.random() < 0.08:
        out += rng.choice((b"\xfd", b"\xfc", b"\x67"))
    out += rng.choice((b"", b"\xf3", b"\xf3", b"\xf3", b"\xf2"))
    if rng.random() < 0.15:
        out += b"\x66"
    if c.bits == 64 and rng.random() < 0.3:
        out += b"\x48"
    ports = b"\x6c\x6d\x6e\x6f" if rng.random() < 0.05 else b""
    return out + bytes(
        [rng.choice(b"\xa4\xa4\xa5\xa5\xa6\xa7\xaa\xab\xab\xac\xad\xae\xaf" + ports)]
    )


def load(c: Context, number: int, value: int) -> bytes:
    """MOV of a constant into a general register of the mode's width."""
    if c.bits == 16:
        return bytes([0xB8 + number]) + struct.pack("<H", value & 0xFFFF)
    if c.bits == 32 or value >> 32 == 0:
        return bytes([0xB8 + number]) + struct.pack("<I", value & 0xFFFF_FFFF)
    return bytes([0x48, 0xB8 + number]) + struct.pack("<Q", value)


def stack(c: Context) -> bytes:
    rng = c.rng
    kind = rng.randrange(10)
    if kind < 3:
        return bytes([0x50 + rng.choice((0, 1, 2, 3, 6, 7))])
    if kind < 5:
        return bytes([0x58 + rng.choice((0, 1, 2))])
    if kind == 5:
        return rng.choice((b"\x9c", b"\x9c\x9d", b"\x9d", b"\x6a\x07"))
    if kind == 6:
        return b"\xc8" + struct.pack("<HB", rng.randrange(64), rng.choice((0, 0, 1, 3))) + b"\xc9"
    if kind == 7:
        return encode(c, b"\xff", 6)
    if kind == 8:
        return encode(c, b"\x8f", 0)
    if c.bits != 64 and rng.random() < 0.5:
        return rng.choice((b"\x60", b"\x61", b"\x06\x07", b"\x1e\x1f"))
    # A call of the next instruction, and a return that is not paired with it.
    return b"\xe8\0\0" if c.bits == 16 else b"\xe8\0\0\0\0"


def branch(c: Context) -> bytes:
    rng = c.rng
    kind = rng.randrange(10)
    if kind < 4:
        return bytes([0x70 + rng.randrange(16), rng.randrange(12)])
    if kind == 4:
        return bytes([0xEB, rng.randrange(6)])
    if kind == 5:
        far = rng.choice((rng.randrange(64), rng.randrange(-4200, 4200), 4096))
        pack = "<h" if c.bits == 16 else "<i"
        return bytes([0x0F, 0x80 + rng.randrange(16)]) + struct.pack(pack, far)
    if kind == 6:
        return bytes([rng.choice((0xE0, 0xE1, 0xE2, 0xE3)), rng.choice((0, 2, 0xFE, 0xF0, 0xE0))])
    if kind == 7:
        return encode(c, b"\xff", rng.choice((2, 4, 3, 5)), 0.5)
    if kind == 8:
        target = image.CODE + rng.randrange(image.CODE_PAGES * image.PAGE)
        if c.bits == 16:
            target &= 0xFFFF
        return load(c, 0, target) + rng.choice((b"\xff\xe0", b"\xff\xd0", b"\x50\xc3"))
    pack = "<h" if c.bits == 16 else "<i"
    return bytes([rng.choice((0xE8, 0xE9))]) + struct.pack(pack, rng.choice((0, 1, 16, 4096, -64)))


def modify(c: Context) -> bytes:
    """A store to code: close behind, or anywhere in it, or through an alias."""
    rng = c.rng
    new = rng.choice((b"\x90", b"\xcc", b"\x40", bytes([rng.randrange(256)])))
    if c.bits == 64 and rng.random() < 0.5:
        if rng.random() < 0.5:
            return (
                b"\xc6\x05"
                + struct.pack("<i", rng.choice((0, 1, 2, 5, 12, rng.randrange(-80, 80))))
                + new
            )
        return (
            b"\xc7\x05"
            + struct.pack("<i", rng.randrange(-40, 60))
            + rng.choice((b"\x90" * 4, rng.randbytes(4)))
        )
    if c.bits == 16:
        return b"\x2e\xc6\x06" + struct.pack("<H", rng.getrandbits(16)) + new
    target = rng.choice((image.CODE, image.CODE, 0x100_0000, image.WINDOW)) + rng.randrange(0x10000)
    sib = b"\x04\x25" if c.bits == 64 else b"\x05"
    return b"\xc6" + sib + struct.pack("<I", target) + new


MSRS = (
    *(
        0x10,
        0x1B,
        0x3A,
        0x3B,
        0x48,
        0x49,
        0x8B,
        0xFE,
        0x10A,
        0x10B,
        0x174,
        0x175,
        0x176,
        0x179,
        0x17A,
    ),
    *(
        0x186,
        0x1A0,
        0x1D9,
        0x200,
        0x201,
        0x250,
        0x277,
        0x2FF,
        0x38F,
        0x6E0,
        0xDA0,
        0x400,
        0xCE,
        0x140,
    ),
    *(
        0xC0000080,
        0xC0000081,
        0xC0000082,
        0xC0000084,
        0xC0000100,
        0xC0000101,
        0xC0000102,
        0xC0000103,
    ),
    *(0x802, 0x803, 0x808, 0x80B, 0x80D, 0x80F, 0x828, 0x830, 0x832, 0x838, 0x839, 0x83E, 0x83F),
)
PORTS = (
    *(0x20, 0x21, 0xA0, 0xA1, 0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x80, 0x92),
    *(0xE9, 0x3F8, 0x3F9, 0x3FA, 0x3FB, 0x3FC, 0x3FD, 0x3FE, 0x402, 0x4D0, 0x4D1, 0x510, 0x511),
    *(0x514, 0x518, 0x600, 0x602, 0x608, 0x620, 0x660, 0xB2, 0xB3, 0xCF8, 0xCFC, 0xCFE, 0x1CE),
)


def number32(c: Context, register: int, value: int) -> bytes:
    """MOV of 32 bits in every mode."""
    prefix = b"\x66" if c.bits == 16 else b""
    return prefix + bytes([0xB8 + register]) + struct.pack("<I", value & 0xFFFF_FFFF)


def system(c: Context) -> bytes:
    rng = c.rng
    kind = rng.randrange(20)
    if kind == 0:
        return b"\x0f\x20\xd8\x0f\x22\xd8"
    if kind == 1:
        return encode(c, b"\x0f\x01", 7, 1.0)
    if kind in (2, 3):
        index = rng.choice(
            (rng.choice(MSRS), rng.choice(MSRS), rng.getrandbits(13), rng.getrandbits(32))
        )
        out = number32(c, 1, index)
        if rng.random() < 0.4:
            return out + b"\x0f\x32"
        high = rng.choice((0, 0, rng.getrandbits(32)))
        return (
            out
            + number32(c, 0, rng.getrandbits(rng.choice((4, 12, 32))))
            + number32(c, 2, high)
            + b"\x0f\x30"
        )
    if kind == 4:
        return rng.choice((b"\xfb\x90", b"\xfa", b"\xfb\x90\xfa", b"\xfb\xf4", b"\xf4"))
    if kind in (5, 6):
        port = rng.choice((rng.choice(PORTS), rng.getrandbits(16)))
        # Not the ways out: they have their turn once the cases are through.
        if port in (0xF4, 0x604, 0xCF9, 0x92, 0x64):
            port = 0x80
        out = number32(c, 2, port) + number32(c, 0, rng.getrandbits(rng.choice((3, 8, 32))))
        return out + rng.choice((b"", b"", b"\x66")) + bytes([rng.choice((0xEC, 0xED, 0xEE, 0xEF))])
    if kind == 7:
        return encode(
            c, b"\x0f" + rng.choice((b"\x00", b"\x01")), rng.choice((0, 1, 0, 1, 4, 6)), 0.8
        )
    if kind == 8:
        return rng.choice(
            (b"\x0f\x06", b"\x0f\x08", b"\x0f\x09", b"\x0f\x01\xf8", b"\x0f\xa2", b"\x0f\x31")
        )
    if kind == 9:
        return rng.choice(
            (
                b"\x0f\x01\xf9",
                b"\x0f\x01\xd0",
                b"\x0f\x01\xcb",
                b"\x0f\x01\xca",
                b"\xf3\x90",
                b"\x0f\x33",
            )
        )
    if kind == 10:
        return bytes([0x0F, rng.choice((0x21, 0x23)), 0xC0 | rng.randrange(64)])
    if kind == 11:
        # CR0 and CR4 with one bit turned over, and back.
        number = rng.choice((0, 4))
        bit = rng.choice(
            (0, 1, 2, 3, 5, 7, 16, 18)
            if number == 0
            else (2, 3, 4, 7, 8, 9, 10, 11, 16, 18, 20, 21)
        )
        turn = b"\x66\x0f\xba\xf8" if c.bits == 16 else b"\x0f\xba\xf8"
        one = (
            bytes([0x0F, 0x20, 0xC0 | number << 3])
            + turn
            + bytes([bit, 0x0F, 0x22, 0xC0 | number << 3])
        )
        return one + (b"\x90" + one if rng.random() < 0.7 else b"")
    if kind == 12:
        return rng.choice(
            (
                b"\xcd" + c.imm(1),
                b"\xcc",
                b"\xf1",
                b"\x0f\x0b",
                b"\xcf",
                b"\x48\xcf",
                b"\xcb",
                b"\xca\x08\0",
            )
        )
    if kind == 13:
        return rng.choice(
            (b"\x0f\x05", b"\x0f\x07", b"\x0f\x34", b"\x0f\x35", b"\x48\x0f\x07", b"\x48\x0f\x35")
        )
    if kind == 14:
        selector = rng.choice(
            (0x10, 0x3B, 0, 3, 0x18, rng.choice(image.RANDOM_SEGMENTS), rng.getrandbits(16))
        )
        if c.real:
            selector = rng.choice((0x2000, 0x3000, 0, 0xFFFF, rng.getrandbits(16)))
        return (
            number32(c, 0, selector)
            + b"\x8e"
            + bytes([0xC0 | rng.choice((0, 2, 3, 4, 5, 1, 6)) << 3])
        )
    if kind == 15:
        return encode(c, b"\x8c", rng.randrange(8))
    if kind == 16:
        return bytes([0x0F, rng.choice((0xA0, 0xA8, 0xA1, 0xA9))])
    if kind == 17:
        return encode(
            c,
            rng.choice(
                (b"\x0f\x02", b"\x0f\x03", b"\x0f\xb2", b"\x0f\xb4", b"\x62", b"\xc4", b"\x63")
            ),
        )
    if kind == 18:
        return bytes([0xF3, 0x0F, 0xAE, 0xC0 | rng.randrange(64)])
    return rng.choice(
        (b"\x0f\x22\xc0", b"\x0f\x20\xc0", b"\x0f\x22\xc8", b"\x0f\x20\xd0", b"\x44\x0f\x20\xc0")
    )


def rare(c: Context) -> bytes:
    """Bytes that no compiler writes: prefixes in heaps, reserved maps, whatever comes."""
    rng = c.rng
    kind = rng.randrange(7)
    if kind == 0:
        return rng.randbytes(rng.randrange(1, 16))
    if kind == 1:
        heap = bytes(
            rng.choice(b"\x66\x67\xf2\xf3\xf0\x2e\x3e\x64\x65\x26\x36\x48\x4f")
            for _ in range(rng.randrange(1, 15))
        )
        return heap + rng.choice((alu, move, more, sse, string))(c)
    if kind == 2:
        return rng.choice((b"", b"\x66", b"\xf2", b"\xf3")) + encode(
            c, bytes([0x0F, rng.randrange(256)])
        )
    if kind == 3:
        return (
            rng.choice((b"", b"\x66", b"\xf2", b"\xf3"))
            + encode(c, bytes([0x0F, rng.choice((0x38, 0x3A)), rng.randrange(256)]))
            + c.imm(1)
        )
    if kind == 4:
        return bytes(
            [rng.choice((0xC4, 0xC5, 0x62, 0x8F)), rng.getrandbits(8), rng.getrandbits(8)]
        ) + rng.randbytes(4)
    if kind == 5:
        return encode(c, bytes([rng.randrange(256)]))
    # Shadow stacks, hints, memory-type and transaction instructions.
    return rng.choice(
        (
            *(
                b"\xf3\x0f\x1e\xc8",
                b"\xf3\x48\x0f\x1e\xc8",
                b"\xf3\x0f\x1e\xfa",
                b"\xf3\x0f\x01\xe8",
            ),
            *(
                b"\xf3\x0f\x01\xea",
                b"\xf3\x0f\xae\xe8",
                b"\x0f\x38\xf6\x03",
                b"\x66\x0f\x38\xf5\x03",
            ),
            *(
                b"\xf3\x0f\x01\x2b",
                b"\xf3\x0f\xae\x33",
                b"\xc6\xf8\0",
                b"\xc7\xf8\0\0\0\0",
                b"\x0f\x01\xd5",
            ),
            *(
                b"\x0f\xc7\xf0",
                b"\x0f\xc7\xf8",
                b"\x66\x0f\xae\xf0",
                b"\x0f\x0d\x0b",
                b"\x0f\x18\x03",
            ),
            *(
                b"\x0f\x01\xef",
                b"\x0f\x01\xee",
                b"\x0f\x01\xc8",
                b"\x0f\x01\xfa",
                b"\x0f\x0e",
                b"\x0f\x77",
            ),
        )
    )


Family = Callable[[Context], bytes]
FAMILIES: tuple[tuple[Family, int], ...] = (
    (alu, 20),
    (move, 22),
    (more, 9),
    (sse, 12),
    (x87, 4),
    (string, 4),
    (stack, 7),
    (branch, 6),
    (modify, 3),
    (rare, 2),
)
IN_LOOPS: tuple[tuple[Family, int], ...] = (
    (alu, 20), (move, 30), (more, 6), (sse, 16), (x87, 3), (string, 1), (modify, 1)
)  # fmt: skip


def draw(c: Context, families: tuple[tuple[Family, int], ...]) -> bytes:
    """One instruction, or a few that belong together."""
    makers = [family for family, _ in families]
    weights = [weight for _, weight in families]
    return c.rng.choices(makers, weights)[0](c)


def sequence(c: Context, number: int) -> bytes:
    """So many draws of everything that the case may use."""
    families = FAMILIES
    if c.system:
        families = (*FAMILIES, (system, 12))
    elif c.rng.random() < 0.2:
        families = (*FAMILIES, (system, 3))
    return b"".join(draw(c, families) for _ in range(number))


def loop(c: Context) -> tuple[bytes, bytes]:
    """What sets a loop up, and its turns: the last byte is that of the branch back.

    Half of them walk over memory by steps, as compilers' loops do.
    """
    rng = c.rng
    count = rng.choice((rng.randrange(2, 20), rng.randrange(20, 300), rng.randrange(300, 3000)))
    setup = load(c, CX, count)
    body = b""
    plain = rng.random() < 0.6
    step = rng.choice((1, 1, 2, 4, 4, 8, 8, 16, 64, 4095, -1, -4, -8))
    rex = b"\x48" if c.bits == 64 else b""
    if plain:
        base = rng.choice((3, 6, 7))
        setup += load(c, base, c.address())
        other = rng.choice((6, 7))
        setup += load(c, other, c.address())
        if c.bits == 16:
            rm, rm2 = {3: 7, 6: 4, 7: 5}[base], {6: 4, 7: 5}[other]
        else:
            rm, rm2 = base, other
        for _ in range(rng.randrange(1, 4)):
            kind = rng.randrange(7)
            wide = rex if rng.random() < 0.5 else b""
            if kind < 2:
                body += wide + bytes([rng.choice((0x8A, 0x8B, 0x03, 0x02, 0x33)), rm])
            elif kind < 4:
                body += wide + bytes([rng.choice((0x88, 0x89, 0x01, 0x00, 0x29)), rm2])
            elif kind == 4:
                body += rng.choice(
                    (b"\x0f\x10", b"\xf3\x0f\x6f", b"\x0f\x58", b"\x66\x0f\xfe")
                ) + bytes([rm])
            elif kind == 5:
                body += rng.choice(
                    (b"\x0f\x11", b"\xf3\x0f\x7f", b"\x0f\x29", b"\xf2\x0f\x11")
                ) + bytes([rm2])
            else:
                body += rng.choice((b"\xd9", b"\xdd", b"\xd8")) + bytes([rm])
        body += rex + bytes([0x83, 0xC0 | base]) + struct.pack("<b", max(-128, min(127, step)))
        if rng.random() < 0.5 and other != base:
            body += rex + bytes([0x83, 0xC0 | other, rng.choice((1, 4, 8, 16))])
    for _ in range(0 if plain and rng.random() < 0.7 else rng.randrange(1, 9)):
        each = draw(c, IN_LOOPS)
        # The branch back has a byte for its distance.
        if len(body) + len(each) < 110:
            body += each
    end = rng.randrange(5)
    if end == 0:
        tail = b"\xe2"
    elif end == 1:
        tail = (rex + b"\xff\xc9" if c.bits == 64 else b"\x49") + b"\x75"
    elif end == 2:
        tail = rex + b"\x83\xe9\x01" + rng.choice((b"\x75", b"\x7f", b"\x77"))
    elif end == 3:
        tail = rex + b"\x83\xe9\x01" + (b"\x0f\x85" if rng.random() < 0.5 else b"\x75")
    else:
        tail = rex + b"\x85\xc9" + b"\x74\x05" + rex + b"\x83\xe9\x01" + b"\x75"
    if tail.endswith(b"\x0f\x85"):
        size = 2 if c.bits == 16 else 4
        back = len(body) + len(tail) + size
        return setup, body + tail + (-back & (1 << 8 * size) - 1).to_bytes(size, "little")
    back = len(body) + len(tail) + 1
    return setup, body + tail + bytes([-back & 0xFF])
