"""`rr86 replay`: run a recording again, bit-exactly, and stop where it matters."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, BadParameter, Option

from rr86.cli.devices import Devices, devices
from rr86.cli.done import Done
from rr86.cli.outputs import AsJson, ConsoleFile, DebugconFile, Programs
from rr86.cli.snapshots import SnapshotMemory
from rr86.cli.status import ERROR, Exit, of_stop, reporting_errors, say
from rr86.cli.values import parse_moment, trace_or_newest

if TYPE_CHECKING:
    from rr86.session.stop import Stop


def _beginning(began: int, first: int) -> str:
    """Where the replay has begun, and what that means for the console."""
    place = f"the checkpoint at instruction {began:,}" if began else "power-on"
    return f"replaying from {place}; console output before instruction {first:,} is not shown"


# Long because typer takes the options from the parameters.
@reporting_errors
def command(
    trace: Annotated[Path | None, Argument(help="A trace; by default the newest one here.")] = None,
    until: Annotated[
        list[str] | None,
        Option(
            "--until",
            metavar="CONDITION",
            help="Stop at int3 (see above), any-int3, stale-int3, stale, panic, rip=ADDR, "
            "symbol=NAME, symbol=PROGRAM:NAME, icount=N (as 500M or 2G), console=TEXT, "
            "write=PADDR[:LEN], write=SYMBOL[:LEN], read= or access=PADDR[:LEN], irq=N or end; "
            "may be given several times. "
            "Exit status 6 if the trace ends first.",
        ),
    ] = None,
    vcpu: Annotated[
        int | None,
        Option(
            "--vcpu",
            metavar="N",
            min=0,
            help="Replay this vCPU alone. Needs the trace's expansion, and makes it if there is "
            "none, which takes a full replay.",
        ),
    ] = None,
    parallel: Annotated[
        bool,
        Option(
            "--parallel", help="Replay every vCPU alone, as many at a time as the host has cores."
        ),
    ] = False,
    expansion: Annotated[
        Path | None,
        Option(
            "--expansion",
            metavar="PATH",
            help="Where the expansion is, or shall be; by default TRACE.expansion.",
        ),
    ] = None,
    first: Annotated[
        int | None,
        Option(
            "--from",
            metavar="icount=N",
            parser=parse_moment,
            help="Begin there, from the last checkpoint before; what comes earlier is not shown.",
        ),
    ] = None,
    symbols: Programs = None,
    gdb: Annotated[
        str | None,
        Option(
            "--gdb",
            metavar="[HOST:PORT | unix:PATH]",
            help="Serve gdb instead, from the beginning or --from, by default at localhost:1234; "
            "rr86 gdb starts one, too.",
        ),
    ] = None,
    last: Annotated[
        list[str] | None,
        Option(
            "--last",
            metavar="CONDITION",
            help="Stop at the last time that a condition of --until's kind held, before "
            "--before or the end; before the instruction, also for write=. May be given several "
            "times. Exit status 6 if there was none.",
        ),
    ] = None,
    before: Annotated[
        int | None,
        Option(
            "--before",
            metavar="icount=N",
            parser=parse_moment,
            help="Where --last looks back from; by default the end.",
        ),
    ] = None,
    memory: SnapshotMemory = None,
    device: Devices = None,
    no_verify: Annotated[
        bool, Option("--no-verify", help="Do not compare digests on the way.")
    ] = False,
    oracle: Annotated[
        bool,
        Option(
            "--oracle",
            help="Check every access to memory against the trace's hand-offs; slow. "
            "Exit status 1 if a cross-vCPU write is missing.",
        ),
    ] = False,
    console: ConsoleFile = None,
    debugcon: DebugconFile = None,
    as_json: AsJson = False,
    stats: Annotated[bool, Option("--stats", help="Show counters at the end.")] = False,
    quiet: Annotated[
        bool, Option("-q", "--quiet", help="No console output and no report.")
    ] = False,
) -> None:
    """Replay a trace to its end, or to the first moment where a condition is met.

    The guest's serial console goes to stdout, everything else to stderr. A full replay says how
    many digests of the machine's state were compared and equal. --from is quick where the
    trace has checkpoints (rr86 record --checkpoints, rr86 checkpoint). A vCPU that is replayed
    alone has no devices, and so no console; its own digests are compared.

    An INT3 (CC) or INT 3 (CD 03) is stale if a translated block holds it and memory does not. In a
    trace with stale ones, --until int3 passes over the honest ones, such as those of the kernel's
    own code patching, and stops at the first stale one (as stale-int3 does). In a trace without,
    it stops at the first of any kind (as any-int3 does), be it an INT3 or the handler of an
    interrupt that was injected with vector 3. The stop tells which of the three it is.
    """
    from rr86.cli import alone
    from rr86.cli.consoles import Consoles
    from rr86.cli.info import side_file_text
    from rr86.cli.progress import Progress
    from rr86.cli.terminal import Interruption
    from rr86.replay.trace import open_trace
    from rr86.session.conditions import Icount, as_conditions
    from rr86.trace.metadata import this_host

    lone = parallel or vcpu is not None
    if parallel and vcpu is not None:
        raise BadParameter("--vcpu and --parallel exclude each other")
    whole: list[tuple[str, object]] = [("--until", until), ("--from", first), ("--oracle", oracle)]
    whole += [("--console", console), ("--debugcon", debugcon)]
    if lone and any(value not in (None, False) for _, value in whole):
        name = next(name for name, value in whole if value not in (None, False))
        raise BadParameter(
            f"{name} needs the whole machine: it does not go with --vcpu or --parallel"
        )
    if expansion is not None and not lone:
        raise BadParameter("--expansion is for --vcpu and --parallel")
    if gdb is not None:
        _refuse_with_gdb(until, lone, oracle, console, debugcon, as_json)
    if before is not None and not last:
        raise BadParameter("--before is for --last")
    if last:
        _refuse_with_last(until, first, lone, oracle, gdb, debugcon, stats)
    conditions = as_conditions(last or until)
    recorded = open_trace(trace_or_newest(trace), devices(device))
    if not recorded.complete and not quiet:
        why = recorded.damage or "it was not ended"
        side = recorded.side_file
        rest = "replaying what there is of it"
        if side is not None and (side.events or side.left_out is not None):
            rest = f"{rest}, which {side_file_text(side)}"
        say(f"warning: the recording is not complete ({why}); {rest}")
    host = this_host()
    if recorded.header.host != host and not quiet:
        say(
            f"warning: recorded on {recorded.header.host}, replayed on {host}: instructions that "
            "CPU makers define differently may diverge"
        )
    if vcpu is not None:
        alone.replay_one(recorded, vcpu, expansion, not no_verify, stats, quiet, as_json)
    elif parallel:
        alone.replay_all(recorded, expansion, not no_verify, stats, quiet, as_json)
    if gdb is not None:
        from rr86.cli.gdb import serve_replay

        serve_replay(recorded, gdb, first, memory)
    if last:
        from rr86.cli.last import replay_last

        replay_last(recorded, conditions, before, memory, not no_verify, console, quiet, as_json)
    if lone or gdb is not None:
        return
    out = Consoles(console, debugcon, as_json, quiet, [recorded.path])
    out.muted = first is not None
    heard, debug_heard = out.sinks
    interruption = Interruption()
    progress = Progress("replaying")

    def between_calls(moment: "Stop") -> bool:
        progress.update(moment)
        return bool(interruption) or out.closed

    with out, interruption.watching():
        session = recorded.session(not no_verify, heard, first, oracle, debugcon=debug_heard)
        for file in symbols or ():
            session.add_symbols(file)
        progress.began = session.began
        out.begin()
        with progress.shown(not quiet, out.shown):
            stop = None
            if first is not None and first > session.began:
                stop = session.run(Icount(first), tick=between_calls)
            if first is not None:
                if not quiet:
                    say(_beginning(session.began, first))
                out.muted = False
            if stop is None or stop.reason == "condition":
                stop = session.run(conditions, tick=between_calls)
            speed = progress.text(stop)
        out.end_line()
        late = [] if first is None or session.icount >= first else [Icount(first)]
        done = Done(recorded, session, stop, [*late, *conditions])
        if not quiet and not as_json:
            done.report(speed)
        if not quiet:
            done.tell_unmet()
            out.tell_unseen()
        report = session.oracle_report() if oracle else None
        clean = report is None or report.clean
        if stop.reason == "interrupted":
            status = 128 + interruption.signal if interruption else 141
        else:
            status = of_stop(stop, done.failed) if clean else ERROR
        if as_json:
            done.print_json(status, not no_verify, report, stats)
        else:
            if stats:
                from rr86.cli.show import show_statistics

                show_statistics(session.statistics(), session.seconds())
            if report is not None:
                from rr86.cli.show import show_oracle

                show_oracle(report, session.inspector)
    raise Exit(status)


def _refuse_with_last(*others: object) -> None:
    """What runs forwards, or shows all of a run."""
    if any(each not in (None, False) for each in others):
        raise BadParameter(
            "--last goes with --before, --memory-for-snapshots, --device, --no-verify, --console, "
            "--json and --quiet alone"
        )


def _refuse_with_gdb(*others: object) -> None:
    """A debugger does by itself what these are for."""
    if any(each not in (None, False) for each in others):
        raise BadParameter("--gdb goes with --from, --device and --quiet alone")
