"""`rr86 info`: what a trace holds, without replaying it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from rr86.cli.progress import size_text
from rr86.cli.status import reporting_errors
from rr86.cli.values import trace_or_newest

if TYPE_CHECKING:
    from rr86.replay.trace import Trace
    from rr86.trace.file import SideFile
    from rr86.trace.metadata import Origin


def _side_file(trace: "Trace") -> dict[str, object] | None:
    side = trace.side_file
    if side is None:
        return None
    return {"path": str(side.path), "events": side.events, "left_out": side.left_out}


def side_file_text(side: "SideFile") -> str:
    """What became of a trace's side file, in a few words."""
    if side.left_out is not None and not side.events:
        return f"goes on without its side file {side.path}: {side.left_out}"
    rest = f"; the rest is left out: {side.left_out}" if side.left_out is not None else ""
    return f"goes on with {side.events:,} events of {side.path}{rest}"


def _as_dict(trace: "Trace") -> dict[str, object]:
    header, footer = trace.header, trace.footer
    return {
        "trace": str(trace.path),
        "complete": trace.complete,
        "side_file": _side_file(trace),
        "rr86": header.version,
        "host": {"maker": header.host.maker, "family": header.host.family},
        "spec": dict(header.spec),
        "devices": [{"class": kind, "options": dict(options)} for kind, options in header.devices],
        "images": [
            {"name": i.name, "file": i.file, "length": i.length, "digest": i.digest}
            for i in trace.images()
        ],
        "summary": trace.summary(),
        "content_id": trace.content_id,
        "begins": trace.begins or 0,
        "branch": None if header.branch is None else header.branch.as_dict(),
        "checkpoints": [
            {"icount": c.icount, "bytes": c.stored_bytes, "pages": c.pages}
            for c in trace.checkpoints()
        ],
        "kaslr_offset": None if footer is None else footer.kaslr_offset,
        "stop": {} if footer is None else dict(footer.stop),
    }


def _sizes(summary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Where the file's bytes go."""
    events, raw = summary["event_bytes"], summary["event_raw_bytes"]
    return [
        ("file", f"{size_text(summary['file_bytes'])} ({summary['file_bytes']:,} bytes)"),
        ("images", size_text(summary["image_bytes"])),
        (
            "events",
            f"{size_text(events)} in {summary['chunks']:,} chunks, {size_text(raw)} unpacked",
        ),
        ("all events", f"{summary['events']:,}"),
    ]


def _count(summary: Mapping[str, int], kind: str) -> str:
    """Number and size of the events of a kind."""
    number = summary.get(f"{kind}_events", 0)
    return f"{number:,} ({size_text(summary[f'{kind}_bytes'])})" if number else "0"


def _branch(origin: "Origin") -> list[tuple[str, str]]:
    """Where a branch comes from, and what was changed there."""
    words = []
    for name, value in origin.changed.items():
        if name == "writes":
            words += [
                f"{length:,} bytes at {paddr:#x}: {data.hex(' ')}{' …' * (length > len(data))}"
                for paddr, length, data in value
            ]
        else:
            words.append(f"{name.replace('_', ' ')} {value!r}")
    return [
        ("branch of", f"{origin.parent}, content id {origin.content_id}"),
        ("left it at", f"instruction {origin.icount:,}, vCPU {origin.vcpu}"),
        ("changed", ", ".join(words) or "nothing: the schedule began anew"),
    ]


def _device(kind: str, options: Mapping[str, object]) -> str:
    """Class and options of a device in Python."""
    return ", ".join([kind, *(f"{key}={value}" for key, value in options.items())])


def _checkpoints(trace: "Trace") -> str:
    """Number, moments and size of the checkpoints."""
    found = trace.checkpoints()
    if not found:
        return "none"
    size = size_text(sum(each.stored_bytes for each in found))
    moments = f"{found[0].icount:,}"
    if len(found) > 1:
        moments += f" … {found[-1].icount:,}"
    return f"{len(found):,} at {moments} ({size})"


@reporting_errors
def command(
    trace: Annotated[Path | None, Argument(help="A trace; by default the newest one here.")] = None,
    as_json: Annotated[bool, Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Show what a trace holds: board, images, events, and how the recording ended.

    Nothing is run. A trace holds no date, so that equal runs give equal files; the date shown
    is the file's own.
    """
    from rr86.replay.trace import open_trace

    show(open_trace(trace_or_newest(trace)), as_json)


def show(recorded: "Trace", as_json: bool) -> None:
    """Print what there is to say about a trace."""
    from datetime import datetime

    from rr86.trace.vocabulary import EVENT_KINDS

    content = _as_dict(recorded)
    if as_json:
        import json

        print(json.dumps(content, indent=2))
        return
    side = recorded.side_file
    rows: list[tuple[str, str]] = [
        ("trace", str(recorded.path)),
        ("written", f"{datetime.fromtimestamp(recorded.path.stat().st_mtime):%Y-%m-%d %H:%M:%S}"),
        ("finished", "yes" if recorded.complete else "no: replays as far as it goes"),
        *([] if side is None else [("side file", side_file_text(side))]),
        ("recorded by", f"rr86 {recorded.header.version} on {recorded.header.host}"),
        ("content id", recorded.content_id),
    ]
    if recorded.begins is not None:
        rows.append(("begins at", f"instruction {recorded.begins:,}, with the whole machine"))
    if recorded.header.branch is not None:
        rows += _branch(recorded.header.branch)
    rows += [(name.replace("_", " "), str(value)) for name, value in recorded.header.spec.items()]
    rows += [
        (image.name, f"{image.file}, {image.length:,} bytes, {image.digest}")
        for image in recorded.images()
    ]
    rows += [("device", _device(*each)) for each in recorded.header.devices]
    summary = recorded.summary()
    rows += _sizes(summary)
    rows += [(f"  {kind}", _count(summary, kind)) for kind in EVENT_KINDS]
    rows.append(("checkpoints", _checkpoints(recorded)))
    rows.append(("last moment", f"instruction {summary['last_icount']:,}"))
    footer = recorded.footer
    if footer is not None:
        if footer.kaslr_offset is not None:
            rows.append(("KASLR offset", f"{footer.kaslr_offset:#x}"))
        if footer.stop:
            icount, time_ns = footer.stop.get("icount", 0), footer.stop.get("time_ns", 0)
            condition = footer.stop.get("condition")
            why = footer.stop.get("reason", "unknown")
            met = f" ({condition})" if condition else ""
            rows.append(("ended by", f"{why}{met} at instruction {icount}"))
            rows.append(("virtual time", f"{time_ns / 1e9:.6f} s"))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
