"""What every guest of the robustness tests satisfies: replays equal, shortcuts that do not show."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import rr86
from rr86.record.recorder import Recorder
from rr86.session.limits import Limits
from tests.guests.machines import Outcome, assert_same_run, finished, outcome
from tests.soak.hostile import Guest

SHORTCUTS = (
    "frame",
    "marks",
    "runs",
    "words",
    "pins",
    "ahead",
    "loops",
    "apart",
    "paths",
    "across",
)

_FILE_HEADER = 16
_CHUNK_HEADER = 56
_EVENTS, _PAGES, _STATE = 4, 7, 8


class DifferenceError(AssertionError):
    """Two runs that have to be equal are not."""


@contextmanager
def without(shortcuts: Sequence[str]) -> Iterator[None]:
    """Machines made in this block do without these shortcuts."""
    before = os.environ.get("RR86_DISABLE")
    # One who looks for the shortcut at fault may have switched some off for all runs.
    os.environ["RR86_DISABLE"] = ",".join([*shortcuts, *(before.split(",") if before else ())])
    try:
        yield
    finally:
        if before is None:
            del os.environ["RR86_DISABLE"]
        else:
            os.environ["RR86_DISABLE"] = before


@dataclass(frozen=True)
class Run:
    """A recording on disk, and how it ended."""

    path: Path
    outcome: Outcome


def record(guest: Guest, path: Path, shortcuts_off: Sequence[str] = ()) -> Run:
    """Record a guest to its end or its limit."""
    console, debugcon = bytearray(), bytearray()
    with without(shortcuts_off):
        recorder = Recorder(
            guest.spec,
            {"kernel": guest.kernel},
            path,
            console=console.extend,
            debugcon=lambda data, _: debugcon.extend(data),
        )
    with recorder:
        stop = recorder.run(limits=Limits(instructions=guest.limit))
        result = outcome(stop, recorder.machine, bytes(console), bytes(debugcon))
    return Run(path, result)


def chunks(path: Path) -> list[tuple[int, bytes]]:
    """Kind and bytes of each chunk of a finished trace, but for the index."""
    data = path.read_bytes()
    at, found = _FILE_HEADER, []
    end = struct.unpack_from("<Q", data, len(data) - 32)[0]
    while at < end:
        kind = data[at + 4]
        table, _, stored = struct.unpack_from("<III", data, at + 16)
        length = _CHUNK_HEADER + table + stored
        found.append((kind, data[at : at + length]))
        at += length
    return found


def compare_traces(first: Run, second: Run, what: str, footer: bool = False) -> None:
    """The two traces have the same bytes; those of the footer only if asked."""
    left, right = chunks(first.path), chunks(second.path)
    if not footer:
        left, right = left[:-1], right[:-1]
    if left != right:
        raise DifferenceError(f"{what}: {_first_difference(first, second)}")


def _first_difference(first: Run, second: Run) -> str:
    pairs = zip(
        rr86.open_trace(first.path).events(), rr86.open_trace(second.path).events(), strict=False
    )
    for number, (one, other) in enumerate(pairs):
        if one != other:
            return f"event {number} is {one}, and then {other}"
    return "the same events, in other bytes"


def replay(run: Run, shortcuts_off: Sequence[str] = ()) -> None:
    """Replay a recording whole, verified."""
    with without(shortcuts_off):
        session = rr86.open_trace(run.path).session()
    _same(finished(session, session.run()), run.outcome)


def _same(replayed: Outcome, recorded: Outcome) -> None:
    if recorded.reason == "deadlock":
        # The end of the trace, as behind a limit: the guest did not end by itself.
        recorded = replace(recorded, reason="limit")
    try:
        assert_same_run(replayed, recorded)
    except AssertionError as error:
        raise DifferenceError(
            f"the replay ended as {replayed}, the recording as {recorded}"
        ) from error


def replay_from_the_middle(run: Run, rng: Random) -> None:
    """Stop a replay on its way, keep the machine, and go on from what was kept."""
    trace = rr86.open_trace(run.path)
    session = trace.session()
    length = max(1, run.outcome.icount)
    stop = session.run(max_instructions=rng.randrange(1, length + 1))
    if stop.over:
        return
    snapshot = session.snapshot()
    before = session.console + b""
    first = session.run()
    again = trace.session(snapshot=snapshot)
    end = again.run()
    if session.machine.digests() != again.machine.digests() or first.icount != end.icount:
        raise DifferenceError(f"a replay that was kept at {snapshot.icount} ended otherwise")
    if before + again.console != session.console:
        raise DifferenceError(f"a replay that was kept at {snapshot.icount} said something else")


def check(guest: Guest, folder: Path) -> str:
    """All that is asked of a guest; how it ended. Raises where something is not as it has to be."""
    rng = Random(guest.seed)
    first = record(guest, folder / "with.rr86")
    replay(first)
    bare = record(guest, folder / "without.rr86", SHORTCUTS)
    compare_traces(first, bare, "without shortcuts")
    some = rng.sample(SHORTCUTS, rng.randrange(1, 6))
    turn = rng.randrange(3)
    # Jumps between blocks are state there, and are not kept.
    kept = guest.spec.protocol != "chain-kept"
    if kept and (guest.mode == "devices" or turn == 2):
        replay_from_the_middle(first, rng)
    if turn == 0:
        replay(first, some)
    elif turn == 1:
        other = record(guest, folder / "other.rr86", some)
        compare_traces(first, other, f"without {','.join(some)}")
    return first.outcome.reason
