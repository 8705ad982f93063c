"""`rr86 profile`: where the instructions of a stretch went."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from rr86.cli.devices import Devices, devices
from rr86.cli.outputs import Programs, expect_folder
from rr86.cli.status import Exit, fail, reporting_errors, say
from rr86.cli.stretch import From, To
from rr86.cli.values import parse_count, trace_or_newest

if TYPE_CHECKING:
    from rich.table import Table

    from rr86.analysis.profile import Profile
    from rr86.session.stop import Stop

_COLLAPSED = (".collapsed", ".folded", ".txt")
_SPEEDSCOPE = (".json",)
_HTML = (".html", ".htm")
_TASKS_SHOWN = 3
# Columns where the width of the output is unknown.
_PIPE_WIDTH = 110


def _writer(output: Path) -> "Callable[[Profile, Path], None]":
    from rr86.analysis import profile_formats, profile_html

    suffix = output.suffix.lower()
    if suffix in _SPEEDSCOPE:
        return profile_formats.write_speedscope
    if suffix in _COLLAPSED:
        return profile_formats.write_collapsed
    if suffix in _HTML:
        return profile_html.write
    return fail(
        f"{str(output)!r} is neither a .json file (speedscope), nor a .collapsed, .folded or .txt "
        "file (collapsed stacks), nor an .html file",
        2,
    )


@reporting_errors
def command(
    trace: Annotated[Path | None, Argument(help="A trace; by default the newest one here.")] = None,
    output: Annotated[
        Path | None,
        Option(
            "-o",
            "--output",
            metavar="FILE",
            help="FILE.json for speedscope, FILE.collapsed for other tools, or FILE.html, a flame "
            "graph; without it there is the table only.",
        ),
    ] = None,
    first: From = None,
    last: To = None,
    vcpu: Annotated[
        int | None, Option("--vcpu", metavar="N", min=0, help="Of this vCPU alone.")
    ] = None,
    interval: Annotated[
        int,
        Option(
            "--every",
            metavar="N",
            parser=parse_count,
            help="Instructions for each sample, of the machine or of the vCPU that is named.",
        ),
    ] = "1M",  # type: ignore[assignment]
    top: Annotated[
        int, Option("--top", metavar="N", min=1, help="So many functions and tasks in the tables.")
    ] = 30,
    verify: Annotated[
        bool, Option("--verify/--no-verify", help="Compare the replay with the recording.")
    ] = True,
    symbols: Programs = None,
    device: Devices = None,
    as_json: Annotated[bool, Option("--json", help="The table as one JSON object.")] = False,
) -> None:
    """Count the instructions of a stretch by function and call stack, in virtual time.

    The trace is replayed and sampled without any effect on the guest. The samples are the same
    every time, and each instruction has the same chance to be one.
    """
    from rr86.analysis.sampler import profile
    from rr86.cli.progress import Progress
    from rr86.cli.terminal import Interruption
    from rr86.replay.trace import open_trace

    write = None if output is None else _writer(output)
    if output is not None:
        expect_folder(output)
    recorded = open_trace(trace_or_newest(trace), devices(device))
    progress = Progress("replaying", last or recorded.summary()["last_icount"])
    interruption = Interruption()

    def between_calls(moment: "Stop") -> bool:
        progress.update(moment)
        return bool(interruption)

    with interruption.watching(), progress.shown(True):
        found = profile(
            recorded,
            first or 0,
            last,
            vcpu,
            interval,
            verify,
            programs=symbols or (),
            tick=between_calls,
        )
        if interruption:
            raise Exit(128 + (interruption.signal or 2))
    if write is not None and output is not None:
        write(found, output)
    if as_json:
        from rr86.cli.as_json import print_json

        print_json(_as_dict(found, top))
        return
    _show(found, top)
    if output is not None:
        say(f"written to {output}")


def _show(found: "Profile", top: int) -> None:
    from rich.console import Console

    whose = "all vCPUs" if found.vcpu is None else f"vCPU {found.vcpu}"
    print(
        f"{found.instructions:,} instructions of {whose}, moments {found.first:,} to "
        f"{found.last:,}; {len(found.samples):,} samples, one in {found.interval:,} instructions"
    )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    console.print(_tasks(found, top))
    console.print(_functions(found, top))


def _new_table(*columns: tuple[str, str]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name, side in columns:
        right = side == "right"
        table.add_column(
            name, justify="right" if right else "left", no_wrap=True, overflow="ellipsis"
        )
    return table


def _tasks(found: "Profile", top: int) -> "Table":
    table = _new_table(("share", "right"), ("instructions", "right"), ("task", "left"))
    for name, count in list(found.tasks().items())[:top]:
        table.add_row(_share(count, found), f"{count:,}", _text(name))
    return table


def _functions(found: "Profile", top: int) -> "Table":
    table = _new_table(
        ("own", "right"),
        ("total", "right"),
        ("own instructions", "right"),
        ("function", "left"),
        ("in tasks", "left"),
    )
    for row in found.functions()[:top]:
        more = ", …" if len(row.tasks) > _TASKS_SHOWN else ""
        table.add_row(
            _share(row.own, found),
            _share(row.total, found),
            f"{row.own:,}",
            _text(row.name),
            _text(", ".join(row.tasks[:_TASKS_SHOWN]) + more),
        )
    return table


def _text(name: str) -> str:
    """A name of the guest's that rich takes for no markup."""
    from rich.markup import escape

    return escape("".join(each if each.isprintable() else "?" for each in name))


def _share(count: int, found: "Profile") -> str:
    return f"{100 * count / found.instructions:.1f} %"


def _as_dict(found: "Profile", top: int) -> dict[str, object]:
    return {
        "first": found.first,
        "last": found.last,
        "vcpu": found.vcpu,
        "interval": found.interval,
        "instructions": found.instructions,
        "samples": len(found.samples),
        "tasks": found.tasks(),
        "functions": [
            {"name": row.name, "own": row.own, "total": row.total, "tasks": list(row.tasks)}
            for row in found.functions()[:top]
        ],
    }
