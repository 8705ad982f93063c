"""A machine that runs live: what a recording from power-on and a branch of one have in common.

It is driven in steps, typed into, looked at, and its trace, if it keeps one, is closed with a
footer.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rr86.cpu.guest_symbols import GuestSymbols
from rr86.cpu.inspection import Inspector
from rr86.errors import RecordingError
from rr86.kernel.processes import Processes
from rr86.kernel.programs import Programs
from rr86.session.conditions import Until, as_conditions
from rr86.session.console import DebugSink
from rr86.session.execution import Execution, Tick
from rr86.session.limits import Limits
from rr86.session.stop import Stop
from rr86.trace.metadata import COUNTERS, Footer

if TYPE_CHECKING:
    from rr86._native import Recording as NativeRecording
    from rr86.machine.spec import BoardSpec


@dataclass(frozen=True)
class Recording:
    """A finished recording: its trace, where and why it ended, and the core's counters."""

    path: Path
    stop: Stop | None
    statistics: Mapping[str, int] = field(default_factory=dict)
    trace_bytes: int = 0
    # How many of `trace_bytes` are the kernel and the other images.
    image_bytes: int = 0
    kaslr_offset: int | None = None


class LiveSession:
    """A live machine. Use it as a context manager: leaving the block, by an exception too, finishes
    its trace."""

    spec: "BoardSpec"
    machine: "NativeRecording"
    inspector: Inspector
    path: Path | None

    def __init__(
        self,
        machine: "NativeRecording",
        spec: "BoardSpec",
        symbols: GuestSymbols,
        *,
        began: int = 0,
        console: Callable[[bytes], None] | None = None,
        debugcon: DebugSink | None = None,
        programs: Programs | None = None,
    ) -> None:
        self.machine = machine
        self.spec = spec
        self.path = None
        self.inspector = Inspector(machine, symbols, spec.vcpus)
        self.inspector.processes = Processes(self.inspector, programs or Programs())
        self._execution = Execution(
            machine,
            self.inspector,
            console,
            began,
            debugcon=debugcon,
            by_lines=console is not None or debugcon is not None,
        )
        self._recording: Recording | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.path is None:
            return
        if error is None:
            self.finish()
            return
        if type(error).__name__ == "PanicException":
            # A bug in the core has left the machine in an unknown state; the trace keeps what was
            # written before.
            return
        # What went wrong first (a full disk, say) is what the caller has to hear about; a trace
        # without its footer still replays as far as it goes.
        with contextlib.suppress(Exception):
            self.finish()

    @property
    def icount(self) -> int:
        """Instructions retired so far, over all vCPUs."""
        return self._execution.icount

    @property
    def stop(self) -> Stop | None:
        """Where the last `run` stopped."""
        return self._execution.stop

    def run(
        self,
        max_instructions: int | None = None,
        until: Until = None,
        limits: Limits | None = None,
        tick: Tick | None = None,
    ) -> Stop:
        """Run on until a condition holds, a limit is reached, or the guest ends the run.

        `tick` is called between calls of the core, with the moment reached; if it returns true,
        the run is interrupted there. Call `run` again to go on.

        Raises `ConditionError` or `SymbolsError` for a condition that cannot be watched for,
        `RecordingError` after `finish`, `TraceError` if the trace cannot be written, and
        `EngineError` if translated code fails on the host.
        """
        if self._recording is not None:
            raise RecordingError("this recording is finished")
        limits = limits or Limits()
        if self.stop is not None:
            reached = limits.reached(self.stop, self.machine.trace_bytes())
            if reached is not None:
                return replace(self.stop, reason="limit", condition=None, detail=reached)
        bound = max_instructions
        if limits.instructions is not None:
            left = max(0, limits.instructions - self.icount)
            bound = left if bound is None else min(bound, left)
        words: list[str] = []

        def watch(moment: Stop) -> bool:
            reached = limits.reached(moment, self.machine.trace_bytes())
            if reached is not None:
                words.append(reached)
                return True
            return bool(tick is not None and tick(moment))

        stop = self._execution.run(as_conditions(until), bound, watch)
        if stop.reason == "interrupted" and words:
            # The run may have come back inside a slice, which depends on the host.
            stop = self._execution.complete_slice()
            if not stop.over:
                stop = replace(stop, reason="limit", detail=words[0])
        elif stop.reason == "limit" and not stop.detail:
            reached = limits.reached(stop, self.machine.trace_bytes())
            stop = replace(stop, detail=reached or "")
        self._execution.stop = stop
        return stop

    def send(self, data: bytes) -> None:
        """Type into the guest's serial console; becomes part of the recording.

        Raises `NativeError` after `finish`.
        """
        if data:
            self.machine.console_input(data)

    @property
    def without_side_file(self) -> str | None:
        """Why the trace has no side file, if it has none: a recorder that is killed then loses up
        to a second of its run."""
        return self.machine.without_side_file()

    def trace_bytes(self) -> int:
        """Bytes written to the trace so far."""
        return self.machine.trace_bytes()

    def statistics(self) -> dict[str, int]:
        """The core's counters."""
        return self.machine.stats()

    def seconds(self) -> dict[str, float]:
        """Where the host's time went; see docs/performance.md."""
        return self.machine.seconds()

    def finish(self) -> Recording:
        """Close the trace; doing it twice is harmless.

        A slice in which a condition stopped the run is completed first, so look at the guest
        before. The trace then reaches a little beyond the stop, and a replay can stop there too.

        Raises `TraceError` if the trace cannot be written, and `RecordingError` if none is kept.
        """
        if self.path is None:
            raise RecordingError("this run keeps no trace")
        if self._recording is None:
            from rr86._native import TraceReader

            footer = self._footer()
            self.machine.finish(footer.pack())
            self._execution.drain()
            sizes = TraceReader(str(self.path)).summary()
            self._recording = Recording(
                self.path,
                self.stop,
                footer.statistics,
                sizes["file_bytes"],
                sizes["image_bytes"],
                footer.kaslr_offset,
            )
        return self._recording

    def _footer(self) -> Footer:
        # Reading symbols takes most of a second; LSTAR lets those who need them do it later.
        registers = [self.machine.registers(vcpu) for vcpu in range(self.spec.vcpus)]
        lstar = next((each["lstar"] for each in registers if each["lstar"]), 0)
        statistics = self.machine.stats()
        return Footer(
            kaslr_offset=self.inspector.symbols.offset,
            lstar=lstar,
            image=self._place(0, lstar),
            touched=self.machine.touched_ram(),
            per_cpu=[self._per_cpu(vcpu, each) for vcpu, each in enumerate(registers)],
            stop={} if self.stop is None else self.stop.as_dict(),
            statistics={name: statistics.get(name, 0) for name in COUNTERS},
        )

    def _place(self, vcpu: int, address: int) -> tuple[int, int] | None:
        """An address of the kernel's half with the physical one that it is mapped to."""
        physical = self.machine.translate(vcpu, address) if address >> 63 else None
        return None if physical is None else (address, physical)

    def _per_cpu(self, vcpu: int, registers: Mapping[str, int]) -> tuple[int, int] | None:
        """A vCPU's per-CPU area: GS in the kernel, the other base while it runs user code."""
        bases = (registers["gs_base"], registers["kernel_gs_base"])
        places = (self._place(vcpu, base) for base in bases)
        return next((place for place in places if place is not None), None)
