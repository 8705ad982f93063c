"""What the benchmarks share: alternating repetitions, medians, means, tables, QEMU, the host."""

import argparse
import gc
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

QEMU = "qemu-system-x86_64"


class BenchError(Exception):
    """A run that did not end as it should."""


@dataclass(frozen=True)
class Sample:
    """One run of one variant."""

    seconds: float
    # Whatever else was measured; the same keys in each sample of a variant.
    counts: dict[str, int] = field(default_factory=dict)


@dataclass
class Series:
    """All samples of a variant."""

    name: str
    samples: list[Sample] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The median time."""
        return statistics.median(sample.seconds for sample in self.samples)

    @property
    def spread(self) -> float:
        """From the fastest sample to the slowest, as a part of the median."""
        times = [sample.seconds for sample in self.samples]
        return (max(times) - min(times)) / self.seconds if self.seconds else 0.0

    def count(self, name: str) -> int | None:
        """The median of a count, if this variant has it."""
        found = [sample.counts[name] for sample in self.samples if name in sample.counts]
        return int(statistics.median(found)) if found else None


def alternate(
    variants: Sequence[tuple[str, Callable[[], Sample]]],
    repetitions: int,
    say: Callable[[str], None],
) -> list[Series]:
    """Run the variants in turn, so that whatever slows the host down meets all of them alike."""
    series = [Series(name) for name, _ in variants]
    for number in range(1, repetitions + 1):
        for (name, run), kept in zip(variants, series, strict=True):
            # A machine can be part of a cycle, and then keeps its memory until somebody looks.
            gc.collect()
            sample = run()
            kept.samples.append(sample)
            say(f"{number}/{repetitions} {name}: {sample.seconds:.2f} s")
    return series


def add_common_arguments(parser: argparse.ArgumentParser, qemu: bool = True) -> None:
    """The options that all benchmarks have."""
    parser.add_argument("--kernel", type=Path, help="a Linux bzImage, see docs/debian-kernel.md")
    parser.add_argument("-m", "--memory", default="512M")
    parser.add_argument("-n", "--repetitions", type=positive, default=3)
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one run")
    if qemu:
        parser.add_argument("--no-qemu", action="store_true", help="leave QEMU out")
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="all numbers; to stdout without FILE"
    )


def positive(value: str) -> int:
    """A whole number from 1 on, as an option's value."""
    if not value.strip().isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is no positive whole number")
    return int(value)


def counts(value: str) -> list[int]:
    """Some of them with commas between."""
    return [positive(part) for part in value.split(",")]


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Of those values that there are; None if there are none."""
    logarithms = [math.log(value) for value in values if value]
    return math.exp(statistics.fmean(logarithms)) if logarithms else None


def ratio(over: float | None, under: float | None) -> float | None:
    """A quotient, where both sides were measured."""
    return None if over is None or not under else over / under


def text(value: float | None, form: str = ".2f") -> str:
    """A number for a table, or a dash."""
    return "-" if value is None else format(value, form)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be; the first is flush left, the others are numbers."""
    widths = [max(len(row[at]) for row in [header, *rows]) for at in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    return "\n".join([line(header), *(line(row) for row in rows)])


def note(line: str) -> None:
    """A line about the progress, beside the result."""
    print(line, file=sys.stderr, flush=True)


def write_json(result: object, place: str) -> None:
    """To a file, or to stdout if the place is "-"."""
    content = json.dumps(result, indent=2) + "\n"
    if place == "-":
        sys.stdout.write(content)
    else:
        Path(place).write_text(content, encoding="utf-8")


def qemu_command(
    kernel: Path, initrd: Path | None, append: str, smp: int, memory: int
) -> list[str]:
    """QEMU's translator on the same kind of machine, several host threads allowed."""
    command = [QEMU, "-M", "q35,accel=tcg", "-smp", str(smp), "-m", f"{memory >> 20}M"]
    command += ["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]
    command += ["-kernel", str(kernel), "-append", append]
    if initrd is not None:
        command += ["-initrd", str(initrd)]
    return command


def qemu_recording(log: Path) -> list[str]:
    """What makes QEMU record into a file; it then counts instructions and has one vCPU only."""
    # Commas separate its options, and a doubled one is a comma.
    place = str(log).replace(",", ",,")
    return ["-icount", f"shift=auto,rr=record,rrfile={place}"]


def qemu_records() -> bool:
    """Whether this QEMU can record; says so in a line where it cannot."""
    with tempfile.TemporaryDirectory(prefix="rr86-bench-") as folder:
        command = [QEMU, "-M", "none", "-accel", "tcg", "-nodefaults", "-display", "none"]
        command += ["-monitor", "stdio", *qemu_recording(Path(folder) / "qemu.log")]
        try:
            done = subprocess.run(
                command, input=b"quit\n", capture_output=True, check=False, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            done = None
    able = done is not None and done.returncode == 0
    if not able:
        note(f"This {QEMU} does not record, so its recording is not measured.")
    return able


def qemu_there(wanted: bool) -> bool:
    """Whether QEMU can be measured; says so in a line where it is wanted and not there."""
    there = shutil.which(QEMU) is not None
    if wanted and not there:
        note(f"{QEMU} is not installed, so there is nothing to compare with.")
    return wanted and there


def _first_line(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return next(iter(done.stdout.splitlines()), None)


def host() -> dict[str, object]:
    """The machine and the programs that the numbers come from."""
    from rr86 import __version__

    model = None
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "rr86": __version__,
        "gcc": _first_line(["gcc", "--version"]),
        "qemu": _first_line([QEMU, "--version"]),
    }
