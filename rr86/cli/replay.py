"""`rr86 replay`: run a recording again, bit-exactly, and stop where it matters."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rr86.cli.options import Argument, Option
from rr86.cli.status import ERROR, BadCall, Exit, of_stop, reporting_errors, say
from rr86.cli.values import trace_or_newest

if TYPE_CHECKING:
    from rr86.replay.stop import Stop


def _moment(text: str) -> int:
    """The instruction count that --from names."""
    from rr86.errors import ConditionError
    from rr86.replay.conditions import Icount, parse

    condition = parse(text if "=" in text else f"icount={text}")
    if not isinstance(condition, Icount):
        raise ConditionError(f"a replay can begin at icount=N only, not at {text!r}")
    return condition.count


def _beginning(began: int, first: int) -> str:
    """Where the replay has begun, and what that means for the console."""
    place = f"the checkpoint at instruction {began:,}" if began else "power-on"
    return f"replaying from {place}; console output before instruction {first:,} is not shown"


@reporting_errors
def command(
    trace: Annotated[Path | None, Argument(help="A trace; by default the newest one here.")] = None,
    until: Annotated[
        list[str] | None,
        Option(
            "--until",
            metavar="CONDITION",
            help="Stop at int3 (see above), any-int3, stale-int3, stale, panic, rip=ADDR, "
            "symbol=NAME, icount=N, console=TEXT, write=PADDR[:LEN], irq=N or end; may be given "
            "several times.",
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
    start: Annotated[
        str | None,
        Option(
            "--from",
            metavar="icount=N",
            help="Begin there, from the last checkpoint before; what comes earlier is not shown.",
        ),
    ] = None,
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
    stats: Annotated[bool, Option("--stats", help="Show counters at the end.")] = False,
    quiet: Annotated[
        bool, Option("-q", "--quiet", help="No console output and no report.")
    ] = False,
) -> None:
    """Replay a trace to its end, or to the first moment where a condition is met.

    The guest's serial console goes to stdout, everything else to stderr. --from is quick where the
    trace has checkpoints (rr86 record --checkpoints, rr86 checkpoint). A vCPU that is replayed
    alone has no devices, and so no console; its own digests are compared.

    An INT3 (CC) or INT 3 (CD 03) is stale if a translated block holds it and memory does not. In a
    trace with stale ones, --until int3 passes over the honest ones, such as those of the kernel's
    own code patching, and stops at the first stale one (as stale-int3 does). In a trace without,
    it stops at the first of any kind (as any-int3 does), be it an INT3 or the handler of an
    interrupt that was injected with vector 3. The stop tells which of the three it is.
    """
    from rr86.cli import alone
    from rr86.cli.info import side_file_text
    from rr86.cli.progress import Progress
    from rr86.cli.show import show_oracle, show_statistics, show_stop
    from rr86.cli.terminal import Interruption, Output
    from rr86.record.metadata import this_host
    from rr86.replay.conditions import End, Icount, Int3, as_conditions
    from rr86.replay.int3 import explain
    from rr86.replay.trace import open_trace

    lone = parallel or vcpu is not None
    if parallel and vcpu is not None:
        raise BadCall("--vcpu and --parallel exclude each other")
    whole = [("--until", until), ("--from", start), ("--oracle", oracle)]
    if lone and any(value for _, value in whole):
        name = next(name for name, value in whole if value)
        raise BadCall(f"{name} needs the whole machine: it does not go with --vcpu or --parallel")
    if expansion is not None and not lone:
        raise BadCall("--expansion is for --vcpu and --parallel")
    conditions = as_conditions(until)
    first = None if start is None else _moment(start)
    recorded = open_trace(trace_or_newest(trace))
    if not recorded.complete and not quiet:
        why = recorded.damage or "nobody ended it"
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
        alone.replay_one(recorded, vcpu, expansion, not no_verify, stats, quiet)
    elif parallel:
        alone.replay_all(recorded, expansion, not no_verify, stats, quiet)
    if lone:
        return
    out = Output()
    progress = Progress("replaying")
    interruption = Interruption()
    shown = not quiet and first is None

    def heard(data: bytes) -> None:
        if shown:
            out.write(data)

    session = recorded.session(not no_verify, heard, first, oracle)
    progress.began = session.began

    def between_slices(moment: "Stop") -> bool:
        progress.update(moment)
        return bool(interruption) or out.closed

    with interruption.watching():
        with progress.shown(not quiet):
            stop = None
            if first is not None and first > session.began:
                stop = session.run(Icount(first), tick=between_slices)
            if first is not None and not quiet:
                say(_beginning(session.began, first))
                shown = True
            if stop is None or stop.reason == "condition":
                stop = session.run(conditions, tick=between_slices)
            speed = progress.text(stop)
        if not quiet:
            out.end_line()
            show_stop(stop, session.inspector)
            kind = explain(session.machine, stop.vcpu, stop.condition)
            if kind is not None:
                say(kind)
            if isinstance(stop.condition, Int3) and recorded.stale_int3s:
                say(
                    f"memory did not hold {recorded.stale_int3s:,} of the INT3s executed in this "
                    "trace; int3 stops at these alone, any-int3 at every one"
                )
            unmet = [str(each) for each in conditions if not isinstance(each, End)]
            if stop.over and unmet:
                say(f"never met: {', '.join(unmet)}")
            say(speed)
        if stats:
            show_statistics(session.statistics(), session.seconds())
    if oracle:
        report = session.oracle_report()
        show_oracle(report, session.inspector)
    if stop.reason == "interrupted":
        raise Exit(128 + interruption.signal if interruption else 141)
    if oracle and not report.clean:
        raise Exit(ERROR)
    raise Exit(of_stop(stop))
