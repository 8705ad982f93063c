"""`rr86 replay --last`: the last time that a condition held."""

from typing import TYPE_CHECKING

from typer import BadParameter

from rr86.cli.done import Done
from rr86.cli.status import NEVER_MET, OK, Exit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rr86.replay.trace import Trace
    from rr86.session.conditions import Condition
    from rr86.session.stop import Stop


def replay_last(
    trace: "Trace",
    conditions: "Sequence[Condition]",
    before: int | None,
    memory: int | None,
    verify: bool,
    console: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Go to the end, or to `before`, and back to the last moment at which a condition held; show it
    as a stop of a replay. The console is what the guest had sent by then."""
    from rr86.cli.consoles import Consoles
    from rr86.cli.progress import Progress
    from rr86.cli.terminal import Interruption
    from rr86.replay.travel import DEFAULT_MEMORY, TimeTravel

    out = Consoles(console, None, as_json, quiet, [trace.path])
    interruption = Interruption()

    def tick(moment: "Stop") -> bool:
        progress.update(moment)
        return bool(interruption)

    with out, interruption.watching():
        travel = TimeTravel(trace, memory_for_snapshots=memory or DEFAULT_MEMORY, verify=verify)
        moment = travel.last if before is None else before
        if not travel.first <= moment <= travel.last:
            raise BadParameter(
                f"the trace has moments {travel.first:,} to {travel.last:,}", param_hint="--before"
            )
        progress = Progress("replaying", moment)
        with progress.shown(not quiet):
            stop = travel.goto(moment, tick)
            if stop.reason != "interrupted":
                stop = travel.run_back(conditions, tick)
            speed = progress.text(stop)
        out.begin()
        out.serial(travel.console)
        out.end_line()
        done = Done(trace, travel.session, stop, list(conditions))
        done.unmet = [str(each) for each in conditions] if stop.reason == "begin" else []
        if not quiet and not as_json:
            done.report(speed)
        if not quiet:
            done.tell_unmet()
        if stop.reason == "interrupted":
            status = 128 + interruption.signal
        else:
            status = OK if stop.reason == "condition" else NEVER_MET
        if as_json:
            done.print_json(status, verify, None, False)
    raise Exit(status)
