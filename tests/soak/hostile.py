"""Whole guests from a seed: page tables, interrupt tables, and cases of hostile code.

A guest runs a number of cases on each vCPU. Whatever faults goes on with the next one; the timer
ends those that loop; after the last the guest says so and ends the run. One that has ruined its
handlers ends with a triple fault or at the limit.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from rr86.machine.spec import PROTOCOLS, SCHEDULES, BoardSpec
from tests.soak import image
from tests.soak.instructions import Context, loop, sequence

MODES = ("ring3", "ring0", "32", "16", "devices")
MEMORY = 32 << 20

Body = Callable[[Context], bytes]


@dataclass(frozen=True)
class Guest:
    """A guest that is ready to run, and the board on which it does."""

    seed: int
    mode: str
    kernel: bytes
    spec: BoardSpec
    limit: int
    """Instructions, after which it is ended."""


@dataclass
class _Place:
    """Code that lies, or will lie, in pages shared by all cases."""

    base: int
    data: bytearray

    def put(self, address: int, code: bytes) -> None:
        at = address - self.base
        code = code[: max(0, len(self.data) - at)]
        self.data[at : at + len(code)] = code


def board(rng: Random, seed: int, vcpus: int) -> BoardSpec:
    """A board for small guests: short slices, every schedule and protocol, small caches."""
    protocol = "precise" if rng.random() < 0.7 else rng.choice(PROTOCOLS)
    return BoardSpec(
        vcpus=vcpus,
        memory=MEMORY,
        seed=seed & (1 << 64) - 1,
        schedule=rng.choice(SCHEDULES),
        quantum=rng.choice((1, 7, 60, 400, 3000, 3000, 20_000, 100_000)),
        protocol=protocol,
        window_bias=rng.choice((8192, 40_000)),
        max_block=rng.choice((64, 64, 64, 64, 1, 2, 5, 17)),
        block_capacity=rng.choice((262_144, 262_144, 16, 20, 64)),
    )


def hostile_body(c: Context) -> tuple[bytes, int | None]:
    """Code of a case, and where in it a loop's last byte is, if it has one."""
    rng = c.rng
    if rng.random() < 0.06:
        return rng.randbytes(rng.randrange(20, 120)), None
    code = sequence(c, rng.choice((0, 0, 1, 3, 8)))
    if rng.random() < 0.35:
        return code + sequence(c, rng.randrange(4, 40)), None
    setup, turns = loop(c)
    code += setup + turns
    end = len(code)
    if rng.random() < 0.25:
        again, more = loop(c)
        code += again + more
    return code + sequence(c, rng.choice((0, 1, 4, 12))), end


def address_of(rng: Random, code: bytes, loop_end: int | None, base: int, pages: int) -> int:
    """Where to put a case: mostly so that its loop, or some byte of it, ends with a page."""
    page = base + rng.randrange(1, pages) * image.PAGE
    mark = rng.randrange(len(code) + 1) if loop_end is None or rng.random() < 0.1 else loop_end
    delta = rng.choice((0, 0, 0, 0, 1, -1, 2, 3, -2, 5, 7, -9))
    if rng.random() < 0.15:
        delta = rng.randrange(image.PAGE)
    return max(base, min(page + delta - mark, base + pages * image.PAGE - len(code) - 8))


def _flags(rng: Random, user: bool) -> int:
    flags = 0x202 if user or rng.random() < 0.7 else 2
    for bit, chance in ((8, 0.02), (18, 0.05), (10, 0.05), (14, 0.02), (12, 0.05), (13, 0.05)):
        if rng.random() < chance:
            flags |= 1 << bit
    return flags | rng.getrandbits(12) & 0x8D5


def _registers(c: Context, wide: bool) -> dict[str, int]:
    rng = c.rng
    top = 64 if wide else 32
    out = {}
    for name in ("rbx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11"):
        out[name] = c.address()
    out["rcx"] = rng.choice((rng.randrange(1, 9), rng.randrange(200)))
    for name in ("rax", "rdx", "r12", "r13", "r14", "r15"):
        out[name] = rng.choice((rng.randrange(300), rng.getrandbits(top), c.address()))
    return {name: value & (1 << top) - 1 for name, value in out.items()}


def _case64(c: Context, entry: int, user: bool) -> bytes:
    rng, registers = c.rng, _registers(c, True)
    selector, stack = image.CODE64, image.DATA32
    if user:
        stack = image.USER_SEGMENT
        selector = image.USER64
        if c.bits == 32:
            selector = image.USER32
        elif c.bits == 16:
            selector = image.USER16
    elif c.bits == 32:
        selector = image.CODE32
    elif c.bits == 16:
        selector = image.KERNEL16
    if c.bits == 16:
        entry -= image.CODE
    rsp = (
        image.USER_STACKS + rng.randrange(1, 15) * image.PAGE + rng.choice((0, 8, 16, 512, 2048, 3))
    )
    names = [
        "r15",
        "r14",
        "r13",
        "r12",
        "r11",
        "r10",
        "r9",
        "r8",
        "rdi",
        "rsi",
        "rbp",
        "rbx",
        "rdx",
        "rcx",
        "rax",
    ]
    values = [registers[name] for name in names]
    return struct.pack("<20Q", *values, entry, selector, _flags(rng, user), rsp, stack)


def _case32(c: Context, entry: int, user: bool) -> bytes:
    rng, registers = c.rng, _registers(c, False)
    data = image.USER_SEGMENT if user else image.DATA32
    code, stack = (image.USER32, image.USER_SEGMENT) if user else (image.CODE32, image.DATA32)
    if c.bits == 16:
        data = image.SEGMENT16
        code = image.USER16 if user else image.KERNEL16
        entry -= image.CODE
    segments = [
        data if rng.random() < 0.93 else rng.choice((0, image.USER_SEGMENT)) for _ in range(4)
    ]
    esp = (
        image.USER_STACKS + rng.randrange(1, 15) * image.PAGE + rng.choice((0, 8, 16, 512, 2048, 3))
    )
    names = ("rdi", "rsi", "rbp", "rsp", "rbx", "rdx", "rcx", "rax")
    registers["rsp"] = 0
    values = [registers[name] for name in names]
    return struct.pack("<17I", *segments, *values, entry, code, _flags(rng, user), esp, stack)


def _case16(c: Context, entry: int) -> bytes:
    rng, registers = c.rng, _registers(c, False)
    values = [registers[name] for name in ("rdi", "rsi", "rbp", "rbx", "rdx", "rcx", "rax")]
    segments = [rng.choice((0x2000, 0x3000, 0x3000, 0x2800, 0x3FFF)) for _ in range(4)]
    # Handlers find FS with the limit that it had, and put their own base into it.
    frame = (entry - image.REAL_CODE, image.REAL_CODE >> 4, _flags(rng, True) & 0xFFFF)
    return struct.pack("<7I4H3H", *values, *segments, *frame).ljust(64, b"\0")


def control(rng: Random, mode: str, paging: bool) -> tuple[int, int, int]:
    """CR0, CR4 and EFER of a guest."""
    cr0 = 0x33 | (1 << 31 if paging else 0)
    for bit, chance in ((16, 0.6), (18, 0.3), (2, 0.03), (3, 0.03)):
        if rng.random() < chance:
            cr0 |= 1 << bit
    cr4 = 1 << 5 | 1 << 4 | 1 << 9
    for bit, chance in (
        (2, 0.1),
        (3, 0.2),
        (7, 0.6),
        (8, 0.5),
        (10, 0.6),
        (11, 0.2),
        (16, 0.5),
        (18, 0.3),
    ):
        if rng.random() < chance:
            cr4 |= 1 << bit
    if mode in ("ring3", "32") and rng.random() < 0.2:
        cr4 |= 1 << 20
    if rng.random() < 0.1:
        cr4 |= 1 << 21
    return cr0, cr4, 0xD01


def build(mode: str, seed: int, vcpus: int | None = None) -> Guest:
    """The guest of a seed in a mode."""
    rng = Random(f"{mode}/{seed}")
    cpus = vcpus or rng.choice((1, 1, 2, 3, 4))
    spec = board(rng, seed, cpus)
    if mode == "devices":
        from tests.soak.device_ops import device_body

        return _assemble(rng, mode, seed, spec, device_body)
    return _assemble(rng, mode, seed, spec, hostile_body)


def _assemble(rng: Random, mode: str, seed: int, spec: BoardSpec, body: Any) -> Guest:
    symbols = image.stub().symbols
    real = mode == "16" and rng.random() < 0.6
    compat = mode in ("32", "16") and not real and rng.random() < 0.35
    stub_bits = 16 if real else 64 if mode in ("ring3", "ring0", "devices") or compat else 32
    paging = stub_bits == 64 or (stub_bits == 32 and rng.random() < 0.7)
    pae = paging and stub_bits == 32 and rng.random() < 0.5
    user = mode == "ring3" or (mode in ("32", "16") and not real and rng.random() < 0.5)
    system = not user
    wild = rng.choice((0.0, 0.1, 0.4)) if system else rng.choice((0.0, 0.15, 0.5))
    if mode == "devices":
        wild = 0.0
    cases = rng.choice((6, 12, 24)) if mode != "devices" else 60
    base, pages = (image.REAL_CODE, 16) if real else (image.CODE, image.CODE_PAGES)
    place = _Place(base, bytearray(pages * image.PAGE))
    if rng.random() < 0.5:
        place.data[:] = rng.randbytes(len(place.data))
    else:
        place.data[:] = rng.choice((b"\x90", b"\xcc", b"\x0f\x0b")) * (len(place.data) // 2) * 2
        del place.data[pages * image.PAGE :]
    size = {64: 160, 32: 68, 16: 64}[stub_bits]
    descriptors = {}
    for vcpu in range(spec.vcpus):
        rows = bytearray()
        for _ in range(cases):
            bits = {"ring3": 64, "ring0": 64, "devices": 64, "32": 32, "16": 16}[mode]
            if mode in ("ring3", "ring0") and rng.random() < 0.06:
                bits = rng.choice((32, 16))
            c = Context(rng, bits, system, real)
            code, end = body(c)
            if stub_bits != 64 and not user:
                # IRET to the same ring leaves the stack where the descriptor was.
                top = (
                    0xF000 + rng.choice((0, 2, 0xFFE)) if bits == 16 else image.USER_STACKS + 0x8000
                )
                prelude = b"\xbc" + top.to_bytes(2 if bits == 16 else 4, "little")
                if real:
                    prelude = b"\xb8\x00\x30\x8e\xd0" + prelude
                code, end = prelude + code, None if end is None else end + len(prelude)
            code += rng.choice((b"\xcc", b"\x0f\x0b", b"\xcd\x30", b"\xeb\xfe", b"\xf4"))
            entry = address_of(rng, code, end, base, pages)
            place.put(entry, code)
            if not real and bits != 16 and paging and rng.random() < 0.2:
                entry += 0x100_0000 - image.CODE
            if real:
                rows += _case16(c, entry)
            elif stub_bits == 64:
                rows += _case64(c, entry, user)
            else:
                rows += _case32(c, entry, user)
        descriptors[image.CASES + vcpu * image.CASES_SIZE] = bytes(rows)
    cr0, cr4, efer = control(rng, mode, paging)
    if stub_bits == 32:
        efer = rng.choice((0x801, 1, 0x800))
        if not pae:
            cr4 &= ~(1 << 5 | 1 << 20)
        if not paging:
            cr0 &= ~(1 << 16)
    timer = rng.choice((400, 3000, 3000, 20_000, 20_000, 60_000))
    lvt = image.TIMER_VECTOR | 1 << 17
    limit = 60_000 * spec.vcpus if mode != "devices" else 200_000
    params = struct.pack(
        "<12I", stub_bits, spec.vcpus, cases, size, timer, lvt, rng.choice((0, 3, 10)),
        rng.choice((0, 3, 20)), cr0, image.TABLES, cr4, efer
    )  # fmt: skip
    limit_of_idt = {64: 0xFFF, 32: 0x7FF, 16: 0x3FF}[stub_bits]
    table = image.idt(rng, stub_bits, wild / 4)
    params += struct.pack("<HI10x", 0x12F, image.GDT)
    params += struct.pack("<HI10x", limit_of_idt, 0 if real else image.IDT)
    counters = bytearray(image.PAGE)
    struct.pack_into("<I", counters, 0x60, spec.vcpus)
    stub = image.stub().code
    segments = {
        image.STUB_BASE: stub,
        image.DATA: bytes(counters),
        image.PARAMS: params,
        image.GDT: image.gdt(rng, stub_bits == 64),
        image.TSS: image.tss(stub_bits == 64, image.TABLES),
        base: bytes(place.data),
        **descriptors,
    }
    if real:
        segments[0] = table
        segments[0x30000] = rng.randbytes(0x400)
    else:
        segments[image.IDT] = table
        segments[image.USER_DATA] = rng.randbytes(0x1000)
    if stub_bits == 64:
        segments[image.TABLES] = image.tables64(rng, MEMORY, wild)
    elif pae:
        segments[image.TABLES] = image.tables_pae(rng, MEMORY, wild)
    elif paging:
        segments[image.TABLES] = image.tables32(rng, MEMORY, wild)
    if mode == "devices":
        from tests.soak.device_ops import descriptors_in_memory

        segments[image.USER_STACKS] = descriptors_in_memory(rng)
    kernel = image.elf(segments, symbols["_start"])
    return Guest(seed, mode, kernel, spec, limit)


def plain(code: bytes, protocol: str, cases: int = 1, vcpus: int = 1, quantum: int = 1000) -> Guest:
    """A guest whose vCPUs run `code` in ring 0 and 64-bit mode, so many times each.

    RBX points to an alias of the code's beginning, RSI to 16-byte aligned data. What faults goes on
    with the next case.
    """
    rng = Random(0)
    spec = BoardSpec(vcpus=vcpus, memory=MEMORY, protocol=protocol, quantum=quantum)
    values = [0] * 15
    values[9], values[11] = image.USER_DATA, 0x100_0000
    frame = (image.CODE, image.CODE64, 2, image.USER_STACKS + 0x800, image.DATA32)
    row = struct.pack("<20Q", *values, *frame)
    efer, cr0, cr4 = 0xD01, 0x8000_0033, 0x630
    params = struct.pack("<12I", 64, vcpus, cases, 160, 0, 0, 0, 0, cr0, image.TABLES, cr4, efer)
    params += struct.pack("<HI10xHI10x", 0x12F, image.GDT, 0xFFF, image.IDT)
    handler = image.stub().symbols["next64"]
    gates = b"".join(image.gate(True, image.CODE64, handler, 0x8E, 1) for _ in range(256))
    # A large page leads to the code a second time.
    tables = bytearray(image.tables64(rng, MEMORY, 0.0))
    struct.pack_into("<Q", tables, 0x2000 + 8 * 8, image.CODE | 0x87)
    segments = {
        image.STUB_BASE: image.stub().code,
        image.DATA: bytes(0x60) + struct.pack("<I", vcpus) + bytes(28),
        image.PARAMS: params,
        image.GDT: image.gdt(rng, True),
        image.IDT: gates,
        image.TSS: image.tss(True, image.TABLES),
        **{image.CASES + vcpu * image.CASES_SIZE: row * cases for vcpu in range(vcpus)},
        image.CODE: code,
        image.TABLES: bytes(tables),
    }
    kernel = image.elf(segments, image.stub().symbols["_start"])
    return Guest(0, "plain", kernel, spec, 20_000)
