"""`rr86 events`: a trace's events, one a line."""

from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from rr86.cli.status import fail, reporting_errors, say
from rr86.cli.values import trace_or_newest

# Fields that are addresses or digests, which nobody reads in decimal.
_HEX = frozenset({"pc", "paddr", "page", "digest", "mode", "lines", "rip"})


def _text(name: str, value: int | bytes | str) -> str:
    if isinstance(value, bytes):
        return f"{name}={value.hex()}"
    if isinstance(value, int) and name in _HEX:
        return f"{name}={value:#x}"
    return f"{name}={value}"


def _line(
    kind: str,
    icount: int,
    vcpu: int | None,
    fields: Mapping[str, int | bytes],
    symbolize: Callable[[int], str | None] | None,
) -> str:
    parts = [_text(name, value) for name, value in fields.items() if name != "vcpu"]
    pc = fields.get("pc")
    if symbolize is not None and isinstance(pc, int):
        symbol = symbolize(pc)
        parts += [f"<{symbol}>"] if symbol else []
    where = "-" if vcpu is None else str(vcpu)
    return f"{icount:>14} {where:>3} {kind:<12} {' '.join(parts)}".rstrip()


@reporting_errors
def command(
    trace: Annotated[
        Path | None, typer.Argument(help="A trace; by default the newest one here.")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option("--kind", metavar="KIND", help="slice, fetch, invalidate…; repeatable."),
    ] = None,
    vcpu: Annotated[int | None, typer.Option("--vcpu", metavar="N", help="Of this vCPU.")] = None,
    first: Annotated[
        int | None,
        typer.Option("--from", metavar="ICOUNT", min=0, help="From this moment."),
    ] = None,
    last: Annotated[
        int | None,
        typer.Option("--to", metavar="ICOUNT", min=0, help="Up to this moment."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="At most N events.")
    ] = None,
    symbols: Annotated[
        bool, typer.Option("--symbols", help="Name the code that blocks stand for.")
    ] = False,
) -> None:
    """List a trace's events: instruction count, vCPU, kind, fields."""
    import json

    from rr86.replay.trace import EVENT_KINDS, open_trace

    wrong = sorted(set(kind or ()) - set(EVENT_KINDS))
    if wrong:
        fail(f"no such kind of event: {wrong[0]} (there are: {', '.join(EVENT_KINDS)})", 2)
    recorded = open_trace(trace_or_newest(trace))
    lookup = None
    if symbols:
        names = recorded.symbols()
        lookup = names.lookup
        if names.table is None:
            say(f"no symbols: {names.problem or 'the trace does not say where the kernel was'}")
    for event in islice(recorded.events(kind or None, vcpu, first, last), limit):
        if as_json:
            row: dict[str, object] = {
                "kind": event.kind,
                "icount": event.icount,
                "vcpu": event.vcpu,
            }
            for name, value in event.fields.items():
                row.setdefault(name, value.hex() if isinstance(value, bytes) else value)
            print(json.dumps(row))
        else:
            print(_line(event.kind, event.icount, event.vcpu, event.fields, lookup))
