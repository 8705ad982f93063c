"""`rr86 timeline`: what the vCPUs did when, as a picture."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from rr86.cli.devices import Devices, devices
from rr86.cli.outputs import expect_folder
from rr86.cli.status import Exit, fail, reporting_errors, say
from rr86.cli.stretch import From, To
from rr86.cli.values import trace_or_newest

if TYPE_CHECKING:
    from rr86.analysis.timeline import Timeline
    from rr86.session.stop import Stop

_PERFETTO = (".pftrace", ".perfetto-trace")
_HTML = (".html", ".htm")


def _writer(output: Path) -> "Callable[[Timeline, Path], None]":
    """What writes such a file; that it can is found out before the replay."""
    suffix = output.suffix.lower()
    if suffix in _HTML:
        from rr86.analysis.timeline_html import write

        return write
    if suffix in _PERFETTO:
        from rr86.analysis import timeline_perfetto

        timeline_perfetto.check()
        return timeline_perfetto.write
    return fail(f"{str(output)!r} is neither a .pftrace nor an .html file", 2)


@reporting_errors
def command(
    trace: Annotated[Path | None, Argument(help="A trace; by default the newest one here.")] = None,
    output: Annotated[
        Path | None,
        Option(
            "-o",
            "--output",
            metavar="FILE",
            help="FILE.html for a browser, or FILE.pftrace for ui.perfetto.dev; by default the "
            "trace's name with .html, in this folder.",
        ),
    ] = None,
    first: From = None,
    last: To = None,
    arrows: Annotated[
        int,
        Option("--arrows", metavar="N", min=0, help="At most so many hand-offs become arrows."),
    ] = 100_000,
    verify: Annotated[
        bool, Option("--verify/--no-verify", help="Compare the replay with the recording.")
    ] = True,
    device: Devices = None,
    as_json: Annotated[bool, Option("--json", help="What was found, as one JSON object.")] = False,
) -> None:
    """Draw what each vCPU did: tasks, system calls, interrupts, hand-offs of memory, IPIs, console.

    The trace is replayed once, and nothing stops it on the way. The HTML file needs no network and
    no other file; its key ? shows what it can do. Times are virtual.
    """
    from rr86.analysis.collector import collect
    from rr86.cli.progress import Progress, size_text
    from rr86.cli.terminal import Interruption
    from rr86.replay.trace import open_trace

    path = trace_or_newest(trace)
    target = Path(path.name).with_suffix(".html") if output is None else output
    write = _writer(target)
    expect_folder(target)
    recorded = open_trace(path, devices(device))
    progress = Progress("replaying", last or recorded.summary()["last_icount"])
    interruption = Interruption()

    def between_calls(moment: "Stop") -> bool:
        progress.update(moment)
        return bool(interruption)

    with interruption.watching(), progress.shown(True):
        found = collect(recorded, first or 0, last, verify, arrows=arrows, tick=between_calls)
        if interruption:
            raise Exit(128 + (interruption.signal or 2))
    write(found, target)
    size = target.stat().st_size
    if as_json:
        from rr86.cli.as_json import print_json

        print_json({"output": str(target), "bytes": size, **_counts(found)})
        return
    say(
        f"{target} ({size_text(size)}): {found.instructions:,} instructions, "
        f"{len(found.spans):,} spans, {len(found.arrows):,} hand-offs, {len(found.ipis):,} IPIs"
    )
    for text in found.left_out:
        say(f"left out: {text}")


def _counts(found: "Timeline") -> dict[str, object]:
    return {
        "instructions": found.instructions,
        "begin_ns": found.begin,
        "end_ns": found.end,
        "spans": len(found.spans),
        "arrows": len(found.arrows),
        "hand_offs": found.hand_offs,
        "ipis": len(found.ipis),
        "marks": len(found.marks),
        "left_out": list(found.left_out),
    }
