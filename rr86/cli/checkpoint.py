"""`rr86 checkpoint`: give a trace moments from which replays can begin."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from rr86.cli.devices import Devices, devices
from rr86.cli.status import Exit, reporting_errors, say
from rr86.cli.values import parse_count, trace_or_newest

if TYPE_CHECKING:
    from rr86.session.stop import Stop


@reporting_errors
def command(
    trace: Annotated[Path | None, Argument(help="A trace; by default the newest one here.")] = None,
    every: Annotated[
        int | None,
        Option(
            "--every",
            metavar="N",
            parser=parse_count,
            help="Instructions between two checkpoints; 200M if nothing is said.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        Option("-o", "--output", metavar="FILE", help="Leave the trace, and write this one."),
    ] = None,
    device: Devices = None,
    as_json: Annotated[bool, Option("--json", help="The result as one JSON object.")] = False,
) -> None:
    """Replay a trace once, and keep the whole machine after every so many instructions.

    The trace is replaced when that is done, and not before. Checkpoints that it had are replaced,
    too. They stand where the recorder took digests, which is every 100 million instructions.
    """
    from rr86.cli.progress import Progress, size_text
    from rr86.cli.terminal import Interruption
    from rr86.replay.checkpoints import EVERY, add_checkpoints
    from rr86.replay.trace import open_trace

    recorded = open_trace(trace_or_newest(trace), devices(device))
    progress = Progress("replaying", recorded.summary()["last_icount"])
    interruption = Interruption()

    def between_calls(moment: "Stop") -> bool:
        progress.update(moment)
        return bool(interruption)

    distance = EVERY if every is None else every
    try:
        with interruption.watching(), progress.shown(True):
            made = add_checkpoints(recorded, distance, output, between_calls)
    except KeyboardInterrupt:
        raise Exit(128 + (interruption.signal or 2)) from None
    found = made.checkpoints()
    if as_json:
        from rr86.cli.as_json import of_checkpoints, print_json

        print_json({"trace": str(made.path), "checkpoints": of_checkpoints(found)})
        return
    size = size_text(sum(each.stored_bytes for each in found))
    say(f"{len(found):,} checkpoints ({size}) in {made.path}")
