"""A replay under way: run to a moment, look around, run on."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rr86.cpu.guest_symbols import GuestSymbols
from rr86.cpu.inspection import Inspector
from rr86.errors import UsageError
from rr86.kernel.processes import Processes
from rr86.kernel.programs import Programs
from rr86.session.conditions import Condition, Until, as_conditions
from rr86.session.console import DebugSink, Heard, HeardDebug
from rr86.session.execution import Execution, Tick
from rr86.session.stop import Stop

if TYPE_CHECKING:
    from typing import Unpack

    import drgn

    from rr86._native import BranchPoint, Events, Snapshot
    from rr86._native import Diversion as NativeDiversion
    from rr86.cpu.backtrace import Frame
    from rr86.cpu.disassembly import Instruction
    from rr86.cpu.physical import PhysicalNames
    from rr86.kernel.dump import Dump
    from rr86.kernel.running import RunningKernel
    from rr86.machine.device import Device
    from rr86.machine.spec import BoardSpec
    from rr86.replay.diversion import ChangesGiven, Diversion, Parent
    from rr86.replay.oracle import OracleReport
    from rr86.trace.checkpoint import Checkpoint


# Of the console, so much is kept in mind for texts that began before a snapshot.
_LONGEST_TEXT = 4096


class Executed(NamedTuple):
    """An instruction that is executed at a moment: its linear address, 16, 32 or 64 bits, and its
    bytes, maybe with some behind it."""

    icount: int
    linear: int
    bits: int
    code: bytes


class ReplaySession:
    """One replay of one trace. Sessions share nothing and may be driven side by side."""

    def __init__(
        self,
        spec: "BoardSpec",
        images: Mapping[str, bytes],
        path: str | Path,
        symbols: GuestSymbols | None = None,
        verify: bool = True,
        console: Callable[[bytes], None] | None = None,
        checkpoint: "Checkpoint | None" = None,
        stale_int3: bool = False,
        oracle: bool = False,
        touched: bytes = b"",
        snapshot: "Snapshot | None" = None,
        events: "Events | None" = None,
        debugcon: DebugSink | None = None,
        names: "Callable[[], PhysicalNames] | None" = None,
        devices: "Sequence[Device]" = (),
        parent: "Parent | None" = None,
    ) -> None:
        from rr86._native import Replay
        from rr86.session.power import switch_on

        machine = switch_on(spec, images, oracle, devices)
        machine.take_ram(touched)
        self._path = path
        self._parent = parent
        self._point: BranchPoint | None = None
        self.machine: Replay
        self.began = 0
        """The moment at which this replay began: 0, or that of a checkpoint or a snapshot."""
        if snapshot is not None:
            self.machine = Replay.from_snapshot(machine, snapshot, verify)
            self.began = snapshot.icount
        elif checkpoint is not None:
            self.machine = Replay(machine, str(path), verify, checkpoint.number)
            self.began = checkpoint.icount
        elif events is not None:
            self.machine = Replay.of_events(machine, events, verify)
        else:
            self.machine = Replay(machine, str(path), verify)
        self.inspector = Inspector(
            self.machine, symbols or GuestSymbols(images["kernel"]), spec.vcpus
        )
        initrd = images.get("initrd", b"")
        self._programs = Programs(lambda: initrd)
        self.inspector.processes = Processes(self.inspector, self._programs)
        self._ram = spec.memory
        self._console = Heard(console)
        self._debugcon = HeardDebug(debugcon)
        self._execution = Execution(
            self.machine,
            self.inspector,
            self._console,
            self.began,
            stale_int3,
            self._debugcon,
            names,
            by_lines=console is not None or debugcon is not None,
        )

    @property
    def console(self) -> bytes:
        """What the guest has sent to its serial console since the replay began."""
        return bytes(self._console.heard)

    @property
    def debugcon(self) -> bytes:
        """What the guest has sent to its debug consoles (ports 0xe9 and 0x402) since the replay
        began."""
        return bytes(self._debugcon.heard)

    @property
    def icount(self) -> int:
        """Instructions retired so far, over all vCPUs."""
        return self._execution.icount

    @property
    def stop(self) -> Stop | None:
        """Where the last `run` stopped."""
        return self._execution.stop

    @stop.setter
    def stop(self, stop: Stop) -> None:
        self._execution.stop = stop

    def run(
        self,
        until: Until = None,
        max_instructions: int | None = None,
        tick: Tick | None = None,
    ) -> Stop:
        """Run on until a condition holds or the trace ends; see `rr86.record.Recorder.run`.

        Raises `ConditionError` or `SymbolsError` for a condition that cannot be watched for,
        `DivergenceError` where the replay leaves the recorded path, `TraceError` where the trace is
        damaged, and `EngineError` if translated code fails on the host.
        """
        return self._execution.run(as_conditions(until), max_instructions, tick)

    def snapshot(self) -> "Snapshot":
        """Keep the whole machine in memory, for other sessions of this trace to begin at.

        The replay has to stand between two slices, as it does at power-on, and where a run ended
        for its `max_instructions`. Pages of RAM that are equal in several snapshots are kept once.

        Raises `NativeError` where no snapshot can be taken.
        """
        return self.machine.snapshot(str(self._path))

    def learn_places(self, other: "ReplaySession") -> None:
        """Take over where another session of this trace has found the kernel and its variables.

        Raises nothing.
        """
        self._execution.learn_places(other._execution)

    def run_over(
        self, conditions: Sequence[Condition], max_instructions: int, before: int
    ) -> tuple[Stop | None, bool]:
        """Run for about so many instructions, or up to a moment, and give the last stop on the way
        that a condition would have made, and whether the moment, or the end, is reached.

        It may come back earlier, to be called again. Raises as `run`; and `ConditionError` if a
        symbol of a condition has no place yet.
        """
        return self._execution.run_over(conditions, max_instructions, before)

    def rewind(
        self,
        snapshot: "Snapshot",
        console: bytes = b"",
        debugcon: bytes = b"",
        ahead: bool = False,
    ) -> None:
        """Go to a snapshot of this trace, back or forward, in place: what looks at this session
        then sees that moment. `console` and `debugcon` are what the guest had sent there before it.
        `ahead` says that the replay goes on for a while, so that it is worth to translate blocks
        on another thread.

        Raises `NativeError` for a snapshot of another machine.
        """
        self._console.heard[:] = console
        self._debugcon.heard[:] = debugcon
        self.machine.rewind(snapshot, bytes(self._console.heard[-_LONGEST_TEXT:]), ahead)
        self._execution.moved(snapshot.icount)

    def path(
        self, ranges: Sequence[tuple[int, int]], whole: bool = True
    ) -> tuple[list[Executed], bool]:
        """Run on, and list every instruction in these ranges of moments, which ascend; then stand
        before the first one behind them. Unless the `whole` path is wanted, iterations of REP MOVS
        and REP STOS are left out, and it is said whether something else was left out with them.

        Raises as `run`.
        """
        rows, gaps = self.machine.path(ranges, whole)
        self._execution.moved(ranges[-1][1])
        return [Executed(*row) for row in rows], gaps

    def divert(self) -> "NativeDiversion":
        """Leave the recording here: nothing is compared any more, and its slices and inputs are
        suggestions. `run` goes on with the diversion, and needs a limit, because such a run need
        not end. What only a replay can do raises `NativeError` from here on.

        Raises `NativeError` if it has left the recording already.
        """
        diversion = self.machine.divert()
        self._execution.hand_over(diversion)
        return diversion

    def branch(
        self,
        *,
        output: str | Path | None = None,
        console: Callable[[bytes], None] | None = None,
        debugcon: DebugSink | None = None,
        checkpoints: int | None = None,
        **changes: "Unpack[ChangesGiven]",
    ) -> "Diversion":
        """Go live from this moment, maybe inside a slice, in another session: this replay stays as
        it is. `changes` are the fields of `rr86.replay.diversion.Changes`. With `output` there is a
        trace of it, which replays without this one, and has `checkpoints` after every so many
        instructions if they are asked for.

        Branches of one moment share its memory until they write to it.

        Raises `NativeError` where the machine has ended or the block protocol has no checkpoints,
        and what `Diversion` and `Diversion.record` raise.
        """
        from rr86.replay.diversion import Changes, Diversion

        if self._parent is None:
            raise UsageError("only sessions that a trace has opened can be branched off")
        changed = Changes(**changes)
        if self._point is None or self._point.icount != self.icount:
            self._point = self._execution.machine.branch_point()
        diversion = Diversion(
            self._parent, self._point, changed, console=console, debugcon=debugcon
        )
        if output is not None:
            diversion.record(output, checkpoints)
        return diversion

    def registers(self, vcpu: int = 0) -> dict[str, int]:
        """All registers of a vCPU, by name.

        Raises `NativeError` if there is no such vCPU.
        """
        return self.inspector.registers(vcpu)

    def memory(self, paddr: int, length: int) -> bytes:
        """Bytes of guest RAM at a physical address.

        Raises `NativeError` where there is no RAM.
        """
        return self.inspector.memory(paddr, length)

    def read_virtual(self, address: int, length: int, vcpu: int = 0) -> bytes:
        """Bytes at a linear address as the vCPU maps it; short where a page is not mapped.

        Raises `NativeError` if there is no such vCPU.
        """
        return self.inspector.read_virtual(address, length, vcpu)

    def symbolize(self, address: int) -> str | None:
        """`function+0x1c` for a linear address, or None where no symbol covers it.

        Raises nothing: a kernel without symbols has no names.
        """
        return self.inspector.symbolize(address)

    def disassemble(
        self, vcpu: int = 0, address: int | None = None, count: int = 8
    ) -> "list[Instruction]":
        """Instructions at an address, by default the vCPU's next ones.

        Raises `NativeError` if there is no such vCPU.
        """
        return self.inspector.disassemble(vcpu, address, count)

    def backtrace(self, vcpu: int = 0, limit: int = 32) -> "list[Frame]":
        """The vCPU's call stack, innermost frame first.

        Raises `NativeError` if there is no such vCPU.
        """
        return self.inspector.backtrace(vcpu, limit)

    def add_symbols(self, path: str | Path) -> None:
        """Take the functions of a program from an ELF file, for conditions (`symbol=PROGRAM:NAME`)
        and for names at stops. It counts for processes that run a file of the same name.

        Raises `SymbolsError` if it is no program for x86-64, or cannot be read.
        """
        self._programs.add(Path(path))

    @cached_property
    def kernel(self) -> "RunningKernel":
        """The Linux that runs in the guest: its memory, variables and types; see docs/kernel.md.
        What is asked of it raises `KernelError` while there is none."""
        from rr86.kernel.running import RunningKernel

        return RunningKernel(self.inspector)

    def drgn(self, vmlinux: str | Path | None = None) -> "drgn.Program":
        """A drgn program for the guest as it stands here, good until the session moves.

        Types and lines are those of `vmlinux`, or of an installed debug package for the guest's
        kernel; with neither, types are those that the kernel carries (BTF).

        Raises `UsageError` if drgn is not installed (`pip install 'rr86[drgn]'`), and `KernelError`
        if no Linux runs yet or the vmlinux belongs to another build.
        """
        from rr86.kernel.with_drgn import program
        from rr86.machine.memory_map import MemoryMap

        named = None if vmlinux is None else Path(vmlinux)
        return program(self.kernel, MemoryMap(self._ram).ram(), named)

    def dump(self, path: str | Path, tick: Callable[[int], None] | None = None) -> "Dump":
        """Write the guest's memory and registers to an ELF core file, which crash, drgn and gdb
        open. `tick` is called with the number of bytes done.

        Raises what Python's own `open` does where the file cannot be written.
        """
        from rr86.kernel.dump import write_dump
        from rr86.machine.memory_map import MemoryMap

        return write_dump(self.kernel, path, MemoryMap(self._ram).ram(), tick)

    def compared_digests(self) -> tuple[int, int]:
        """How many digests were compared with the recorded ones and equal, and at how many
        moments."""
        return self.machine.compared_digests()

    def oracle_report(self) -> "OracleReport":
        """What the oracle has found so far; for sessions that were opened with it.

        Raises `UsageError` in a session without oracle, and after a divergence.
        """
        from rr86.replay.oracle import OracleReport

        verdict = self.machine.oracle_verdict()
        if verdict is None:
            raise UsageError("the oracle has nothing to say about this replay")
        return OracleReport.from_native(verdict)

    def statistics(self) -> dict[str, int]:
        """The core's counters."""
        return self._execution.machine.stats()

    def seconds(self) -> dict[str, float]:
        """Where the host's time went; see docs/performance.md."""
        return self._execution.machine.seconds()
