"""`monitor VERB`: what gdb has no word for.

A verb looks, or moves the machine. gdb keeps the registers that it has read until the machine runs,
so after a move it has to read them anew: `rr86 gdb` sees to that, others are told how.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rr86.errors import SymbolsError, UsageError
from rr86.gdb.breakpoints import pieces
from rr86.gdb.debuggee import Debuggee, Tick, Watch
from rr86.gdb.question import Question
from rr86.gdb.threads import thread_of
from rr86.gdb.watches import watching
from rr86.session.conditions import as_conditions
from rr86.session.units import count_of

if TYPE_CHECKING:
    from rr86.analysis.origin import Hop
    from rr86.replay.writers import WriteRecord
    from rr86.session.stop import Stop

STALE = "the debugger has not seen this move; gdb does after 'maintenance flush register-cache'"
_MOST_WATCHES = 64
_U64 = (1 << 64) - 1
_SHOWN_EVENTS = 20
_SHOWN_CONSOLE = 4000


@dataclass
class Request:
    """One line behind `monitor`."""

    text: str
    debuggee: Debuggee
    print: Callable[[str], None]
    tick: Tick


def run(line: str, debuggee: Debuggee, print: Callable[[str], None], tick: Tick) -> None:
    """Do what a line says. Raises `UsageError` for what is no verb, and what the verb raises."""
    name, _, text = line.strip().partition(" ")
    verb = VERBS.get(name or "help")
    if verb is None:
        raise UsageError(f"there is no verb {name!r}; 'monitor help' lists them")
    verb.action(Request(text.strip(), debuggee, print, tick))


# -- where it stands -------------------------------------------------------------------------------


def describe_moment(debuggee: Debuggee) -> str:
    """Where the machine stands, in a line."""
    travel = debuggee.travel
    session = travel.session
    registers = session.registers(travel.vcpu)
    rip = registers["rip"]
    name = session.symbolize(rip)
    place = f"{rip:#x} <{name}>" if name else f"{rip:#x}"
    share = f" ({100 * travel.icount // travel.last} %)" if travel.last else ""
    stop = travel.stop
    # An interrupted search comes back without the time at which it has begun.
    known = stop is not None and stop.icount == travel.icount and stop.reason != "interrupted"
    seconds = f", {stop.time_ns / 1e9:.6f} s of virtual time" if stop is not None and known else ""
    return (
        f"instruction {travel.icount:,} of {travel.last:,}{share} on vCPU {travel.vcpu} "
        f"(thread {thread_of(travel.vcpu)}){seconds}, rip {place}\n"
    )


def _moment(request: Request) -> None:
    _no_more(request.text)
    request.print(describe_moment(request.debuggee))


def _goto(request: Request) -> None:
    moment = parse_moment(request.text, request.debuggee)
    _told(request, request.debuggee.goto(moment, request.tick))


def _until(request: Request) -> None:
    _run_to(request, back=False)


def _back_until(request: Request) -> None:
    _run_to(request, back=True)


def _run_to(request: Request, back: bool) -> None:
    if not request.text:
        raise UsageError("a condition is missing; the forms are those of 'rr86 replay --until'")
    until = as_conditions(request.text)
    _told(request, request.debuggee.run_until(until, back, request.tick))


def _told(request: Request, stop: "Stop") -> None:
    debuggee = request.debuggee
    begin = stop.reason == "begin"
    what = "the beginning" if begin else stop.describe(debuggee.travel.session.symbolize)
    request.print(f"{what}\n" if stop.reason != "condition" or begin else "")
    request.print(describe_moment(debuggee))
    debuggee.moved = True
    if not debuggee.follows:
        request.print(f"{STALE}\n")


def parse_moment(text: str, debuggee: Debuggee) -> int:
    """`N`, `icount=N`, `500M`, `begin`, `end`; `+N` and `-N` from where it stands.

    Raises `UsageError` for what is none, or lies outside of the trace.
    """
    travel = debuggee.travel
    named = {"begin": travel.first, "end": travel.last}.get(text)
    if named is not None:
        return named
    sign = {"+": 1, "-": -1}.get(text[:1], 0)
    count = count_of(text[1:] if sign else text.removeprefix("icount="))
    if count is None:
        raise UsageError(f"{text!r} is no moment; write N, 500M, +N, -N, begin or end")
    moment = travel.icount + sign * count if sign else count
    if not travel.first <= moment <= travel.last:
        raise UsageError(
            f"instruction {moment:,} is outside of the trace ({travel.first:,} to {travel.last:,})"
        )
    return moment


# -- memory ----------------------------------------------------------------------------------------


def parse_place(text: str, length: str | None, debuggee: Debuggee) -> tuple[int, int]:
    """Linear address and length of `ADDR[:LEN]`, `SYMBOL[+OFFSET][:LEN]`, or `$REGISTER[+OFFSET]
    [:LEN]` of the selected vCPU; `LEN` may also stand alone.

    Raises `UsageError`, `AddressError`, or `SymbolsError` for a symbol that there is none of.
    """
    from rr86.replay.places import parse_place as parse

    place = parse(_with_register(text, debuggee))
    size = place.size
    if length is not None:
        size = int(length, 0) if re.fullmatch(r"0[xX][0-9a-fA-F]+|[0-9]+", length) else None
        if size is None:
            raise UsageError(f"{length!r} is no length")
    if place.symbol is None:
        address = place.address or 0
    else:
        session = debuggee.travel.session
        session.inspector.locate_kernel()
        table = session.inspector.symbols.table
        if table is None:
            raise SymbolsError(
                f"{place.symbol!r} cannot be looked up: the kernel has not placed itself yet",
                symbol=place.symbol,
            )
        start = table.address(place.symbol)
        address = start + place.offset
        if size is None:
            size = max(1, min(8, (table.distance_to_next(start) or 1) - place.offset))
    return address, 1 if size is None else size


def _with_register(text: str, debuggee: Debuggee) -> str:
    """A place with the value of the register that it begins with."""
    match = re.fullmatch(r"\$(\w+)(?:\+(0[xX][0-9a-fA-F]+|[0-9]+))?(:.+)?", text)
    if match is None:
        return text
    name = {"pc": "rip", "sp": "rsp", "fp": "rbp"}.get(match[1], match[1])
    value = debuggee.travel.session.registers(debuggee.selected).get(name)
    if value is None:
        raise UsageError(f"there is no register {match[1]!r}")
    return f"{value + int(match[2] or '0', 0) & _U64:#x}{match[3] or ''}"


def _ranges(request: Request, address: int, size: int) -> list[tuple[int, int]]:
    debuggee = request.debuggee
    return [(paddr, length) for _, paddr, length in pieces(address, size, debuggee.translate)]


def _named(request: Request, verb: str) -> list[tuple[int, int]]:
    """The physical ranges of what `ADDR [LEN]` names."""
    words = request.text.split()
    if not 1 <= len(words) <= 2:
        raise UsageError(f"write 'monitor {verb} ADDR [LEN]'")
    length = words[1] if len(words) > 1 else None
    return _ranges(request, *parse_place(words[0], length, request.debuggee))


def _who_wrote(request: Request) -> None:
    from rr86.replay.writers import WriteHistory

    moment = request.debuggee.travel.icount
    history = WriteHistory(request.debuggee.trace)
    with _interruptible(request) as tick:
        for start, length in _named(request, "who-wrote"):
            for record in history.who_wrote(start, length, moment, tick):
                request.print(_written(record))


def _origin(request: Request) -> None:
    from rr86.analysis.origin import origin

    with _interruptible(request) as tick:
        for start, length in _named(request, "origin"):
            for hop in origin(request.debuggee.travel, start, length, tick=tick):
                request.print(_hop(hop))


def _hop(hop: "Hop") -> str:
    """One hop of a value's way, as `rr86 origin` words it."""
    at = "" if hop.icount is None else f"{hop.icount:,}"
    who = "" if hop.vcpu is None else f"vCPU {hop.vcpu}"
    where = "" if hop.rip is None else hop.symbol or f"{hop.rip:#x}"
    words = "  ".join(each for each in (at, who, where, hop.text) if each)
    return f"{words}: {hop.kind}: {hop.place} from {hop.source} ({hop.value.hex(' ')})\n"


@contextmanager
def _interruptible(request: Request) -> Iterator[Tick]:
    """A tick for what answers an interrupt with `KeyboardInterrupt`."""
    ended = False

    def tick(stop: "Stop") -> bool:
        nonlocal ended
        ended = ended or bool(request.tick(stop))
        return ended

    try:
        yield tick
    except KeyboardInterrupt:
        if not ended:
            raise
        request.print("interrupted\n")


def _written(record: "WriteRecord") -> str:
    what = f"{record.paddr:#x}:{record.size}"
    if record.store is None:
        return f"{what} not written since power-on, {record.after.hex(' ')}\n"
    by = "a device" if record.vcpu is None else f"vCPU {record.vcpu}"
    rip = "" if record.rip is None else f" by {record.rip:#x} <{record.symbol or '?'}>"
    change = f"{record.before.hex(' ')} -> {record.after.hex(' ')}"
    return f"{what} written by {by} at instruction {record.moment:,}{rip}: {change}\n"


def _watch(request: Request) -> None:
    debuggee = request.debuggee
    if not request.text:
        for number, watch in debuggee.watches.items():
            request.print(f"{number}: {watch.text}\n")
        if not debuggee.watches:
            request.print("nothing is watched by the monitor\n")
        return
    match = re.fullmatch(r"(?:-([rwa])\s+)?(\S+)(?:\s+if\s+(.+))?", request.text)
    if match is None:
        raise UsageError("write 'monitor watch [-r|-w|-a] ADDR[:LEN] [if EXPRESSION]'")
    if len(debuggee.watches) >= _MOST_WATCHES:
        raise UsageError(f"there are {_MOST_WATCHES} already; 'monitor unwatch N' removes one")
    address, size = parse_place(match[2], None, debuggee)
    if not 0 < size <= 4096:
        raise UsageError("1 to 4096 bytes can be watched")
    registers = debuggee.travel.session.registers(debuggee.selected)
    names = {*registers, "value", "vcpu", "icount"}
    question = None if match[3] is None else Question(match[3], names.__contains__)
    conditions = watching(match[1] or "w", tuple(_ranges(request, address, size)), question)
    number = max(debuggee.watches, default=0) + 1
    debuggee.watches[number] = Watch(request.text, conditions)
    request.print(f"monitor watch {number}: {request.text}\n")


def _unwatch(request: Request) -> None:
    watches = request.debuggee.watches
    number = int(request.text) if request.text.isdecimal() else 0
    if request.text and number not in watches:
        raise UsageError(f"there is no monitor watch {request.text!r}")
    if request.text:
        del watches[number]
    else:
        watches.clear()


# -- what the trace knows --------------------------------------------------------------------------


def _events(request: Request) -> None:
    text = request.text or str(_SHOWN_EVENTS)
    if not text.isdecimal() or not 0 < int(text) <= 1000:
        raise UsageError("write 'monitor events [N]', N up to 1000")
    travel, count = request.debuggee.travel, int(text)
    span, rows = 100_000, []
    while True:
        first = max(0, travel.icount - span)
        rows = list(request.debuggee.trace.events(first=first, last=travel.icount))
        if len(rows) >= count or not first:
            break
        span *= 8
    for event in rows[-count:]:
        fields = " ".join(
            f"{name}={value.hex() if isinstance(value, bytes) else hex(value)}"
            for name, value in event.fields.items()
            if name != "vcpu" and event.kind != "digests"
        )
        who = "-" if event.vcpu is None else event.vcpu
        request.print(f"{event.icount:>14} {who:>3} {event.kind:<12} {fields}".rstrip() + "\n")


def _console(request: Request) -> None:
    _no_more(request.text)
    heard = request.debuggee.console()
    request.print(heard[-_SHOWN_CONSOLE:].decode("utf-8", "replace").replace("\r\n", "\n"))
    request.print("\n" if heard and not heard.endswith(b"\n") else "")


def _checkpoints(request: Request) -> None:
    _no_more(request.text)
    rows = request.debuggee.trace.checkpoints()
    for each in rows:
        request.print(f"{each.number:>4}  instruction {each.icount:,}\n")
    if not rows:
        request.print("the trace has none; 'rr86 checkpoint' adds some\n")


def _help(request: Request) -> None:
    request.print("monitor verbs:\n")
    for verb in VERBS.values():
        request.print(f"  {verb.form:<44} {verb.words}\n")


def _no_more(text: str) -> None:
    if text:
        raise UsageError(f"{text!r} is not understood here")


@dataclass(frozen=True)
class Verb:
    """What can be said behind `monitor`."""

    form: str
    words: str
    action: Callable[[Request], None]


def _verbs(rows: Iterable[Verb]) -> dict[str, Verb]:
    return {each.form.split()[0]: each for each in rows}


VERBS = _verbs(
    (
        Verb("moment", "where the machine stands", _moment),
        Verb("goto MOMENT", "go to N, 500M, +N, -N, begin or end", _goto),
        Verb("until CONDITION", "run to a condition of 'rr86 replay --until'", _until),
        Verb("back-until CONDITION", "back to where it held last", _back_until),
        Verb("who-wrote ADDR [LEN]", "the last writer of some bytes before now", _who_wrote),
        Verb("origin ADDR [LEN]", "where a value came from, hop by hop", _origin),
        Verb(
            "watch [-r|-w|-a] ADDR[:LEN] [if EXPR]",
            "stop at writes; EXPR of value, vcpu, icount, registers",
            _watch,
        ),
        Verb("unwatch [N]", "end that, or all of it", _unwatch),
        Verb("events [N]", "the trace's last events before now", _events),
        Verb("console", "what the guest has printed up to now", _console),
        Verb("checkpoints", "those of the trace", _checkpoints),
        Verb("help", "this list", _help),
    )
)
