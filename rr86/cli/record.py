"""`rr86 record`: run a guest and keep everything that is needed to run it again."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from rr86.cli.devices import NewDevices, new_devices
from rr86.cli.limits import Checkpoints, LimitInstructions, LimitTraceSize, LimitVirtualTime
from rr86.cli.outputs import AsJson, ConsoleFile, DebugconFile, Programs
from rr86.cli.status import reporting_errors


# Long because typer takes the options from the parameters.
@reporting_errors
def command(
    kernel: Annotated[Path, Argument(help="Linux bzImage or vmlinux, or a Multiboot image.")],
    smp: Annotated[int, Option("--smp", metavar="N", help="Number of vCPUs, 1 to 64.")] = 1,
    memory: Annotated[
        str, Option("-m", "--memory", metavar="SIZE", help="RAM, as 512M or 2G.")
    ] = "512M",
    initrd: Annotated[
        Path | None, Option("--initrd", metavar="FILE", help="Initial RAM disk.")
    ] = None,
    module: Annotated[
        list[Path] | None, Option("--module", metavar="FILE", help="Multiboot module.")
    ] = None,
    append: Annotated[str, Option("--append", metavar="TEXT", help="Kernel command line.")] = "",
    output: Annotated[
        Path | None,
        Option("-o", "--output", metavar="FILE", help="Trace; by default <kernel>-NNN.rr86."),
    ] = None,
    seed: Annotated[
        int,
        Option("--seed", metavar="N", help="Another seed is another schedule, and other entropy."),
    ] = 0,
    quantum: Annotated[
        int | None,
        Option("--quantum", metavar="N", help="Mean instructions of a vCPU's slice."),
    ] = None,
    max_block: Annotated[
        int | None,
        Option("--max-block", metavar="N", help="Most instructions in a block."),
    ] = None,
    cross_writes: Annotated[
        bool,
        Option(
            "--cross-writes/--no-cross-writes",
            help="Log which vCPU writes and reads which page.",
        ),
    ] = True,
    schedule: Annotated[
        str,
        Option(
            "--schedule", metavar="NAME", help="How vCPUs take turns: uniform, random, pct, starve."
        ),
    ] = "uniform",
    block_protocol: Annotated[
        str,
        Option(
            "--block-protocol",
            metavar="NAME[=STEPS]",
            help="Order of a block's steps; see rr86 protocols.",
        ),
    ] = "precise",
    window_bias: Annotated[
        int | None,
        Option(
            "--window-bias",
            metavar="N",
            help="Switch vCPUs in N of 65,536 windows of the block protocol.",
        ),
    ] = None,
    until: Annotated[
        list[str] | None,
        Option(
            "--until",
            metavar="CONDITION",
            help="Stop at int3 (honest or not), stale-int3, stale, panic, rip=ADDR, symbol=NAME, "
            "icount=N (as 500M or 2G), console=TEXT, write=PADDR[:LEN], write=SYMBOL[:LEN] or "
            "irq=N; may be given several times. Exit status 6 if the guest ends first.",
        ),
    ] = None,
    limit_instructions: LimitInstructions = None,
    limit_virtual_time: LimitVirtualTime = None,
    limit_trace_size: LimitTraceSize = None,
    checkpoints: Checkpoints = None,
    symbols: Programs = None,
    device: NewDevices = None,
    no_input: Annotated[bool, Option("--no-input", help="Leave stdin alone.")] = False,
    console: ConsoleFile = None,
    debugcon: DebugconFile = None,
    as_json: AsJson = False,
    stats: Annotated[bool, Option("--stats", help="Show counters at the end.")] = False,
    quiet: Annotated[
        bool, Option("-q", "--quiet", help="No console output and no report.")
    ] = False,
) -> None:
    """Record a guest from power-on until it ends, a condition is met, or you stop it.

    The guest's serial console is on stdin and stdout: keys go to the guest, Ctrl-A x leaves,
    Ctrl-C ends the recording. Everything else is on stderr. KERNEL may be compressed as a whole
    (gzip, zstd or xz).
    """
    from rr86.record.files import ReadAhead

    files = [kernel, *([] if initrd is None else [initrd]), *(module or ())]
    read = ReadAhead(files)

    from rr86.cli.consoles import Consoles
    from rr86.cli.live import Live
    from rr86.cli.terminal import Input, Interruption
    from rr86.record.recorder import start
    from rr86.session.conditions import as_conditions
    from rr86.session.limits import Limits

    conditions = as_conditions(until)
    limits = Limits(limit_instructions, limit_virtual_time, limit_trace_size)
    more: dict[str, int | str | None] = {
        "quantum": quantum,
        "max_block": max_block,
        "schedule": schedule,
        "window_bias": window_bias,
        "cross_writes": cross_writes,
    }
    out = Consoles(console, debugcon, as_json, quiet, [*files, *([output] if output else [])])
    heard, debug_heard = out.sinks
    source = Input(enabled=not no_input)
    interruption = Interruption()
    # An image may be a pipe in which nothing comes: while that lasts, Ctrl-C just ends the command.
    # From where there is a trace on, it has to end that properly.
    read.wait()
    with out, interruption.watching():
        recorder = start(
            kernel,
            smp=smp,
            memory=memory,
            initrd=initrd,
            modules=module or (),
            append=append,
            seed=seed,
            protocol=block_protocol,
            output=output,
            console=heard,
            debugcon=debug_heard,
            until=conditions,
            checkpoints=checkpoints,
            read=read,
            devices=new_devices(device),
            programs=symbols or (),
            **{name: value for name, value in more.items() if value is not None},
        )
        live = Live(recorder, out, source, interruption, as_json=as_json, quiet=quiet, stats=stats)
        live.run(conditions, limits)
