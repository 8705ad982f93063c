"""drgn on a stopped guest: a program object that reads guest memory.

drgn takes a core dump by file descriptor. A small one is enough: in memory, with the registers of
the vCPUs and VMCOREINFO, and without any memory, which drgn asks us for. It walks the kernel's page
tables itself.

With a vmlinux that has debugging information, that is all. Without, three finders of ours stand in:
types from the kernel's BTF, symbols from kallsyms (modules included), and objects where both
together say enough: functions, per-CPU variables, enumerators, and those variables whose types BTF
lacks and every user of drgn needs (`_VARIABLES`). drgn unwinds stacks by the kernel's ORC tables,
which it reads from guest memory by these symbols.
"""

import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rr86.cpu.symbols import Symbol
from rr86.errors import KernelError, UsageError
from rr86.kernel.btf import Btf, BtfType, Kind
from rr86.kernel.dump import header, note_header, notes_of
from rr86.kernel.identity import debug_kernel
from rr86.kernel.modules import module_symbols, modules
from rr86.kernel.running import RunningKernel
from rr86.kernel.symbol_file import kernel_symbols

if TYPE_CHECKING:
    import drgn

_HEADERS = 64 + 56
# No more symbols than so many have one address.
_SAME_PLACE = 16
# Types of variables, from the kernel's sources: BTF has those of per-CPU variables only. `[]` is as
# many as the symbol has room for.
_VARIABLES = {
    "init_task": "struct task_struct",
    "init_pid_ns": "struct pid_namespace",
    "init_mm": "struct mm_struct",
    "init_net": "struct net",
    "init_uts_ns": "struct uts_namespace",
    "init_ipc_ns": "struct ipc_namespace",
    "init_user_ns": "struct user_namespace",
    "init_css_set": "struct css_set",
    "init_cred": "struct cred",
    "init_files": "struct files_struct",
    "init_fs": "struct fs_struct",
    "root_task_group": "struct task_group",
    "cgrp_dfl_root": "struct cgroup_root",
    "boot_cpu_data": "struct cpuinfo_x86",
    **dict.fromkeys(
        (
            *("modules", "slab_caches", "net_namespace_list", "super_blocks", "vmap_area_list"),
            *("pci_root_buses", "workqueues", "cgroup_roots"),
        ),
        "struct list_head",
    ),
    **dict.fromkeys(
        ("__cpu_online_mask", "__cpu_possible_mask", "__cpu_present_mask", "__cpu_active_mask"),
        "struct cpumask",
    ),
    **dict.fromkeys(
        (
            *("page_offset_base", "vmalloc_base", "vmemmap_base", "phys_base", "max_pfn"),
            *("max_low_pfn", "min_low_pfn", "max_mapnr", "tainted_mask", "loops_per_jiffy"),
            *("jiffies"),
        ),
        "unsigned long",
    ),
    **dict.fromkeys(("nr_cpu_ids", "nr_node_ids"), "unsigned int"),
    **dict.fromkeys(
        ("nr_irqs", "nr_threads", "panic_on_oops", "oops_in_progress", "pid_max"), "int"
    ),
    **dict.fromkeys(("prog_idr", "map_idr", "link_idr"), "struct idr"),
    "panic_cpu": "atomic_t",
    **dict.fromkeys(("_totalram_pages", "nr_swap_pages"), "atomic_long_t"),
    **dict.fromkeys(("vm_zone_stat", "vm_node_stat"), "atomic_long_t []"),
    "jiffies_64": "u64",
    "total_swap_pages": "long",
    "__per_cpu_offset": "unsigned long []",
    "prb": "struct printk_ringbuffer *",
    "saved_command_line": "char *",
    "mem_section": "struct mem_section **",
    "vmap_area_root": "struct rb_root",
    "irq_desc_tree": "struct xarray",
    "sparse_irqs": "struct maple_tree",
    "system_state": "enum system_states",
    "idt_table": "gate_desc []",
    "block_class": "struct class",
    "class_kset": "struct kset *",
    "pci_bus_type": "struct bus_type",
    "swap_info": "struct swap_info_struct *[]",
    "node_data": "struct pglist_data *[]",
    "node_states": "nodemask_t []",
    "linux_banner": "char []",
}


def program(
    kernel: RunningKernel,
    ram: Sequence[tuple[int, int]],
    vmlinux: Path | None = None,
    debug_info: bool = True,
) -> "drgn.Program":
    """A drgn program for a stopped guest. `ram` are the ranges of guest RAM: physical address and
    length of each.

    It has the types and lines of the `vmlinux` that is named, or of an installed debug package with
    the guest's build-id; with neither, or without `debug_info`, those of BTF. It is good for as
    long as the guest stands where it stands.

    Raises `UsageError` if drgn is not installed, and `KernelError` if no Linux runs yet or the
    vmlinux belongs to another build.
    """
    try:
        import drgn
    except ImportError:
        raise UsageError("drgn is not installed: pip install 'rr86[drgn]'") from None
    found = debug_kernel(kernel, vmlinux) if debug_info or vmlinux is not None else None
    notes, known = notes_of(kernel)
    if not known:
        raise KernelError("no Linux runs in the guest yet, so that drgn can't look into it")
    core = os.memfd_create("rr86-core")
    os.write(core, header(1) + note_header(_HEADERS, len(notes)) + notes)
    prog = drgn.Program()
    # drgn closes it, also where it fails.
    prog.set_core_dump(core)

    def read(address: int, count: int, offset: int, physical: bool) -> bytes:
        data = kernel.read_physical(address, count)
        if len(data) != count:
            raise drgn.FaultError("no guest RAM", address + len(data))
        return data

    for start, length in ram:
        prog.add_memory_segment(start, length, read, True)
    if found is not None:
        prog.load_debug_info([str(found.path)])
    else:
        _Finders(prog, kernel).register()
        _place_modules(prog, kernel)
    return prog


def _place_modules(prog: "drgn.Program", kernel: RunningKernel) -> None:
    """Have drgn know where the kernel and its modules are: it unwinds nothing else."""
    for _ in prog.loaded_modules():
        pass
    main: Any = prog.main_module()
    main.address_ranges = [(kernel.address("_text"), kernel.address("_end"))]


class _Finders:
    """Types, symbols and objects of a kernel without debugging information."""

    def __init__(self, prog: "drgn.Program", kernel: RunningKernel) -> None:
        self._prog = prog
        self._kernel = kernel
        self._types = _Types(prog, kernel.btf)
        self._symbols = _Symbols(kernel)

    def register(self) -> None:
        """Have drgn ask these before all others."""
        self._prog.register_type_finder("rr86", self._find_type, enable_index=0)
        self._prog.register_symbol_finder("rr86", self._symbols.find, enable_index=0)
        self._prog.register_object_finder("rr86", self._find_object, enable_index=0)

    def _find_type(self, prog: Any, kinds: Any, name: str, filename: str | None) -> Any:
        return None if filename else self._types.named(kinds, name)

    def _find_object(self, prog: Any, name: str, flags: Any, filename: str | None) -> Any:
        import drgn

        if filename:
            return None
        if flags & drgn.FindObjectFlags.CONSTANT:
            found = self._types.enumerator(name)
            if found is not None:
                return drgn.Object(prog, found[0], found[1])
        symbol = self._symbols.first(name)
        if symbol is None:
            return None
        number = None
        if flags & drgn.FindObjectFlags.FUNCTION and symbol.is_text:
            number = self._kernel.btf.find(name, Kind.FUNC)
        if flags & drgn.FindObjectFlags.VARIABLE and not symbol.is_text:
            number = self._kernel.btf.find(name, Kind.VAR)
            if number is None:
                return self._variable(prog, name, symbol)
        if number is None:
            return None
        kind = self._types.of(self._kernel.btf.type(number).target)
        return drgn.Object(prog, kind, address=symbol.address)

    def _variable(self, prog: Any, name: str, symbol: Symbol) -> Any:
        import drgn

        kind = _VARIABLES.get(name)
        if kind is None:
            return None
        try:
            if kind.endswith("[]"):
                element = prog.type(kind.removesuffix("[]").strip())
                count = symbol.size // max(drgn.sizeof(element), 1)
                return drgn.Object(prog, prog.array_type(element, count), address=symbol.address)
            return drgn.Object(prog, kind, address=symbol.address)
        except LookupError:
            # This kernel has no such type.
            return None


class _Symbols:
    """The symbols of the kernel and of its modules, as drgn asks for them."""

    def __init__(self, kernel: RunningKernel) -> None:
        rows = kernel_symbols(kernel)
        for module in modules(kernel):
            rows += module_symbols(kernel, module)
        self._by_name: dict[str, list[Symbol]] = {}
        for row in rows:
            self._by_name.setdefault(row.name, []).append(row)
        self._rows = sorted((row for row in rows if row.size), key=lambda row: row.address)
        self._starts = [row.address for row in self._rows]

    def first(self, name: str) -> Symbol | None:
        """The first symbol of a name."""
        return next(iter(self._by_name.get(name, ())), None)

    def find(self, prog: Any, name: str | None, address: int | None, one: bool) -> list[Any]:
        """Those of a name, at an address, or both; at most one if no more are wanted."""
        rows: Sequence[Symbol]
        if name is not None:
            rows = self._by_name.get(name, ())
            if address is not None:
                rows = [row for row in rows if 0 <= address - row.address < max(row.size, 1)]
        elif address is not None:
            rows = self._at(address)
        else:
            rows = self._rows
        return [_symbol(row) for row in (rows[:1] if one else rows)]

    def _at(self, address: int) -> list[Symbol]:
        last = bisect_right(self._starts, address)
        near = self._rows[max(0, last - _SAME_PLACE) : last]
        found = [row for row in near if address - row.address < row.size]
        # Of several names for one place, globals say more than locals.
        return sorted(found, key=lambda row: (not row.is_text, not row.kind.isupper()))


def _symbol(row: Symbol) -> Any:
    import drgn

    binding = (
        drgn.SymbolBinding.WEAK
        if row.kind in "wWvV"
        else (drgn.SymbolBinding.GLOBAL if row.kind.isupper() else drgn.SymbolBinding.LOCAL)
    )
    kind = drgn.SymbolKind.FUNC if row.is_text else drgn.SymbolKind.OBJECT
    return drgn.Symbol(row.name, row.address, row.size, binding, kind)


class _Types:
    """drgn's types, made from BTF when they are asked for. Members are made when somebody looks
    at them, or all of the kernel would be made at once."""

    def __init__(self, prog: "drgn.Program", btf: Btf) -> None:
        self._prog: Any = prog
        self._btf = btf
        self._made: dict[int, Any] = {}
        self._enumerators: dict[str, tuple[int, int]] | None = None

    def named(self, kinds: Any, name: str) -> Any:
        """The type of this name and of one of these kinds."""
        import drgn

        wanted = {
            drgn.TypeKind.STRUCT: Kind.STRUCT,
            drgn.TypeKind.UNION: Kind.UNION,
            drgn.TypeKind.TYPEDEF: Kind.TYPEDEF,
            drgn.TypeKind.INT: Kind.INT,
            drgn.TypeKind.BOOL: Kind.INT,
            drgn.TypeKind.FLOAT: Kind.FLOAT,
        }
        numbers = [self._btf.find(name, kind) for each, kind in wanted.items() if each in kinds]
        if drgn.TypeKind.ENUM in kinds:
            numbers += [self._btf.find(name, kind) for kind in (Kind.ENUM, Kind.ENUM64)]
        for number in numbers:
            found = None if number is None else self.of(number)
            if found is not None and found.kind in kinds:
                return found
        return None

    def enumerator(self, name: str) -> tuple[Any, int] | None:
        """The enumeration that has this name, and its value."""
        if self._enumerators is None:
            self._enumerators = {
                each: (kind.id, value)
                for kind in self._btf.types()
                if kind.kind in (Kind.ENUM, Kind.ENUM64)
                for each, value in self._btf.values(kind.id).items()
            }
        found = self._enumerators.get(name)
        return None if found is None else (self.of(found[0]), found[1])

    def of(self, number: int) -> Any:
        """The type of this number."""
        made = self._made.get(number)
        if made is None:
            made = self._made[number] = self._make(self._btf.type(number))
        return made

    def _make(self, each: BtfType) -> Any:
        import drgn

        prog = self._prog
        match each.kind:
            case Kind.VOID:
                return prog.void_type()
            case Kind.INT:
                encoding = self._btf.integer(each.id)[0]
                if encoding & 4:
                    return prog.bool_type(each.name, each.size)
                signed = bool(encoding & 1) or each.name == "char"
                return prog.int_type(each.name, each.size, signed)
            case Kind.FLOAT:
                return prog.float_type(each.name, each.size)
            case Kind.PTR:
                return prog.pointer_type(self.of(each.target))
            case Kind.ARRAY:
                element, count = self._btf.array(each.id)
                # A flexible array; that of a union of such has none either.
                return prog.array_type(self.of(element), count or None)
            case Kind.STRUCT | Kind.UNION:
                make = prog.struct_type if each.kind is Kind.STRUCT else prog.union_type
                return make(each.name or None, each.size, self._members(each.id))
            case Kind.ENUM | Kind.ENUM64:
                values = self._btf.values(each.id)
                if not values:
                    return prog.enum_type(each.name or None, None, None)
                signed = any(value < 0 for value in values.values())
                name = {1: "char", 2: "short", 4: "int", 8: "long"}[each.size]
                compatible = prog.int_type(
                    name if signed else f"unsigned {name}", each.size, signed
                )
                rows = [drgn.TypeEnumerator(*row) for row in values.items()]
                return prog.enum_type(each.name or None, compatible, rows)
            case Kind.FWD:
                make = prog.union_type if each.flag else prog.struct_type
                return make(each.name, None, None)
            case Kind.TYPEDEF:
                return prog.typedef_type(each.name, self.of(each.target))
            case Kind.CONST:
                return _qualified(self.of(each.target), drgn.Qualifiers.CONST)
            case Kind.VOLATILE:
                return _qualified(self.of(each.target), drgn.Qualifiers.VOLATILE)
            case Kind.RESTRICT:
                return _qualified(self.of(each.target), drgn.Qualifiers.RESTRICT)
            case Kind.FUNC_PROTO:
                return self._function(each)
        # Functions, variables and tags lead to what they are about.
        return self.of(each.target)

    def _members(self, number: int) -> list[Any]:
        import drgn

        found = []
        for each in self._btf.members(number):
            bit = 8 * each.offset + each.bit
            found.append(
                drgn.TypeMember(self._later(each.type_id, each.bits), each.name or None, bit)
            )
        return found

    def _later(self, number: int, bits: int) -> Callable[[], Any]:
        import drgn

        def make() -> Any:
            kind = self.of(number)
            return drgn.Object(self._prog, kind, bit_field_size=bits) if bits else kind

        return make

    def _function(self, each: BtfType) -> Any:
        import drgn

        rows = self._btf.parameters(each.id)
        variadic = bool(rows) and rows[-1].type_id == 0
        parameters = [
            drgn.TypeParameter(self._later(row.type_id, 0), row.name or None)
            for row in (rows[:-1] if variadic else rows)
        ]
        return self._prog.function_type(self.of(each.target), parameters, variadic)


def _qualified(kind: Any, qualifier: Any) -> Any:
    return kind.qualified(kind.qualifiers | qualifier)
