"""The tasks of a running Linux: what each vCPU runs, and all there are.

Whoever asks at thousands of moments makes one `Tasks` and asks it again and again: where things
are is looked up once, and an answer is then a few reads of guest memory.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rr86.errors import KernelError, SymbolsError
from rr86.kernel.memory import KERNEL_HALF
from rr86.kernel.running import RunningKernel

if TYPE_CHECKING:
    from rr86.cpu.inspection import Inspector

_PF_IDLE, _PF_KTHREAD = 0x2, 0x200000
_COMM = 16
# PID_MAX_LIMIT of a 64-bit kernel; a list that is being changed may not end.
_MOST_TASKS = 4 << 20


@dataclass(frozen=True, slots=True)
class Task:
    """A task: a thread of a process, or of the kernel.

    `address` is that of its `task_struct`, `pid` the thread's and `tgid` the process's number in
    the first PID namespace. `idle` is a CPU's idle task, once it has come to its loop: before, it
    boots. `mm` is its `mm_struct`, 0 for a thread of the kernel.
    """

    address: int
    name: str
    pid: int
    tgid: int
    idle: bool
    kernel: bool
    mm: int

    def __str__(self) -> str:
        if self.idle:
            return "idle"
        what = f"pid {self.pid}"
        return (
            f"{self.name} ({what})"
            if self.pid == self.tgid
            else (f"{self.name} ({what} of process {self.tgid})")
        )


class Tasks:
    """The tasks of the Linux that runs in a guest."""

    def __init__(self, kernel: "RunningKernel | Inspector") -> None:
        self.kernel = kernel if isinstance(kernel, RunningKernel) else RunningKernel(kernel)
        # Physical address of the pointer to a vCPU's current task.
        self._pointers: dict[int, int] = {}
        self._layout: _Layout | None = None

    def current(self, vcpu: int) -> Task | None:
        """The task that a vCPU runs; None where that is not known: the guest is no Linux, has not
        come that far, or says nothing of its types. Raises nothing else than `NativeError` for a
        vCPU that there is not.

        In the few instructions of a task switch, it is the next task from the moment on at which
        the kernel says so.
        """
        pointer = self._pointers.get(vcpu)
        if pointer is not None:
            found = self._of_pointer(pointer)
            if found is not None:
                return found
        # Either it is the first question, or the replay has been moved to before the kernel gave
        # this CPU its own area.
        self._pointers.pop(vcpu, None)
        try:
            pointer, settled = self._look(vcpu)
        except (KernelError, SymbolsError):
            return None
        if settled:
            self._pointers[vcpu] = pointer
        return self._of_pointer(pointer)

    def all(self) -> list[Task]:
        """All tasks, in the order of their pids; of each CPU's idle task too.

        Raises `KernelError` if the guest is no Linux, or not there yet.
        """
        kernel = self.kernel
        init = kernel.address("init_task")
        found = {init: self.at(init)}
        for vcpu in range(kernel.inspector.vcpus):
            idle = self._idle_of(vcpu)
            if idle is not None:
                found[idle.address] = idle
        for leader in (
            init,
            *kernel.list_of(
                init + kernel.offset("task_struct", "tasks"), "task_struct", "tasks", _MOST_TASKS
            ),
        ):
            for address in self._threads(leader):
                if address not in found:
                    found[address] = self.at(address)
        tasks = [task for task in found.values() if task is not None]
        return sorted(tasks, key=lambda task: (task.pid, task.address))

    def find(self, pid: int) -> Task | None:
        """The task of this pid; None if there is none."""
        return next((task for task in self.all() if task.pid == pid and not task.idle), None)

    def at(self, address: int) -> Task | None:
        """The task whose `task_struct` is there; None where there is none."""
        if address < KERNEL_HALF:
            return None
        layout = self._layout
        if layout is None:
            layout = self._layout = _Layout.of(self.kernel)
        raw = self.kernel.read(address + layout.first, layout.length)
        if len(raw) != layout.length:
            return None
        (flags,) = _U32.unpack_from(raw, layout.flags)
        pid, tgid = _PIDS.unpack_from(raw, layout.pid)
        (mm,) = _U64.unpack_from(raw, layout.mm)
        name = raw[layout.comm : layout.comm + _COMM].split(b"\0")[0]
        idle = bool(flags & _PF_IDLE)
        if not name or pid > _MOST_TASKS:
            return None
        return Task(
            address,
            name.decode("utf-8", "replace"),
            pid,
            tgid,
            idle,
            bool(flags & _PF_KTHREAD),
            mm,
        )

    def cpu_of(self, vcpu: int) -> int | None:
        """The number that Linux gave to the CPU that a vCPU is; None before it has."""
        return self._cpu_of(vcpu)[0]

    def _of_pointer(self, pointer: int) -> Task | None:
        raw = self.kernel.read_physical(pointer, 8)
        try:
            return self.at(int.from_bytes(raw, "little"))
        except (KernelError, SymbolsError):
            return None

    def _look(self, vcpu: int) -> tuple[int, bool]:
        """Where the pointer to a vCPU's current task is, and whether it will stay there."""
        kernel = self.kernel
        cpu, settled = self._cpu_of(vcpu)
        if cpu is None:
            raise KernelError(f"vCPU {vcpu} does not run the guest's kernel yet")
        if kernel.has("current_task"):
            address = kernel.per_cpu("current_task", cpu)
        else:
            offset = kernel.offset("pcpu_hot", "current_task")
            address = kernel.per_cpu("pcpu_hot", cpu) + offset
        paddr = kernel.translate(address)
        if paddr is None:
            raise KernelError(f"the guest's kernel maps nothing at {address:#x}")
        return paddr, settled

    def _cpu_of(self, vcpu: int) -> tuple[int | None, bool]:
        """A vCPU's number as a CPU, and whether it has its own per-CPU area by now."""
        kernel = self.kernel
        registers = kernel.inspector.registers(vcpu)
        bases = {registers["gs_base"], registers["kernel_gs_base"]}
        table = kernel.address("__per_cpu_offset")
        vcpus = kernel.inspector.vcpus
        offsets = struct.unpack(f"<{vcpus}Q", kernel.bytes_at(table, 8 * vcpus))
        # At first all entries are those of the area in the image, which only the first CPU uses.
        first = kernel.address("__per_cpu_load") if kernel.has("__per_cpu_load") else 0
        for cpu in (vcpu, *range(vcpus)):
            settled = offsets[cpu] != first
            if offsets[cpu] in bases and (settled or cpu == 0 == vcpu):
                return cpu, settled
        return None, False

    def _idle_of(self, vcpu: int) -> Task | None:
        """The idle task of a CPU: of the run queue, since it is in no list."""
        kernel = self.kernel
        try:
            cpu, _ = self._cpu_of(vcpu)
            if cpu is None:
                return None
            queue = kernel.per_cpu("runqueues", cpu)
            return self.at(kernel.field(queue, "rq", "idle"))
        except (KernelError, SymbolsError):
            return None

    def _threads(self, leader: int) -> Iterator[int]:
        """The threads of a process."""
        kernel = self.kernel
        yield leader
        signal = int.from_bytes(
            kernel.read(leader + kernel.offset("task_struct", "signal"), 8), "little"
        )
        if signal >= KERNEL_HALF:
            head = signal + kernel.offset("signal_struct", "thread_head")
            yield from kernel.list_of(head, "task_struct", "thread_node", _MOST_TASKS)


_U32, _U64, _PIDS = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class _Layout:
    """The stretch of a `task_struct` that is read, and what is where in it."""

    first: int
    length: int
    flags: int
    pid: int
    comm: int
    mm: int

    @classmethod
    def of(cls, kernel: RunningKernel) -> "_Layout":
        flags, pid, tgid, comm, mm = (
            kernel.offset("task_struct", name) for name in ("flags", "pid", "tgid", "comm", "mm")
        )
        if tgid != pid + 4:
            raise KernelError("the guest's kernel keeps its pids in an unknown way")
        first = min(flags, pid, comm, mm)
        end = max(flags + 4, pid + 8, comm + _COMM, mm + 8)
        return cls(first, end - first, flags - first, pid - first, comm - first, mm - first)
