"""Replaying vCPUs alone: one of a machine's, or all of them at the same time in threads.

A vCPU that runs alone gets from the trace's expansion what reached it from outside, and does its
own work only. There are no devices and no other vCPUs then: RAM is what this vCPU has seen of it.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rr86.cpu.inspection import Inspector
from rr86.errors import ExpansionError, TraceError, UsageError
from rr86.replay import expansion
from rr86.session.execution import Tick
from rr86.session.stop import Stop, from_native

if TYPE_CHECKING:
    from rr86.replay.recorded import RecordedRun

# Instructions of one native run; Python is asked in between.
_STRETCH = 50_000_000
_LOOK_SECONDS = 0.05


class AloneSession:
    """The replay of one vCPU, without the others."""

    def __init__(
        self,
        trace: "RecordedRun",
        vcpu: int,
        path: Path,
        verify: bool = True,
        images: Mapping[str, bytes] | None = None,
    ) -> None:
        from rr86._native import Alone
        from rr86.session.power import switch_on

        check_vcpu(trace, vcpu)
        self.vcpu = vcpu
        self.instructions = 0
        """Instructions that this vCPU has retired."""
        self.stop: Stop | None = None
        self._trace, self._path = trace, path
        machine = switch_on(trace.spec, trace.all_images() if images is None else images)
        with _blaming(trace, path):
            self.machine = Alone(machine, str(trace.path), str(path), vcpu, verify)
        self.inspector = Inspector(self.machine, trace.symbols(), trace.spec.vcpus)

    @property
    def icount(self) -> int:
        """The moment: instructions that all vCPUs of the recorded machine had retired."""
        return self.stop.icount if self.stop is not None else 0

    def run(self, max_instructions: int | None = None, tick: Tick | None = None) -> Stop:
        """Run on to the end of the trace, or until the vCPU has retired about so many more
        instructions: the slice that reaches them is completed."""
        last = None if max_instructions is None else self.instructions + max_instructions
        while True:
            left = _STRETCH if last is None else min(_STRETCH, max(1, last - self.instructions))
            with _blaming(self._trace, self._path):
                self.stop = from_native(self.machine.run(left), None)
            self.instructions = self.machine.instructions
            reached = last is not None and self.instructions >= last
            if self.stop.over or (reached and self.stop.reason != "time-up"):
                return self.stop
            if tick is not None and tick(self.stop):
                self.stop = replace(self.stop, reason="interrupted")
                return self.stop

    def registers(self) -> dict[str, int]:
        """The vCPU's registers, by name."""
        return self.inspector.registers(self.vcpu)

    def memory(self, paddr: int, length: int) -> bytes:
        """RAM as this vCPU has seen it; pages that it did not touch lately may be out of date."""
        return self.inspector.memory(paddr, length)

    def read_virtual(self, address: int, length: int) -> bytes:
        """Bytes at a linear address, as `memory`."""
        return self.inspector.read_virtual(address, length, self.vcpu)

    def symbolize(self, address: int) -> str | None:
        """`function+0x1c` for a linear address, or None where no symbol covers it."""
        return self.inspector.symbolize(address)


@dataclass(frozen=True)
class VcpuReplay:
    """One vCPU of a parallel replay."""

    vcpu: int
    instructions: int
    seconds: float


@dataclass(frozen=True)
class ParallelReplay:
    """All vCPUs of a trace, each replayed alone; `jobs` at a time."""

    vcpus: tuple[VcpuReplay, ...]
    jobs: int
    seconds: float

    @property
    def instructions(self) -> int:
        """Instructions of all vCPUs."""
        return sum(each.instructions for each in self.vcpus)


def check_vcpu(trace: "RecordedRun", vcpu: int) -> None:
    """Raise `UsageError` unless the recorded machine has this vCPU."""
    count = trace.spec.vcpus
    if not 0 <= vcpu < count:
        raise UsageError(f"there is no vCPU {vcpu}: the trace has 0 to {count - 1}")


class _blaming:
    """Says that damage may be the expansion's, which is easily made again."""

    def __init__(self, trace: "RecordedRun", path: Path) -> None:
        self._trace, self._path = trace, path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, TraceError):
            raise ExpansionError(
                f"'{self._trace.path}' or its expansion '{self._path}' is damaged: {error}; delete "
                "the expansion, and it is made again",
                path=self._path,
            ) from None


def alone(
    trace: "RecordedRun",
    vcpu: int,
    verify: bool = True,
    path: Path | None = None,
    tick: Tick | None = None,
) -> AloneSession:
    """A replay of one vCPU that stands at power-on; makes the expansion if there is none."""
    check_vcpu(trace, vcpu)
    return AloneSession(trace, vcpu, expansion.expand(trace, path, tick=tick), verify)


def host_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def replay_parallel(
    trace: "RecordedRun",
    jobs: int | None = None,
    verify: bool = True,
    path: Path | None = None,
    tick: Tick | None = None,
    watch: Callable[[int], bool | None] | None = None,
) -> ParallelReplay:
    """Replay every vCPU alone, `jobs` at a time (by default as many as the host has cores).

    The first divergence of any vCPU is raised. `tick` watches the making of the expansion, if
    there is none; `watch` gets the number of instructions that have been replayed so far, and a
    true answer ends everything (`KeyboardInterrupt`).
    """
    place = expansion.expand(trace, path, tick=tick)
    # The longest first, so that none begins when the others are done.
    work = trace.retired()
    order = sorted(range(trace.spec.vcpus), key=lambda vcpu: (-work[vcpu], vcpu))
    at_once = max(1, min(jobs or host_cores(), len(order)))
    images = trace.all_images()
    done = dict.fromkeys(order, 0)
    cancelled = threading.Event()
    started = time.monotonic()

    def one(vcpu: int) -> VcpuReplay:
        began = time.monotonic()
        session = AloneSession(trace, vcpu, place, verify, images)

        def between(_: Stop) -> bool:
            done[vcpu] = session.instructions
            return cancelled.is_set()

        session.run(tick=between)
        return VcpuReplay(vcpu, session.instructions, time.monotonic() - began)

    with ThreadPoolExecutor(at_once) as pool:
        waiting: set[Future[VcpuReplay]] = {pool.submit(one, vcpu) for vcpu in order}
        futures = tuple(waiting)
        try:
            while waiting:
                finished, waiting = wait(waiting, timeout=_LOOK_SECONDS)
                if any(each.exception() is not None for each in finished):
                    break
                if watch is not None and watch(sum(done.values())):
                    raise KeyboardInterrupt
        finally:
            cancelled.set()
            for each in waiting:
                each.cancel()
    for each in futures:
        error = None if each.cancelled() else each.exception()
        if error is not None:
            raise error
    results = sorted((each.result() for each in futures), key=lambda each: each.vcpu)
    return ParallelReplay(tuple(results), at_once, time.monotonic() - started)
