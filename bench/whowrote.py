"""Who wrote it: draws random questions about shared memory, and checks every answer.

    python -m bench.whowrote --kernel vmlinuz --initrd initrd.gz --smp 4

Records a guest (or takes a trace, --trace), makes the log of stores, and draws pairs of a byte in a
line that more than one agent touched, and a moment. Every question is then asked of the log, and
answered once more by one full replay in which all writes to all of these bytes are logged. Where
the log does not tell, a question is counted as one that needs a replay; --replays says how many
of these are in fact answered so (each takes a replay up to its moment). Without a kernel the demo
guest is taken.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench.common import note, positive, write_json
from rr86.guests import demo_image
from rr86.replay import Store, WriteHistory, WriteRecord
from rr86.replay.trace import Trace, open_trace

if TYPE_CHECKING:
    from rr86.session.stop import Stop

_PAGE, _LINE = 4096, 64
_STRETCH = 2_000_000


@dataclass(frozen=True)
class Question:
    """A byte, and a moment before which its last writer is asked for."""

    paddr: int
    at: int


@dataclass
class Result:
    """What was found."""

    pairs: int = 0
    lines: int = 0
    instructions: int = 0
    expansion_seconds: float = 0.0
    expansion_bytes: int = 0
    from_log: int = 0
    never_written: int = 0
    mismatches: list[str] = field(default_factory=list)
    log_seconds: list[float] = field(default_factory=list)
    replayed: int = 0
    replay_seconds: list[float] = field(default_factory=list)
    check_seconds: float = 0.0

    def as_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        return {
            "pairs": self.pairs,
            "shared_lines": self.lines,
            "instructions": self.instructions,
            "expansion_seconds": self.expansion_seconds,
            "expansion_bytes": self.expansion_bytes,
            "answered_from_log": self.from_log,
            "never_written": self.never_written,
            "mismatches": self.mismatches,
            "log_ms_median": 1000 * statistics.median(self.log_seconds or [0.0]),
            "log_ms_most": 1000 * max(self.log_seconds, default=0.0),
            "replayed": self.replayed,
            "replay_s_median": statistics.median(self.replay_seconds or [0.0]),
            "check_seconds": self.check_seconds,
        }


def draw(trace: Trace, count: int, seed: int, seen: bool = False) -> list[Question]:
    """Random bytes of shared lines, each line as likely as any other, at random moments; or those
    that were `seen`: at random hand-offs, bytes of a line that the hand-off tells of."""
    generator = random.Random(seed)
    if seen:
        events = [e for e in trace.cross_writes() if e.lines and e.writer is not None]
        if not events:
            raise SystemExit("bench: this guest's vCPUs share nothing")
        chosen = (generator.choice(events) for _ in range(count))
        return [
            Question(generator.choice(each.addresses) + generator.randrange(_LINE), each.icount)
            for each in chosen
        ]
    lines = [
        page * _PAGE + line * _LINE
        for page, mask in sorted(trace.shared_lines().items())
        for line in range(_PAGE // _LINE)
        if mask >> line & 1
    ]
    if not lines:
        raise SystemExit("bench: this guest's vCPUs share nothing")
    last = trace.summary()["last_icount"]
    return [
        Question(
            generator.choice(lines) + generator.randrange(_LINE), generator.randrange(last + 1)
        )
        for _ in range(count)
    ]


def truths(trace: Trace, questions: list[Question]) -> dict[Question, Store | None]:
    """The answers of one replay that logs every write to every byte in question."""
    by_byte: dict[int, list[int]] = {}
    for each in questions:
        by_byte.setdefault(each.paddr, []).append(each.at)
    found: dict[tuple[int, int], Store] = {}
    session = trace.session()
    session.machine.log_writes([(paddr, 1) for paddr in by_byte])
    stop: Stop | None = None
    while stop is None or not stop.over:
        stop = session.run(max_instructions=_STRETCH)
        for write in session.machine.logged_writes():
            store = None
            for paddr in range(write["paddr"], write["paddr"] + len(write["new"])):
                for at in by_byte.get(paddr, ()):
                    if write["committed"] < at:
                        store = store or Store(
                            write["vcpu"],
                            write["committed"],
                            write["rip"] or None,
                            write["paddr"],
                            write["old"],
                            write["new"],
                        )
                        found[paddr, at] = store
    return {each: found.get((each.paddr, each.at)) for each in questions}


def compare(question: Question, record: WriteRecord, truth: Store | None) -> str | None:
    """What is wrong with an answer."""
    if record.store == truth:
        return None
    return f"{question.paddr:#x} before {question.at:,}: {record.store} instead of {truth}"


def measure(trace: Trace, pairs: int, replays: int, seed: int, seen: bool = False) -> Result:
    """Ask, check and count."""
    history = WriteHistory(trace)
    result = Result(pairs=pairs, instructions=trace.summary()["last_icount"])
    note("making the log of stores")
    started = time.monotonic()
    place = history.expand()
    result.expansion_seconds = time.monotonic() - started
    result.expansion_bytes = place.stat().st_size
    result.lines = sum(mask.bit_count() for mask in trace.shared_lines().values())
    questions = draw(trace, pairs, seed, seen)
    note("replaying with all writes to these bytes logged")
    started = time.monotonic()
    truth = truths(trace, questions)
    result.check_seconds = time.monotonic() - started
    result.never_written = sum(each is None for each in truth.values())
    note("asking")
    for question in questions:
        started = time.monotonic()
        answer = history.ask_log(question.paddr, question.at)
        seconds = time.monotonic() - started
        if answer is not None:
            result.from_log += 1
            result.log_seconds.append(seconds)
        elif result.replayed < replays:
            started = time.monotonic()
            (answer,) = history.who_wrote(question.paddr, 1, question.at)
            result.replay_seconds.append(time.monotonic() - started)
            result.replayed += 1
        if answer is not None:
            wrong = compare(question, answer, truth[question])
            result.mismatches += [] if wrong is None else [wrong]
    return result


def report(result: Result) -> str:
    """The numbers, for people."""
    data = result.as_dict()
    asked = result.from_log + result.replayed
    lines = [
        f"{result.instructions / 1e6:,.0f} M instructions, {result.lines:,} shared lines",
        f"log of stores: {result.expansion_bytes / 1e6:.1f} MB, made in "
        f"{result.expansion_seconds:.1f} s",
        f"{result.from_log:,} of {result.pairs:,} answered from the log "
        f"({result.from_log / result.pairs:.1%}), {data['log_ms_median']:.1f} ms each (median), "
        f"{data['log_ms_most']:.1f} ms at most",
        f"{result.replayed:,} of the other {result.pairs - result.from_log:,} answered by a "
        f"replay, {data['replay_s_median']:.2f} s each (median)",
        f"{len(result.mismatches)} of {asked:,} answers differ from the watched replay "
        f"(which took {result.check_seconds:.1f} s); {result.never_written:,} of the questions are "
        "about bytes that had not been written",
    ]
    return "\n".join([*lines, *result.mismatches[:10]])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.whowrote", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--trace", type=Path, help="ask about this one instead of recording")
    parser.add_argument("--kernel", type=Path, help="by default the demo guest of the package")
    parser.add_argument("--initrd", type=Path)
    parser.add_argument("--append", default="console=ttyS0 panic=-1")
    parser.add_argument("--smp", type=int, default=4)
    parser.add_argument("-m", "--memory", default="512M")
    parser.add_argument("--seed", type=int, default=0, help="of the run and of the questions")
    parser.add_argument("--checkpoints", type=positive, help="instructions between two")
    parser.add_argument("-n", "--pairs", type=positive, default=1000)
    parser.add_argument(
        "--seen", action="store_true", help="ask at hand-offs, about lines that they tell of"
    )
    parser.add_argument("--replays", type=int, default=20, help="at most so many by a replay")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers there")
    return parser.parse_args()


def main() -> int:
    """Measure and print; the exit status is 0 if no answer was wrong."""
    import rr86

    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="rr86-bench-") as folder:
        path = arguments.trace
        if path is None:
            kernel = arguments.kernel
            if kernel is None:
                kernel = Path(folder) / "demo.elf"
                kernel.write_bytes(demo_image())
            path = Path(folder) / "whowrote.rr86"
            rr86.record(
                kernel,
                smp=arguments.smp,
                memory=arguments.memory,
                initrd=arguments.initrd,
                append=arguments.append,
                seed=arguments.seed,
                checkpoints=arguments.checkpoints,
                output=path,
            )
        trace = open_trace(path)
        result = measure(trace, arguments.pairs, arguments.replays, arguments.seed, arguments.seen)
    print(report(result))
    if arguments.json is not None:
        write_json(result.as_dict(), arguments.json)
    return 1 if result.mismatches else 0


if __name__ == "__main__":
    sys.exit(main())
