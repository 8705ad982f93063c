"""How cost grows: with vCPUs, with the length of a run, in memory; and what a start costs.

    python -m bench.scaling --kernel vmlinuz

Four questions, each with the bound that rr86 sets itself:

vcpus    the same work of eight processes, on 1 to 8 vCPUs: the host's time for an instruction
length   ten times the work: ten times the time, and no more memory beside the guest's own; the
         work is timed by what the guest's console says, without the boot
start    from exec of `rr86 record` to the end of the guest's first slice, of some ten thousand
         instructions, and to the end of the process, its trace closed
memory   the most that `rr86 record` held at once in a run, and how much of it is RAM that the guest
         has touched

The last three look at the command as a user starts it, from outside.
"""

import argparse
import gc
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.common import (
    BenchError,
    add_common_arguments,
    host,
    note,
    table,
    text,
    write_json,
)
from bench.programs.build import build
from bench.programs.guest import APPEND, Markers, initramfs
from rr86.cpu.guest_symbols import GuestSymbols
from rr86.cpu.inspection import Inspector
from rr86.errors import SpecError
from rr86.guests import demo_folder
from rr86.machine.spec import parse_size
from rr86.record.recorder import board_spec
from rr86.session.conditions import as_conditions
from rr86.session.execution import Execution
from rr86.session.power import start

VCPUS = (1, 2, 4, 8)
# Programs and iterations of the unit of work whose growth is measured; it takes about a second.
WORK = (
    ("parallel", 30),
    ("getppid", 300_000),
    ("forkexec", 120),
    ("pagefault", 600),
    ("pipe", 6_000),
)
TIMES = 10
# How often the unit is done in the runs of one repetition. A short run shows more of the host's
# noise than a long one, so there are more of them, around it.
RUNS = (1, 1, TIMES, 1)
# Iterations of "parallel" where vCPUs are compared.
PARALLEL = 100
_COMMAND = (sys.executable, "-c", "from rr86.cli import main; main()", "record", "--no-input")
_MIB = 1 << 20


@dataclass(frozen=True)
class Answer:
    """One measured quantity and its bound."""

    question: str
    what: str
    value: float
    unit: str
    bound: float | None = None

    @property
    def kept(self) -> bool | None:
        """Whether the bound is kept, where there is one."""
        return None if self.bound is None else self.value <= self.bound


@dataclass(frozen=True)
class Child:
    """What a finished `rr86 record` has used, in seconds and bytes."""

    seconds: float
    # From each program's begin to its end, as its console told them.
    work: float
    peak: int
    # Guest RAM that was resident when last looked at.
    touched: int


def resident(smaps: str, size: int) -> int:
    """Resident bytes of the private writable mappings that are at least so large."""
    total, counted = 0, False
    for line in smaps.splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            private = line.split()[1] == "rw-p"
            counted = False
        elif line.startswith("Size:"):
            counted = private and int(line.split()[1]) * 1024 >= size
        elif line.startswith("Rss:") and counted:
            total += int(line.split()[1]) * 1024
    return total


def high_water(status: str) -> int:
    """The most bytes that a process has had resident, from its /proc/PID/status."""
    found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


class _Watch(threading.Thread):
    """Looks at a process until it is gone.

    What `wait` says of its memory is of no use: it counts what the parent held when it forked.
    """

    def __init__(self, pid: int, memory: int) -> None:
        super().__init__()
        self.peak = 0
        self.touched = 0
        self._folder = Path(f"/proc/{pid}")
        self._memory = memory
        self._over = threading.Event()

    def run(self) -> None:
        """Look fifty times a second, and every tenth time closely."""
        looks = 0
        while not self._over.wait(0.02):
            try:
                status = (self._folder / "status").read_text(encoding="utf-8")
                self.peak = max(self.peak, high_water(status))
                if looks % 10 == 0:
                    smaps = (self._folder / "smaps").read_text(encoding="utf-8")
                    self.touched = max(self.touched, resident(smaps, self._memory))
            except OSError:
                return
            looks += 1

    def stop(self) -> None:
        """The process has ended."""
        self._over.set()
        self.join()


def record(options: Sequence[str], memory: int, folder: Path) -> Child:
    """`rr86 record` with these options, as a process of its own whose console is looked at."""
    trace = folder / "scaling.rr86"
    trace.unlink(missing_ok=True)
    command = [*_COMMAND, "-m", f"{memory // _MIB}M", "-o", str(trace), *options]
    markers = Markers()
    said = folder / "said"
    started = time.monotonic()
    with (
        said.open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process,
    ):
        watch = _Watch(process.pid, memory)
        watch.start()
        assert process.stdout is not None
        while data := os.read(process.stdout.fileno(), 1 << 16):
            markers.feed(data, time.monotonic())
        process.wait()
        seconds = time.monotonic() - started
        watch.stop()
    failed = [name for name, each in markers.outcomes.items() if each.status]
    if process.returncode or not markers.over or failed:
        last = (said.read_text().strip().splitlines() or ["nothing said"])[-1]
        what = f"; failed: {', '.join(failed)}" if failed else ""
        raise BenchError(f"rr86 record ended with status {process.returncode}: {last}{what}")
    work = sum(each.seconds for each in markers.outcomes.values())
    return Child(seconds, work, watch.peak, watch.touched)


@dataclass(frozen=True)
class Start:
    """Seconds from exec to the report of the first slice, and to the end of the process."""

    first: float
    whole: float


def start_up(image: Path, memory: int, folder: Path) -> Start:
    """Record a slice, the shortest run. The command tells of it, and then closes the trace."""
    trace = folder / "start.rr86"
    trace.unlink(missing_ok=True)
    command = [*_COMMAND, "-m", f"{memory // _MIB}M", "-o", str(trace)]
    command += ["--limit-instructions", "1", str(image)]
    # As an installed rr86 starts: with its modules compiled.
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder / "compiled")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    started = time.monotonic()
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        first = time.monotonic() - started
        process.stderr.read()
    whole = time.monotonic() - started
    if "limit reached at instruction" not in said:
        raise BenchError(f"rr86 record ended with status {process.returncode}: {said.strip()}")
    return Start(first, whole)


def _by_start(image: Path, repetitions: int, memory: int, folder: Path) -> list[Answer]:
    # The first one compiles the modules.
    runs = [start_up(image, memory, folder) for _ in range(repetitions + 1)][1:]
    first = statistics.median(run.first for run in runs) * 1e3
    whole = statistics.median(run.whole for run in runs) * 1e3
    return [
        Answer("start", f"{image.name}, to the first instructions", first, "ms", 150),
        Answer("start", f"{image.name}, with the trace closed", whole, "ms"),
    ]


@dataclass(frozen=True)
class Cost:
    """Host nanoseconds for an instruction: of the boot, and of the work after it."""

    boot: float
    work: float


def cost(
    kernel: bytes, executables: dict[str, Path], smp: int, memory: int, timeout: float
) -> Cost:
    """Boot and work once, plain."""
    initrd = initramfs(executables, [("parallel", PARALLEL)])
    spec = board_spec(smp=smp, memory=memory, append=APPEND)
    machine = start(spec, {"kernel": kernel, "initrd": initrd})
    execution = Execution(machine, Inspector(machine, GuestSymbols(kernel), smp))
    moments = [(time.monotonic(), 0)]
    for marker in ("[bench parallel begin]", "[bench parallel end 0 "):
        deadline = time.monotonic() + timeout
        stop = execution.run(
            as_conditions(f"console={marker}"),
            tick=lambda _, deadline=deadline: time.monotonic() > deadline,  # type: ignore[misc]
        )
        if stop.reason != "condition":
            raise BenchError(f"{smp} vCPUs: no {marker!r}, but: {stop.describe()}")
        moments.append((time.monotonic(), stop.icount))
    (begun, _), (booted, first), (ended, last) = moments
    return Cost((booted - begun) * 1e9 / first, (ended - booted) * 1e9 / (last - first))


def measure(kernel: Path | None, repetitions: int, memory: int, timeout: float) -> list[Answer]:
    """All answers that can be had; without a kernel, how long the demo guest takes to start."""
    answers: list[Answer] = []
    with tempfile.TemporaryDirectory(prefix="rr86-bench-") as name:
        folder = Path(name)
        for image in (demo_folder() / "demo.elf", kernel):
            if image is not None:
                note(f"start of {image.name}")
                answers += _by_start(image, max(repetitions, 5), memory, folder)
        if kernel is None:
            note("Without --kernel only the start of the demo guest is measured.")
            return answers
        executables = build([*(name for name, _ in WORK), "init"])
        answers += _by_vcpus(kernel.read_bytes(), executables, repetitions, memory, timeout)
        answers += _by_length(kernel, executables, repetitions, memory, folder)
    return answers


def _by_vcpus(
    kernel: bytes, executables: dict[str, Path], repetitions: int, memory: int, timeout: float
) -> list[Answer]:
    costs: dict[int, list[Cost]] = {smp: [] for smp in VCPUS}
    # The first machine of a process finds its memory cold, and would make one vCPU look slow.
    cost(kernel, executables, VCPUS[0], memory, timeout)
    for number in range(1, repetitions + 1):
        for smp in VCPUS:
            note(f"{number}/{repetitions} the same work on {smp} vCPUs")
            gc.collect()
            costs[smp].append(cost(kernel, executables, smp, memory, timeout))
    answers = []
    for part in ("boot", "work"):
        medians = {
            smp: statistics.median(getattr(each, part) for each in costs[smp]) for smp in VCPUS
        }
        for smp, value in medians.items():
            answers.append(Answer("vcpus", f"{part}, {smp} vCPUs", value, "ns/instruction"))
        last = max(VCPUS)
        ratio = medians[last] / medians[1]
        answers.append(Answer("vcpus", f"{part}, {last} vCPUs to 1", ratio, "x", 1.3))
    return answers


def _by_length(
    kernel: Path, executables: dict[str, Path], repetitions: int, memory: int, folder: Path
) -> list[Answer]:
    runs: dict[int, list[Child]] = {0: [], 1: [], TIMES: []}
    for number in range(1, repetitions + 1):
        for factor in (0, *RUNS):
            note(f"{number}/{repetitions} {factor} times the work")
            initrd = folder / "initrd.gz"
            work = [(name, count * factor) for name, count in WORK if factor]
            initrd.write_bytes(initramfs(executables, work))
            options = ["--smp", "4", "--initrd", str(initrd), "--append", APPEND, str(kernel)]
            runs[factor].append(record(options, memory, folder))
    return length_answers(runs)


def length_answers(runs: Mapping[int, Sequence[Child]]) -> list[Answer]:
    """What runs with no work, with the unit of it, and with `TIMES` the unit tell."""
    boot = statistics.median(run.seconds for run in runs[0])
    work = {n: statistics.median(run.work for run in runs[n]) for n in (1, TIMES)}
    beside = {
        n: statistics.median(run.peak - run.touched for run in kept) / _MIB
        for n, kept in runs.items()
    }
    peak = statistics.median(run.peak for run in runs[TIMES]) / _MIB
    ratio = work[TIMES] / (TIMES * work[1])
    return [
        Answer("length", "boot alone", boot, "s"),
        Answer("length", "the work once, after the boot", work[1], "s"),
        Answer("length", f"{TIMES} times, after the boot", work[TIMES], "s"),
        Answer("length", f"{TIMES} times to {TIMES} x once", ratio, "x", 1.1),
        Answer("length", "memory that it adds", beside[TIMES] - beside[1], "MiB", 16),
        Answer("memory", f"peak with {TIMES} times the work", peak, "MiB"),
        Answer("memory", "peak less the RAM touched, boot alone", beside[0], "MiB", 300),
        Answer("memory", f"the same, {TIMES} times the work", beside[TIMES], "MiB", 300),
    ]


def report(answers: Sequence[Answer]) -> str:
    """The table for people."""
    rows = []
    for each in answers:
        word = {None: "", True: "kept", False: "not kept"}[each.kept]
        value = f"{text(each.value)} {each.unit}"
        rows.append([f"{each.question}: {each.what}", value, text(each.bound, "g"), word])
    return table(["", "measured", "at most", ""], rows)


def as_json(answers: Sequence[Answer]) -> list[dict[str, object]]:
    """The same for machines."""
    return [{**asdict(each), "kept": each.kept} for each in answers]


def run(arguments: argparse.Namespace) -> list[Answer]:
    """Measure what the options ask for."""
    memory = parse_size(arguments.memory)
    return measure(arguments.kernel, arguments.repetitions, memory, arguments.timeout)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_common_arguments(parser, qemu=False)
    arguments = parser.parse_args()
    try:
        answers = run(arguments)
    except (BenchError, SpecError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    if arguments.json != "-":
        print(f"\n{report(answers)}")
    if arguments.json is not None:
        write_json({"host": host(), "scaling": as_json(answers)}, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
