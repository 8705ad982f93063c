"""Names for addresses, and addresses for names.

A `SymbolTable` holds link-time addresses and an offset by which the guest moved itself (KASLR);
per-CPU symbols, which Linux links at 0, stay where they are. `rr86.cpu.guest_symbols` has the table
of a guest's kernel.
"""

import fnmatch
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from rr86.errors import SymbolsError

_TEXT_KINDS = frozenset("tTwW")
# How far past a symbol of unknown size an address may be and still be named after it.
_FARTHEST = 1 << 24
_PER_CPU_END = 1 << 24


class Symbol(NamedTuple):
    """A symbol: link-time address, nm's type letter, name, and size (0: up to the next one)."""

    address: int
    kind: str
    name: str
    size: int = 0

    @property
    def is_text(self) -> bool:
        """Whether it names code."""
        return self.kind in _TEXT_KINDS


class SymbolTable:
    """Symbols by address and by name, moved by `offset` bytes."""

    def __init__(
        self, symbols: Iterable[Symbol], offset: int = 0, relocatable: bool = True
    ) -> None:
        rows = sorted(symbols, key=lambda symbol: symbol.address)
        # Relocatable kernels link per-CPU variables at 0; those addresses mean nothing by
        # themselves and would name every null pointer.
        self._rows = [row for row in rows if not relocatable or row.address >= _PER_CPU_END]
        self._addresses = [row.address for row in self._rows]
        self._by_name: dict[str, Symbol] = {}
        for row in rows:
            self._by_name.setdefault(row.name, row)
        self._all = rows
        self.relocatable = relocatable
        self.offset = offset

    def __len__(self) -> int:
        return len(self._all)

    def moved(self, offset: int) -> "SymbolTable":
        """The same symbols at another offset (sharing everything else)."""
        other = object.__new__(SymbolTable)
        other.__dict__.update(self.__dict__)
        other.offset = offset
        return other

    def link_address(self, name: str) -> int | None:
        """Where the symbol was linked, before any KASLR."""
        symbol = self._by_name.get(name)
        return None if symbol is None else symbol.address

    def runtime_address(self, symbol: Symbol) -> int:
        """Where a symbol is in the running guest."""
        if self.relocatable and symbol.address < _PER_CPU_END:
            return symbol.address
        return symbol.address + self.offset & 0xFFFF_FFFF_FFFF_FFFF

    def address(self, name: str) -> int:
        """The runtime address of a symbol; `SymbolsError`, with near names, if there is none."""
        symbol = self._by_name.get(name)
        if symbol is None:
            import difflib

            near = difflib.get_close_matches(name, self._by_name, n=3, cutoff=0.75)
            hint = f"; near names: {', '.join(near)}" if near else ""
            raise SymbolsError(
                f"the guest's kernel has no symbol {name!r}{hint}", symbol=name, near=tuple(near)
            )
        return self.runtime_address(symbol)

    def resolve(self, address: int) -> tuple[Symbol, int] | None:
        """The symbol that a runtime address belongs to, and the distance from its start."""
        linked = address - self.offset
        index = bisect_right(self._addresses, linked) - 1
        if index < 0:
            return None
        start = self._addresses[index]
        distance = linked - start
        first = bisect_left(self._addresses, start)
        same = self._rows[first : index + 1]
        # Of several names for one place, globals say more than locals, and code more than marks.
        best = min(same, key=lambda row: (not row.is_text, not row.kind.isupper()))
        if best.size and distance >= best.size:
            return None
        if distance >= _FARTHEST or (distance and index + 1 == len(self._rows) and not best.size):
            return None
        return best, distance

    def distance_to_next(self, address: int) -> int | None:
        """Bytes from a runtime address to the next symbol's; None behind the last one."""
        linked = address - self.offset
        index = bisect_right(self._addresses, linked)
        return self._addresses[index] - linked if index < len(self._addresses) else None

    def is_per_cpu(self, linked: int) -> bool:
        """Whether a link-time address is that of a per-CPU variable."""
        return self.relocatable and linked < _PER_CPU_END

    def size_at(self, address: int) -> int:
        """Bytes from a symbol's runtime address to its end, or to the next symbol's."""
        found = self.resolve(address)
        if found is not None and found[0].size:
            return found[0].size
        return self.distance_to_next(address) or 1

    def lookup(self, address: int) -> str | None:
        """`name` or `name+0x1c` for a runtime address, or None where no symbol covers it."""
        found = self.resolve(address)
        if found is None:
            return None
        symbol, distance = found
        return f"{symbol.name}+{distance:#x}" if distance else symbol.name

    def is_text(self, address: int) -> bool:
        """Whether a runtime address is inside code that has a name."""
        found = self.resolve(address)
        return found is not None and found[0].is_text

    def search(self, pattern: str = "*") -> Iterator[tuple[int, Symbol]]:
        """(runtime address, symbol) of each name that matches a shell-style pattern, in order."""
        for row in self._all:
            if pattern == "*" or fnmatch.fnmatchcase(row.name, pattern):
                yield self.runtime_address(row), row
