"""Conditions in the native core's terms.

A condition is lowered for a run when the guest's symbols, and with KASLR their offset, are known;
`Lowered.waiting` says that some symbol is not placed yet. What the core does not know, conditions
that users made, is lowered as the places at which it is asked.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from rr86.cpu.guest_symbols import GuestSymbols
from rr86.errors import ConditionError
from rr86.session.conditions import (
    Access,
    AnyInt3,
    AtSymbol,
    Before,
    Condition,
    Console,
    End,
    Every,
    Icount,
    InProgram,
    Int3,
    Irq,
    Panic,
    Read,
    Rip,
    RipWhere,
    Stale,
    StaleInt3,
    Write,
    WriteSymbol,
    as_conditions,
)

PANIC_TEXT = b"Kernel panic"
_BREAKPOINT = 3
_LAST = (1 << 64) - 1


@dataclass
class Lowered:
    """Conditions in the native core's terms."""

    native: list[tuple[str, int, int]] = field(default_factory=list)
    patterns: list[bytes] = field(default_factory=list)
    # What entries of kind "rip-where" ask further: a vCPU or -1, and agent expressions.
    filters: list[tuple[int, tuple[bytes, ...]]] = field(default_factory=list)
    # The condition that each entry of `native` stands for.
    owners: list[Condition] = field(default_factory=list)
    # Symbols that cannot be placed before the kernel's offset is known.
    waiting: bool = False
    # An entry is for the next of many moments: after a stop there, lower anew.
    moving: bool = False

    def _add(self, owner: Condition, kind: str, a: int = 0, b: int = 0) -> None:
        self.native.append((kind, a, b))
        self.owners.append(owner)

    def _add_console(self, owner: Condition, pattern: bytes) -> None:
        self._add(owner, "console", len(self.patterns))
        self.patterns.append(pattern)

    def at(self, met: Sequence[int], bytes_differ: bool | None) -> Iterator[Condition]:
        """The conditions that may hold where the entries `met` did: their owners, and those of the
        entries that the core does not tell from them.

        `bytes_differ` says of an INT3 that is about to execute whether memory holds another
        instruction; None: there is no INT3.
        """
        found = self.native[met[0]]
        also = {self._key(self.native[index]) for index in met}
        int3s = {("int3", 0, 0)} | ({("stale-int3", 0, 0)} if bytes_differ else set())
        if found[0] in ("rip", "rip-where", "int3", "stale-int3") and bytes_differ is not None:
            also |= int3s
        elif found in (("int3", 0, 0), ("irq", _BREAKPOINT, 0)):
            # The handler of an interrupt that came with this vector.
            also |= {("int3", 0, 0), ("irq", _BREAKPOINT, 0)}
        for entry, owner in zip(self.native, self.owners, strict=True):
            if self._key(entry) in also:
                yield owner

    def _key(self, entry: tuple[str, int, int]) -> tuple[str, int | bytes, int]:
        kind, pattern, _ = entry
        return (kind, self.patterns[pattern], 0) if kind == "console" else entry


# The physical ranges of a symbol of the kernel's; None before the kernel has placed itself.
Places = Callable[[WriteSymbol], Sequence[tuple[int, int]] | None]


class Programs(Protocol):
    """What is known of the programs that run in a guest."""

    def addresses(self, program: str, function: str, offset: int) -> list[int] | None:
        """Where a function is in each process that runs the program now; None before there are
        processes."""

    def beginnings(self) -> list[int]:
        """Where programs are started; empty while the kernel has not placed itself."""


class _Guest(NamedTuple):
    """What lowering depends on besides the condition."""

    symbols: GuestSymbols
    stale_int3: bool
    places: Places | None
    icount: int
    programs: Programs | None


def is_asked(condition: Condition) -> bool:
    """Whether a condition has something to say itself where the run is at one of its places."""
    kind = type(condition)
    return kind.holds is not Condition.holds or kind.places is not Condition.places


def known(condition: Condition) -> list[Condition]:
    """The conditions of rr86's own that one stands for: itself, or the places where it is asked.

    Raises `ConditionError` for one that the core knows nothing of, and that names no places.
    """
    if type(condition).places is Condition.places and isinstance(condition, _OWN):
        return [condition]
    found = as_conditions(condition.places())
    for each in found:
        if isinstance(each, End) or not isinstance(each, _OWN) or is_asked(each):
            raise ConditionError(
                f"condition '{condition}' cannot be asked at '{each}': that is no place of a run",
                condition=str(condition),
            )
    if not found:
        raise ConditionError(
            f"condition '{condition}' cannot be watched for: it names no place to be asked at",
            condition=str(condition),
        )
    return found


def all_known(conditions: Iterable[Condition]) -> list[Condition]:
    """The conditions of rr86's own that all of these stand for."""
    return [place for each in conditions for place in known(each)]


def lower(
    conditions: Sequence[Condition],
    symbols: GuestSymbols,
    stale_int3: bool = False,
    places: Places | None = None,
    icount: int = 0,
    programs: Programs | None = None,
) -> Lowered:
    """Put conditions into native terms, as far as symbols are placed already.

    `stale_int3` says that there are stale INT3s to come, which `Int3` is then for. `places` finds
    symbols in physical memory; `icount` is where the run stands; `programs` knows of processes.
    """
    out = Lowered()
    guest = _Guest(symbols, stale_int3, places, icount, programs)
    # Those that are asked may say no, so the core shall name them only where no other one holds.
    for owner in sorted(conditions, key=is_asked):
        for condition in known(owner):
            _lower(out, condition, owner, guest)
    return out


def _lower(out: Lowered, condition: Condition, owner: Condition, guest: _Guest) -> None:
    match condition:
        case Int3():
            out._add(owner, "stale-int3" if guest.stale_int3 else "int3")
        case AnyInt3():
            out._add(owner, "int3")
        case StaleInt3():
            out._add(owner, "stale-int3")
        case Stale():
            out._add(owner, "stale")
        case Rip(address):
            out._add(owner, "rip", address)
        case RipWhere(address, vcpu, agent):
            out._add(owner, "rip-where", address, len(out.filters))
            out.filters.append((-1 if vcpu is None else vcpu, agent))
        case Before(count):
            out._add(owner, "before", count)
        case Read(paddr, length):
            out._add(owner, "read", paddr, length)
        case Access(paddr, length):
            out._add(owner, "read", paddr, length)
            out._add(owner, "write", paddr, length)
        case Icount(count):
            out._add(owner, "icount", count)
        case Every(count):
            out.moving = True
            out._add(owner, "icount", min((guest.icount // count + 1) * count, _LAST))
        case Write(paddr, length):
            out._add(owner, "write", paddr, length)
        case WriteSymbol():
            _lower_write(out, condition, owner, guest)
        case Irq(vector):
            out._add(owner, "irq", vector)
        case Console(text):
            out._add_console(owner, text.encode())
        case AtSymbol(name, offset):
            _lower_symbol(out, condition, owner, guest.symbols, name, offset)
        case InProgram():
            _lower_program(out, condition, owner, guest)
        case Panic():
            linked = guest.symbols.linked
            if linked is None or linked.link_address("panic") is None:
                out._add_console(owner, PANIC_TEXT)
            else:
                _lower_symbol(out, condition, owner, guest.symbols, "panic", 0)


_OWN = (
    *(Int3, AnyInt3, StaleInt3, Stale, Panic, Rip, AtSymbol, Icount, Every, Console, Write),
    *(WriteSymbol, Irq, End, RipWhere, Before, Read, Access, InProgram),
)


def _lower_symbol(
    out: Lowered,
    condition: Condition,
    owner: Condition,
    symbols: GuestSymbols,
    name: str,
    offset: int,
) -> None:
    _check_symbol(condition, symbols, name)
    table = symbols.table
    if table is None:
        out.waiting = True
    else:
        out._add(owner, "rip", table.address(name) + offset)


def _lower_write(out: Lowered, condition: WriteSymbol, owner: Condition, guest: _Guest) -> None:
    _check_symbol(condition, guest.symbols, condition.name)
    ranges = None if guest.places is None else guest.places(condition)
    if ranges is None:
        out.waiting = True
    for start, length in ranges or ():
        out._add(owner, "write", start, length)


def _lower_program(out: Lowered, condition: InProgram, owner: Condition, guest: _Guest) -> None:
    linked = guest.symbols.linked
    if guest.programs is None or linked is None or not linked.relocatable:
        raise ConditionError(
            f"condition '{condition}': programs are known of a Linux guest only",
            condition=str(condition),
        )
    found = guest.programs.addresses(condition.program, condition.name, condition.offset)
    beginnings = guest.programs.beginnings()
    if not beginnings:
        out.waiting = True
    for address in (*(found or ()), *beginnings):
        out._add(owner, "rip", address)
    # Whoever is started next may have it elsewhere.
    out.moving = True


def _check_symbol(condition: Condition, symbols: GuestSymbols, name: str) -> None:
    """Misspelt names fail at once, not after the kernel is placed."""
    linked = symbols.linked
    if linked is None:
        raise ConditionError(
            f"condition '{condition}': {symbols.problem}", condition=str(condition)
        )
    linked.address(name)
