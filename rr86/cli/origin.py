"""`rr86 origin`: where does this value come from?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, BadParameter, Option

from rr86.cli.devices import Devices, devices
from rr86.cli.status import OK, Exit, reporting_errors
from rr86.cli.values import parse_moment, trace_or_newest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rr86.analysis.hops import Hop
    from rr86.session.stop import Stop

    Found = tuple[int, bytes, list[Hop]]

_DEFAULT_SIZE = 8


def hop_lines(hops: "list[Hop]") -> "Iterator[str]":
    """The hops for people, one line each. Where a value has parts from several places, each part is
    indented under the hop that brought them together."""
    children: dict[int | None, int] = {}
    for hop in hops:
        children[hop.parent] = children.get(hop.parent, 0) + 1
    depths: list[int] = []
    width = max((len(f"{hop.icount:,}") for hop in hops if hop.icount is not None), default=0)
    for hop in hops:
        above = 0 if hop.parent is None else depths[hop.parent]
        depth = above + (children[hop.parent] > 1)
        depths.append(depth)
        when = "" if hop.icount is None else f"{hop.icount:,}"
        who = "" if hop.vcpu is None else f"vCPU {hop.vcpu}"
        where = "" if hop.rip is None else hop.symbol or f"{hop.rip:#x}"
        words = "  ".join(part for part in (who, where, hop.text) if part)
        line = f"{when:>{width}}  {'  ' * depth}{words + ': ' if words else ''}{_told(hop)}"
        yield line.rstrip()


def _told(hop: "Hop") -> str:
    """What a hop says of the value."""
    value = hop.value.hex(" ")
    match hop.kind:
        case "store" | "copy" | "load" | "move":
            return f"{hop.place} from {hop.source} ({value})"
        case "computed":
            return f"{hop.place} = {value}, computed from {hop.source}"
        case "constant":
            return f"{hop.place} = {value}, a constant"
        case "lost":
            return f"{hop.place} = {value}, not followed: {hop.source}"
    return f"{hop.place} = {value}, {hop.source}"


@reporting_errors
def _run(
    trace: Path | None,
    address: str,
    at: int,
    virtual: bool,
    vcpu: int | None,
    through: bool,
    brief: bool,
    device: list[str] | None,
    as_json: bool,
) -> None:
    from dataclasses import replace

    from rr86.analysis.hops import without_saves
    from rr86.analysis.origin import origin
    from rr86.cli.alone import interruptible
    from rr86.cli.progress import Progress
    from rr86.replay.places import locate, parse_place
    from rr86.replay.trace import open_trace
    from rr86.replay.travel import TimeTravel

    place = parse_place(address)
    if vcpu is not None and not virtual:
        raise BadParameter("--vcpu says who maps a linear address: it needs --virtual")
    if place.symbol is None and place.size is None:
        place = replace(place, size=_DEFAULT_SIZE)
    recorded = open_trace(trace_or_newest(trace), devices(device))
    with interruptible() as interruption:
        progress = Progress("looking back", at)

        def between(moment: "Stop") -> bool:
            progress.update(moment)
            return bool(interruption)

        with progress.shown(True):
            located = locate(recorded, place, virtual, vcpu or 0, at, between)
            travel = TimeTravel(recorded)
            travel.goto(at, tick=between)
            found = []
            for start, size in located.ranges:
                value = travel.session.memory(start, size)
                hops = origin(travel, start, size, through=through, tick=between)
                found.append((start, value, without_saves(hops) if brief else hops))
    if as_json:
        _print_json(recorded.path, place.text, at, found)
    else:
        names = recorded.names()
        for start, value, hops in found:
            name = names.lookup(start) or place.symbol
            what = f"physical {start:#x}:{len(value)}" + (f" <{name}>" if name else "")
            print(f"{what}, before instruction {at:,}: {value.hex(' ')}")
            for line in hop_lines(hops):
                print(line)
    raise Exit(OK)


def _print_json(path: Path, place: str, at: int, found: "list[Found]") -> None:
    import json

    answer = {
        "trace": str(path),
        "place": place,
        "at": at,
        "ranges": [
            {
                "paddr": start,
                "size": len(value),
                "value": value.hex(),
                "hops": [hop.as_dict() for hop in hops],
            }
            for start, value, hops in found
        ],
    }
    print(json.dumps(answer, indent=2))


def command(
    words: Annotated[
        list[str],
        Argument(
            metavar="[TRACE] ADDR[:LEN]",
            help="A trace, by default the newest one here; a physical address (0x… or decimal), or "
            "a kernel symbol as NAME or NAME+OFFSET; and how many bytes, at most 64: by default 8, "
            "or what the symbol has.",
        ),
    ],
    at: Annotated[
        int,
        Option(
            "--at",
            metavar="MOMENT",
            parser=parse_moment,
            help="The value that is there before this instruction, as replay's icount=N.",
        ),
    ],
    virtual: Annotated[
        bool, Option("--virtual", help="ADDR is linear, as mapped at that moment.")
    ] = False,
    vcpu: Annotated[
        int | None,
        Option("--vcpu", metavar="N", min=0, help="Mapped by this vCPU; by default 0."),
    ] = None,
    through: Annotated[
        bool,
        Option("--through", help="Go on with all inputs of what an instruction has computed."),
    ] = False,
    brief: Annotated[
        bool,
        Option("--brief", help="Leave out where a register was saved on the stack and restored."),
    ] = False,
    device: Devices = None,
    as_json: Annotated[bool, Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Follow a value in memory back through copies to where it comes from."""
    if len(words) > 2:
        raise BadParameter(f"a trace and an address, not {len(words)} words")
    trace = Path(words[0]) if len(words) == 2 else None
    _run(trace, words[-1], at, virtual, vcpu, through, brief, device, as_json)
