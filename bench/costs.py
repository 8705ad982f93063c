"""What a part of recording costs: records a guest with and without it, in turn.

    python -m bench.costs stale --smp 4 --kernel vmlinuz --initrd initrd.gz
    python -m bench.costs cross-writes --smp 4 --kernel vmlinuz --initrd initrd.gz

"stale" is looking for stale blocks, under a block protocol that loses writes; "cross-writes" is
tracking and logging which vCPU writes and reads which page. Both variants run the same
instructions. Times are wall-clock, from switching the machine on until the trace is closed; on a
host that others use as well, the CPU time of the process tells more. Without a kernel the demo
guest is taken.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from bench.common import Sample, Series, alternate, table
from rr86.guests import demo_image
from rr86.machine.spec import BoardSpec
from rr86.record.recorder import Recorder, board_spec
from rr86.session.limits import Limits

ON, OFF = "with", "without"
PROTOCOLS = {"stale": "qemu-7.2", "cross-writes": "precise"}


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
    statistics = recording.statistics
    counts = {
        "instructions": stop.icount,
        "cpu_ms": round(1000 * used),
        "blocks": statistics["stale_blocks"],
        "hand_offs": statistics["hand_offs"],
        "bytes": recording.trace_bytes,
    }
    return Sample(seconds, counts)


def report(part: str, results: list[Series]) -> str:
    """The table."""
    names = ("cpu_ms", "instructions", "blocks", "hand_offs", "bytes")
    rows = [
        [each.name, f"{each.seconds:.2f}", f"{each.spread:.0%}"]
        + [f"{each.count(name) or 0:,}" for name in names]
        for each in results
    ]
    header = ["", "seconds", "spread", "CPU ms"]
    header += ["instructions", "stale blocks", "hand-offs", "trace bytes"]
    on, off = results
    cost = on.seconds / off.seconds - 1
    busy = (on.count("cpu_ms") or 0) / (off.count("cpu_ms") or 1) - 1
    return (
        f"{table(header, rows)}\n\n"
        f"{part} costs {cost:+.1%} of the time, {busy:+.1%} of the CPU time."
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.costs", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("part", choices=sorted(PROTOCOLS))
    parser.add_argument("--kernel", type=Path, help="by default the demo guest of the package")
    parser.add_argument("--initrd", type=Path)
    parser.add_argument("--append", default="console=ttyS0 panic=-1")
    parser.add_argument("--smp", type=int, default=4)
    parser.add_argument("-m", "--memory", default="512M")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--protocol")
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
    stale = arguments.part == "stale"
    protocol = arguments.protocol or PROTOCOLS[arguments.part]

    def spec(cross_writes: bool) -> BoardSpec:
        return board_spec(
            smp=arguments.smp,
            memory=arguments.memory,
            append=arguments.append,
            seed=arguments.seed,
            protocol=protocol,
            cross_writes=cross_writes,
        )

    limits = Limits(instructions=arguments.instructions)
    with tempfile.TemporaryDirectory(prefix="rr86-bench-") as folder:
        trace = Path(folder) / "cost.rr86"
        results = alternate(
            [
                (ON, lambda: record(spec(True), images, trace, limits, True)),
                (OFF, lambda: record(spec(stale), images, trace, limits, not stale)),
            ],
            arguments.repetitions,
            lambda line: print(line, file=sys.stderr),
        )
    print(f"\n{kernel.name if kernel else 'demo guest'}, {arguments.smp} vCPUs, ", end="")
    print(f"{protocol}, medians of {arguments.repetitions}\n")
    print(report(arguments.part, results))
    if results[0].count("instructions") != results[1].count("instructions"):
        print("bench: the two variants ran apart", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
