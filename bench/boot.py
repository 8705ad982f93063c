"""Boots a guest plain, recording, replaying, and in QEMU where it is installed; prints the medians.
On one vCPU QEMU also records, which it cannot do with more.

    python -m bench.boot --smp 1,2,4,8 --kernel vmlinuz --initrd initrd.gz

Each variant runs to the guest's own power-off. Without an initrd the kernel gets one whose init
powers off at once. Without a kernel the demo guest of the package is booted: that shows that the
benchmark works, and how long it takes to start a machine, not more.
Times are wall-clock, from switching the machine on (rr86) or from the start of the process (QEMU)
until the end. The images lie in the page cache and in memory before the clock runs.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from bench.common import (
    BenchError,
    Sample,
    Series,
    add_common_arguments,
    alternate,
    counts,
    host,
    note,
    qemu_command,
    qemu_recording,
    qemu_records,
    qemu_there,
    ratio,
    table,
    text,
    write_json,
)
from bench.programs.build import build
from bench.programs.guest import initramfs
from rr86.errors import SpecError
from rr86.guests import demo_image
from rr86.machine.spec import BoardSpec, format_size, parse_size
from rr86.record.recorder import Recorder, board_spec
from rr86.replay.trace import open_trace
from rr86.session.power import start
from rr86.session.stop import Stop

PLAIN, RECORDING, REPLAYING = "rr86 plain", "rr86 recording", "rr86 replaying"
QEMU_PLAIN, QEMU_RECORDING = "QEMU", "QEMU recording"
# What every variant is compared with, by the names of the quotients.
_MEASURES = {"to_plain": PLAIN, "to_qemu": QEMU_PLAIN, "to_qemu_recording": QEMU_RECORDING}
_SLICE = 50_000_000
_HINT = (
    "This was the demo guest, which runs for an instant. For a real kernel and initrd see "
    "docs/debian-kernel.md, then:\n"
    '  make bench ARGS="--kernel vmlinuz --initrd initrd.gz"'
)


@dataclass(frozen=True)
class Guest:
    """What is booted, and how."""

    kernel: Path
    initrd: Path | None
    append: str
    smp: int
    memory: int
    seed: int
    timeout: float


def _images(guest: Guest) -> dict[str, bytes]:
    images = {"kernel": guest.kernel.read_bytes()}
    if guest.initrd is not None:
        images["initrd"] = guest.initrd.read_bytes()
    return images


def _spec(guest: Guest) -> BoardSpec:
    return board_spec(smp=guest.smp, memory=guest.memory, append=guest.append, seed=guest.seed)


def _check(reason: str, what: str, detail: str) -> None:
    if reason not in ("poweroff", "debug-exit", "end"):
        raise BenchError(f"{what}: the guest did not power off, but: {reason} {detail}".strip())


def run_plain(guest: Guest, images: dict[str, bytes]) -> Sample:
    """The machine alone: no trace, no events kept."""
    started = time.monotonic()
    machine = start(_spec(guest), images)
    while True:
        stop = machine.run(_SLICE)
        machine.console_output()
        if stop["reason"] != "limit":
            break
        if time.monotonic() - started > guest.timeout:
            raise BenchError(f"{PLAIN}: no end within {guest.timeout:g} s")
    seconds = time.monotonic() - started
    _check(stop["reason"], PLAIN, stop["detail"])
    return Sample(seconds, {"instructions": stop["icount"]})


def _in_time(guest: Guest, started: float) -> Callable[[Stop], bool]:
    return lambda _: time.monotonic() - started > guest.timeout


def run_recording(guest: Guest, images: dict[str, bytes], trace: Path) -> Sample:
    """With everything that `rr86 record` keeps, until the trace is closed."""
    started = time.monotonic()
    with Recorder(_spec(guest), images, trace) as recorder:
        stop = recorder.run(tick=_in_time(guest, started))
        recording = recorder.finish()
    seconds = time.monotonic() - started
    _check(stop.reason, RECORDING, stop.detail)
    images_stored = open_trace(trace).summary()["image_bytes"]
    counts = {
        "instructions": stop.icount,
        "file_bytes": recording.trace_bytes,
        "trace_bytes": recording.trace_bytes - images_stored,
    }
    return Sample(seconds, counts)


def run_replaying(guest: Guest, trace: Path) -> Sample:
    """From the trace alone, with verification."""
    started = time.monotonic()
    session = open_trace(trace).session()
    stop = session.run(tick=_in_time(guest, started))
    seconds = time.monotonic() - started
    _check(stop.reason, REPLAYING, stop.detail)
    return Sample(seconds, {"instructions": stop.icount})


def run_qemu(guest: Guest, log: Path | None = None) -> Sample:
    """QEMU without recording anything, or with what its record mode keeps."""
    name = QEMU_PLAIN if log is None else QEMU_RECORDING
    command = qemu_command(guest.kernel, guest.initrd, guest.append, guest.smp, guest.memory)
    if log is not None:
        log.unlink(missing_ok=True)
        command += qemu_recording(log)
    started = time.monotonic()
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=guest.timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{name}: no end within {guest.timeout:g} s") from None
    seconds = time.monotonic() - started
    if done.returncode != 0:
        message = done.stderr.decode("utf-8", "replace").strip()
        raise BenchError(f"{name} ended with status {done.returncode}: {message}")
    if log is None:
        return Sample(seconds)
    size = log.stat().st_size
    return Sample(seconds, {"file_bytes": size, "trace_bytes": size})


def measure(guest: Guest, repetitions: int, with_qemu: bool) -> list[Series]:
    """All variants, alternating."""
    images = _images(guest)
    with tempfile.TemporaryDirectory(prefix="rr86-bench-") as folder:
        trace = Path(folder) / "boot.rr86"

        def recording() -> Sample:
            trace.unlink(missing_ok=True)
            return run_recording(guest, images, trace)

        variants: list[tuple[str, Callable[[], Sample]]] = [
            (PLAIN, lambda: run_plain(guest, images)),
            (RECORDING, recording),
            (REPLAYING, lambda: run_replaying(guest, trace)),
        ]
        if with_qemu:
            variants.append((QEMU_PLAIN, lambda: run_qemu(guest)))
        if with_qemu and guest.smp == 1 and qemu_records():
            log = Path(folder) / "qemu.log"
            variants.append((QEMU_RECORDING, lambda: run_qemu(guest, log)))
        # Not counted: the first machine of a process finds its memory cold.
        run_plain(guest, images)
        return alternate(variants, repetitions, lambda line: note(f"{guest.smp} vCPUs, {line}"))


def _rate(series: Series) -> float | None:
    instructions = series.count("instructions")
    return None if instructions is None else instructions / series.seconds / 1e6


def report(results: list[Series]) -> str:
    """The table for people."""
    seconds = {series.name: series.seconds for series in results}
    rows = []
    for series in results:
        rows.append(
            [
                series.name,
                text(series.seconds),
                f"{series.spread:.0%}",
                text(series.count("instructions"), ","),
                text(_rate(series), ".1f"),
                text(series.count("trace_bytes"), ","),
                *(text(ratio(series.seconds, seconds.get(name))) for name in _MEASURES.values()),
            ]
        )
    header = ["", "seconds", "spread", "instructions", "MIPS", "trace bytes", "/ plain", "/ QEMU"]
    return table([*header, "/ QEMU recording"], rows)


def as_json(guest: Guest, results: list[Series]) -> dict[str, object]:
    """The same for machines, with every single time."""
    seconds = {series.name: series.seconds for series in results}
    return {
        "smp": guest.smp,
        "memory": guest.memory,
        "seed": guest.seed,
        "kernel": guest.kernel.name,
        "variants": {
            series.name: {
                "seconds": series.seconds,
                "spread": series.spread,
                "all_seconds": [sample.seconds for sample in series.samples],
                "instructions": series.count("instructions"),
                "mips": _rate(series),
                "trace_bytes": series.count("trace_bytes"),
                "file_bytes": series.count("file_bytes"),
                **{
                    key: ratio(series.seconds, seconds.get(name)) for key, name in _MEASURES.items()
                },
            }
            for series in results
        },
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that only this benchmark has."""
    parser.add_argument("--initrd", type=Path, help="by default one that powers off at once")
    parser.add_argument("--append", default="console=ttyS0 panic=-1")
    parser.add_argument("--seed", type=int, default=0)


def run(
    arguments: argparse.Namespace, smps: list[int], with_qemu: bool
) -> list[tuple[Guest, list[Series]]]:
    """Measure what the options ask for, at each of these numbers of vCPUs."""
    with tempfile.TemporaryDirectory(prefix="rr86-bench-") as folder:
        kernel, initrd = arguments.kernel, arguments.initrd
        if kernel is None:
            kernel = Path(folder) / "demo.elf"
            kernel.write_bytes(demo_image())
        elif initrd is None:
            initrd = Path(folder) / "initrd.gz"
            initrd.write_bytes(initramfs(build(["init"]), []))
        guest = Guest(
            kernel=kernel,
            initrd=initrd,
            append=arguments.append,
            smp=1,
            memory=parse_size(arguments.memory),
            seed=arguments.seed,
            timeout=arguments.timeout,
        )
        guests = [replace(guest, smp=smp) for smp in smps]
        return [(each, measure(each, arguments.repetitions, with_qemu)) for each in guests]


def show(measured: list[tuple[Guest, list[Series]]]) -> None:
    """A table for each number of vCPUs."""
    for guest, results in measured:
        print(f"\n{guest.kernel.name}, {guest.smp} vCPUs, {format_size(guest.memory)}, ", end="")
        print(f"medians of {len(results[0].samples)}\n")
        print(report(results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.boot", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--smp", type=counts, default=[4], metavar="N,…", help="vCPUs")
    add_common_arguments(parser)
    add_arguments(parser)
    return parser.parse_args()


def main() -> int:
    """Measure and print; the exit status is 0 if every run ended as it should."""
    arguments = _arguments()
    try:
        measured = run(arguments, arguments.smp, qemu_there(not arguments.no_qemu))
    except (BenchError, SpecError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    if arguments.json != "-":
        show(measured)
        if arguments.kernel is None:
            print(f"\n{_HINT}")
    if arguments.json is not None:
        boots = [as_json(guest, results) for guest, results in measured]
        write_json({"host": host(), "boots": boots}, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
