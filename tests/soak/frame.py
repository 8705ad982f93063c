"""Campaigns: many seeds, one process for a batch of them, findings kept.

The parent hands out batches; a worker says which seed it begins and how it ended. A worker that
dies or stays silent has a finding in that seed, and another one goes on behind it.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_FOLDER = Path("build/soak")


@dataclass
class Campaign:
    """One of the robustness tests: a seed at a time, in a folder of its own for scratch files."""

    module: str
    """Of the worker: `python -m MODULE --worker …`."""
    name: str
    """Of the state file and of the findings."""
    arguments: list[str]
    """Handed to the worker as they are."""
    first: int
    seeds: int
    jobs: int
    timeout: float
    """Seconds of silence after which a worker counts as hanging."""
    folder: Path
    batch: int = 50
    endings: Counter[str] = field(default_factory=Counter)
    findings: list[int] = field(default_factory=list)


class _Worker:
    def __init__(self, campaign: Campaign, first: int, count: int) -> None:
        self.first, self.left = first, count
        self.next = first
        self.current: int | None = None
        self.scratch = Path(tempfile.mkdtemp(prefix="soak-"))
        self.errors = (self.scratch / "stderr").open("w+b")
        command = [
            *(sys.executable, "-m", campaign.module, *campaign.arguments),
            *("--worker", f"{first}:{count}", "--scratch", str(self.scratch)),
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.errors)
        assert self.process.stdout is not None
        self.out = self.process.stdout
        self.heard = time.monotonic()
        self.pending = b""
        self.hung = False

    def said(self) -> str:
        self.errors.seek(0)
        return self.errors.read()[-4000:].decode("utf-8", "replace")

    def close(self) -> None:
        self.out.close()
        self.errors.close()
        shutil.rmtree(self.scratch, ignore_errors=True)


def run(campaign: Campaign) -> int:
    """Run a campaign to its end; 1 if it found something. Prints each finding with its seed."""
    campaign.folder.mkdir(parents=True, exist_ok=True)
    ranges = _batches(campaign)
    workers: list[_Worker] = []
    waiting: list[tuple[int, int]] = []
    chooser = selectors.DefaultSelector()
    done, started, told = 0, time.monotonic(), time.monotonic()

    def begin() -> None:
        while len(workers) < campaign.jobs:
            if waiting:
                span = waiting.pop()
            else:
                following = next(ranges, None)
                if following is None:
                    return
                span = following
            worker = _Worker(campaign, *span)
            workers.append(worker)
            chooser.register(worker.out, selectors.EVENT_READ, worker)

    begin()
    try:
        while workers:
            for key, _ in chooser.select(1.0):
                worker = key.data
                data = os.read(worker.out.fileno(), 65536)
                worker.heard = time.monotonic()
                worker.pending += data
                *lines, worker.pending = worker.pending.split(b"\n")
                for line in lines:
                    done += _take(campaign, worker, json.loads(line))
                if not data:
                    chooser.unregister(worker.out)
                    workers.remove(worker)
                    done += _ended(campaign, worker, waiting)
            now = time.monotonic()
            for worker in workers:
                if now - worker.heard > campaign.timeout and worker.process.poll() is None:
                    worker.hung = True
                    worker.process.kill()
            begin()
            if now - told > 20:
                told = now
                print(
                    f"{campaign.name}: {done} of {campaign.seeds}, {_words(campaign)}", flush=True
                )
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.wait()
            worker.close()
    seconds = time.monotonic() - started
    print(
        f"{campaign.name}: seeds {campaign.first} to {campaign.first + campaign.seeds - 1}: "
        f"{_words(campaign)}; {seconds:.0f} s",
        flush=True,
    )
    return 1 if campaign.findings else 0


def _words(campaign: Campaign) -> str:
    ends = ", ".join(f"{number} {name}" for name, number in campaign.endings.most_common())
    return f"{len(campaign.findings)} findings; ends: {ends or 'none'}"


def _batches(campaign: Campaign) -> Iterator[tuple[int, int]]:
    end = campaign.first + campaign.seeds
    size = max(1, min(campaign.batch, campaign.seeds // campaign.jobs))
    for first in range(campaign.first, end, size):
        yield first, min(size, end - first)


def _take(campaign: Campaign, worker: _Worker, row: dict[str, object]) -> int:
    seed = row["seed"]
    assert isinstance(seed, int)
    if "begin" in row:
        worker.current = seed
        return 0
    worker.current = None
    worker.next = seed + 1
    if "error" in row:
        _finding(campaign, worker, seed, str(row["error"]))
        campaign.endings["FINDING"] += 1
    else:
        campaign.endings[str(row["end"])] += 1
    return 1


def _ended(campaign: Campaign, worker: _Worker, waiting: list[tuple[int, int]]) -> int:
    status = worker.process.wait()
    done = 0
    if worker.current is not None:
        seed = worker.current
        if worker.hung:
            what = f"hang: silent for {campaign.timeout:.0f} s"
        elif status < 0:
            what = f"crash: {signal.Signals(-status).name}"
        else:
            what = f"the worker ended with status {status}"
        _finding(campaign, worker, seed, f"{what}\n{worker.said()}")
        campaign.endings["FINDING"] += 1
        worker.next = seed + 1
        done = 1
    elif status != 0 and worker.next < worker.first + worker.left:
        raise RuntimeError(f"a worker could not begin:\n{worker.said()}")
    left = worker.first + worker.left - worker.next
    if left > 0:
        waiting.append((worker.next, left))
    worker.close()
    return done


def _finding(campaign: Campaign, worker: _Worker, seed: int, what: str) -> None:
    campaign.findings.append(seed)
    folder = campaign.folder / f"{campaign.name}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    words = ["python -m", campaign.module, *campaign.arguments, f"--first {seed} --seeds 1"]
    command = " ".join(words)
    (folder / "report.txt").write_text(f"{command}\n\n{what}\n")
    for name in ("kernel.elf", "spec.json"):
        kept = worker.scratch / name
        if kept.exists():
            shutil.copy(kept, folder / name)
    lines = [line for line in what.strip().splitlines() if line.strip()]
    print(f"FINDING {campaign.name} seed {seed}: {lines[0]} … {lines[-1][:300]}", flush=True)
    print(f"  {command}   (kept in {folder})", flush=True)


def work(span: str, check: Callable[[int], str]) -> int:
    """A worker's life: each seed of `FIRST:COUNT` through `check`, which says how it ended."""
    first, count = (int(part) for part in span.split(":"))

    def say(**row: object) -> None:
        print(json.dumps(row), flush=True)

    for seed in range(first, first + count):
        say(seed=seed, begin=True)
        try:
            end = check(seed)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # A panic in the core is a BaseException; behind it the process is not trusted.
            say(seed=seed, error=_told(error))
            return 0
        say(seed=seed, end=end)
    return 0


def _told(error: BaseException) -> str:
    head = f"{type(error).__name__}: {error}"
    return head + "\n" + "".join(traceback.format_exception(error)) + head


def options(description: str | None, seeds: int, timeout: float) -> argparse.ArgumentParser:
    """What each of the robustness tests can be asked for."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, default=seeds, help="how many")
    parser.add_argument("--first", type=int, help="the first; by default where the last run ended")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--timeout", type=float, default=timeout, help="seconds for one seed")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="findings and state")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    return parser


def begin_at(folder: Path, name: str, first: int | None) -> int:
    """The first seed: the one asked for, or the one behind those that were run last."""
    if first is not None:
        return first
    state = folder / f"{name}.next"
    return int(state.read_text()) if state.exists() else 0


def note(folder: Path, name: str, following: int) -> None:
    """Keep where the next run begins."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.next").write_text(f"{following}\n")
