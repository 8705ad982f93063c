"""The chunks of a trace file, taken apart and put together as docs/trace-format.md says, for tests
that damage what checksums would otherwise protect."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import zstandard

FOOTER, INDEX, STATE, PAGES = 5, 6, 7, 8
HEADER = 56


def _table() -> list[int]:
    rows = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        rows.append(value)
    return rows


_CRC = _table()


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


@dataclass(frozen=True)
class Chunk:
    """A chunk: the fixed header as it was, the table, and the payload as stored."""

    head: bytes
    table: bytes
    payload: bytes

    @property
    def kind(self) -> int:
        return self.head[4]

    @property
    def raw_len(self) -> int:
        return int(struct.unpack_from("<I", self.head, 20)[0])

    def content(self) -> bytes:
        """The payload, decompressed."""
        if self.head[5] == 0:
            return self.payload
        return zstandard.ZstdDecompressor().decompress(self.payload, max_output_size=self.raw_len)

    def holding(self, content: bytes) -> Chunk:
        """The chunk with another payload, stored verbatim."""
        head = bytearray(self.head)
        head[5] = 0
        struct.pack_into("<I", head, 20, len(content))
        return replace(self, head=bytes(head), payload=content)

    def numbered(self, sequence: int) -> bytes:
        """The chunk's bytes, all lengths and checksums made to fit."""
        head = bytearray(self.head)
        struct.pack_into("<I", head, 8, sequence)
        struct.pack_into("<I", head, 16, len(self.table))
        struct.pack_into("<I", head, 24, len(self.payload))
        struct.pack_into("<I", head, 28, crc32c(self.table))
        struct.pack_into("<I", head, 48, crc32c(self.payload))
        struct.pack_into("<I", head, 52, crc32c(bytes(head[:52])))
        return bytes(head) + self.table + self.payload


def chunks(data: bytes) -> list[Chunk]:
    """All chunks of a finished trace."""
    found = []
    at = 16
    while data[at : at + 4] == b"rr8c":
        head = data[at : at + HEADER]
        table_len, _, stored = struct.unpack_from("<III", head, 16)
        middle = at + HEADER + table_len
        found.append(Chunk(head, data[at + HEADER : middle], data[middle : middle + stored]))
        at = middle + stored
    return found


def rewrite(source: Path, target: Path, change: Callable[[list[Chunk]], Iterable[Chunk]]) -> None:
    """Copy a trace with its chunks changed; the copy has no index, as if it had not been ended."""
    data = source.read_bytes()
    kept = [chunk for chunk in chunks(data) if chunk.kind not in (FOOTER, INDEX)]
    changed = change(kept)
    target.write_bytes(data[:16] + b"".join(c.numbered(n) for n, c in enumerate(changed)))
