"""Checkpoints: whole machines at moments of a trace, from which a replay can begin.

A recording makes them on request (`checkpoints=`). `add_checkpoints` gives them to a trace that has
none, or others: a copy is written during one replay, and takes the place of the
original when it is whole.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rr86.errors import RecordingError, TraceError, UsageError
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
    place = trace.path if output is None else Path(output)
    if output is not None:
        refuse_foreign(place)
    session = trace.session()
    with _copy(place) as (name, publish):
        session.machine.make_checkpoints(str(trace.path), name, every)
        stop = session.run(tick=tick)
        if stop.reason == "interrupted":
            raise KeyboardInterrupt
        session.machine.finish_checkpoints()
        Path(name).chmod(trace.path.stat().st_mode)
        publish()
        if trace.side_file is not None and place == trace.path:
            # The new trace has what was taken from it.
            trace.side_file.path.unlink(missing_ok=True)
    return type(trace)(place)


@contextlib.contextmanager
def _copy(place: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """A file that is going to be at `place`: a path to write it by, and what puts it there.

    It has no name until then, where the file system can do that, so nothing is left of it if this
    process is killed.
    """
    import tempfile

    try:
        unnamed = os.open(place.parent, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError:
        unnamed = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.parent)
    except OSError as error:
        raise RecordingError(
            f"cannot write the trace '{place}': {error.strerror}", path=place
        ) from None
    os.close(handle)
    try:
        if unnamed is None:
            yield name, lambda: Path(name).replace(place)
            return
        Path(name).unlink()
        path = f"/proc/self/fd/{unnamed}"

        def publish() -> None:
            # The descriptor is not used for an absolute path; without one, links are not followed.
            os.link(path, name, src_dir_fd=unnamed, follow_symlinks=True)
            Path(name).replace(place)

        try:
            yield path, publish
        except TraceError as error:
            # No other process knows the file by that path.
            if path not in str(error):
                raise
            raise RecordingError(str(error).replace(path, str(place)), path=place) from None
    finally:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        if unnamed is not None:
            os.close(unnamed)
