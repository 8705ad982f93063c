"""What stops show of a Linux guest beside the kernel's image: the processes, where their programs
are in memory, and the kernel's modules."""

import functools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from rr86.errors import KernelError, SymbolsError
from rr86.kernel.memory import KERNEL_HALF, PageTables
from rr86.kernel.programs import Program, Programs

if TYPE_CHECKING:
    from rr86.cpu.backtrace import Frame
    from rr86.cpu.inspection import Inspector
    from rr86.cpu.orc import OrcTable
    from rr86.cpu.symbols import SymbolTable
    from rr86.kernel.modules import Module
    from rr86.kernel.running import RunningKernel
    from rr86.kernel.tasks import Task, Tasks

# Key of the program's entry point in the auxiliary vector (elf.h).
_AT_ENTRY = 9
_DEEPEST_FOLDER = 64
# Where x86-64 has modules: behind the kernel's image, wherever that is.
_MODULES, _MODULES_END = 0xFFFF_FFFF_8000_0000, 0xFFFF_FFFF_FF00_0000
_LONGEST_NAME = 256
# Where Linux has set up a new program: it is about to begin.
_BEGINNINGS = ("start_thread", "compat_start_thread")


@dataclass(frozen=True)
class Image:
    """A program in a process's memory: its file's path in the guest, its symbols if they are known,
    and how far it is from its link-time addresses."""

    path: str
    program: Program | None
    offset: int

    @property
    def name(self) -> str:
        """The file's name."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class _ModuleTables:
    symbols: "SymbolTable"
    orc: "OrcTable | None"


class Processes:
    """Which process a vCPU runs, and with what program. Made with every session: what it takes is
    read at first use. `programs` are those whose files are known.
    """

    def __init__(self, inspector: "Inspector", programs: Programs) -> None:
        self._inspector = inspector
        self.programs = programs
        self._tables: dict[Module, _ModuleTables] = {}

    @functools.cached_property
    def tasks(self) -> "Tasks":
        """The guest's tasks."""
        from rr86.kernel.tasks import Tasks

        return Tasks(self._inspector)

    @property
    def _kernel(self) -> "RunningKernel":
        return self.tasks.kernel

    def current(self, vcpu: int) -> "Task | None":
        """The task that a vCPU runs; None where that is not known."""
        return self.tasks.current(vcpu)

    def running(self, vcpu: int) -> str | None:
        """What a vCPU runs, as it is put behind its name: `in init (pid 1)`, or `idle`."""
        task = self.current(vcpu)
        if task is None:
            return None
        return "idle" if task.idle else f"in {task}"

    def as_dict(self, vcpu: int) -> dict[str, object] | None:
        """The same as plain data."""
        task = self.current(vcpu)
        if task is None:
            return None
        return {
            "name": task.name,
            "pid": task.pid,
            "tgid": task.tgid,
            "idle": task.idle,
            "kernel": task.kernel,
            "task_struct": task.address,
        }

    # -- modules -----------------------------------------------------------------------------------

    def module_symbol(self, address: int) -> str | None:
        """`function+0x1c [module]` for an address in one of the kernel's modules."""
        try:
            module = self._module(address)
            if module is None:
                return None
            table = self._module_tables(module).symbols
        except (KernelError, SymbolsError):
            return None
        name = table.lookup(address)
        return None if name is None else f"{name} [{module.name}]"

    def module_orc(self, address: int) -> "OrcTable | None":
        """The unwind table of the module that an address is in."""
        try:
            module = self._module(address)
            return None if module is None else self._module_tables(module).orc
        except (KernelError, SymbolsError):
            return None

    def _module(self, address: int) -> "Module | None":
        from rr86.kernel.modules import modules

        if not _MODULES <= address < _MODULES_END:
            return None
        return next((each for each in modules(self._kernel) if each.covers(address)), None)

    def _module_tables(self, module: "Module") -> "_ModuleTables":
        """What a module says of its code. While one is there, that stays as it is, but for what
        goes with its initialisation."""
        from rr86.cpu.symbols import SymbolTable
        from rr86.kernel.modules import module_orc, module_symbols

        known = self._tables.get(module)
        if known is None:
            rows = module_symbols(self._kernel, module)
            table = SymbolTable(rows, relocatable=False)
            known = self._tables[module] = _ModuleTables(table, module_orc(self._kernel, module))
        return known

    # -- programs ----------------------------------------------------------------------------------

    def image(self, task: "Task") -> Image | None:
        """The program that a task runs; None for one of the kernel's, or where it is not known."""
        if not task.mm:
            return None
        try:
            path = self._path(task.mm)
            entry = self._entry(task.mm)
        except (KernelError, SymbolsError):
            return None
        program = self.programs.of_path(path)
        if program is None or not program.is_program or entry is None:
            return Image(path, None, 0)
        return Image(path, program, entry - program.entry)

    def is_running(self, vcpu: int, name: str) -> bool:
        """Whether a vCPU runs a process of this name: that of its program's file, with or without
        folders, or the task's own."""
        task = self.current(vcpu)
        if task is None or task.kernel:
            return False
        if task.name == name:
            return True
        image = self.image(task)
        if image is None:
            return False
        return image.path == f"/{name.lstrip('/')}" if "/" in name else image.name == name

    def symbolize(self, vcpu: int, address: int) -> str | None:
        """`PROGRAM:function+0x1c` for an address of the program that a vCPU runs."""
        task = None if address >= KERNEL_HALF else self.current(vcpu)
        image = None if task is None else self.image(task)
        if image is None or image.program is None:
            return None
        found = image.program.resolve(address - image.offset)
        if found is None:
            return None
        symbol, distance = found
        name = f"{image.name}:{symbol.name}"
        return f"{name}+{distance:#x}" if distance else name

    def frames(self, vcpu: int, registers: Mapping[str, int], limit: int) -> "list[Frame]":
        """The call stack in the program that a vCPU runs, from a frame with these registers on, by
        the program's unwind tables, or else by frame pointers. `rip`, `rsp` and `rbp` have to be
        there."""
        from rr86.cpu.backtrace import Frame

        task = self.current(vcpu)
        image = None if task is None else self.image(task)
        tables = None if image is None or image.program is None else image.program.frames
        offset = 0 if image is None else image.offset

        def word(address: int) -> int | None:
            raw = self._inspector.read_virtual(address, 8, vcpu)
            return int.from_bytes(raw, "little") if len(raw) == 8 else None

        found: list[Frame] = []
        here, exact = dict(registers), True
        while len(found) < limit:
            rip = here["rip"]
            # A return address may be the first byte behind a function that never returns.
            found.append(Frame(rip, self._place(vcpu, rip, exact)))
            step = None if tables is None else tables.step(here, offset, exact, word)
            if step is None and tables is None:
                step = _by_frame_pointer(here, word)
            if step is None or step[0]["rip"] >= KERNEL_HALF or step[0]["rip"] == 0:
                break
            if step[0]["rsp"] <= here["rsp"]:
                break
            here, exact = step
        return found

    def _place(self, vcpu: int, rip: int, exact: bool) -> str | None:
        if exact:
            return self.symbolize(vcpu, rip)
        name = self.symbolize(vcpu, rip - 1)
        if name is None:
            return None
        function, _, distance = name.partition("+")
        return f"{function}+{int(distance or '0', 16) + 1:#x}"

    def addresses(self, program: str, function: str, offset: int) -> list[int] | None:
        """Where a function of a program is, in each process that runs it now; None while nothing
        is known of processes.

        Raises `SymbolsError` for a program that is not known, or that has no such function.
        """
        known = self.programs.of_name(program)
        linked = known.address(function) + offset
        try:
            tasks = self.tasks.all()
        except (KernelError, SymbolsError):
            return None
        found = set()
        for mm, task in {task.mm: task for task in tasks if task.mm}.items():
            image = self.image(task)
            if mm and image is not None and image.program is known:
                found.add(linked + image.offset)
        return sorted(found)

    def is_at(self, vcpu: int, program: str, function: str, offset: int, rip: int) -> bool:
        """Whether a vCPU runs a program and is about to execute this place in it."""
        task = self.current(vcpu)
        image = None if task is None else self.image(task)
        known = self.programs.of_name(program)
        if image is None or image.program is not known:
            return False
        return rip == known.address(function) + offset + image.offset

    def beginnings(self) -> list[int]:
        """Where the kernel has set up a new program, so that `addresses` may know more; empty while
        the kernel has not placed itself."""
        table = self._inspector.symbols.table
        if table is None:
            return []
        linked = (table.link_address(name) for name in _BEGINNINGS)
        return [address + table.offset for address in linked if address is not None]

    def memory(self, task: "Task") -> PageTables:
        """The linear memory of a task's process. Raises `KernelError` for one of the kernel's."""
        if not task.mm:
            raise KernelError(f"{task} has no memory of its own")
        kernel = self._kernel
        root = kernel.translate(kernel.field(task.mm, "mm_struct", "pgd"))
        if root is None:
            raise KernelError(f"the page tables of {task} are not mapped")
        return PageTables(kernel.read_physical, root, kernel.page_tables.levels)

    def _path(self, mm: int) -> str:
        """The path of a process's program, as far as its file system goes."""
        kernel = self._kernel
        file = kernel.field(mm, "mm_struct", "exe_file")
        dentry = kernel.field(file, "file", "f_path.dentry")
        parts: list[str] = []
        for _ in range(_DEEPEST_FOLDER):
            above = kernel.field(dentry, "dentry", "d_parent")
            if above == dentry:
                break
            name = kernel.field(dentry, "dentry", "d_name.name")
            parts.append(kernel.text(name, _LONGEST_NAME))
            dentry = above
        return "/" + "/".join(reversed(parts))

    def _entry(self, mm: int) -> int | None:
        """The program's entry point at run time, as the kernel has told it."""
        kernel = self._kernel
        found = kernel.member("mm_struct", "saved_auxv")
        vector = struct.unpack(
            f"<{found.size // 8}Q", kernel.bytes_at(mm + found.offset, found.size & -8)
        )
        pairs = dict(zip(vector[::2], vector[1::2], strict=False))
        return pairs.get(_AT_ENTRY)


def _by_frame_pointer(
    registers: Mapping[str, int], word: Callable[[int], int | None]
) -> tuple[dict[str, int], bool] | None:
    """The caller's registers, if the frame pointer leads to a frame."""
    pointer = registers.get("rbp", 0)
    if pointer < registers["rsp"] or pointer - registers["rsp"] > 1 << 20 or pointer % 8:
        return None
    saved, back = word(pointer), word(pointer + 8)
    if saved is None or not back:
        return None
    return {"rip": back, "rsp": pointer + 16, "rbp": saved}, False
