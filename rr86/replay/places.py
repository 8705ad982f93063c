"""Where in physical memory something is that has a linear address or a name.

A linear address is translated exactly, by the page tables of a vCPU at a moment, which takes a
replay up to it. Symbols need none: the kernel's image is contiguous and never moves, nor do the
per-CPU areas, and a finished recording says where both are. Of an unfinished one, the beginning is
replayed up to the kernel's entry, where its image is mapped already.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rr86.cpu.kaslr import ENTRY_SYMBOL
from rr86.errors import AddressError, SymbolsError
from rr86.replay.alone import check_vcpu
from rr86.session.execution import Tick

if TYPE_CHECKING:
    from rr86.replay.recorded import RecordedRun
    from rr86.replay.session import ReplaySession

_PAGE = 4096
_PER_CPU_END = 1 << 24
# Of a larger symbol, the first bytes are meant.
_WORD = 8


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


def is_ram(trace: "RecordedRun", paddr: int, size: int = 1) -> bool:
    """Whether all of these physical addresses are RAM of the recorded board."""
    from rr86.machine.memory_map import HIGH_RAM_BASE, MemoryMap

    ram = MemoryMap(trace.spec.memory)
    ranges = ((0, ram.low), (HIGH_RAM_BASE, HIGH_RAM_BASE + ram.high))
    return any(start <= paddr and paddr + size <= end for start, end in ranges)


def locate(
    trace: "RecordedRun",
    place: Place,
    virtual: bool = False,
    vcpu: int = 0,
    at: int | None = None,
    tick: Tick | None = None,
) -> Located:
    """Find a place: a physical address as it is, a linear one (`virtual`) as `vcpu` maps it at the
    moment `at` (None: the end), a symbol where the kernel is, a per-CPU one for each CPU.

    Where no size was said it is that of the symbol, at most eight bytes; one byte of an address.
    """
    check_vcpu(trace, vcpu)
    if place.symbol is not None:
        return _symbol(trace, place, place.symbol, tick)
    assert place.address is not None
    size = place.size or 1
    if not virtual:
        return Located(((place.address, size),), None)
    return _translated(_at(trace, at, tick), vcpu, place.address, size)


def _symbol(trace: "RecordedRun", place: Place, name: str, tick: Tick | None) -> Located:
    symbols = trace.symbols()
    linked = symbols.linked
    if linked is None:
        raise SymbolsError(f"{name!r} cannot be looked up: {symbols.problem}", symbol=name)
    # Misspelt names fail before anything is replayed.
    linked.address(name)
    names = trace.names()
    if names.known:
        return Located(
            tuple(
                (start + place.offset, place.size or _word(length - place.offset))
                for start, length in names.ranges(name)
            ),
            None,
        )
    if (linked.link_address(name) or 0) < _PER_CPU_END:
        raise AddressError(
            f"{name} is a per-CPU variable, and the recording was not finished, so that it does "
            "not say where these are"
        )
    session = trace.session()
    stop = session.run(f"symbol={ENTRY_SYMBOL}", tick=tick)
    if stop.reason == "interrupted":
        raise KeyboardInterrupt
    table = session.inspector.symbols.table
    if stop.reason != "condition" or table is None:
        raise AddressError("the kernel never came to its entry: its symbols have no place yet")
    address = table.address(name)
    size = place.size or _word((table.distance_to_next(address) or 1) - place.offset)
    return _translated(session, stop.vcpu, address + place.offset, size)


def _word(length: int) -> int:
    return min(length, _WORD) if length > 0 else 1


def _at(trace: "RecordedRun", at: int | None, tick: Tick | None) -> "ReplaySession":
    last = trace.summary()["last_icount"] if at is None else at
    session = trace.session(at=max(0, last - 1))
    if at is None or at > session.icount:
        stop = session.run("end" if at is None else f"icount={at}", tick=tick)
        if stop.reason == "interrupted":
            raise KeyboardInterrupt
    return session


def _translated(session: "ReplaySession", vcpu: int, address: int, size: int) -> Located:
    ranges: list[tuple[int, int]] = []
    at, end = address, address + size
    while at < end:
        length = min(end, (at & -_PAGE) + _PAGE) - at
        paddr = session.machine.translate(vcpu, at)
        if paddr is None:
            raise AddressError(
                f"vCPU {vcpu} does not map {at:#x} at instruction {session.icount:,}", address=at
            )
        if ranges and sum(ranges[-1]) == paddr:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + length)
        else:
            ranges.append((paddr, length))
        at += length
    return Located(tuple(ranges), address)
