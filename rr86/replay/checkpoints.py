"""Checkpoints: whole machines at moments of a trace, from which a replay can begin.

A recording makes them on request (`checkpoints=`). `add_checkpoints` gives them to a trace that has
none, or others: a copy is written during one replay, and takes the place of the
original when it is whole.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rr86.errors import RecordingError, UsageError
from rr86.replay.recorded import RecordedRun
from rr86.trace.place import refuse_foreign

if TYPE_CHECKING:
    from rr86.session.stop import Stop

Recorded = TypeVar("Recorded", bound=RecordedRun)

EVERY = 200_000_000
"""Instructions between two checkpoints, if nothing is said."""


def add_checkpoints(
    trace: Recorded,
    every: int = EVERY,
    output: str | Path | None = None,
    tick: "Callable[[Stop], bool | None] | None" = None,
) -> Recorded:
    """Replay a trace once, and keep a checkpoint at the first digests after every so many
    instructions, in place of those that it has.

    The new trace is at `output`, or replaces the old one; either happens at once, at the end.
    `tick` is called on the way with the moment reached; if it returns true, nothing is changed.
    """
    if every <= 0:
        raise UsageError(f"checkpoints need a distance of at least 1, not {every}")
    # Whoever only looks for checkpoints, as each replay does, has no use for it.
    import tempfile

    place = trace.path if output is None else Path(output)
    if output is not None:
        refuse_foreign(place)
    session = trace.session()
    try:
        handle, name = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.parent)
    except OSError as error:
        raise RecordingError(
            f"cannot write the trace '{place}': {error.strerror}", path=place
        ) from None
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
    return type(trace)(place)
