"""Commands that look at one moment of a recording: their options, and the way there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from rr86.cli.devices import devices
from rr86.cli.status import Exit
from rr86.cli.values import parse_moment, trace_or_newest
from rr86.errors import UsageError

if TYPE_CHECKING:
    from rr86.replay.session import ReplaySession
    from rr86.replay.trace import Trace
    from rr86.session.stop import Stop

TraceArgument = Annotated[
    Path | None, Argument(metavar="TRACE", help="A trace; by default the newest one here.")
]
At = Annotated[
    int | None,
    Option(
        "--at",
        metavar="MOMENT",
        parser=parse_moment,
        help="Before this instruction, as replay's icount=N; by default at the trace's end.",
    ),
]


@contextmanager
def standing_at(
    trace: Path | None, at: int | None, device: list[str] | None = None
) -> "Iterator[tuple[Trace, ReplaySession]]":
    """A session of a trace that stands at a moment, from the last checkpoint before. The way there
    can be interrupted.

    Raises `UsageError` for a moment that the trace does not have.
    """
    from rr86.cli.progress import Progress
    from rr86.cli.terminal import Interruption
    from rr86.replay.trace import open_trace
    from rr86.session.conditions import Before

    recorded = open_trace(trace_or_newest(trace), devices(device))
    last = recorded.summary()["last_icount"]
    if at is not None and at > last:
        raise UsageError(f"moment {at:,} is not in the recording, which has {last:,} instructions")
    interruption = Interruption()
    progress = Progress("replaying", last if at is None else at)

    def between(moment: "Stop") -> bool:
        progress.update(moment)
        return bool(interruption)

    session = recorded.session(verify=False, at=max(0, (last if at is None else at) - 1))
    with interruption.watching(), progress.shown(True):
        wanted = None if at is None or at == last else Before(at)
        if at is None or at > session.began:
            stop = session.run(wanted, tick=between)
            if stop.reason == "interrupted":
                raise Exit(128 + interruption.signal)
    yield recorded, session
