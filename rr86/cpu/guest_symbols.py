"""The symbols of a guest, from its kernel image.

They are read when they are first asked for, because unpacking a kernel takes most of a second.
"""

import functools
from typing import TYPE_CHECKING

from rr86.cpu.symbols import Symbol, SymbolTable
from rr86.errors import KernelImageError

if TYPE_CHECKING:
    from rr86.cpu.elf import ElfFile
    from rr86.cpu.vmlinux import Vmlinux


def _kind_of_elf(executable: bool, stt: int, local: bool) -> str:
    letter = "t" if executable else "d" if stt in (0, 1) else "n"
    return letter if local else letter.upper()


def elf_symbols(elf: "ElfFile") -> list[Symbol]:
    """The symbols of an ELF guest's own symbol table."""
    return [
        Symbol(
            each.address, _kind_of_elf(each.executable, each.kind, each.local), each.name, each.size
        )
        for each in elf.symbols()
    ]


# Sessions of one trace have the same kernel, and unpacking it takes as long as a replay of a boot.
@functools.lru_cache(maxsize=2)
def open_kernel(image: bytes) -> "Vmlinux":
    """The kernel proper of an image: a bzImage, a vmlinux, or any ELF file (Multiboot guests)."""
    from rr86.cpu.vmlinux import Vmlinux, is_bzimage

    if image[:4] != b"\x7fELF" and not is_bzimage(image):
        raise KernelImageError("the kernel image is neither a bzImage nor an ELF file")
    return Vmlinux(image)


@functools.lru_cache(maxsize=2)
def symbols_of(kernel: "Vmlinux") -> SymbolTable:
    """A kernel's symbols: from its ELF symbol table, or else from its own kallsyms tables."""
    from rr86.cpu.kallsyms import read_kallsyms

    rows = elf_symbols(kernel)
    if rows:
        relocatable = any(row.name == "entry_SYSCALL_64" for row in rows)
        return SymbolTable(rows, relocatable=relocatable)
    return SymbolTable(read_kallsyms(kernel))


class GuestSymbols:
    """A guest's symbols, read from its kernel image when they are first needed.

    `offset` is None until it is known where the kernel put itself; `lstar`, where a recording
    noted it, tells that as soon as the symbols are read.
    """

    def __init__(self, image: bytes, offset: int | None = None, lstar: int = 0) -> None:
        self._image = image
        self._kernel: Vmlinux | None = None
        self._table: SymbolTable | None = None
        self._problem: str | None = None
        self._offset = offset
        self._lstar = lstar

    @property
    def kernel(self) -> "Vmlinux":
        """The kernel proper; `KernelImageError` if the image cannot be unpacked."""
        if self._kernel is None:
            self._kernel = open_kernel(self._image)
        return self._kernel

    @property
    def linked(self) -> SymbolTable | None:
        """The table with link-time addresses, or None if the image has none (see `problem`)."""
        if self._table is None and self._problem is None:
            try:
                self._table = symbols_of(self.kernel)
            except KernelImageError as error:
                self._problem = str(error)
            else:
                self._place()
        return self._table

    def _place(self) -> None:
        from rr86.cpu.kaslr import offset_from_lstar

        if self._offset is None and self._table is not None:
            if not self._table.relocatable:
                self._offset = 0
            else:
                self._offset = offset_from_lstar(self._table, self._lstar)

    @property
    def problem(self) -> str | None:
        """Why there are no symbols; None if there are some, or before they are asked for."""
        return self._problem

    @property
    def offset(self) -> int | None:
        """How far the guest moved itself from its link-time addresses, if that is known yet."""
        return self._offset

    @offset.setter
    def offset(self, value: int | None) -> None:
        self._offset = value

    @property
    def table(self) -> SymbolTable | None:
        """The table with runtime addresses; None while the offset is unknown."""
        linked = self.linked
        if linked is None or self._offset is None:
            return None
        return linked if linked.offset == self._offset else linked.moved(self._offset)

    def lookup(self, address: int) -> str | None:
        """`SymbolTable.lookup`, or None while there is no table."""
        table = self.table
        return None if table is None else table.lookup(address)
