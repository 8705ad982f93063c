"""Images of hostile guests: the stub's assembly, where things lie, and an ELF file around them."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
from functools import cache
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.guests.build import default_cache, run, tool

STUB = Path(__file__).with_name("stub.S")
STUB_BASE = 0x10000
DATA = 0x13000
PARAMS = 0x14000
GDT = 0x15000
IDT = 0x16000
TSS = 0x17000
"""Of vCPU n at n * 256; the one of the double fault's task at 0xf00."""
STACKS = 0x18000
CASES = 0x40000
CASES_SIZE = 0x8000
"""Bytes of each vCPU's descriptors."""

TABLES = 0x100000
CODE = 0x200000
CODE_PAGES = 16
SPACE = CODE
"""From here to `SPACE_END` lies what cases are made of: code, data, stacks."""
USER_DATA = 0x210000
USER_STACKS = 0x220000
SPACE_END = 0x230000
WINDOW = 0x400000
WINDOW_PAGES = 64
"""Linear pages that lead anywhere."""
REAL_CODE = 0x20000
REAL_END = 0x40000

CODE32, DATA32, CODE64, CODE16, DATA16 = 0x08, 0x10, 0x18, 0x20, 0x28
USER32, USER_SEGMENT, USER64, USER16 = 0x33, 0x3B, 0x43, 0x4B
FIRST_TSS = 0x50
FAULT_TSS = 0xD0
KERNEL16 = 0xD8
SEGMENT16 = 0xE3
"""Data of 16-bit cases: the second half of the code and what follows."""
SEGMENT16_BASE = CODE + 0x8000
RANDOM_SEGMENTS = range(0xE8, 0x130, 8)

ERROR_CODES = frozenset((8, 10, 11, 12, 13, 14, 17, 21))
TIMER_VECTOR = 0x20
PAGE = 4096


class Stub(NamedTuple):
    """The assembled stub."""

    code: bytes
    symbols: dict[str, int]


@cache
def stub() -> Stub:
    """Assemble the stub, or find it assembled already. Needs gcc and binutils."""
    gcc, ld, objcopy, nm = tool("gcc"), tool("ld"), tool("objcopy"), tool("nm")
    digest = hashlib.sha256(STUB.read_bytes()).hexdigest()[:16]
    folder = default_cache() / f"soak-{digest}"
    if not folder.exists():
        work = folder.with_name(f"{folder.name}.{os.getpid()}")
        work.mkdir(parents=True, exist_ok=True)
        run(gcc, "-m32", "-c", str(STUB), "-o", str(work / "stub.o"))
        link = (ld, "-m", "elf_i386", f"-Ttext={STUB_BASE:#x}", "-e", "_start")
        run(*link, "-o", str(work / "stub.elf"), str(work / "stub.o"))
        run(objcopy, "-O", "binary", str(work / "stub.elf"), str(work / "stub.bin"))
        (work / "stub.sym").write_text(run(nm, str(work / "stub.elf")))
        try:
            work.rename(folder)
        except OSError:
            shutil.rmtree(work)
    symbols = {}
    for line in (folder / "stub.sym").read_text().splitlines():
        address, _, name = line.split()
        symbols[name] = int(address, 16)
    return Stub((folder / "stub.bin").read_bytes(), symbols)


def elf(segments: dict[int, bytes], entry: int) -> bytes:
    """A Multiboot ELF32 file with a segment at each physical address."""
    headers = 52 + 32 * len(segments)
    start = (headers + 12 + 15) & ~15
    body = bytearray()
    table = bytearray()
    for address, data in sorted(segments.items()):
        offset = start + len(body)
        table += struct.pack("<8I", 1, offset, address, address, len(data), len(data), 7, 1)
        body += data
    head = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, entry, 52, 0, 0, 52, 32, len(segments), 0, 0, 0)
    magic = 0x1BADB002
    multiboot = struct.pack("<III", magic, 0, -magic & 0xFFFF_FFFF)
    return (head + bytes(table) + multiboot).ljust(start, b"\0") + bytes(body)


def descriptor(base: int, limit: int, access: int, flags: int) -> bytes:
    """A segment descriptor; `flags` are bits 52 to 55."""
    low = limit & 0xFFFF | (base & 0xFFFF) << 16
    high = base >> 16 & 0xFF | access << 8 | (limit >> 16 & 15) << 16 | flags << 20
    return struct.pack("<II", low, high | (base >> 24 & 0xFF) << 24)


def gdt(rng: Random, long_mode: bool) -> bytes:
    """All selectors above, a TSS for each vCPU, and a few random ones."""
    table = bytearray(0x130)

    def put(selector: int, data: bytes) -> None:
        selector &= ~7
        table[selector : selector + len(data)] = data

    put(CODE32, descriptor(0, 0xFFFFF, 0x9B, 0xC))
    put(DATA32, descriptor(0, 0xFFFFF, 0x93, 0xC))
    put(CODE64, descriptor(0, 0xFFFFF, 0x9B, 0xA))
    # The way to real mode takes offsets from the stub's beginning.
    put(CODE16, descriptor(STUB_BASE, 0xFFFF, 0x9B, 0))
    put(DATA16, descriptor(0, 0xFFFF, 0x93, 0))
    put(USER32, descriptor(0, 0xFFFFF, 0xFB, 0xC))
    put(USER_SEGMENT, descriptor(0, 0xFFFFF, 0xF3, 0xC))
    put(USER64, descriptor(0, 0xFFFFF, 0xFB, 0xA))
    put(USER16, descriptor(CODE, 0xFFFF, 0xFB, 0))
    for vcpu in range(8):
        limit = 0x67
        each = descriptor(TSS + vcpu * 256, limit, 0x89, 0)
        put(FIRST_TSS + vcpu * 16, each + (bytes(8) if long_mode else b""))
    put(FAULT_TSS, descriptor(TSS + 0xF00, 0x67, 0x89, 0))
    put(KERNEL16, descriptor(CODE, 0xFFFF, 0x9B, 0))
    put(SEGMENT16, descriptor(SEGMENT16_BASE, 0xFFFF, 0xF3, 0))
    for selector in RANDOM_SEGMENTS:
        kind = rng.choice(
            (0x9B, 0x93, 0xF3, 0xFB, 0xF7, 0x97, 0x82, 0x8C, 0x89, rng.randrange(256))
        )
        base = rng.choice((0, CODE, USER_DATA + 0xFF8, rng.getrandbits(32)))
        limit = rng.choice((0xFFFFF, 0, 0xFFF, rng.getrandbits(20)))
        put(selector, descriptor(base, limit, kind, rng.randrange(16)))
    return bytes(table)


def tss(long_mode: bool, cr3: int) -> bytes:
    """A page with the TSS of every vCPU."""
    page = bytearray(PAGE)
    for vcpu in range(8):
        top = STACKS + (vcpu + 1) * PAGE - 16
        at = vcpu * 256
        if long_mode:
            # RSP0 to RSP2, then IST1 to IST7: one stack for all, since none is used twice.
            struct.pack_into("<3Q", page, at + 4, top, top, top)
            struct.pack_into("<7Q", page, at + 36, *[top] * 7)
        else:
            struct.pack_into("<II", page, at + 4, top, DATA32)
        struct.pack_into("<H", page, at + 102, 104)
    if not long_mode:
        values = [0] * 26
        values[1], values[2] = STACKS + PAGE - 512, DATA32
        values[7], values[8], values[9] = cr3, stub().symbols["next32"], 2
        values[14] = STACKS + PAGE - 512
        values[18:24] = [DATA32, CODE32, DATA32, DATA32, DATA32, DATA32]
        values[25] = 104 << 16
        struct.pack_into("<26I", page, 0xF00, *values)
    return bytes(page)


def gate(long_mode: bool, selector: int, target: int, kind: int, ist: int = 0) -> bytes:
    """An IDT entry; `kind` is its type, DPL and presence."""
    low = struct.pack("<HHBBH", target & 0xFFFF, selector, ist, kind, target >> 16 & 0xFFFF)
    return low + struct.pack("<II", target >> 32, 0) if long_mode else low


def idt(rng: Random, bits: int, wild: float) -> bytes:
    """An IDT (or, for 16 bits, an IVT): a share of `wild` vectors leads anywhere.

    Exceptions go on with the next case, or a byte further on; the timer's vector counts.
    """
    symbols = stub().symbols
    table = bytearray()
    for vector in range(256):
        if vector == TIMER_VECTOR:
            name = "tick"
        elif vector < 32:
            skips = rng.random() < 0.5 and vector not in (8, 18)
            name = "next" if not skips or vector == 2 else "skip"
        else:
            name = rng.choice(("eoi", "eoi", "next", "skip"))
        if name == "skip" and vector in ERROR_CODES and bits != 16:
            name = "skip%de"
        target = symbols[name % bits if "%" in name else f"{name}{bits}"]
        strange = rng.random() < wild and vector not in (TIMER_VECTOR, 8)
        if strange:
            target = rng.choice((CODE + rng.randrange(0x10000), rng.getrandbits(32), target))
        if bits == 16:
            offset = target - STUB_BASE & 0xFFFF
            segment = STUB_BASE >> 4
            if strange:
                segment = rng.choice((segment, REAL_CODE >> 4, rng.getrandbits(16)))
            table += struct.pack("<HH", offset, segment)
            continue
        long_mode = bits == 64
        selector = CODE64 if long_mode else CODE32
        kind = rng.choice((0x8E, 0xEE, 0xEF, 0x8F))
        if vector == TIMER_VECTOR:
            kind = 0x8E
        ist = 1
        if strange:
            selector = rng.choice((selector, CODE32, USER64, rng.choice(RANDOM_SEGMENTS), 0))
            kind = rng.choice((kind, 0x0E, 0xE5, 0x86, rng.randrange(256)))
            ist = rng.choice((0, 1, 7))
        if vector == 8 and not long_mode and not strange:
            selector, target, kind = FAULT_TSS, 0, 0x85
        table += gate(long_mode, selector, target, kind, ist if long_mode else 0)
    return bytes(table)


MMIO = (0xFEE00000, 0xFEC00000, 0xFED00000, 0xB0000000, 0xB00F8000, 0xA0000, 0xC0000, 0xF0000)
"""Physical pages behind which no RAM lies, or tables of the firmware."""


def target(rng: Random, memory: int, wild: float) -> int:
    """A physical page for the window of aliases."""
    if rng.random() < wild:
        where = (*MMIO, memory, memory + 0x1000, 0x8000_0000, 0xFFFF_F000, 0x1_0000_0000)
        wide = rng.getrandbits(40) & ~0xFFF
        return rng.choice((*where, TABLES + rng.randrange(10) * PAGE, IDT, GDT, TSS, wide))
    if rng.random() < 0.6:
        return CODE + rng.randrange(CODE_PAGES) * PAGE
    return SPACE + rng.randrange((SPACE_END - SPACE) // PAGE) * PAGE


def leaf(rng: Random, page: int, wild: float, long_mode: bool) -> int:
    """A page-table entry for an alias: mostly all is allowed."""
    entry = page | 7
    if rng.random() < 0.15:
        entry ^= 1 << rng.choice((1, 2, 3, 4, 5, 6, 7, 8))
    if long_mode and rng.random() < 0.05 + wild / 4:
        entry |= 1 << rng.choice((63, 63, 51, 40, 52))
    if rng.random() < 0.08:
        entry &= ~1
    return entry


def tables64(rng: Random, memory: int, wild: float) -> bytes:
    """Four-level tables: 4 GiB as they are, the window of aliases, the space for users, and the
    upper half a mirror of the lower one."""
    pml4, pdpt = [0] * 512, [0] * 512
    pml4[0] = TABLES + 0x1000 | 7
    pml4[511] = pml4[0]
    pml4[256] = rng.choice((0, TABLES | 7, TABLES + 0x1000 | 3))
    directories = []
    for index in range(4):
        pdpt[index] = TABLES + 0x2000 + index * PAGE | 7
        entries = [(index << 30) + (n << 21) | 0x83 for n in range(512)]
        directories.append(entries)
    pdpt[4] = rng.choice((0, 0x83, 1 << 30 | 0x87, TABLES + 0x1000 | 7))
    for index in range(4):
        directories[0][index] = TABLES + 0x6000 + index * PAGE | 7
    # A large page that users may use, and that lies over the code.
    directories[0][8] = CODE | 0x87 if rng.random() < 0.7 else TABLES + 0x8000 | 7
    pages = [[n * PAGE | 3 for n in range(first, first + 512)] for first in range(0, 2048, 512)]
    space = range(SPACE // PAGE, SPACE_END // PAGE)
    for number in space:
        pages[number // 512][number % 512] |= 4
        if rng.random() < wild / 8:
            pages[number // 512][number % 512] = leaf(rng, number * PAGE, wild, True)
    for number in range(WINDOW_PAGES):
        pages[2][number] = leaf(rng, target(rng, memory, wild), wild, True)
    tables = [pml4, pdpt, *directories, *pages]
    return b"".join(struct.pack("<512Q", *table) for table in tables)


def tables32(rng: Random, memory: int, wild: float) -> bytes:
    """Two-level tables with 4 MiB pages, and small ones in the first 8 MiB."""
    directory = [n << 22 | 0x87 for n in range(1024)]
    directory[0] = TABLES + 0x1000 | 7
    directory[1] = TABLES + 0x2000 | 7
    directory[2] = rng.choice((TABLES + 0x1000 | 7, TABLES | 7, 0x87))
    pages = [[n * PAGE | 3 for n in range(first, first + 1024)] for first in (0, 1024)]
    for number in range(SPACE // PAGE, SPACE_END // PAGE):
        pages[0][number] |= 4
        if rng.random() < wild / 8:
            pages[0][number] = leaf(rng, number * PAGE, wild, False)
    for number in range(WINDOW_PAGES):
        page = target(rng, memory, wild) & 0xFFFF_F000
        pages[1][number] = leaf(rng, page, wild, False)
    return b"".join(struct.pack("<1024I", *table) for table in (directory, *pages))


def tables_pae(rng: Random, memory: int, wild: float) -> bytes:
    """Three-level tables; the four top entries are a page of their own."""
    top = [TABLES + 0x1000 + index * PAGE | 1 for index in range(4)]
    lower = tables64(rng, memory, wild)[2 * PAGE :]
    # The first four tables of `lower` are the directories; the page tables move down with them.
    directories = [list(struct.unpack_from("<512Q", lower, n * PAGE)) for n in range(4)]
    for index in range(4):
        directories[0][index] = TABLES + 0x5000 + index * PAGE | 7
    directories[0][8] = CODE | 0x87
    head = struct.pack("<4Q", *top).ljust(PAGE, b"\0")
    return head + b"".join(struct.pack("<512Q", *each) for each in directories) + lower[4 * PAGE :]
