"""Recording and replaying the test guests: what every test about them needs.

A recording's outcome is everything by which two runs can be told apart: the stop, the console, the
digests of all components at the end, and every event of the trace.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rr86
from tests.guests.build import Guest, build

# Instructions for which a guest that never ends is watched.
ENDLESS = 3_000_000
# Far more than any guest needs; a guest that goes astray ends here.
FAR = 1_000_000_000

EventRow = tuple[str, int, int | None, tuple[tuple[str, int | bytes], ...]]


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and what it left."""

    reason: str
    code: int
    icount: int
    time_ns: int
    console: bytes
    debugcon: bytes
    digests: dict[str, int]


@dataclass(frozen=True)
class Recorded:
    """A recording that is on disk, with what was seen while it was made."""

    path: Path
    outcome: Outcome

    def trace(self) -> rr86.Trace:
        return rr86.open_trace(self.path)

    def events(self) -> list[EventRow]:
        return [
            (event.kind, event.icount, event.vcpu, tuple(sorted(event.fields.items())))
            for event in self.trace().events()
        ]


def outcome(stop: rr86.Stop, machine: object, console: bytes, debugcon: bytes) -> Outcome:
    from rr86._native import Recording, Replay

    assert isinstance(machine, Recording | Replay)
    return Outcome(
        reason=stop.reason,
        code=stop.code,
        icount=stop.icount,
        time_ns=stop.time_ns,
        console=console,
        debugcon=debugcon,
        digests=machine.digests(),
    )


def record_guest(
    guest: Guest,
    path: Path,
    *,
    append: str | None = None,
    until: Iterable[str] = (),
    far: int = FAR,
    **options: Any,
) -> Recorded:
    """Record `guest` to its end, stopping at each condition of `until` and going on.

    One that goes astray ends after `far` instructions.
    """
    console, debugcon = bytearray(), bytearray()
    recorder = rr86.start_recording(
        build(guest),
        smp=guest.smp,
        memory=guest.memory << 20,
        append=guest.append if append is None else append,
        output=path,
        console=console.extend,
        debugcon=lambda data, _: debugcon.extend(data),
        **options,
    )
    limits = rr86.Limits(instructions=ENDLESS if guest.end == "never" else far)
    with recorder:
        if guest.input:
            recorder.run(until="console=ready", limits=limits)
            recorder.send(guest.input.encode())
        conditions = list(until)
        stop = recorder.run(until=conditions, limits=limits)
        while stop.reason == "condition":
            stop = recorder.run(until=conditions, limits=limits)
        result = outcome(stop, recorder.machine, bytes(console), bytes(debugcon))
    return Recorded(path, result)


def finished(session: rr86.ReplaySession, stop: rr86.Stop) -> Outcome:
    """What a replay that came to its end amounts to."""
    return outcome(stop, session.machine, session.console, session.debugcon)


def replay(recorded: Recorded) -> Outcome:
    """Replay all of a recording in one piece, verified, from the trace alone."""
    session = recorded.trace().session()
    return finished(session, session.run())


def assert_same_run(replayed: Outcome, recorded: Outcome) -> None:
    """The replay went exactly where the recording went."""
    assert replayed.console == recorded.console
    assert replayed.debugcon == recorded.debugcon
    assert replayed.digests == recorded.digests
    assert (replayed.icount, replayed.time_ns) == (recorded.icount, recorded.time_ns)
    # A recording that a limit ended, or that stands still, has no end of the guest's own to replay.
    expected = "end" if recorded.reason in ("limit", "deadlock") else recorded.reason
    assert (replayed.reason, replayed.code) == (expected, recorded.code)
