"""Where in physical memory something is that has a linear address or a name.

Translation is exact, by the guest's own page tables: those of a vCPU at a moment, which takes a
replay up to it. A Linux kernel's own image is simpler: it stays where it is from before the entry
to x86_64_start_kernel on, so its symbols take a replay of the beginning only.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rr86.cpu.kaslr import ENTRY_SYMBOL
from rr86.errors import AddressError, SymbolsError
from rr86.replay.alone import check_vcpu
from rr86.replay.execution import Tick

if TYPE_CHECKING:
    from rr86.replay.session import ReplaySession
    from rr86.replay.trace import Trace

_PAGE = 4096
_PER_CPU_END = 1 << 24


@dataclass(frozen=True)
class Place:
    """What a person named: an address, or a symbol and an offset; and how many bytes (None: not
    said)."""

    text: str
    address: int | None
    symbol: str | None
    offset: int
    size: int | None


@dataclass(frozen=True)
class Located:
    """Physical ranges (address, length) that together are the place, and its linear address."""

    ranges: tuple[tuple[int, int], ...]
    linear: int | None


def parse_place(text: str) -> Place:
    """`ADDR[:SIZE]` or `SYMBOL[+OFFSET][:SIZE]`; numbers as 0x… or decimal."""
    match = re.fullmatch(
        r"(?:(?P<address>0[xX][0-9a-fA-F_]+|[0-9_]+)|(?P<name>[A-Za-z_.$][\w.$]*)"
        r"(?:\+(?P<offset>0[xX][0-9a-fA-F]+|[0-9]+))?)(?::(?P<size>0[xX][0-9a-fA-F]+|[0-9]+))?",
        text.strip(),
    )
    if match is None:
        raise AddressError(f"{text!r} is neither an address nor a symbol; write 0x1000:8 or name+4")
    address = None if match["address"] is None else int(match["address"], 0)
    size = None if match["size"] is None else int(match["size"], 0)
    if size == 0 or (address is not None and address >> 64):
        raise AddressError(f"{text!r} names no bytes")
    return Place(text, address, match["name"], int(match["offset"] or "0", 0), size)


def locate(
    trace: "Trace",
    place: Place,
    virtual: bool = False,
    vcpu: int = 0,
    at: int | None = None,
    tick: Tick | None = None,
) -> Located:
    """Find a place: a physical address as it is, a linear one (`virtual`) as `vcpu` maps it at the
    moment `at` (None: the end), a symbol where the kernel is. One byte where no size was said, or
    the size of the symbol where that is known and at most eight."""
    check_vcpu(trace, vcpu)
    if place.address is not None:
        size = place.size or 1
        if not virtual:
            return Located(((place.address, size),), None)
        return _translated(_at(trace, at, tick), vcpu, place.address, size)
    assert place.symbol is not None
    symbols = trace.symbols()
    linked = symbols.linked
    if linked is None:
        raise SymbolsError(f"{place.symbol!r} cannot be looked up: {symbols.problem}")
    # Misspelt names fail before anything is replayed.
    linked.address(place.symbol)
    base = linked.link_address(place.symbol) or 0
    if linked.relocatable and base < _PER_CPU_END:
        raise AddressError(
            f"{place.symbol} is a per-CPU variable, one for each vCPU: add the vCPU's GS base, and "
            "ask with --virtual"
        )
    size = place.size or _known_size(linked.size(place.symbol), place.offset)
    if linked.relocatable and linked.link_address(ENTRY_SYMBOL) is not None:
        session = trace.session()
        stop = session.run(f"symbol={ENTRY_SYMBOL}", tick=tick)
        if stop.reason == "interrupted":
            raise KeyboardInterrupt
        if stop.reason != "condition":
            raise AddressError("the kernel never came to its entry: its symbols have no place yet")
        vcpu = stop.vcpu
    else:
        session = _at(trace, at, tick)
    table = session.inspector.symbols.table
    if table is None:
        raise SymbolsError("the trace does not say where the kernel was")
    return _translated(session, vcpu, table.address(place.symbol) + place.offset, size)


def _known_size(size: int, offset: int) -> int:
    left = size - offset
    return left if 1 <= left <= 8 else 1


def _at(trace: "Trace", at: int | None, tick: Tick | None) -> "ReplaySession":
    session = begin_before(trace, at)
    if at != 0:
        stop = session.run("end" if at is None else f"icount={at}", tick=tick)
        if stop.reason == "interrupted":
            raise KeyboardInterrupt
    return session


def begin_before(trace: "Trace", at: int | None) -> "ReplaySession":
    """A replay that stands at a moment before this one (None: the end), as late as may be."""
    return trace.session()


def _translated(session: "ReplaySession", vcpu: int, address: int, size: int) -> Located:
    ranges: list[tuple[int, int]] = []
    at, end = address, address + size
    while at < end:
        length = min(end, (at & -_PAGE) + _PAGE) - at
        paddr = session.machine.translate(vcpu, at)
        if paddr is None:
            raise AddressError(
                f"vCPU {vcpu} does not map {at:#x} at instruction {session.icount:,}"
            )
        if ranges and sum(ranges[-1]) == paddr:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + length)
        else:
            ranges.append((paddr, length))
        at += length
    return Located(tuple(ranges), address)
