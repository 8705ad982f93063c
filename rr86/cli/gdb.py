"""`rr86 gdb`: gdb on a recording, in both directions of time; and `rr86 replay --gdb`."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, BadParameter, Option

from rr86.cli.arguments import GDB_ARGUMENT
from rr86.cli.devices import Devices, devices
from rr86.cli.snapshots import SnapshotMemory
from rr86.cli.status import Exit, reporting_errors, say
from rr86.cli.values import parse_moment, trace_or_newest

if TYPE_CHECKING:
    from rr86.gdb.debuggee import Debuggee
    from rr86.replay.trace import Trace
    from rr86.session.stop import Stop

_END = -1


def _parse_at(text: str) -> int:
    """A moment by number or name; -1 is the end."""
    return {"begin": 0, "end": _END}[text] if text in ("begin", "end") else parse_moment(text)


# Long because typer takes the options from the parameters.
@reporting_errors
def command(
    trace: Annotated[Path | None, Argument(help="A trace; by default the newest one here.")] = None,
    at: Annotated[
        int | None,
        Option(
            "--at",
            metavar="MOMENT",
            parser=_parse_at,
            help="Where to begin: N or icount=N (as 500M), begin, or end, which is the default.",
        ),
    ] = None,
    vmlinux: Annotated[
        Path | None,
        Option(
            "--vmlinux",
            metavar="FILE",
            help="The kernel's vmlinux with debug information, for source lines and types; it is "
            "moved to where the guest's kernel was. By default the names come from the guest.",
        ),
    ] = None,
    memory: SnapshotMemory = None,
    device: Devices = None,
    gdb_argument: Annotated[list[str] | None, Option(GDB_ARGUMENT, hidden=True)] = None,
) -> None:
    """Start gdb on a trace, connected and with symbols: everything that gdb can do with a machine
    that it must not change, forwards and backwards (reverse-continue, reverse-stepi…). Arguments
    behind -- go to gdb: rr86 gdb boot.rr86 -- -batch -ex bt.

    vCPUs are threads. 'monitor help' lists what gdb has no word for. The exit status is gdb's.
    """
    from rr86.gdb import launch
    from rr86.replay.trace import open_trace

    launch.find_gdb()
    if vmlinux is not None and not vmlinux.is_file():
        raise BadParameter(f"'{vmlinux}' is not a file", param_hint="--vmlinux")
    recorded = open_trace(trace_or_newest(trace), devices(device))
    debuggee = begin(recorded, _END if at is None else at, memory)
    with launch.private_folder() as folder:
        commands = symbol_commands(debuggee, vmlinux, folder)
        status = launch.run_gdb(debuggee, commands, gdb_argument or [], folder)
    raise Exit(status)


def begin(trace: "Trace", at: int, memory: int | None = None) -> "Debuggee":
    """A trace under a debugger, at a moment (-1: its end). Ctrl-C on the way there stops there."""
    from rr86.cli.progress import Progress
    from rr86.cli.terminal import Interruption
    from rr86.gdb.debuggee import Debuggee
    from rr86.replay.travel import DEFAULT_MEMORY, TimeTravel

    travel = TimeTravel(trace, memory_for_snapshots=memory or DEFAULT_MEMORY, devices=trace.devices)
    moment = travel.last if at < 0 else max(at, travel.first)
    if moment > travel.last:
        raise BadParameter(f"the trace ends at instruction {travel.last:,}", param_hint="--at")
    interruption = Interruption()
    progress = Progress("replaying", moment)

    def tick(stop: "Stop") -> bool:
        progress.update(stop)
        return bool(interruption)

    with interruption.watching(), progress.shown(True):
        if moment > travel.icount:
            travel.goto(moment, tick)
    if travel.icount != moment:
        say(f"interrupted at instruction {travel.icount:,}; 'monitor goto end' goes on")
    return Debuggee(trace, travel)


def symbol_commands(debuggee: "Debuggee", vmlinux: Path | None, folder: Path) -> list[str]:
    """The gdb commands that load the guest's symbols; without any, that is said."""
    from rr86.errors import KernelError, SymbolsError
    from rr86.gdb.symbols import commands

    try:
        found = commands(debuggee, vmlinux, folder)
    except (KernelError, SymbolsError) as error:
        if vmlinux is not None:
            raise
        say(f"no symbols: {error}")
        return []
    if not found:
        say("no symbols are known of this guest")
    return found


def serve_replay(
    trace: "Trace", address: str, first: int | None, memory: int | None = None
) -> None:
    """`rr86 replay --gdb`: serve debuggers until Ctrl-C."""
    from rr86.gdb.launch import ACKNOWLEDGED, private_folder
    from rr86.gdb.server import DEFAULT, listening, parse_address, serve

    def end(number: int, _frame: object) -> None:
        raise Exit(128 + number)

    place = parse_address(address or DEFAULT)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    with listening(place) as (listener, found), private_folder() as folder:
        debuggee = begin(trace, first or 0, memory)
        commands = [*symbol_commands(debuggee, None, folder), ACKNOWLEDGED]
        commands.append(f"target remote {found.target()}")
        words = " ".join(f"-ex '{each}'" for each in commands)
        say(f"waiting for gdb; type:  gdb {words}")
        serve(listener, debuggee, say)
