"""`rr86 branch`: go live from a moment of a recording, and record what happens then."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, BadParameter, Option

from rr86.cli.devices import Devices, devices
from rr86.cli.limits import Checkpoints, LimitInstructions, LimitTraceSize, LimitVirtualTime
from rr86.cli.outputs import AsJson, ConsoleFile, DebugconFile
from rr86.cli.status import Exit, fail, reporting_errors
from rr86.cli.values import parse_typed
from rr86.session.units import count_of

if TYPE_CHECKING:
    from rr86.cli.terminal import Interruption
    from rr86.replay.session import ReplaySession
    from rr86.replay.trace import Trace
    from rr86.session.conditions import Condition
    from rr86.session.stop import Stop


def _moment(text: str) -> "int | list[Condition]":
    """An instruction count, or a condition of `--until`."""
    count = count_of(text.removeprefix("icount="))
    if count is not None:
        return count
    from rr86.session.conditions import as_conditions

    return as_conditions(text)


def _write(trace: "Trace", text: str) -> list[tuple[int, bytes]]:
    """Physical addresses and bytes of ADDR=BYTES; a per-CPU symbol is written for each CPU."""
    from rr86.replay.places import locate, parse_place

    where, equals, what = text.partition("=")
    try:
        data = bytes.fromhex(what.replace("_", " "))
    except ValueError:
        data = b""
    if not (equals and data):
        raise BadParameter(
            f"{text!r} is not a write: write ADDR=BYTES, with the bytes in hexadecimal as they lie "
            "in memory, as 0x1000=90cc"
        )
    place = parse_place(where)
    if place.size is not None:
        raise BadParameter(f"{text!r} names a size, and that follows from the bytes")
    return [(start, data) for start, _ in locate(trace, place).ranges]


def _stand(
    trace: "Trace",
    moment: "int | list[Condition]",
    interruption: "Interruption",
    quiet: bool,
) -> "ReplaySession":
    """A replay that stands at the moment."""
    from rr86.cli.progress import Progress

    begins, at = trace.begins or 0, moment if isinstance(moment, int) else None
    if at is not None and at < begins:
        fail(f"the trace begins at instruction {begins:,}, after {at:,}")
    session = trace.session(at=at)
    progress = Progress("replaying")
    progress.began = session.began

    def between(stop: "Stop") -> bool:
        progress.update(stop)
        return bool(interruption)

    if at == session.icount:
        return session
    until = f"icount={moment}" if isinstance(moment, int) else moment
    with progress.shown(not quiet):
        stop = session.run(until, tick=between)
    if stop.reason == "interrupted":
        raise Exit(128 + interruption.signal)
    if stop.reason != "condition" and at != stop.icount:
        wanted = "the moment" if at is None else f"instruction {at:,}"
        fail(f"the trace ends at instruction {stop.icount:,}, and never came to {wanted}")
    return session


@reporting_errors
def command(
    trace: Annotated[Path, Argument(help="A trace.")],
    begin: Annotated[
        str,
        Option(
            "--from",
            metavar="MOMENT",
            help="Before this instruction, as icount=N, N, 500M or 1.2G; or where a condition of "
            "--until holds for the first time.",
        ),
    ],
    output: Annotated[Path, Option("-o", "--output", metavar="FILE", help="The new trace.")],
    seed: Annotated[
        int | None,
        Option(
            "--seed", metavar="N", help="Of the schedule from there on; by default the parent's."
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        Option(
            "--schedule",
            metavar="NAME",
            help="How vCPUs take turns: uniform, random, pct, starve; or recorded: as the parent "
            "did, as far as that fits.",
        ),
    ] = None,
    quantum: Annotated[
        int | None,
        Option("--quantum", metavar="N", help="Mean instructions of a vCPU's slice."),
    ] = None,
    block_protocol: Annotated[
        str | None,
        Option(
            "--block-protocol",
            metavar="NAME[=STEPS]",
            help="Order of a block's steps from there on; the cache of blocks is emptied.",
        ),
    ] = None,
    window_bias: Annotated[
        int | None,
        Option(
            "--window-bias",
            metavar="N",
            help="Switch vCPUs in N of 65,536 windows of the block protocol.",
        ),
    ] = None,
    typed: Annotated[
        bytes | None,
        Option(
            "--input",
            metavar="TEXT",
            parser=parse_typed,
            help=r"Type this into the serial console at once; \n, \r, \t, \xNN and \\ as in C.",
        ),
    ] = None,
    write: Annotated[
        list[str] | None,
        Option(
            "--write",
            metavar="ADDR=BYTES",
            help="Write bytes (in hexadecimal) to a physical address or a kernel symbol before the "
            "first instruction; may be given several times.",
        ),
    ] = None,
    until: Annotated[
        list[str] | None,
        Option(
            "--until",
            metavar="CONDITION",
            help="Stop there, as in rr86 record; may be given several times. Exit status 6 if the "
            "guest ends first.",
        ),
    ] = None,
    limit_instructions: LimitInstructions = None,
    limit_virtual_time: LimitVirtualTime = None,
    limit_trace_size: LimitTraceSize = None,
    checkpoints: Checkpoints = None,
    device: Devices = None,
    no_input: Annotated[bool, Option("--no-input", help="Leave stdin alone.")] = False,
    console: ConsoleFile = None,
    debugcon: DebugconFile = None,
    as_json: AsJson = False,
    stats: Annotated[bool, Option("--stats", help="Show counters at the end.")] = False,
    quiet: Annotated[
        bool, Option("-q", "--quiet", help="No console output and no report.")
    ] = False,
) -> None:
    """Leave a recording at a moment, change something, and record what happens then.

    The new trace begins with the whole machine of that moment, so it replays without its parent; it
    names that, the moment and the changes. TRACE stays as it is. From there on this is rr86
    record: the guest's serial console is on stdin and stdout, Ctrl-A x leaves.
    """
    from rr86.cli.consoles import Consoles
    from rr86.cli.live import Live
    from rr86.cli.terminal import Input, Interruption
    from rr86.record.files import reserved
    from rr86.replay.trace import open_trace
    from rr86.session.conditions import as_conditions
    from rr86.session.limits import Limits

    conditions = as_conditions(until)
    limits = Limits(limit_instructions, limit_virtual_time, limit_trace_size)
    moment = _moment(begin)
    recorded = open_trace(trace, devices(device))
    writes = [each for text in write or () for each in _write(recorded, text)]
    out = Consoles(console, debugcon, as_json, quiet, [trace, output])
    heard, debug_heard = out.sinks
    source = Input(enabled=not no_input)
    interruption = Interruption()
    with out, interruption.watching():
        session = _stand(recorded, moment, interruption, quiet)
        with reserved(output, trace, [trace]) as path:
            diversion = session.branch(
                output=path,
                console=heard,
                debugcon=debug_heard,
                checkpoints=checkpoints,
                seed=seed,
                schedule=schedule,
                quantum=quantum,
                window_bias=window_bias,
                protocol=block_protocol,
                input=typed or b"",
                writes=writes,
            )
        # The machine that was replayed is not needed any more.
        del session
        live = Live(diversion, out, source, interruption, as_json=as_json, quiet=quiet, stats=stats)
        live.run(conditions, limits)
