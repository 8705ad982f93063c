"""Recorders, checkpointers and expanders that are killed by SIGKILL at random moments.

python -m tests.soak.death --kills 1000 --seed 7 [--from N] [--kernel FOLDER …]

Each case follows from the seed and its number, save for what the host's scheduler makes of it:
which command runs, on which guest, and after which time it is killed. Then

- the trace under way replays, with all of its digests equal, to the last event that was kept, from
  power-on and from its last checkpoint;
- the trace that a command was to replace or to expand is what it was, byte for byte, or what the
  command was to make of it, and never something between;
- the same command, run again, does its work.

What was lost of a recording is the host's time between the kill and the last moment that the trace
still reaches; the recorder notes on its way when it is where. A kernel's folder holds `vmlinuz` and
`initrd.gz`; every twentieth case boots one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.guests.build import build, load_manifest

# A moment of the run: host time, the main thread's CPU time, instructions.
_NOTE = struct.Struct("<ddQ")
# A kernel's boot is worth killing at any moment of it; the guests do the same for ever.
_KERNEL_SECONDS = 8.0
_GUEST_SECONDS = 1.2
_PATIENCE = 120.0


class DeathError(Exception):
    """Something that a killed process must not leave behind; the message says what."""


@dataclass
class Tally:
    """What became of the cases so far."""

    kills: int = 0
    # By command; "too early" are recordings killed before their trace had all of its images.
    cases: Counter[str] = field(default_factory=Counter)
    # Seconds lost of each killed recording of which something was left: of the host's time, and of
    # the time that the host gave it.
    lost: list[float] = field(default_factory=list)
    lost_cpu: list[float] = field(default_factory=list)
    # How many of those went on from a side file.
    tails: int = 0
    findings: list[str] = field(default_factory=list)

    def report(self) -> str:
        """In a few lines."""
        cases = ", ".join(f"{name} {count}" for name, count in sorted(self.cases.items()))
        lines = [f"{self.kills} kills ({cases}), {len(self.findings)} findings"]
        for what, lost in (("host", self.lost), ("CPU", self.lost_cpu)):
            if lost:
                ordered = [round(1000 * each) for each in sorted(lost)]
                lines.append(
                    f"{what} time lost of {len(lost)} recordings, {self.tails} of them with a side "
                    f"file: median {ordered[len(ordered) // 2]} ms, 99 % "
                    f"{ordered[int(len(ordered) * 0.99)]} ms, most {ordered[-1]} ms"
                )
        return "\n".join(lines)


def _in_child(folder: Path, body: Callable[[], int]) -> int:
    """A process that runs `body` with its output in files; its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        # The parent's may be anywhere: a test runner captures them.
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        status = body()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _command(words: Sequence[str], notes: Path | None = None) -> Callable[[], int]:
    """A call of rr86, which notes how far it is and when if it is told where."""

    def body() -> int:
        from rr86.cli import main
        from rr86.session.execution import Execution

        if notes is not None:
            log = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            original = Execution._one_call

            def noting(self: Execution, *args: object) -> object:
                os.write(log, _NOTE.pack(time.monotonic(), time.thread_time(), self.icount))
                stop = original(self, *args)  # type: ignore[arg-type]
                os.write(log, _NOTE.pack(time.monotonic(), time.thread_time(), self.icount))
                return stop

            Execution._one_call = noting  # type: ignore[assignment, method-assign]
        sys.argv = ["rr86", *words]
        main()
        return 0

    return body


def _cpu_time(child: int) -> float:
    """Seconds for which the main thread of a process has run."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{child}/task/{child}/schedstat").read_text().split()[0]) / 1e9
    return 0.0


def _wait(child: int, seconds: float) -> int | None:
    """A process's status after at most so long; None if it still runs."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(min(0.002, max(0.0, end - time.monotonic())))


class Deaths:
    """The cases of one seed."""

    def __init__(self, seed: int, folder: Path, kernels: Sequence[Path] = ()) -> None:
        self.seed = seed
        self.folder = folder
        self.kernels = list(kernels)
        self.tally = Tally()
        manifest = load_manifest()
        self._guests = {name: build(manifest[name]) for name in ("hang", "textpoke")}
        self._good = folder / "good.rr86"
        # Checkpoints stand where digests were taken, every 100 million instructions.
        long = ["--limit-instructions", "330M"]
        self._finish(self._record_words("hang", self._good, "", 3, long))
        self._checkpointed = folder / "checkpointed.rr86"
        self._every = "100M"
        self._finish(
            ["checkpoint", str(self._good), "--every", self._every, "-o", str(self._checkpointed)]
        )

    def _record_words(
        self, guest: str, output: Path, append: str, vcpus: int, more: Sequence[str] = ()
    ) -> list[str]:
        return [
            *("record", "--no-input", "--smp", str(vcpus), "-m", "32M", "--append", append),
            *("-o", str(output), *more, str(self._guests[guest])),
        ]

    def _stderr(self) -> str:
        return (self.folder / "stderr").read_text(errors="replace")

    def _finish(self, words: Sequence[str], statuses: Sequence[int] = (0, 3, 33)) -> None:
        """Run a command to its end."""
        status = _wait(_in_child(self.folder, _command(words)), _PATIENCE)
        if status not in statuses:
            raise DeathError(f"rr86 {' '.join(words)} ended with {status}: {self._stderr()}")

    def _kill(
        self, words: Sequence[str], after: float, notes: Path, running: bool
    ) -> tuple[float, float] | None:
        """Run a command and kill it after so many seconds, counted from its start or from where the
        guest runs; when that was, by the host's and by its own time, or None if it had ended."""
        child = _in_child(self.folder, _command(words, notes))
        begun = time.monotonic()
        while running and not (notes.exists() and notes.stat().st_size):
            if _wait(child, 0.002) is not None:
                return None
            if time.monotonic() > begun + _PATIENCE:
                break
        if _wait(child, after) is not None:
            return None
        moment = time.monotonic(), _cpu_time(child)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        self.tally.kills += 1
        said = self._stderr()
        if "Traceback" in said or "panicked" in said:
            raise DeathError(f"rr86 {' '.join(words)} said: {said}")
        return moment

    def run(self, number: int) -> None:
        """One case."""
        rng = random.Random(f"{self.seed}:{number}")
        draw = rng.random()
        for each in self.folder.glob("case*"):
            each.unlink()
        try:
            if self.kernels and number % 20 == 0:
                self._kill_kernel(rng)
            elif draw < 0.7:
                self._kill_recording(rng)
            elif draw < 0.85:
                self._kill_checkpointing(rng)
            else:
                self._kill_expanding(rng)
        except DeathError as error:
            finding = f"--seed {self.seed} --from {number} --kills 1: {error}"
            self.tally.findings.append(finding)
            print(f"finding: {finding}", flush=True)
            kept = self.folder / f"finding-{number}"
            kept.mkdir(exist_ok=True)
            for each in [*self.folder.glob("case*"), self.folder / "stderr"]:
                shutil.copy(each, kept)

    def _kill_recording(self, rng: random.Random) -> None:
        guest, append = rng.choice(
            [
                ("hang", ""),
                ("textpoke", "rounds=100000000"),
                ("textpoke", "rounds=100000000"),
            ]
        )
        more = ["--seed", str(rng.randrange(1000)), "--quantum", rng.choice(["1k", "20k", "100k"])]
        more[-1] = more[-1].replace("k", "000")
        if rng.random() < 0.4:
            more += ["--checkpoints", rng.choice(["500k", "5M", "40M"])]
        trace = self.folder / "case.rr86"
        words = self._record_words(guest, trace, append, rng.choice([2, 3, 4]), more)
        # As many early deaths as late ones.
        after = 0.02 * (_GUEST_SECONDS / 0.02) ** rng.random()
        self._killed(rng, words, trace, after, "recording")

    def _kill_kernel(self, rng: random.Random) -> None:
        place = rng.choice(self.kernels)
        trace = self.folder / "case.rr86"
        words = [
            *("record", "--no-input", "--smp", rng.choice("124"), "-m", "256M"),
            *("--initrd", str(place / "initrd.gz"), "--append", "console=ttyS0 panic=-1"),
            *("-o", str(trace), "--seed", str(rng.randrange(1000))),
            *(["--checkpoints", "100M"] if rng.random() < 0.3 else []),
            str(place / "vmlinuz"),
        ]
        self._killed(rng, words, trace, rng.uniform(0.0, _KERNEL_SECONDS), "kernel")

    def _killed(
        self, rng: random.Random, words: list[str], trace: Path, after: float, name: str
    ) -> None:
        notes = self.folder / "case.notes"
        moment = self._kill(words, after, notes, rng.random() < 0.85)
        if moment is None:
            name += " that ended first"
        size = trace.stat().st_size if trace.exists() else 0
        child = _in_child(self.folder, lambda: self._verify(trace))
        status = _wait(child, _PATIENCE)
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise DeathError(f"the replay of {size} bytes does not end")
        if status == 50:
            self._refused_in_one_line(trace)
            self.tally.cases[f"{name}, too early"] += 1
            return
        if status:
            raise DeathError(f"the trace of {size} bytes does not replay: {self._stderr()}")
        self.tally.cases[name] += 1
        reached, events = map(int, (self.folder / "stdout").read_text().split())
        self.tally.tails += events > 0
        if moment is not None:
            self._note_loss(notes, moment, reached)
        if rng.random() < 0.1:
            # Whoever records to this place again is not disturbed by what lies there.
            self._finish([*words, "--limit-instructions", "50k"], (0, 3))
            self._finish(["replay", "-q", str(trace)])
            if Path(f"{trace}.tail").exists():
                raise DeathError("a side file is left beside a finished trace")

    def _note_loss(self, notes: Path, moment: tuple[float, float], reached: int) -> None:
        data = notes.read_bytes() if notes.exists() else b""
        whole = len(data) - len(data) % _NOTE.size
        seen = list(_NOTE.iter_unpack(data[:whole]))
        if not seen:
            return
        behind = [note for note in seen if note[2] <= reached]
        last = behind[-1] if behind else seen[0]
        for clock, lost in enumerate((self.tally.lost, self.tally.lost_cpu)):
            when = last[clock]
            if len(behind) == len(seen) and len(seen) > 1:
                # Beyond the last note, at the speed of the run before it.
                instructions, passed = last[2] - seen[-2][2], last[clock] - seen[-2][clock]
                speed = max(instructions, 1) / max(passed, 1e-6)
                when = min(moment[clock], when + (reached - last[2]) / speed)
            lost.append(max(0.0, moment[clock] - when))

    def _verify(self, trace: Path) -> int:
        """In a process of its own: replay what a killed recorder left."""
        import rr86

        try:
            opened = rr86.open_trace(trace)
            opened.all_images()
        except rr86.TraceError:
            return 50
        last = max((e.icount + _instructions(e) for e in opened.events(("slice",))), default=0)
        for begin in (None, 1 << 60):
            session = opened.session(at=begin)
            stop = session.run()
            if not stop.over or stop.icount != last:
                print(f"{stop} instead of instruction {last}", file=sys.stderr)
                return 1
            if not opened.checkpoints():
                break
        side = opened.side_file
        print(last, 0 if side is None else side.events)
        if side is not None and side.left_out is not None:
            print(f"the side file was left out: {side.left_out}", file=sys.stderr)
            return 1
        return 0

    def _refused_in_one_line(self, trace: Path) -> None:
        child = _in_child(self.folder, _command(["replay", str(trace)]))
        status = _wait(child, _PATIENCE)
        lines = self._stderr().splitlines()
        errors = [line for line in lines if "warning" not in line]
        if status != 1 or len(errors) != 1 or not errors[0].startswith("rr86: error: "):
            raise DeathError(f"a trace without its images: status {status}, {lines}")

    def _kill_checkpointing(self, rng: random.Random) -> None:
        trace = self.folder / "case.rr86"
        shutil.copy(self._good, trace)
        words = ["checkpoint", str(trace), "--every", self._every]
        notes = self.folder / "case.notes"
        moment = self._kill(words, rng.uniform(0.0, 0.6), notes, rng.random() < 0.85)
        now = trace.read_bytes()
        if now not in (self._good.read_bytes(), self._checkpointed.read_bytes()):
            raise DeathError("a trace that was to get checkpoints is neither old nor new")
        self.tally.cases["checkpointing" + (" that ended first" if moment is None else "")] += 1
        if rng.random() < 0.2:
            self._finish(words)
            if trace.read_bytes() != self._checkpointed.read_bytes():
                raise DeathError("the checkpoints of a second try are others")

    def _kill_expanding(self, rng: random.Random) -> None:
        from rr86._native import ExpansionReader

        trace = self.folder / "case.rr86"
        shutil.copy(self._good, trace)
        address = f"{0x100000 + rng.randrange(0x8000):#x}"
        words = rng.choice(
            [["who-wrote", str(trace), address, "--expand"], ["replay", str(trace), "--vcpu", "0"]]
        )
        notes = self.folder / "case.notes"
        moment = self._kill(words, rng.uniform(0.0, 0.6), notes, rng.random() < 0.85)
        self.tally.cases["expanding" + (" that ended first" if moment is None else "")] += 1
        if trace.read_bytes() != self._good.read_bytes():
            raise DeathError("expanding a trace has changed it")
        expansion = Path(f"{trace}.expansion")
        if expansion.exists() and ExpansionReader.open(str(trace), str(expansion)) is None:
            raise DeathError("an expansion got its name before it was whole")
        if rng.random() < 0.2:
            self._finish(words, (0, 1))


def _instructions(event: object) -> int:
    value = event.fields["instructions"]  # type: ignore[attr-defined]
    assert isinstance(value, int)
    return value


def main(arguments: list[str] | None = None) -> int:
    """Run the cases; 1 if one of them found something."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.death")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument(
        "--from", type=int, default=0, dest="first", help="number of the first case"
    )
    parser.add_argument("--kernel", type=Path, action="append", default=[], metavar="FOLDER")
    parser.add_argument("--folder", type=Path, default=None, help="keep findings here")
    chosen = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(1 << 32) if chosen.seed is None else chosen.seed
    print(f"seed {seed}", flush=True)
    with contextlib.ExitStack() as stack:
        folder = chosen.folder
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        deaths = Deaths(seed, folder, chosen.kernel)
        number = chosen.first
        while deaths.tally.kills < chosen.kills:
            deaths.run(number)
            number += 1
            if (number - chosen.first) % 50 == 0:
                print(f"{deaths.tally.report()}; go on with --from {number}", flush=True)
        print(deaths.tally.report())
        return 1 if deaths.tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())
