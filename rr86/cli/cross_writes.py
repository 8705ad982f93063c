"""The answer of `rr86 events --cross-writes`."""

import json
import sys
from itertools import islice
from typing import TYPE_CHECKING

from rr86.cli.sharing import agents_text
from rr86.cli.status import fail
from rr86.cli.terminal import fitted, line_width

if TYPE_CHECKING:
    from rr86.cpu.physical import PhysicalNames
    from rr86.replay.trace import Trace
    from rr86.trace.sharing import CrossWrite

_PAGE = 4096
# Symbols of one event that are named.
_NAMES_SHOWN = 3


def ranges(trace: "Trace", page: str | None, symbol: str | None) -> list[tuple[int, int]] | None:
    """Physical ranges that the options name; None for all of memory."""
    if page is None and symbol is None:
        return None
    found: list[tuple[int, int]] = []
    if page is not None:
        try:
            address = int(page, 0)
        except ValueError:
            fail(f"not an address: {page!r}", 2)
        physical = trace.names().physical(address) if address >> 63 else address
        if physical is None or physical < 0:
            fail(f"the trace does not tell which page {page} is in")
        found.append((physical & -_PAGE, _PAGE))
    if symbol is not None:
        found += trace.names().ranges(symbol)
    return found


def _lines_text(lines: int) -> str:
    """Line numbers of a mask, runs as such."""
    if lines == (1 << 64) - 1:
        return "all"
    runs: list[list[int]] = []
    for n in range(64):
        if lines >> n & 1:
            if runs and runs[-1][1] == n - 1:
                runs[-1][1] = n
            else:
                runs.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) or "-"


def _symbols(event: "CrossWrite", names: "PhysicalNames | None") -> list[str]:
    if names is None:
        return []
    found = (names.lookup(address) for address in event.addresses)
    return list(dict.fromkeys(name for name in found if name))


def show(
    trace: "Trace",
    first: int | None,
    last: int | None,
    vcpu: int | None,
    where: list[tuple[int, int]] | None,
    limit: int | None,
    as_json: bool,
    symbols: bool,
) -> None:
    """Print cross writes, one a line."""
    names = trace.names() if symbols else None
    end = (1 << 64) - 1 if last is None else last
    write, width = sys.stdout.write, line_width()
    for event in islice(trace.cross_writes(first or 0, end, vcpu, where), limit):
        found = _symbols(event, names)
        if as_json:
            row = {
                "icount": event.icount,
                "writer": event.writer,
                "reader": event.reader,
                "for_writing": event.for_writing,
                "page": event.page,
                "lines": event.lines,
            }
            write(json.dumps(row | ({"symbols": found} if symbols else {})) + "\n")
            continue
        text = (
            f"{event.icount:>14} {agents_text([event.writer]):>3} -> "
            f"{agents_text([event.reader]):<3} {'write' if event.for_writing else 'read':<5} "
            f"page={event.page:#x} lines={_lines_text(event.lines)}"
        )
        more = ", …" if len(found) > _NAMES_SHOWN else ""
        name = f" <{', '.join(found[:_NAMES_SHOWN])}{more}>" if found else ""
        write(fitted(text + name, width) + "\n")
