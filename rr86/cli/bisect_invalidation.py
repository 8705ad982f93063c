"""`rr86 bisect-invalidation`: which write did the stale block miss?"""

from pathlib import Path
from typing import Annotated

from typer import Argument, BadParameter, Option

from rr86.cli.devices import Devices, devices
from rr86.cli.status import Exit, Failure, fail, reporting_errors, say
from rr86.cli.values import parse_moment, trace_or_newest

FOUND, NOTHING_STALE, FAILED = 0, 1, 2
NOTHING = "no block was executed that memory did not hold"


def _address(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        raise BadParameter(f"{text!r} is not an address") from None


@reporting_errors
def _run(
    trace: Path | None,
    at: int | None,
    pc: int | None,
    block: int | None,
    device: list[str] | None,
    as_json: bool,
    html: Path | None,
) -> None:
    import json

    from rr86.cli.bisect_report import show
    from rr86.cli.progress import Steps
    from rr86.replay.bisect import Choice, bisect_invalidation
    from rr86.replay.trace import open_trace
    from rr86.trace.place import is_trace

    recorded = open_trace(trace_or_newest(trace), devices(device))
    if html is not None:
        if is_trace(html):
            fail(f"'{html}' is a trace, and is left as it is: choose another name for the page")
        # What cannot be written fails before the work, not after it.
        with html.open("a"):
            pass
    with Steps().shown(not as_json) as steps:
        finding = bisect_invalidation(recorded, Choice(at, pc, block), steps)
    if finding is None:
        if as_json:
            print(json.dumps({"trace": str(recorded.path), "stale": False}))
        say(NOTHING if (at, pc, block) == (None, None, None) else f"{NOTHING}, of those chosen")
        raise Exit(NOTHING_STALE)
    if html is not None:
        from rr86.cli.bisect_html import page

        html.write_text(page(finding), encoding="utf-8")
    if as_json:
        print(json.dumps(finding.as_dict(), indent=2))
    else:
        show(finding)
    if not finding.proved:
        say("error: the guilty write was not found" if finding.write is None else "error: no proof")
        raise Exit(FAILED)


def command(
    trace: Annotated[Path | None, Argument(help="A trace; by default the newest one here.")] = None,
    at: Annotated[
        int | None,
        Option(
            "--at",
            metavar="ICOUNT",
            parser=parse_moment,
            help="The first stale execution from this moment on, as counted by replay and events.",
        ),
    ] = None,
    pc: Annotated[
        int | None,
        Option("--pc", metavar="ADDR", parser=_address, help="Stale code at this linear address."),
    ] = None,
    block: Annotated[
        int | None, Option("--block", metavar="ID", help="This block, as in rr86 events.")
    ] = None,
    device: Devices = None,
    as_json: Annotated[bool, Option("--json", help="As one JSON object.")] = False,
    html: Annotated[
        Path | None,
        Option("--html", metavar="FILE", help="Also write a self-contained page."),
    ] = None,
) -> None:
    """Name the one write that a stale translation block missed, and prove it by a replay.

    Without an option, the failure is taken: an INT3 that memory no longer held, or else the stale
    execution that is wrong by the architecture, or else the first one.

    Exit status: 0 found and proved; 1 no stale block was executed; 2 for an error.
    """
    try:
        _run(trace, at, pc, block, device, as_json, html)
    except Failure:
        # Status 1 says something here that an error must not be taken for.
        raise Exit(FAILED) from None
