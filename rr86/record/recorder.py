"""Recording: a machine that is switched on, run in slices, and whose run becomes a trace.

`record` does it all in one call. `Recorder` is for callers who want to drive: run a little, look
around, type something, run on. Either way a finished recording has a footer. One that was killed
at any moment replays too: what was not yet in a whole chunk of the trace is in its side file,
TRACE.tail.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rr86.cpu.guest_symbols import GuestSymbols
from rr86.cpu.inspection import Inspector
from rr86.errors import RecordingError, UsageError
from rr86.kernel.processes import Processes
from rr86.kernel.programs import Programs
from rr86.record.files import read_image, reserved
from rr86.record.packed import unpacked
from rr86.session.conditions import Until, as_conditions
from rr86.session.console import DebugSink
from rr86.session.execution import Execution, Tick
from rr86.session.limits import Limits
from rr86.session.stop import Stop
from rr86.session.variables import check, check_programs
from rr86.trace.metadata import COUNTERS, DeviceEntry, Footer, Header, this_host
from rr86.version import __version__

if TYPE_CHECKING:
    from rr86._native import Recording as NativeRecording
    from rr86.machine.device import Device
    from rr86.machine.spec import BoardSpec
    from rr86.translate.protocols import Protocol


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


def board_spec(
    *,
    smp: int = 1,
    memory: str | int = "512M",
    append: str = "",
    seed: int = 0,
    kernel_name: str = "kernel",
    protocol: "str | Protocol" = "precise",
    **more: int | str | bool,
) -> "BoardSpec":
    """A board from options as the command line has them; `more` are fields of `BoardSpec`.

    Raises `SpecError` or `UsageError` where they make no sense.
    """
    from rr86.machine.spec import SEMANTICS, BoardSpec, parse_size

    # What is not given is as in a board of today; `from_dict` alone would take it for that of an
    # older trace.
    values: dict[str, object] = {
        **BoardSpec().to_dict(),
        "vcpus": smp,
        "memory": parse_size(memory) if isinstance(memory, str) else memory,
        "command_line": append,
        "seed": seed,
        "kernel_name": kernel_name,
        "semantics": SEMANTICS,
        **_protocol_settings(protocol),
        **more,
    }
    return BoardSpec.from_dict(values)


def _entries(devices: "Sequence[Device]") -> list[DeviceEntry]:
    """Devices as the header names them; nothing is imported where there are none."""
    if not devices:
        return []
    from rr86.session.devices import described

    return [DeviceEntry(*described(each)) for each in devices]


def _protocol_settings(protocol: "str | Protocol") -> dict[str, object]:
    """The settings of a board for a block protocol, which may be named or described."""
    from rr86.translate.protocols import described

    if isinstance(protocol, str):
        name, described_as, steps = (part.strip() for part in protocol.partition("="))
        if not described_as:
            return {"protocol": name}
        protocol = described(name, steps)
    if protocol.built_in:
        return {"protocol": protocol.name}
    # Whatever else it is, it must not be taken for the one of this name.
    described(protocol.name, protocol.text)
    return {"protocol": protocol.name, "protocol_steps": protocol.text}


class Recorder:
    """A recording under way. Independent of any other one in the process.

    Use it as a context manager: leaving the block, by an exception too, finishes the trace.
    """

    def __init__(
        self,
        spec: "BoardSpec",
        images: Mapping[str, bytes],
        output: str | Path,
        *,
        file_names: Mapping[str, str] | None = None,
        console: Callable[[bytes], None] | None = None,
        checkpoints: int | None = None,
        debugcon: DebugSink | None = None,
        devices: "Sequence[Device]" = (),
        programs: Programs | None = None,
    ) -> None:
        """Switch on a machine and start its trace at `output`.

        `images` are "kernel" and maybe "initrd", "module0"…; `file_names` says what to call them
        in the trace. `console` gets the bytes that the guest sends to its serial console,
        `debugcon` those to its debug consoles (`rr86.session.console.DebugSink`).
        `checkpoints` asks for a checkpoint after every so many instructions. `devices` are further
        devices of the machine (`rr86.machine.Device`), which a replay has to be given, too.

        Raises `GuestImageError` if the kernel cannot be booted, `SpecError` or `UsageError` if an
        option makes no sense, `HostError` if this host lacks what the CPU model needs,
        `DeviceError` or `NativeError` if a device does not fit, and `TraceError` if the trace
        cannot be written.
        """
        from rr86.session.power import start

        self.spec = spec
        self.path = Path(output)
        self.machine: NativeRecording = start(spec, images, devices)
        header = Header(
            version=__version__,
            spec=spec.to_dict(),
            images={name: (file_names or {}).get(name, name) for name in images},
            host=this_host(),
            devices=_entries(devices),
        )
        if checkpoints is not None and checkpoints <= 0:
            raise UsageError(
                f"checkpoints need a distance of at least 1 instruction, not {checkpoints}"
            )
        self.machine.record_to(str(self.path), header.pack(), list(images.items()), checkpoints)
        symbols = GuestSymbols(images["kernel"])
        self.inspector = Inspector(self.machine, symbols, spec.vcpus)
        if programs is None:
            initrd = images.get("initrd", b"")
            programs = Programs(lambda: initrd)
        self.inspector.processes = Processes(self.inspector, programs)
        self._execution = Execution(
            self.machine,
            self.inspector,
            console,
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

        Raises `TraceError` if the trace cannot be written.
        """
        if self._recording is None:
            from rr86._native import TraceReader

            # Reading symbols takes most of a second; LSTAR lets those who need them do it later.
            offset = self.inspector.symbols.offset
            registers = [self.machine.registers(vcpu) for vcpu in range(self.spec.vcpus)]
            lstar = next((each["lstar"] for each in registers if each["lstar"]), 0)
            statistics = self.machine.stats()
            footer = Footer(
                kaslr_offset=offset,
                lstar=lstar,
                image=self._place(0, lstar),
                touched=self.machine.touched_ram(),
                per_cpu=[self._per_cpu(vcpu, each) for vcpu, each in enumerate(registers)],
                stop={} if self.stop is None else self.stop.as_dict(),
                statistics={name: statistics.get(name, 0) for name in COUNTERS},
            )
            self.machine.finish(footer.pack())
            self._execution.drain()
            sizes = TraceReader(str(self.path)).summary()
            self._recording = Recording(
                self.path,
                self.stop,
                statistics,
                sizes["file_bytes"],
                sizes["image_bytes"],
                offset,
            )
        return self._recording

    def _place(self, vcpu: int, address: int) -> tuple[int, int] | None:
        """An address of the kernel's half with the physical one that it is mapped to."""
        physical = self.machine.translate(vcpu, address) if address >> 63 else None
        return None if physical is None else (address, physical)

    def _per_cpu(self, vcpu: int, registers: Mapping[str, int]) -> tuple[int, int] | None:
        """A vCPU's per-CPU area: GS in the kernel, the other base while it runs user code."""
        bases = (registers["gs_base"], registers["kernel_gs_base"])
        places = (self._place(vcpu, base) for base in bases)
        return next((place for place in places if place is not None), None)


def start(
    kernel: str | Path,
    *,
    smp: int = 1,
    memory: str | int = "512M",
    initrd: str | Path | None = None,
    modules: Sequence[str | Path] = (),
    append: str = "",
    seed: int = 0,
    protocol: "str | Protocol" = "precise",
    output: str | Path | None = None,
    console: Callable[[bytes], None] | None = None,
    checkpoints: int | None = None,
    read: Callable[[Path, str], bytes] = read_image,
    debugcon: DebugSink | None = None,
    until: Until = None,
    devices: "Sequence[Device]" = (),
    programs: "Sequence[str | Path]" = (),
    **more: int | str | bool,
) -> Recorder:
    """A `Recorder` for image files; options as for `record`.

    `read` gives the bytes of a file by its path and role. A kernel file that is compressed (gzip,
    zstd or xz) is unpacked; the trace holds what it was unpacked to. Conditions that the recording
    is going to be run with can be named in `until`: what is wrong with them is then raised before
    there is a trace.

    Raises `GuestImageError` if an image cannot be read or booted, `SpecError` or `UsageError` if an
    option makes no sense, `ConditionError` or `SymbolsError` for a condition that cannot be watched
    for, `RecordingError` or `TraceError` if the trace cannot be written, and `HostError` if this
    host lacks what the CPU model needs.
    """
    files = {"kernel": Path(kernel)}
    if initrd is not None:
        files["initrd"] = Path(initrd)
    files |= {f"module{index}": Path(each) for index, each in enumerate(modules)}
    spec = board_spec(
        smp=smp,
        memory=memory,
        append=append,
        seed=seed,
        kernel_name=files["kernel"].name,
        protocol=protocol,
        **more,
    )
    images = {name: read(path, name) for name, path in files.items()}
    images["kernel"] = unpacked(images["kernel"], f"kernel '{kernel}'")
    conditions = as_conditions(until)
    check(conditions, GuestSymbols(images["kernel"]))
    known = Programs(lambda: images.get("initrd", b""))
    for file in programs:
        known.add(Path(file))
    check_programs(conditions, known)
    names = {name: path.name for name, path in files.items()}
    place = None if output is None else Path(output)
    with reserved(place, kernel, files.values()) as path:
        return Recorder(
            spec,
            images,
            path,
            file_names=names,
            console=console,
            checkpoints=checkpoints,
            debugcon=debugcon,
            devices=devices,
            programs=known,
        )


def record(
    kernel: str | Path,
    *,
    smp: int = 1,
    memory: str | int = "512M",
    initrd: str | Path | None = None,
    modules: Sequence[str | Path] = (),
    append: str = "",
    seed: int = 0,
    protocol: "str | Protocol" = "precise",
    output: str | Path | None = None,
    until: Until = None,
    limits: Limits | None = None,
    console: Callable[[bytes], None] | None = None,
    checkpoints: int | None = None,
    debugcon: DebugSink | None = None,
    devices: "Sequence[Device]" = (),
    programs: "Sequence[str | Path]" = (),
    **more: int | str | bool,
) -> Recording:
    """Record a run of `kernel` from power-on until it ends, a condition holds or a limit is met.

    `memory` is bytes or text like "512M"; `output` defaults to the next free name in the current
    folder; `until` takes conditions as in `--until`; `console` gets the guest's console bytes, and
    `debugcon` those of its debug consoles (`rr86.session.console.DebugSink`);
    `checkpoints` asks for a checkpoint after every so many instructions (`Trace.session(at=…)`);
    `devices` are further devices of the machine (`rr86.machine.Device`, docs/devices.md);
    `programs` are files with symbols of programs (see `start`);
    `protocol` is the name of a block protocol or a `Protocol`, which may be of your own;
    `more` are fields of `BoardSpec` such as `quantum` or `max_block`. When the call is
    interrupted (Ctrl-C), the trace is finished before the exception goes on.

    Raises what `rr86.start_recording` and `Recorder.run` raise.
    """
    conditions = as_conditions(until)
    recorder = start(
        kernel,
        smp=smp,
        memory=memory,
        initrd=initrd,
        modules=modules,
        append=append,
        seed=seed,
        protocol=protocol,
        output=output,
        console=console,
        checkpoints=checkpoints,
        read=read_image,
        debugcon=debugcon,
        until=conditions,
        devices=devices,
        programs=programs,
        **more,
    )
    with recorder:
        recorder.run(until=conditions, limits=limits)
    return recorder.finish()
