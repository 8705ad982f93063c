"""`rr86 info`: what a trace holds, without replaying it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rr86.cli.status import reporting_errors
from rr86.cli.values import trace_or_newest

if TYPE_CHECKING:
    from rr86.replay.trace import Trace


def _as_dict(trace: "Trace") -> dict[str, object]:
    header, footer = trace.header, trace.footer
    return {
        "trace": str(trace.path),
        "complete": trace.complete,
        "rr86": header.version,
        "host": {"maker": header.host.maker, "family": header.host.family},
        "spec": dict(header.spec),
        "images": [
            {"name": i.name, "file": i.file, "length": i.length, "digest": i.digest}
            for i in trace.images()
        ],
        "summary": trace.summary(),
        "kaslr_offset": None if footer is None else footer.kaslr_offset,
        "stop": {} if footer is None else dict(footer.stop),
    }


@reporting_errors
def command(
    trace: Annotated[
        Path | None, typer.Argument(help="A trace; by default the newest one here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Show what a trace holds: board, images, events, and how the recording ended."""
    from rr86.replay.trace import open_trace

    recorded = open_trace(trace_or_newest(trace))
    content = _as_dict(recorded)
    if as_json:
        import json

        print(json.dumps(content, indent=2))
        return
    rows: list[tuple[str, str]] = [
        ("trace", str(recorded.path)),
        ("finished", "yes" if recorded.complete else "no: replays up to its last whole chunk"),
        ("recorded by", f"rr86 {recorded.header.version} on {recorded.header.host}"),
    ]
    rows += [(name.replace("_", " "), str(value)) for name, value in recorded.header.spec.items()]
    rows += [
        (image.name, f"{image.file}, {image.length:,} bytes, {image.digest}")
        for image in recorded.images()
    ]
    rows += [(name.replace("_", " "), f"{value:,}") for name, value in recorded.summary().items()]
    footer = recorded.footer
    if footer is not None:
        if footer.kaslr_offset is not None:
            rows.append(("KASLR offset", f"{footer.kaslr_offset:#x}"))
        if footer.stop:
            icount = footer.stop.get("icount")
            condition = footer.stop.get("condition")
            why = footer.stop.get("reason", "unknown")
            met = f" ({condition})" if condition else ""
            rows.append(("ended by", f"{why}{met} at instruction {icount}"))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
