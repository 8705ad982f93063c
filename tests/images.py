"""Small images for tests: an ELF file with symbols, and a kernel with kallsyms tables."""

import struct
from collections.abc import Sequence


def elf(
    symbols: Sequence[tuple[str, int, int]], text: bytes = b"\x90" * 64, base: int = 0x100000
) -> bytes:
    """An ELF64 file with `.text` at `base` and function symbols (name, address, size)."""
    names = b"\0"
    table = bytes(24)
    for name, address, size in symbols:
        table += struct.pack("<IBBHQQ", len(names), 0x12, 0, 1, address, size)
        names += name.encode() + b"\0"
    return _elf([(".text", 1, base, text), (".symtab", 2, 0, table), (".strtab", 3, 0, names)])


def _elf(sections: Sequence[tuple[str, int, int, bytes]]) -> bytes:
    names = b"\0"
    body = b""
    headers = bytes(64)
    start = 64 + 56
    for index, (name, kind, address, data) in enumerate(sections):
        link = index + 2 if kind == 2 else 0
        headers += struct.pack(
            "<IIQQQQIIQQ", len(names), kind, 6, address, start + len(body), len(data), link, 0, 8, 0
        )
        names += name.encode() + b"\0"
        body += data + bytes(-len(data) % 8)
    headers += struct.pack(
        "<IIQQQQIIQQ", len(names), 3, 0, 0, start + len(body), len(names) + 10, 0, 0, 1, 0
    )
    names += b".shstrtab\0"
    body += names + bytes(-len(names) % 8)
    count = len(sections) + 2
    first = sections[0]
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack(
        "<HHIQQQIHHHHHH",
        2,
        62,
        1,
        first[2],
        64,
        start + len(body),
        0,
        64,
        56,
        1,
        64,
        count,
        count - 1,
    )
    head += struct.pack(
        "<IIQQQQQQ", 1, 5, start, first[2], first[2], len(first[3]), len(first[3]), 8
    )
    return head + body + headers


def vmlinux(rodata: bytes, address: int = 0xFFFFFFFF82000000) -> bytes:
    """A stripped kernel that has nothing but `.rodata`."""
    return _elf([(".rodata", 1, address, rodata)])


def kallsyms(
    symbols: Sequence[tuple[int, str, str]],
    *,
    new_order: bool = False,
    sequences: bool = False,
    base: int = 0xFFFFFFFF81000000,
    per_cpu: bool = True,
) -> bytes:
    """kallsyms tables as scripts/kallsyms.c lays them out, amid other data."""
    tokens = [bytes([code]) for code in range(256)]
    tokens[0x01], tokens[0x02] = b"asm_", b"handler"
    # Bytes that no symbol contains stand for other strings; NUL can never be a token.
    tokens[0x00] = b"zz_"
    for code in (*range(0x03, 0x2E), 0x2F, *range(0x3A, 0x41), *range(0x80, 256)):
        tokens[code] = b"t%02x" % code

    def pad(data: bytes) -> bytes:
        return data + bytes(-len(data) % 8)

    names = b""
    markers = []
    for index, (_, kind, name) in enumerate(symbols):
        if index % 256 == 0:
            markers.append(len(names))
        packed = (kind + name).encode().replace(b"asm_", b"\x01").replace(b"handler", b"\x02")
        length = len(packed)
        names += (
            bytes([length & 0x7F | 0x80, length >> 7]) if length > 127 else bytes([length])
        ) + packed
    offsets = b""
    for address, _, _ in symbols:
        if not per_cpu:
            offsets += struct.pack("<I", address - base)
        elif address < 1 << 31:
            offsets += struct.pack("<i", address)
        else:
            offsets += struct.pack("<i", base - 1 - address)
    relative = pad(offsets) + struct.pack("<Q", base)
    table, index_table = b"", b""
    for token in tokens:
        index_table += struct.pack("<H", len(table))
        table += token + b"\0"
    count = struct.pack("<Q", len(symbols))
    marks = struct.pack(f"<{len(markers)}I", *markers)
    seqs = pad(b"\x01\x02\x03" * len(symbols)) if sequences else b""
    strings = pad(table) + pad(index_table)
    if new_order:
        body = count + pad(names) + pad(marks) + strings + relative + seqs
    else:
        body = relative + count + pad(names) + pad(marks) + seqs + strings
    return b"noise \x00\x01" * 100 + body + b"more noise" * 20
