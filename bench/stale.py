"""What it costs to look for stale blocks: records a guest with and without, in turn.

    python -m bench.stale --smp 4 --kernel vmlinuz --initrd initrd.gz

Both variants run the same instructions, under a block protocol that loses writes; the one says in
its trace which blocks have gone stale and were executed, the other does not look. Times are
wall-clock, from switching the machine on until the trace is closed; on a host that others use as
well, the CPU time of the process tells more. Without a kernel the demo guest is taken.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from bench.common import Sample, Series, alternate, table
from rr86.guests import demo_image
from rr86.machine.spec import BoardSpec
from rr86.record.recorder import Limits, Recorder, board_spec

ON, OFF = "detection on", "detection off"


def record(
    spec: BoardSpec, images: dict[str, bytes], trace: Path, limits: Limits, detect: bool
) -> Sample:
    """One recording; what it counts are instructions and stale blocks."""
    trace.unlink(missing_ok=True)
    started, used = time.monotonic(), time.process_time()
    with Recorder(spec, images, trace) as recorder:
        recorder.machine.detect_stale(detect)
        stop = recorder.run(limits=limits)
        recording = recorder.finish()
    seconds = time.monotonic() - started
    used = time.process_time() - used
    stale = recording.statistics
    counts = {
        "instructions": stop.icount,
        "cpu_ms": round(1000 * used),
        "blocks": stale["stale_blocks"],
        "executions": stale["stale_entries"],
        "bytes": recording.trace_bytes,
    }
    return Sample(seconds, counts)


def report(results: list[Series]) -> str:
    """The table."""
    names = ("cpu_ms", "instructions", "blocks", "executions", "bytes")
    rows = [
        [each.name, f"{each.seconds:.2f}", f"{each.spread:.0%}"]
        + [f"{each.count(name) or 0:,}" for name in names]
        for each in results
    ]
    header = ["", "seconds", "spread", "CPU ms"]
    header += ["instructions", "stale blocks", "executions", "trace bytes"]
    on, off = results
    cost = on.seconds / off.seconds - 1
    busy = (on.count("cpu_ms") or 0) / (off.count("cpu_ms") or 1) - 1
    return (
        f"{table(header, rows)}\n\n"
        f"Looking for stale blocks costs {cost:+.1%} of the time, {busy:+.1%} of the CPU time."
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.stale", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--kernel", type=Path, help="by default the demo guest of the package")
    parser.add_argument("--initrd", type=Path)
    parser.add_argument("--append", default="console=ttyS0 panic=-1")
    parser.add_argument("--smp", type=int, default=4)
    parser.add_argument("-m", "--memory", default="512M")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--protocol", default="qemu-7.2")
    parser.add_argument("--instructions", type=int, default=3_000_000_000, help="end after so many")
    parser.add_argument("-n", "--repetitions", type=int, default=5)
    parsed = parser.parse_args()
    if parsed.repetitions < 1:
        parser.error("--repetitions must be at least 1")
    return parsed


def main() -> int:
    """Measure and print; the exit status is 0 if both variants ran the same instructions."""
    arguments = _arguments()
    kernel: Path | None = arguments.kernel
    images = {"kernel": demo_image() if kernel is None else kernel.read_bytes()}
    if arguments.initrd is not None:
        images["initrd"] = arguments.initrd.read_bytes()
    spec = board_spec(
        smp=arguments.smp,
        memory=arguments.memory,
        append=arguments.append,
        seed=arguments.seed,
        protocol=arguments.protocol,
    )
    limits = Limits(instructions=arguments.instructions)
    with tempfile.TemporaryDirectory(prefix="rr86-bench-") as folder:
        trace = Path(folder) / "stale.rr86"
        results = alternate(
            [
                (ON, lambda: record(spec, images, trace, limits, True)),
                (OFF, lambda: record(spec, images, trace, limits, False)),
            ],
            arguments.repetitions,
            lambda line: print(line, file=sys.stderr),
        )
    print(f"\n{kernel.name if kernel else 'demo guest'}, {arguments.smp} vCPUs, ", end="")
    print(f"{arguments.protocol}, medians of {arguments.repetitions}\n")
    print(report(results))
    if results[0].count("instructions") != results[1].count("instructions"):
        print("bench: the two variants ran apart", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
