"""The modules that a running Linux has loaded: where they are, their symbols and unwind tables.

All of it is in guest memory: `modules` is a list of `struct module`, each of which has a symbol
table like that of an ELF file (what kallsyms shows of it) and the ORC tables of its code. Memory
of a module's initialisation, and the symbols there, are gone once it is loaded.

Source: kernel/module/kallsyms.c and include/linux/module.h in the kernel's sources.
"""

import struct
from dataclasses import dataclass

from rr86.cpu.orc import OrcLayout, OrcTable, orc_of
from rr86.cpu.symbols import Symbol
from rr86.errors import KernelError, SymbolsError
from rr86.kernel.running import RunningKernel

_MOST_MODULES = 4096
_MOST_SYMBOLS = 1 << 20
_LARGEST = 1 << 30
_SYMBOL = struct.Struct("<IBBHQQ")


@dataclass(frozen=True)
class Area:
    """A stretch of a module's memory."""

    base: int
    size: int
    text: bool


@dataclass(frozen=True)
class Module:
    """A module. `state` is "live", "coming", "going" or "unformed", as in /proc/modules."""

    address: int
    name: str
    state: str
    areas: tuple[Area, ...]

    @property
    def base(self) -> int:
        """Where its code begins."""
        return min((area.base for area in self.areas if area.text), default=0)

    def covers(self, address: int) -> bool:
        """Whether a linear address is in the module's memory."""
        return any(0 <= address - area.base < area.size for area in self.areas)


def modules(kernel: RunningKernel) -> list[Module]:
    """The modules, in the order in which they were loaded."""
    try:
        head = kernel.address("modules")
    except SymbolsError:
        return []
    found = kernel.list_of(head, "module", "list", _MOST_MODULES)
    return [_module(kernel, address) for address in reversed(found)]


_STATES = ("live", "coming", "going", "unformed")


def _module(kernel: RunningKernel, address: int) -> Module:
    state = kernel.field(address, "module", "state")
    return Module(
        address,
        kernel.text(address + kernel.offset("module", "name"), 56),
        _STATES[state] if state < len(_STATES) else "unformed",
        tuple(area for area in _areas(kernel, address) if area.base and area.size),
    )


def _areas(kernel: RunningKernel, module: int) -> list[Area]:
    if kernel.btf.has("module", "mem"):
        # Since 6.4, an array by kind of memory.
        kinds = {
            kind: kernel.btf.enumerator(kind)
            for kind in ("MOD_TEXT", "MOD_INIT_TEXT", "MOD_MEM_NUM_TYPES")
        }
        areas = []
        for index in range(kinds["MOD_MEM_NUM_TYPES"] or 0):
            base = kernel.field(module, "module", f"mem[{index}].base")
            size = kernel.field(module, "module", f"mem[{index}].size")
            code = index in (kinds["MOD_TEXT"], kinds["MOD_INIT_TEXT"])
            areas.append(Area(base, size, code))
        return areas
    areas = []
    for layout in ("core_layout", "init_layout"):
        base, size, text = (
            kernel.field(module, "module", f"{layout}.{name}")
            for name in ("base", "size", "text_size")
        )
        text = min(text, size)
        areas += [Area(base, text, True), Area(base + text if base else 0, size - text, False)]
    return areas


def module_symbols(kernel: RunningKernel, module: Module) -> list[Symbol]:
    """A module's symbols at their runtime addresses, as /proc/kallsyms lists them; with sizes, and
    types in nm's letters."""
    table = kernel.field(module.address, "module", "kallsyms")
    if not table:
        return []
    symtab, count, strtab, typetab = (
        kernel.field(table, "mod_kallsyms", name)
        for name in ("symtab", "num_symtab", "strtab", "typetab")
    )
    if count > _MOST_SYMBOLS:
        raise KernelError(f"module {module.name} claims to have {count:,} symbols")
    rows = list(_SYMBOL.iter_unpack(kernel.bytes_at(symtab, count * _SYMBOL.size)))
    kinds = kernel.bytes_at(typetab, count).decode("latin-1")
    names = _Strings(kernel, strtab)
    found = []
    for (name, _, _, _, value, size), kind in zip(rows, kinds, strict=True):
        text = names.at(name)
        if text:
            found.append(Symbol(value, kind, text, size))
    return found


class _Strings:
    """A table of strings of unknown length."""

    _STEP = 4096

    def __init__(self, kernel: RunningKernel, start: int) -> None:
        self._kernel = kernel
        self._start = start
        self._data = b""

    def at(self, offset: int) -> str:
        """The string that begins there."""
        while True:
            end = self._data.find(b"\0", offset)
            if end >= 0:
                return self._data[offset:end].decode("utf-8", "replace")
            at = self._start + len(self._data)
            # To the end of a page: what comes after it may not be mapped.
            more = self._kernel.read(at, self._STEP - at % self._STEP)
            if not more or len(self._data) > _LARGEST:
                return ""
            self._data += more


def module_orc(kernel: RunningKernel, module: Module) -> OrcTable | None:
    """A module's ORC table with runtime addresses; None if it has none, or while it is being
    sorted."""
    count, ips, rows = (
        kernel.field(module.address, "module", f"arch.{name}")
        for name in ("num_orcs", "orc_unwind_ip", "orc_unwind")
    )
    if not count or count * 6 > _LARGEST:
        return None
    distances = struct.unpack(f"<{count}i", kernel.bytes_at(ips, 4 * count))
    addresses = [ips + 4 * index + value for index, value in enumerate(distances)]
    if addresses != sorted(addresses):
        return None
    return OrcTable(addresses, kernel.bytes_at(rows, 6 * count), _layout(kernel))


def _layout(kernel: RunningKernel) -> OrcLayout | None:
    own = orc_of(kernel.inspector.symbols.kernel)
    return None if own is None else own.layout


def section_addresses(kernel: RunningKernel, module: Module) -> dict[str, int]:
    """Where each section of a module's file is, as in /sys/module/NAME/sections; empty for a kernel
    without them (CONFIG_KALLSYMS is off). Debuggers need these to load the file."""
    table = kernel.field(module.address, "module", "sect_attrs")
    if not table:
        return {}
    step = kernel.btf.struct("module_sect_attr").size
    first = table + kernel.offset("module_sect_attrs", "attrs")
    found = {}
    for index in range(min(kernel.field(table, "module_sect_attrs", "nsections"), 1024)):
        row = first + step * index
        name = kernel.field(row, "module_sect_attr", "battr.attr.name")
        address = kernel.field(row, "module_sect_attr", "address")
        # Those of initialisation are gone.
        if module.covers(address):
            found[kernel.text(name, 256)] = address
    return found
