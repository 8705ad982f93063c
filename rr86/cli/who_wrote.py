"""`rr86 who-wrote`: which vCPU, when, and with which instruction?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, BadParameter, Option

from rr86.cli.devices import Devices, devices
from rr86.cli.status import Exit, Failure, reporting_errors, say
from rr86.cli.values import parse_moment

if TYPE_CHECKING:
    from rr86.replay.places import Located, Place
    from rr86.replay.trace import Trace
    from rr86.replay.writers import WriteRecord
    from rr86.session.stop import Stop

FOUND, NOT_WRITTEN, FAILED = 0, 1, 2
_MOST_BYTES_SHOWN = 32


def _hex(data: bytes) -> str:
    shown = data[:_MOST_BYTES_SHOWN].hex(" ")
    return f"{shown} …" if len(data) > _MOST_BYTES_SHOWN else shown


def _headline(trace: "Trace", place: "Place", located: "Located", at: int | None) -> str:
    """What is asked about, with the names that it has."""
    names = trace.names()
    parts = []
    for start, size in located.ranges:
        where = f"{start:#x}" + (f" to {start + size - 1:#x}" if size > 1 else "")
        name = names.lookup(start) or place.symbol
        parts.append(f"physical {where}" + (f" <{name}>" if name else ""))
    if located.linear is not None:
        parts.insert(0, f"{located.linear:#x}")
    moment = "at the end" if at is None else f"before instruction {at:,}"
    return f"{', '.join(parts)}, {moment}"


def _lines(record: "WriteRecord", begins: int | None) -> list[str]:
    """Two lines for each write."""
    where = f"{record.paddr:#x}"
    if record.size > 1:
        where += f" to {record.paddr + record.size - 1:#x}"
    if record.store is None:
        held = _hex(record.after) if any(record.after) else "zero"
        since = "power-on" if begins is None else f"instruction {begins:,}, where the trace begins"
        return [f"  {where}: not written", f"    since {since}: {held}"]
    who = "a device" if record.vcpu is None else f"vCPU {record.vcpu}"
    line = f"  {where}: {who} at instruction {record.moment:,}"
    if record.rip is not None:
        line += f", rip {record.rip:#x}" + (f" <{record.symbol}>" if record.symbol else "")
    lines = [line, f"    {_hex(record.before)} → {_hex(record.after)}"]
    store = record.store
    if (store.paddr, len(store.new)) != (record.paddr, record.size):
        lines.append(f"    part of {len(store.new)} bytes at {store.paddr:#x}")
    return lines


def _source(records: "list[WriteRecord]", log: bool, wanted: str | None) -> str:
    sources = {record.source for record in records}
    if sources == {"log"}:
        return "answered from the trace's log of stores"
    if log:
        rest = " in part" if "log" in sources else ""
        return f"answered{rest} by a replay: the log does not tell of these bytes at this moment"
    if wanted is not None:
        return f"answered by a replay: {wanted}"
    return "answered by a replay: there is no log of stores (--expand makes one)"


@reporting_errors
def _run(
    trace: Path,
    address: str,
    at: int | None,
    virtual: bool,
    vcpu: int | None,
    expand: bool,
    path: Path | None,
    device: list[str] | None,
    as_json: bool,
) -> None:
    import json

    from rr86.cli.alone import expanded, interruptible
    from rr86.cli.progress import Progress
    from rr86.replay import expansion
    from rr86.replay.places import locate, parse_place
    from rr86.replay.trace import open_trace
    from rr86.replay.writers import WriteHistory

    place = parse_place(address)
    if vcpu is not None and not virtual:
        raise BadParameter("--vcpu says who maps a linear address: it needs --virtual")
    recorded = open_trace(trace, devices(device))
    with interruptible() as interruption:
        if expand:
            expanded(recorded, path, True, interruption, quiet=as_json)
        progress = Progress("replaying", recorded.summary()["last_icount"] if at is None else at)

        def between(moment: "Stop") -> bool:
            progress.update(moment)
            return bool(interruption)

        with progress.shown(True):
            located = locate(recorded, place, virtual, vcpu or 0, at, between)
            history = WriteHistory(recorded, path)
            records = [
                record
                for start, size in located.ranges
                for record in history.who_wrote(start, size, at, between)
            ]
    if as_json:
        answer = {
            "trace": str(recorded.path),
            "place": place.text,
            "linear": located.linear,
            "ranges": [{"paddr": start, "size": size} for start, size in located.ranges],
            "at": at,
            "writes": [record.as_dict() for record in records],
        }
        print(json.dumps(answer, indent=2))
    else:
        print(_headline(recorded, place, located, at))
        for record in records:
            print("\n".join(_lines(record, recorded.begins)))
        say(_source(records, history.has_log, expansion.why_not(recorded.spec)))
    raise Exit(FOUND if any(record.store is not None for record in records) else NOT_WRITTEN)


def command(
    trace: Annotated[Path, Argument(help="A trace.")],
    address: Annotated[
        str,
        Argument(
            metavar="ADDR[:SIZE]",
            help="A physical address (0x… or decimal), or a kernel symbol as NAME or NAME+OFFSET; "
            "and how many bytes: by default 1, or what the symbol has, up to 8.",
        ),
    ],
    at: Annotated[
        int | None,
        Option(
            "--at",
            metavar="MOMENT",
            parser=parse_moment,
            help="Before this instruction, as replay's icount=N; by default at the trace's end.",
        ),
    ] = None,
    virtual: Annotated[
        bool, Option("--virtual", help="ADDR is linear, as mapped at that moment.")
    ] = False,
    vcpu: Annotated[
        int | None,
        Option("--vcpu", metavar="N", min=0, help="Mapped by this vCPU; by default 0."),
    ] = None,
    expand: Annotated[
        bool,
        Option(
            "--expand",
            help="Make the log of stores if the trace's expansion has none: that takes long once, "
            "and later questions about memory that vCPUs share need no replay.",
        ),
    ] = False,
    path: Annotated[
        Path | None,
        Option(
            "--expansion",
            metavar="PATH",
            help="Where the expansion is, or shall be; by default TRACE.expansion.",
        ),
    ] = None,
    device: Devices = None,
    as_json: Annotated[bool, Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Name the last writer of some bytes: which vCPU, at which moment, with which instruction, and
    what it wrote over what. A per-CPU symbol is answered for each CPU.

    Memory that several vCPUs touch is answered from the log of stores in the trace's expansion, if
    that has one. Otherwise the trace is replayed up to the moment, and it is said.

    Exit status: 0 if they were written since power-on; 1 if they were not; 2 for an error.
    """
    try:
        _run(trace, address, at, virtual, vcpu, expand, path, device, as_json)
    except Failure:
        # Status 1 says something here that an error must not be taken for.
        raise Exit(FAILED) from None
