"""What a timeline has to know of Linux: where it switches tasks, and how it names its system calls
and handlers.

All of it is read out of the guest's own kernel: symbols, types (BTF) and tables. So it fits the
kernel that runs, whichever it is.
"""

import functools
import struct
from dataclasses import dataclass

from rr86.errors import KernelError, KernelImageError, SymbolsError
from rr86.kernel.running import RunningKernel

SWITCH, RENAME, IDLE = "__switch_to", "__set_task_comm", "cpu_startup_entry"
_COMM = 16
_MOST_CALLS = 1024
_PIDS = struct.Struct("<II")

# (register, offset, length), as the core's probes take them
Fetches = list[tuple[str, int, int]]


@dataclass(frozen=True, slots=True)
class Named:
    """A task as a probe has seen it."""

    address: int
    pid: int
    name: str


class LinuxProbes:
    """Where to look at tasks in a kernel, and what the core's probes have noted there.

    Raises `KernelError` where that is not known: no Linux, not there yet, or without types.
    """

    def __init__(self, kernel: RunningKernel) -> None:
        symbols = kernel.symbols
        self._comm = kernel.offset("task_struct", "comm")
        self._pid = kernel.offset("task_struct", "pid")
        self.names: list[str] = []
        self.rows: list[tuple[int, Fetches]] = []
        task = [("", 0, 0), ("", self._pid, 8), ("", self._comm, _COMM)]
        wanted: dict[str, Fetches] = {
            SWITCH: [(reg, at, size) for reg in ("rdi", "rsi") for _, at, size in task],
            RENAME: [("rdi", 0, 0), ("rdi", self._pid, 8), ("rsi", 0, _COMM)],
            IDLE: [],
        }
        for name, fetches in wanted.items():
            if symbols.link_address(name) is not None:
                self.names.append(name)
                self.rows.append((symbols.address(name), fetches))
        if SWITCH not in self.names:
            raise KernelError(f"the guest's kernel has no symbol {SWITCH}")

    def tasks(self, noted: bytes) -> list[Named]:
        """The tasks that a probe has noted."""
        size = 8 + 8 + _COMM
        return [_named(noted[at : at + size]) for at in range(0, len(noted), size)]


def _named(raw: bytes) -> Named:
    address = int.from_bytes(raw[:8], "little")
    pid, _ = _PIDS.unpack_from(raw, 8)
    return Named(address, pid, raw[16:].split(b"\0")[0].decode("utf-8", "replace"))


class LinuxNames:
    """Names of system calls and interrupts, out of a kernel's tables in memory."""

    def __init__(self, kernel: RunningKernel) -> None:
        self._kernel = kernel

    @functools.cached_property
    def _calls(self) -> list[str]:
        return self._table("sys_call_table")

    @functools.cached_property
    def _calls_32(self) -> list[str]:
        return self._table("ia32_sys_call_table")

    def system_call(self, number: int, bits: int = 64) -> str | None:
        """The name of a system call; None if it is not known."""
        names = self._calls if bits == 64 else self._calls_32
        name = names[number] if 0 <= number < len(names) else ""
        return name or None

    def interrupt(self, vcpu: int, vector: int) -> str | None:
        """The device whose interrupt has this vector on a vCPU; None if there is none."""
        kernel = self._kernel
        try:
            at = kernel.number(kernel.per_cpu("vector_irq", vcpu) + 8 * vector)
            action = kernel.field(at, "irq_desc", "action")
            name = kernel.text(kernel.field(action, "irqaction", "name"), 64)
        except (KernelError, SymbolsError, KernelImageError):
            return None
        return name if name.isprintable() and name else None

    def _table(self, symbol: str) -> list[str]:
        kernel = self._kernel
        try:
            raw = kernel.read(kernel.address(symbol), 8 * _MOST_CALLS)
            table = kernel.symbols
        except (KernelError, SymbolsError):
            return []
        names = []
        for (address,) in struct.iter_unpack("<Q", raw[: len(raw) // 8 * 8]):
            found = table.resolve(address)
            if found is None or found[1] or "sys_" not in found[0].name:
                break
            names.append(_call_name(found[0].name))
        return names


def _call_name(symbol: str) -> str:
    """`openat` of `__x64_sys_openat`; nothing for the entry of numbers that are not used."""
    name = symbol[symbol.index("sys_") + len("sys_") :]
    return "" if name == "ni_syscall" else name


def handler_name(symbol: str) -> str:
    """What a handler is for: `reschedule ipi` of `asm_sysvec_reschedule_ipi`."""
    name = symbol.removeprefix("asm_")
    for prefix in ("sysvec_", "exc_"):
        name = name.removeprefix(prefix)
    return name.removesuffix("_interrupt").replace("_", " ")
