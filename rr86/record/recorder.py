"""Recording: a machine that is switched on, run in slices, and whose run becomes a trace.

`record` does it all in one call. `Recorder` is for callers who want to drive: run a little, look
around, type something, run on. Either way a finished recording has a footer. One that was killed
at any moment replays too: what was not yet in a whole chunk of the trace is in its side file,
TRACE.tail.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rr86.cpu.guest_symbols import GuestSymbols
from rr86.errors import UsageError
from rr86.kernel.programs import Programs
from rr86.record.files import read_image, reserved
from rr86.record.packed import unpacked
from rr86.session.conditions import Until, as_conditions
from rr86.session.console import DebugSink
from rr86.session.limits import Limits
from rr86.session.live import LiveSession, Recording
from rr86.session.variables import check, check_programs
from rr86.trace.metadata import DeviceEntry, Header, this_host
from rr86.version import __version__

if TYPE_CHECKING:
    from rr86.machine.device import Device
    from rr86.machine.spec import BoardSpec
    from rr86.translate.protocols import Protocol


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
    from rr86.translate.protocols import board_settings

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
        **board_settings(protocol),
        **more,
    }
    return BoardSpec.from_dict(values)


def _entries(devices: "Sequence[Device]") -> list[DeviceEntry]:
    """Devices as the header names them; nothing is imported where there are none."""
    if not devices:
        return []
    from rr86.session.devices import described

    return [DeviceEntry(*described(each)) for each in devices]


class Recorder(LiveSession):
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
        from rr86.session.power import start as start_machine

        machine = start_machine(spec, images, devices)
        symbols = GuestSymbols(images["kernel"])
        if programs is None:
            initrd = images.get("initrd", b"")
            programs = Programs(lambda: initrd)
        super().__init__(
            machine, spec, symbols, console=console, debugcon=debugcon, programs=programs
        )
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
        path = Path(output)
        machine.record_to(str(path), header.pack(), list(images.items()), checkpoints)
        self.path: Path = path


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
    there is a trace. `programs` are files with the symbols of programs that the guest runs under
    these names, for conditions such as "symbol=PROGRAM:NAME"; those of the initrd are known.

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
