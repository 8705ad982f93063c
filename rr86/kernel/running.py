"""A Linux kernel that runs in a guest: its memory, variables and types.

All that is known of it in advance is its image (symbols, BTF) and, once it has placed itself, how
far it moved. Everything else is looked up in guest memory when it is asked for, so that it is right
at every moment of a replay, in whichever direction that is moved.
"""

import functools
from typing import TYPE_CHECKING

from rr86.errors import KernelError, KernelImageError, SymbolsError
from rr86.kernel.btf import Btf, Member, btf_of
from rr86.kernel.memory import KERNEL_HALF, PageTables, levels_of, ram

if TYPE_CHECKING:
    from rr86.cpu.inspection import Inspector
    from rr86.cpu.symbols import SymbolTable

_CR0_PG = 1 << 31
# A symbol of the image that every kernel maps at all times, also while a program runs.
_ALWAYS_MAPPED = ("entry_SYSCALL_64", "_text")


class RunningKernel:
    """The Linux of a stopped guest. It may be made once for a session and asked at any moment.

    What is asked before the kernel has placed itself, or of a guest that is no Linux, raises
    `KernelError`.
    """

    def __init__(self, inspector: "Inspector") -> None:
        self.inspector = inspector
        self.read_physical = ram(inspector.memory)
        self._bias: int | None = None
        self._members: dict[tuple[str, str], Member] = {}

    @property
    def symbols(self) -> "SymbolTable":
        """The kernel's symbols at their runtime addresses."""
        self.inspector.locate_kernel()
        symbols = self.inspector.symbols
        table = symbols.table
        if table is None:
            why = symbols.problem or "the kernel has not placed itself yet"
            raise KernelError(f"nothing is known of the guest's kernel: {why}")
        if not table.relocatable:
            raise KernelError("the guest is no Linux")
        return table

    @functools.cached_property
    def btf(self) -> Btf:
        """The kernel's types."""
        try:
            found = btf_of(self.inspector.symbols.kernel)
        except KernelImageError as error:
            raise KernelError(str(error)) from None
        if found is None:
            raise KernelError("the guest's kernel carries no types (CONFIG_DEBUG_INFO_BTF is off)")
        return found

    def offset(self, struct: str, path: str) -> int:
        """Where a member is in a struct, in bytes."""
        return self.member(struct, path).offset

    def member(self, struct: str, path: str) -> Member:
        """A member of a struct; see `Btf.member`."""
        known = self._members.get((struct, path))
        if known is None:
            try:
                known = self.btf.member(struct, path)
            except KernelImageError as error:
                raise KernelError(str(error)) from None
            self._members[struct, path] = known
        return known

    # -- memory ------------------------------------------------------------------------------------

    @property
    def bias(self) -> int:
        """The distance from a linear address of the image to its physical one."""
        if self._bias is None:
            self._bias = self._find_bias()
        return self._bias

    def _find_bias(self) -> int:
        table = self.symbols
        for vcpu in range(self.inspector.vcpus):
            registers = self.inspector.registers(vcpu)
            if not registers["cr0"] & _CR0_PG:
                continue
            pages = PageTables(self.read_physical, registers["cr3"], levels_of(registers["cr4"]))
            for name in _ALWAYS_MAPPED:
                linked = table.link_address(name)
                paddr = None if linked is None else pages.translate(linked + table.offset)
                if linked is not None and paddr is not None:
                    return linked + table.offset - paddr
        raise KernelError("no vCPU maps the guest's kernel yet")

    @functools.cached_property
    def _extent(self) -> tuple[int, int]:
        return self.symbols.address("_text"), self.symbols.address("_end")

    @functools.cached_property
    def page_tables(self) -> PageTables:
        """The kernel's own page tables, which map all of its linear memory."""
        table = self.symbols
        for name in ("init_top_pgt", "swapper_pg_dir"):
            if table.link_address(name) is not None:
                levels = 5 if self._five_levels() else 4
                return PageTables(self.read_physical, table.address(name) - self.bias, levels)
        raise KernelError("the guest's kernel does not say where its page tables are")

    def _five_levels(self) -> bool:
        return any(
            levels_of(self.inspector.registers(vcpu)["cr4"]) == 5
            for vcpu in range(self.inspector.vcpus)
        )

    @functools.cached_property
    def _direct_map_at(self) -> tuple[int, int] | None:
        """Physical addresses of the variables that say where the direct map of all memory begins
        and where what comes after it begins; None in kernels in which it does not move."""
        try:
            first, after = self.address("page_offset_base"), self.address("vmalloc_base")
        except SymbolsError:
            return None
        return first - self.bias, after - self.bias

    def _straight(self, address: int, length: int) -> int | None:
        """The physical address of linear memory that is mapped in one piece, in the image or in
        the direct map; None for all other memory."""
        start, end = self._extent
        if start <= address and address + length <= end:
            return address - self.bias
        if self._direct_map_at is not None:
            first, after = (
                int.from_bytes(self.read_physical(each, 8), "little")
                for each in self._direct_map_at
            )
            if first <= address and address + length <= after:
                return address - first
        return None

    def translate(self, address: int) -> int | None:
        """The physical address of a linear one of the kernel's; None where it is not mapped."""
        paddr = self._straight(address, 1)
        return self.page_tables.translate(address) if paddr is None else paddr

    def read(self, address: int, length: int) -> bytes:
        """The kernel's linear memory; short where a page is not mapped."""
        paddr = self._straight(address, length)
        if paddr is None:
            return self.page_tables.read(address, length)
        return self.read_physical(paddr, length)

    def bytes_at(self, address: int, length: int) -> bytes:
        """The kernel's linear memory; `KernelError` where that is not mapped as a whole."""
        data = self.read(address, length)
        if len(data) != length:
            raise KernelError(f"the guest's kernel maps nothing at {address + len(data):#x}")
        return data

    def number(self, address: int, size: int = 8) -> int:
        """An unsigned number in memory."""
        return int.from_bytes(self.bytes_at(address, size), "little")

    def field(self, address: int, struct: str, path: str) -> int:
        """A member of a struct, as an unsigned number or pointer."""
        found = self.member(struct, path)
        value = self.number(address + found.offset, found.size)
        return value >> found.bit & (1 << found.bits) - 1 if found.bits else value

    def text(self, address: int, longest: int) -> str:
        """A string that ends with a zero byte, or after so many bytes."""
        return self.read(address, longest).split(b"\0")[0].decode("utf-8", "replace")

    # -- variables ---------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Whether the kernel has a symbol of this name."""
        return self.symbols.link_address(name) is not None

    def address(self, name: str) -> int:
        """The linear address of a symbol. Raises `SymbolsError` if there is none."""
        return self.symbols.address(name)

    def per_cpu_offset(self, cpu: int) -> int:
        """What is added to a per-CPU variable's address for the one of this CPU."""
        return self.number(self.address("__per_cpu_offset") + 8 * cpu)

    def per_cpu(self, name: str, cpu: int) -> int:
        """The linear address of a CPU's per-CPU variable."""
        return self.address(name) + self.per_cpu_offset(cpu) & (1 << 64) - 1

    def list_of(self, head: int, struct: str, path: str, most: int) -> "list[int]":
        """Addresses of the structs in a `list_head`, which are linked by the member `path`.

        A moment may be in the middle of a change, so what leads nowhere ends the list.
        """
        offset = self.offset(struct, path)
        found: list[int] = []
        seen = {head}
        at = int.from_bytes(self.read(head, 8), "little")
        while at not in seen and at >= KERNEL_HALF and len(found) < most:
            seen.add(at)
            found.append(at - offset)
            at = int.from_bytes(self.read(at, 8), "little")
        return found
