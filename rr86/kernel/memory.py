"""A Linux kernel's linear memory, read without the help of any vCPU.

A vCPU that waits for its start maps nothing of the kernel's, and one that runs a program may map
next to nothing (page table isolation). So the kernel's image is read by its distance from physical
memory, which never changes, and everything else by the kernel's own page tables
(`init_top_pgt`), from guest RAM. Programs have page tables of their own.

Source: Intel SDM volume 3, section 4.5, and Documentation/arch/x86/x86_64/mm.rst in the kernel's
sources.
"""

import struct
from collections.abc import Callable, Iterator

from rr86.errors import NativeError

ReadPhysical = Callable[[int, int], bytes]

PAGE = 4096
KERNEL_HALF = 1 << 63
_PRESENT, _LARGE = 1, 1 << 7
_ADDRESS = 0x000F_FFFF_FFFF_F000
_LA57 = 1 << 12


class PageTables:
    """Page tables in guest RAM, from their root on."""

    def __init__(self, read: ReadPhysical, root: int, levels: int = 4) -> None:
        self._read = read
        self.root = root & _ADDRESS
        self.levels = levels
        self._top = 12 + 9 * (levels - 1)

    def translate(self, address: int) -> int | None:
        """The physical address of a linear one; None where it is not mapped."""
        table, shift = self.root, self._top
        while True:
            raw = self._read(table + (address >> shift & 511) * 8, 8)
            entry = int.from_bytes(raw, "little")
            if len(raw) != 8 or not entry & _PRESENT:
                return None
            if shift == 12 or (shift <= 30 and entry & _LARGE):
                inside = (1 << shift) - 1
                return (entry & _ADDRESS & ~inside) | (address & inside)
            table, shift = entry & _ADDRESS, shift - 9

    def mapped(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """What is mapped between two addresses: linear and physical address and length of each
        piece, in ascending order. Neighbours in both are one piece."""
        piece: tuple[int, int, int] | None = None
        for address, paddr, length in self._leaves(self.root, self._top, 0, first, last):
            if piece is not None and (piece[0] + piece[2], piece[1] + piece[2]) == (address, paddr):
                piece = piece[0], piece[1], piece[2] + length
                continue
            if piece is not None:
                yield piece
            piece = address, paddr, length
        if piece is not None:
            yield piece

    def _leaves(
        self, table: int, shift: int, base: int, first: int, last: int
    ) -> Iterator[tuple[int, int, int]]:
        raw = self._read(table, PAGE)
        if len(raw) != PAGE:
            return
        for index, entry in enumerate(struct.unpack("<512Q", raw)):
            address = base + (index << shift)
            if shift == self._top and index >= 256:
                address |= -1 << (shift + 9) & (1 << 64) - 1
            if not entry & _PRESENT or address > last or address + (1 << shift) <= first:
                continue
            if shift == 12 or (shift <= 30 and entry & _LARGE):
                yield address, entry & _ADDRESS & -1 << shift, 1 << shift
            else:
                yield from self._leaves(entry & _ADDRESS, shift - 9, address, first, last)

    def read(self, address: int, length: int) -> bytes:
        """Linear memory; short at the first page that is not mapped, or not RAM."""
        parts = []
        while length > 0:
            size = min(length, PAGE - address % PAGE)
            paddr = self.translate(address)
            part = b"" if paddr is None else self._read(paddr, size)
            parts.append(part)
            if len(part) < size:
                break
            address += size
            length -= size
        return parts[0] if len(parts) == 1 else b"".join(parts)


def ram(read_physical: ReadPhysical) -> ReadPhysical:
    """The same reader, which answers with nothing where there is no RAM."""

    def read(paddr: int, length: int) -> bytes:
        try:
            return read_physical(paddr, length)
        except NativeError:
            return b""

    return read


def levels_of(cr4: int) -> int:
    """Levels of page tables in 64-bit mode (CR4.LA57)."""
    return 5 if cr4 & _LA57 else 4
