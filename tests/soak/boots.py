"""Boots of Linux kernels with every number of vCPUs, schedule and protocol, replayed in every way.

    python -m tests.soak.boots --seeds 100 /path/to/kernel-folder …

Each folder holds a `vmlinuz` and an `initrd.gz` that powers off (tools/debian-guest.sh makes them).
Results are lines of JSON in FOLDER/boots.jsonl; a summary of all of them comes at the end. See
docs/testing.md.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import rr86
from rr86.machine.spec import PROTOCOLS, SCHEDULES, BoardSpec
from rr86.record.recorder import Recorder
from rr86.session.limits import Limits
from tests.guests.machines import Outcome, finished, outcome
from tests.soak import frame
from tests.soak.checks import SHORTCUTS, DifferenceError, Run, compare_traces, without
from tests.soak.checks import replay as replay_whole

VCPUS = (1, 2, 4, 8)
APPEND = "console=ttyS0 panic=-1"
LIMIT = 60_000_000_000
"""Instructions; far beyond any boot."""
HONEST = ("precise", "walk-unchecked", "dma-unchecked")
"""Protocols under which a kernel has to come up; others miss writes that it needs."""
SMALL_CACHES = (2_000, 20_000)
WAYS = ("whole", "checkpoints", "without-shortcuts", "middle")


@dataclass(frozen=True)
class Boot:
    """One boot of the soak."""

    seed: int
    kernel: Path
    spec: BoardSpec
    checkpoints: int
    way: str
    """How it is replayed, besides whole."""


def plan(seed: int, kernels: list[Path]) -> Boot:
    """Which boot a seed stands for: kernels and vCPUs in turn, the rest drawn."""
    rng = Random(f"boot/{seed}")
    turn = seed // len(kernels)
    vcpus = VCPUS[turn % len(VCPUS)]
    protocol = "precise" if rng.random() < 0.6 else rng.choice(PROTOCOLS)
    spec = BoardSpec(
        vcpus=vcpus,
        memory=512 << 20,
        command_line=APPEND,
        kernel_name="vmlinuz",
        seed=seed,
        schedule=SCHEDULES[turn // len(VCPUS) % len(SCHEDULES)],
        quantum=rng.choice((100_000, 100_000, 20_000, 400_000)),
        protocol=protocol,
        window_bias=rng.choice((8192, 2000)),
        block_capacity=rng.choice((262_144, 262_144, 262_144, *SMALL_CACHES)),
        max_block=rng.choice((64, 64, 64, 64, 12)),
    )
    return Boot(
        seed=seed,
        kernel=kernels[seed % len(kernels)],
        spec=spec,
        checkpoints=rng.choice((200_000_000, 400_000_000)) if protocol != "chain-kept" else 0,
        way=rng.choice(WAYS),
    )


def _run(boot: Boot, path: Path, shortcuts_off: tuple[str, ...] = ()) -> Run:
    files = {name: (boot.kernel / file).read_bytes() for name, file in _FILES.items()}
    console, debugcon = bytearray(), bytearray()
    with without(shortcuts_off):
        recorder = Recorder(
            boot.spec,
            files,
            path,
            file_names=_FILES,
            console=console.extend,
            debugcon=lambda data, _: debugcon.extend(data),
            checkpoints=boot.checkpoints or None,
        )
    with recorder:
        stop = recorder.run(limits=Limits(instructions=LIMIT, time_ns=600 * 10**9))
        result = outcome(stop, recorder.machine, bytes(console), bytes(debugcon))
    return Run(path, result)


_FILES = {"kernel": "vmlinuz", "initrd": "initrd.gz"}


def _from_checkpoints(run: Run) -> int:
    """Replay to the end from every checkpoint."""
    trace = rr86.open_trace(run.path)
    points = trace.checkpoints()
    for point in points:
        session = trace.session(at=point.icount)
        _same_end(finished(session, session.run()), run.outcome, f"from {point.icount}")
    return len(points)


def _from_the_middle(run: Run, rng: Random) -> int:
    """Take a snapshot on the way, and go on from there twice."""
    trace = rr86.open_trace(run.path)
    session = trace.session()
    stop = session.run(max_instructions=rng.randrange(1, run.outcome.icount))
    if stop.over:
        return 0
    snapshot = session.snapshot()
    for each in (session, trace.session(snapshot=snapshot)):
        _same_end(finished(each, each.run()), run.outcome, f"from {snapshot.icount}")
    return 1


def _same_end(replayed: Outcome, recorded: Outcome, what: str) -> None:
    same = replace(replayed, console=b"", debugcon=b"", reason="", code=0)
    if same != replace(recorded, console=b"", debugcon=b"", reason="", code=0):
        raise DifferenceError(f"the replay {what} ended as {replayed}, the recording as {recorded}")


def one(boot: Boot, scratch: Path) -> dict[str, object]:
    """Record a boot, replay it whole, and once more in its way."""
    started = time.monotonic()
    path = scratch / "boot.rr86"
    (scratch / "spec.json").write_text(
        json.dumps({"kernel": str(boot.kernel), **boot.spec.to_dict()}, indent=1)
    )
    run = _run(boot, path)
    recorded = time.monotonic() - started
    if boot.spec.protocol in HONEST and run.outcome.reason != "poweroff":
        tail = run.outcome.console[-2000:].decode("utf-8", "replace")
        raise DifferenceError(f"the boot ended with {run.outcome.reason}:\n{tail}")
    replay_whole(run)
    replays = 1
    if boot.way == "without-shortcuts":
        replay_whole(run, SHORTCUTS)
        other = _run(boot, scratch / "other.rr86", SHORTCUTS)
        compare_traces(run, other, "without shortcuts")
        replays += 2
    elif boot.way == "checkpoints":
        replays += _from_checkpoints(run)
    elif boot.way == "middle" and boot.checkpoints:
        replays += 2 * _from_the_middle(run, Random(boot.seed))
    for trace in scratch.glob("*.rr86"):
        trace.unlink()
    spec = boot.spec
    return {
        "seed": boot.seed,
        "kernel": boot.kernel.name,
        "vcpus": spec.vcpus,
        "schedule": spec.schedule,
        "protocol": spec.protocol,
        "block_capacity": spec.block_capacity,
        "way": boot.way,
        "end": run.outcome.reason,
        "instructions": run.outcome.icount,
        "replays": replays,
        "record_seconds": round(recorded, 2),
        "seconds": round(time.monotonic() - started, 2),
    }


def summary(results: Path) -> str:
    """What all boots so far amount to."""
    rows = (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )
    lines = [
        f"{len(rows)} boots without a difference, {sum(row['replays'] for row in rows)} replays, "
        f"{sum(row['instructions'] for row in rows) / 1e9:.0f} billion instructions recorded, "
        f"{sum(row['seconds'] for row in rows) / 3600:.2f} h of host time"
    ]
    for key in ("kernel", "vcpus", "schedule", "protocol", "way", "end"):
        counts = Counter(str(row[key]) for row in rows)
        lines.append(
            f"  {key}: " + ", ".join(f"{value} {n}" for value, n in sorted(counts.items()))
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run boots; 1 if something was found."""
    parser = frame.options(__doc__, 24, 1800.0)
    parser.add_argument("kernels", nargs="*", type=Path, help="folders with vmlinuz and initrd.gz")
    chosen = parser.parse_args(arguments)
    results = chosen.folder / "boots.jsonl"
    if not chosen.kernels:
        print(summary(results))
        return 0
    for kernel in chosen.kernels:
        for file in _FILES.values():
            if not (kernel / file).exists():
                parser.error(f"{kernel / file} does not exist; see tools/debian-guest.sh")
    if chosen.worker:
        return frame.work(
            chosen.worker, lambda seed: _noted(plan(seed, chosen.kernels), chosen.scratch, results)
        )
    first = frame.begin_at(chosen.folder, "boots", chosen.first)
    status = frame.run(
        frame.Campaign(
            module="tests.soak.boots",
            name="boots",
            arguments=[
                *("--folder", str(chosen.folder)),
                *(str(kernel.resolve()) for kernel in chosen.kernels),
            ],
            first=first,
            seeds=chosen.seeds,
            jobs=chosen.jobs,
            timeout=chosen.timeout,
            folder=chosen.folder,
            batch=1,
        )
    )
    if chosen.first is None:
        frame.note(chosen.folder, "boots", first + chosen.seeds)
    print(summary(results))
    return status


def _noted(boot: Boot, scratch: Path, results: Path) -> str:
    row = one(boot, scratch)
    with results.open("a") as file:
        # One short write: workers may append at the same time.
        file.write(json.dumps(row) + "\n")
    return str(row["end"])


if __name__ == "__main__":
    sys.exit(main())
