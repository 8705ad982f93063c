"""Checkpoints: whole machines at moments of a trace, from which a replay can begin.

A recording makes them on request (`checkpoints=`). `add_checkpoints` gives them to a trace that has
none, or others: a copy is written during one replay, and takes the place of the
original when it is whole.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rr86.errors import RecordingError
from rr86.record.files import refuse_foreign

if TYPE_CHECKING:
    from rr86.replay.stop import Stop
    from rr86.replay.trace import Trace

EVERY = 200_000_000
"""Instructions between two checkpoints, if nothing is said."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint of a trace: its number there, its moment, and what it costs."""

    number: int
    icount: int
    stored_bytes: int
    # Pages of RAM that changed since the checkpoint before.
    pages: int


def nearest(checkpoints: Sequence[Checkpoint], icount: int) -> Checkpoint | None:
    """The last checkpoint at or before a moment; None is power-on."""
    before = [each for each in checkpoints if each.icount <= icount]
    return max(before, key=lambda each: each.icount, default=None)


def add_checkpoints(
    trace: "Trace",
    every: int = EVERY,
    output: str | Path | None = None,
    tick: "Callable[[Stop], bool | None] | None" = None,
) -> "Trace":
    """Replay a trace once, and keep a checkpoint at the first digests after every so many
    instructions, in place of those that it has.

    The new trace is at `output`, or replaces the old one; either happens at once, at the end.
    `tick` is called on the way with the moment reached; if it returns true, nothing is changed.
    """
    from rr86.replay.trace import open_trace

    if every <= 0:
        raise RecordingError(f"checkpoints need a distance of at least 1, not {every}")
    # Whoever only looks for checkpoints, as each replay does, has no use for it.
    import tempfile

    place = trace.path if output is None else Path(output)
    if output is not None:
        refuse_foreign(place)
    session = trace.session()
    try:
        handle, name = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.parent)
    except OSError as error:
        raise RecordingError(f"cannot write the trace '{place}': {error.strerror}") from None
    os.close(handle)
    try:
        session.machine.make_checkpoints(str(trace.path), name, every)
        stop = session.run(tick=tick)
        if stop.reason == "interrupted":
            raise KeyboardInterrupt
        session.machine.finish_checkpoints()
        Path(name).chmod(trace.path.stat().st_mode)
        Path(name).replace(place)
        if trace.side_file is not None and place == trace.path:
            # The new trace has what was taken from it.
            trace.side_file.path.unlink(missing_ok=True)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    return open_trace(place)
