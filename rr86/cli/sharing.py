"""`rr86 sharing`: the memory that vCPUs handed to each other most."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from rr86.cli.status import reporting_errors
from rr86.cli.stretch import From, To
from rr86.cli.values import trace_or_newest

if TYPE_CHECKING:
    from rr86.cpu.physical import PhysicalNames
    from rr86.trace.sharing import SharedLine, SharedPage, Sharing

# Symbols of a page that are named.
_NAMES_SHOWN = 3
_OFFSET = re.compile(r"\+0x[0-9a-f]+")


def agents_text(agents: Sequence[int | None]) -> str:
    """vCPU numbers; "dev" for a device or a loader."""
    return ",".join("dev" if agent is None else str(agent) for agent in agents) or "-"


def _names(page: "SharedPage", names: "PhysicalNames | None") -> list[str]:
    """The symbols in a page's lines, the busiest line's first."""
    if names is None:
        return []
    lines = sorted(page.lines, key=lambda line: (-line.hand_offs, line.address))
    found = (names.lookup(line.address) for line in lines)
    # Without the offset: one name for each variable, however many lines it has.
    return list(dict.fromkeys(_OFFSET.sub("", name) for name in found if name))


def _writing(page: "SharedPage") -> str:
    """How a page's writers are spread over its lines."""
    if page.falsely_shared:
        return f"{len(page.lines)}, each of one vCPU"
    return f"{len(page.lines)}, {len(page.contended)} of several"


def _show(sharing: "Sharing", names: "PhysicalNames | None") -> None:
    print(
        f"{sharing.hand_offs:,} hand-offs of {sharing.page_count:,} pages; "
        f"{sharing.line_count:,} lines written and handed over"
    )
    print(
        f"\n{'hand-offs':>9} {'to write':>8}  {'page':<14} {'writers':<12} {'readers':<12} "
        f"{'lines written':<20} symbols"
    )
    for page in sharing.pages:
        found = _names(page, names)
        more = ", …" if len(found) > _NAMES_SHOWN else ""
        print(
            f"{page.hand_offs:>9,} {page.for_writing:>8,}  {page.address:<#14x} "
            f"{agents_text(page.writers):<12} {agents_text(page.readers):<12} "
            f"{_writing(page):<20} {', '.join(found[:_NAMES_SHOWN])}{more}".rstrip()
        )
    print(f"\n{'hand-offs':>9}  {'line':<14} {'writers':<12} {'readers':<12} symbol")
    for line in sharing.lines:
        name = None if names is None else names.lookup(line.address)
        print(
            f"{line.hand_offs:>9,}  {line.address:<#14x} {agents_text(line.writers):<12} "
            f"{agents_text(line.readers):<12} {name or ''}".rstrip()
        )


def _line_dict(line: "SharedLine", names: "PhysicalNames | None") -> dict[str, object]:
    return {
        "address": line.address,
        "hand_offs": line.hand_offs,
        "writers": list(line.writers),
        "readers": list(line.readers),
        "symbol": None if names is None else names.lookup(line.address),
    }


def _as_dict(sharing: "Sharing", names: "PhysicalNames | None") -> dict[str, object]:
    return {
        "hand_offs": sharing.hand_offs,
        "page_count": sharing.page_count,
        "line_count": sharing.line_count,
        "pages": [
            {
                "address": page.address,
                "hand_offs": page.hand_offs,
                "for_writing": page.for_writing,
                "writers": list(page.writers),
                "readers": list(page.readers),
                "falsely_shared": page.falsely_shared,
                "symbols": _names(page, names),
                "lines": [_line_dict(line, names) for line in page.lines],
            }
            for page in sharing.pages
        ],
        "lines": [_line_dict(line, names) for line in sharing.lines],
    }


@reporting_errors
def command(
    trace: Annotated[Path | None, Argument(help="A trace; by default the newest one here.")] = None,
    top: Annotated[
        int, Option("--top", metavar="N", min=1, help="So many pages, and so many lines.")
    ] = 20,
    first: From = None,
    last: To = None,
    symbols: Annotated[
        bool, Option("--symbols/--no-symbols", help="Name the kernel's variables.")
    ] = True,
    as_json: Annotated[bool, Option("--json", help="As one JSON object.")] = False,
) -> None:
    """List the pages and 64-byte lines that changed hands most, without replaying.

    Writers are vCPUs whose writes to the page or line another got to see; readers are those who got
    the page. Lines "of several" were written by more than one vCPU; where there are none, the
    vCPUs share the page and not its content. Addresses are physical.
    """
    from rr86.replay.trace import open_trace

    recorded = open_trace(trace_or_newest(trace))
    sharing = recorded.sharing(first or 0, (1 << 64) - 1 if last is None else last, top)
    names = recorded.names() if symbols else None
    if as_json:
        import json

        print(json.dumps(_as_dict(sharing, names)))
    else:
        _show(sharing, names)
