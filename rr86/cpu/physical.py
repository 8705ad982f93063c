"""Names for physical addresses of a Linux guest, without looking at its page tables.

Two stretches of physical memory have names: the kernel's image, which is contiguous, so that one
distance between virtual and physical address says all; and each CPU's area of per-CPU variables,
whose first chunk is contiguous too (setup_per_cpu_areas in the kernel's sources). Everything else
(pages, slabs, stacks) was allocated, and has none. Nor have the parts of the image that Linux gives
to its page allocator at the end of the boot (free_initmem and its like): a trace does not tell when
that was, and from then on anything may lie there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from rr86.cpu.symbols import Symbol, SymbolTable
from rr86.errors import SymbolsError

_KERNEL_HALF = 1 << 63
# The direct map of all memory spans 64 TiB with four levels of page tables.
_DIRECT_MAP = 1 << 46
_PAGE = 4096
# First and last symbol of what Linux frees of its own image, in whole pages: code and data of
# initialisation, lists of lock prefixes, the unused end of .brk, and the gaps between sections.
_RECYCLED = (
    ("__init_begin", "__init_end"),
    ("__smp_locks", "__smp_locks_end"),
    ("__brk_base", "__brk_limit"),
    ("_etext", "__start_rodata"),
    ("__end_rodata", "_sdata"),
)


@dataclass(frozen=True, slots=True)
class Mapped:
    """A linear address of the kernel's, and the physical one that it was mapped to."""

    virtual: int
    physical: int


class PhysicalNames:
    """A guest's symbols by physical address.

    `image` is any mapped address of the kernel's image (None: the image lies at the addresses that
    it was linked for), `per_cpu` each vCPU's per-CPU base, None where it was not found.
    """

    def __init__(
        self,
        table: SymbolTable | None,
        image: Mapped | None = None,
        per_cpu: Sequence[Mapped | None] = (),
    ) -> None:
        self._table = table
        self._bias = 0 if image is None else image.virtual - image.physical
        self._per_cpu = tuple(per_cpu)

    @property
    def known(self) -> bool:
        """Whether there are symbols whose place is known."""
        return self._table is not None

    @cached_property
    def _extent(self) -> tuple[int, int]:
        """First and last linear address of the kernel's image."""
        assert self._table is not None
        try:
            return self._table.address("_text"), self._table.address("_end")
        except SymbolsError:
            return 0, _KERNEL_HALF

    @cached_property
    def _recycled(self) -> list[range]:
        """Linear addresses of the kernel's image where something else may lie by now."""
        table = self._table
        if table is None or not table.relocatable:
            return []
        found = []
        for first, last in _RECYCLED:
            start, end = table.link_address(first), table.link_address(last)
            if start is not None and end is not None:
                # Only whole pages are given away.
                start, end = start + table.offset, end + table.offset
                found.append(range((start + _PAGE - 1) & -_PAGE, end & -_PAGE))
        return found

    @cached_property
    def _variables(self) -> SymbolTable | None:
        """Per-CPU variables by their offset in the area."""
        if self._table is None or not self._table.relocatable:
            return None
        end = self._table.link_address("__per_cpu_end")
        if end is None:
            return None
        rows = [row for address, row in self._table.search() if row.address < end]
        return SymbolTable([*rows, Symbol(end, "A", "__per_cpu_end")], relocatable=False)

    def lookup(self, paddr: int) -> str | None:
        """`name+0x1c`, or `name+0x1c (CPU 2)` for a per-CPU variable; None for what has no name."""
        if self._table is None:
            return None
        virtual = paddr + self._bias
        first, end = self._extent
        if first <= virtual < end:
            recycled = any(virtual in each for each in self._recycled)
            return None if recycled else self._table.lookup(virtual)
        variables = self._variables
        if variables is None:
            return None
        size = variables.address("__per_cpu_end")
        for cpu, base in enumerate(self._per_cpu):
            if base is not None and 0 <= paddr - base.physical < size:
                name = variables.lookup(paddr - base.physical)
                return None if name is None else f"{name} (CPU {cpu})"
        return None

    def ranges(self, name: str) -> list[tuple[int, int]]:
        """(physical address, length) of a symbol: one stretch, or one for each CPU."""
        if self._table is None:
            raise SymbolsError("the trace has no symbols", symbol=name)
        address = self._table.address(name)
        variables = self._variables
        if variables is not None and variables.link_address(name) == address:
            size = variables.size_at(address)
            return [(base.physical + address, size) for base in self._per_cpu if base is not None]
        return [(address - self._bias, self._table.size_at(address))]

    def physical(self, address: int) -> int | None:
        """The physical address that a kernel's linear address stands for; a low one is physical
        already. None where neither image nor direct map has it."""
        if address < _KERNEL_HALF:
            return address
        if self._table is not None and self._extent[0] <= address < self._extent[1]:
            return address - self._bias
        known = next((base for base in self._per_cpu if base is not None), None)
        if known is not None:
            start = known.virtual - known.physical
            if start <= address < start + _DIRECT_MAP:
                return address - start
        return None
