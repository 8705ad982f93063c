"""`rr86 events`: a trace's events, one a line."""

import sys
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from rr86.cli.status import fail, reporting_errors, say
from rr86.cli.stretch import From, To
from rr86.cli.terminal import fitted, line_width
from rr86.cli.values import trace_or_newest
from rr86.trace.vocabulary import EVENT_KINDS, NO_VCPU, SLICE_ENDS, STOP_REASONS

# Fields that are addresses or digests, which are not read in decimal.
_HEX = frozenset({"pc", "paddr", "page", "digest", "mode", "lines", "rip"})
_VCPUS = frozenset({"from", "to", "by"})
_WORDS = {("slice", "stop"): SLICE_ENDS, ("stop", "reason"): STOP_REASONS}
_EVERY_LINE = (1 << 64) - 1
# Characters of text, or of bytes in hexadecimal, that are shown of a field.
_LONGEST = 80


def _plain(kind: str, name: str, value: int | bytes) -> int | str | None:
    """A field's value as people and JSON have it: numbers that stand for words become words."""
    if isinstance(value, bytes):
        readable = (kind, name) == ("stop", "detail")
        return value.decode(errors="replace") if readable else value.hex()
    if name in _VCPUS:
        return None if value == NO_VCPU else value
    words = _WORDS.get((kind, name), ())
    return words[value] if value < len(words) else value


def _text(kind: str, name: str, value: int | bytes) -> str:
    plain = _plain(kind, name, value)
    if plain is None:
        return f"{name}=-"
    if name == "lines" and plain == _EVERY_LINE:
        return "lines=all"
    if isinstance(plain, str) and isinstance(value, bytes) and len(plain) > _LONGEST:
        plain = f"{plain[:_LONGEST]}…"
    if isinstance(plain, int) and (name in _HEX or (kind == "digests" and name != "time")):
        return f"{name}={plain:#x}"
    return f"{name}={plain}"


def _digests(fields: Mapping[str, int | bytes]) -> str:
    """The digests of all components in a few words: JSON has them all."""
    first = next((name for name in fields if name not in ("time", "vcpu")), None)
    shown = "" if first is None else f" {_text('digests', first, fields[first])}"
    return f"components={len(fields)}{shown}"


def _line(
    kind: str,
    icount: int,
    vcpu: int | None,
    fields: Mapping[str, int | bytes],
    symbolize: Callable[[int], str | None] | None,
) -> str:
    parts = []
    for name, value in fields.items():
        if kind == "digests" and name != "time":
            continue
        if name != "vcpu":
            parts.append(_text(kind, name, value))
        if name == "pc" and symbolize is not None and isinstance(value, int):
            symbol = symbolize(value)
            parts += [f"<{symbol}>"] if symbol else []
    if kind == "digests":
        parts.append(_digests(fields))
    where = "-" if vcpu is None else str(vcpu)
    return f"{icount:>14} {where:>3} {kind:<12} {' '.join(parts)}".rstrip()


@reporting_errors
def command(
    trace: Annotated[Path | None, Argument(help="A trace; by default the newest one here.")] = None,
    kind: Annotated[
        list[str] | None,
        Option(
            "--kind",
            metavar="KIND",
            help=f"One of {', '.join(EVENT_KINDS)}; may be given several times.",
        ),
    ] = None,
    vcpu: Annotated[int | None, Option("--vcpu", metavar="N", help="Of this vCPU.")] = None,
    first: From = None,
    last: To = None,
    as_json: Annotated[bool, Option("--json", help="One JSON object a line.")] = False,
    limit: Annotated[
        int | None, Option("--limit", metavar="N", min=1, help="At most N events.")
    ] = None,
    symbols: Annotated[
        bool,
        Option("--symbols", help="Name the code that blocks stand for, or the variables written."),
    ] = False,
    cross_writes: Annotated[
        bool,
        Option(
            "--cross-writes",
            help="Writes that another than the writer got to see: moment, writer -> reader, "
            "page and 64-byte lines. --vcpu means either of the two.",
        ),
    ] = False,
    page: Annotated[
        str | None,
        Option("--page", metavar="ADDR", help="With --cross-writes: of the page with it."),
    ] = None,
    symbol: Annotated[
        str | None,
        Option("--symbol", metavar="NAME", help="With --cross-writes: of this variable."),
    ] = None,
) -> None:
    """List a trace's events: instruction count, vCPU, kind, fields.

    A slice is the decision that a vCPU runs so many instructions; its moment is its start, and it
    follows what happened in it. An input is what was typed. A hand-off moves a page from one vCPU
    to another, that writes it (write=1) or reads it. A link makes a block of code, an invalidate
    removes one because its bytes were written. Digests are compared when the trace is replayed.

    A line is cut where the terminal ends, or at COLUMNS; --json has everything.
    """
    import json

    from rr86.replay.trace import open_trace

    wrong = sorted(set(kind or ()) - set(EVENT_KINDS))
    if wrong:
        fail(f"no such kind of event: {wrong[0]} (there are: {', '.join(EVENT_KINDS)})", 2)
    if (page is not None or symbol is not None) and not cross_writes:
        fail("--page and --symbol belong to --cross-writes", 2)
    if cross_writes and kind:
        fail("--cross-writes leaves no choice of --kind", 2)
    recorded = open_trace(trace_or_newest(trace))
    if cross_writes:
        from rr86.cli.cross_writes import ranges, show

        where = ranges(recorded, page, symbol)
        show(recorded, first, last, vcpu, where, limit, as_json, symbols)
        return
    lookup = None
    if symbols:
        names = recorded.symbols()
        lookup = names.lookup
        if names.table is None:
            say(f"no symbols: {names.problem or 'the trace does not say where the kernel was'}")
    write, width = sys.stdout.write, line_width()
    for event in islice(recorded.events(kind or None, vcpu, first, last), limit):
        if as_json:
            row: dict[str, object] = {
                "kind": event.kind,
                "icount": event.icount,
                "vcpu": event.vcpu,
            }
            for name, value in event.fields.items():
                row.setdefault(name, _plain(event.kind, name, value))
            write(json.dumps(row) + "\n")
        else:
            line = _line(event.kind, event.icount, event.vcpu, event.fields, lookup)
            write(fitted(line, width) + "\n")
