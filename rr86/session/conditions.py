"""Stop conditions: what `--until` understands, and how it is put to the native core.

A condition is parsed without a guest. It is lowered for a run when the guest's symbols, and with
KASLR their offset, are known; `Lowered.waiting` says that some symbol is not placed yet.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from rr86.cpu.guest_symbols import GuestSymbols
from rr86.errors import ConditionError
from rr86.session.units import count_of

VALID = (
    "int3 | any-int3 | stale-int3 | stale | panic | rip=ADDR | symbol=NAME | icount=N "
    "| console=TEXT | write=PADDR[:LEN] | write=SYMBOL[:LEN] | irq=N | end"
)
PANIC_TEXT = b"Kernel panic"
_U64 = 1 << 64
# No processor has more physical address lines.
_PHYSICAL_END = 1 << 52


@dataclass(frozen=True)
class Condition:
    """Something that stops a run."""

    kind: ClassVar[str]

    def __str__(self) -> str:
        return self.kind


class Int3(Condition):
    """The INT3 that matters: in a replay of a trace in which INT3s were executed that memory did
    not hold (`Trace.stale_int3s`), before such a one; otherwise as `AnyInt3`."""

    kind = "int3"


class AnyInt3(Condition):
    """Before an INT3 (CC) or INT 3 (CD 03) executes on any vCPU, or the handler of an interrupt
    that came with vector 3."""

    kind = "any-int3"


class StaleInt3(Condition):
    """Before an INT3 or INT 3 executes that is in a stale block, and not in memory."""

    kind = "stale-int3"


class Stale(Condition):
    """Before a block executes whose source bytes memory no longer holds."""

    kind = "stale"


class Panic(Condition):
    """On entry to the kernel's panic(); without symbols, when the console says so."""

    kind = "panic"


@dataclass(frozen=True)
class Rip(Condition):
    """Before the instruction at this linear address executes, on any vCPU."""

    kind = "rip"
    address: int

    def __str__(self) -> str:
        return f"rip={self.address:#x}"


@dataclass(frozen=True)
class AtSymbol(Condition):
    """Before the instruction at a kernel symbol (plus `offset` bytes) executes."""

    kind = "symbol"
    name: str
    offset: int = 0

    def __str__(self) -> str:
        return f"symbol={self.name}" + (f"+{self.offset:#x}" if self.offset else "")


@dataclass(frozen=True)
class Icount(Condition):
    """Before the n-th instruction, counted from 0 over all vCPUs."""

    kind = "icount"
    count: int

    def __str__(self) -> str:
        return f"icount={self.count}"


@dataclass(frozen=True)
class Console(Condition):
    """When the guest has sent this text to its serial console."""

    kind = "console"
    text: str

    def __str__(self) -> str:
        return f"console={self.text}"


@dataclass(frozen=True)
class Write(Condition):
    """After an instruction wrote to these bytes of physical memory."""

    kind = "write"
    paddr: int
    length: int = 1

    def __str__(self) -> str:
        return f"write={self.paddr:#x}:{self.length}"


@dataclass(frozen=True)
class WriteSymbol(Condition):
    """After an instruction wrote to a symbol of the kernel's, from the kernel's entry on.

    `offset` is where in it the watched bytes begin; `length` how many they are (None: up to the
    symbol's end). Of a per-CPU symbol, that of each CPU is watched.
    """

    kind = "write"
    name: str
    offset: int = 0
    length: int | None = None

    def __str__(self) -> str:
        # A name that could be an address is one, unless an offset follows.
        offset = f"+{self.offset:#x}" if self.offset or _is_hex(self.name) else ""
        length = "" if self.length is None else f":{self.length}"
        return f"write={self.name}{offset}{length}"


@dataclass(frozen=True)
class Irq(Condition):
    """Before the first instruction of this interrupt vector's handler."""

    kind = "irq"
    vector: int

    def __str__(self) -> str:
        return f"irq={self.vector}"


class End(Condition):
    """The end of the run; it is where every run without other conditions stops."""

    kind = "end"


def _fail(text: str, position: int, problem: str) -> ConditionError:
    return ConditionError(
        f"condition {text!r}: {problem} at character {position + 1} (valid: {VALID})",
        condition=text,
        position=position,
    )


def _is_hex(text: str) -> bool:
    try:
        int(text, 16)
    except ValueError:
        return False
    return True


def _number(text: str, start: int, value: str, what: str, highest: int) -> int:
    if what == "a number of instructions":
        counted = count_of(value.removeprefix("-"))
        if counted is not None:
            value = f"{'-' * value.startswith('-')}{counted}"
    try:
        # Addresses are copied from listings and oopses, which leave the 0x away.
        if what == "an address":
            number = int(value, 16)
        else:
            number = int(value, 16 if value[:2].lower() == "0x" else 10)
    except ValueError:
        raise _fail(text, start, f"expected {what}, found {value!r}") from None
    if not 0 <= number <= highest:
        raise _fail(text, start, f"{what} must be between 0 and {highest:#x}")
    return number


def parse(text: str) -> Condition:
    """Understand one condition.

    Raises `ConditionError`, which says where it is wrong and what else it could be.
    """
    kind, equals, value = text.partition("=")
    start = len(kind) + 1
    plain: dict[str, Condition] = {
        "int3": Int3(),
        "any-int3": AnyInt3(),
        "stale-int3": StaleInt3(),
        "stale": Stale(),
        "panic": Panic(),
        "end": End(),
    }
    if kind in plain:
        if equals:
            raise _fail(text, len(kind), f"{kind!r} takes no value")
        return plain[kind]
    if kind not in ("rip", "symbol", "icount", "console", "write", "irq"):
        raise _fail(text, 0, f"unknown condition {kind!r}" if kind else "nothing")
    if not value:
        raise _fail(text, len(text), f"{kind!r} needs a value")
    if kind == "rip":
        return Rip(_number(text, start, value, "an address", _U64 - 1))
    if kind == "icount":
        return Icount(_number(text, start, value, "a number of instructions", _U64 - 1))
    if kind == "irq":
        return Irq(_number(text, start, value, "an interrupt vector", 255))
    if kind == "console":
        return Console(value)
    if kind == "write":
        return _write(text, start, value)
    name, plus, distance = value.partition("+")
    where = start + len(name) + 1
    return AtSymbol(name, _number(text, where, distance, "an offset", 1 << 30) if plus else 0)


def _write(text: str, start: int, value: str) -> Condition:
    place, colon, length = value.partition(":")
    size = None
    if colon:
        where = start + len(place) + 1
        size = _number(text, where, length, "a length in bytes", 1 << 30)
        if size == 0:
            raise _fail(text, where, "a length of 0 bytes")
    name, plus, distance = place.partition("+")
    if not plus and _is_hex(place):
        paddr = _number(text, start, place, "an address", _U64 - 1)
        if paddr >= _PHYSICAL_END:
            raise _fail(text, start, "a linear address, where a physical one or a symbol belongs")
        return Write(paddr, size or 1)
    if re.fullmatch(r"[A-Za-z_.$][\w.$]*", name) is None:
        raise _fail(text, start, f"expected a physical address or a symbol, found {place!r}")
    where = start + len(name) + 1
    offset = _number(text, where, distance, "an offset", 1 << 30) if plus else 0
    return WriteSymbol(name, offset, size)


def as_conditions(until: "str | Condition | Iterable[str | Condition] | None") -> list[Condition]:
    """Conditions from whatever a caller finds handy: text, objects, several, or none."""
    if until is None:
        return []
    if isinstance(until, str | Condition):
        until = [until]
    return [each if isinstance(each, Condition) else parse(each) for each in until]


@dataclass
class Lowered:
    """Conditions in the native core's terms."""

    native: list[tuple[str, int, int]] = field(default_factory=list)
    patterns: list[bytes] = field(default_factory=list)
    # The condition that each entry of `native` stands for.
    owners: list[Condition] = field(default_factory=list)
    # Symbols that cannot be placed before the kernel's offset is known.
    waiting: bool = False

    def _add(self, owner: Condition, kind: str, a: int = 0, b: int = 0) -> None:
        self.native.append((kind, a, b))
        self.owners.append(owner)

    def _add_console(self, owner: Condition, pattern: bytes) -> None:
        self._add(owner, "console", len(self.patterns))
        self.patterns.append(pattern)


# The physical ranges of a symbol of the kernel's; None before the kernel has placed itself.
Places = Callable[[WriteSymbol], Sequence[tuple[int, int]] | None]


def lower(
    conditions: Sequence[Condition],
    symbols: GuestSymbols,
    stale_int3: bool = False,
    places: Places | None = None,
) -> Lowered:
    """Put conditions into native terms, as far as symbols are placed already.

    `stale_int3` says that there are stale INT3s to come, which `Int3` is then for. `places` finds
    symbols in physical memory.
    """
    out = Lowered()
    for condition in conditions:
        match condition:
            case Int3():
                out._add(condition, "stale-int3" if stale_int3 else "int3")
            case AnyInt3():
                out._add(condition, "int3")
            case StaleInt3():
                out._add(condition, "stale-int3")
            case Stale():
                out._add(condition, "stale")
            case Rip(address):
                out._add(condition, "rip", address)
            case Icount(count):
                out._add(condition, "icount", count)
            case Write(paddr, length):
                out._add(condition, "write", paddr, length)
            case WriteSymbol():
                _lower_write(out, condition, symbols, places)
            case Irq(vector):
                out._add(condition, "irq", vector)
            case Console(text):
                out._add_console(condition, text.encode())
            case AtSymbol(name, offset):
                _lower_symbol(out, condition, symbols, name, offset)
            case Panic():
                linked = symbols.linked
                if linked is None or linked.link_address("panic") is None:
                    out._add_console(condition, PANIC_TEXT)
                else:
                    _lower_symbol(out, condition, symbols, "panic", 0)
    return out


def _lower_symbol(
    out: Lowered, condition: Condition, symbols: GuestSymbols, name: str, offset: int
) -> None:
    _check_symbol(condition, symbols, name)
    table = symbols.table
    if table is None:
        out.waiting = True
    else:
        out._add(condition, "rip", table.address(name) + offset)


def _lower_write(
    out: Lowered, condition: WriteSymbol, symbols: GuestSymbols, places: Places | None
) -> None:
    _check_symbol(condition, symbols, condition.name)
    ranges = None if places is None else places(condition)
    if ranges is None:
        out.waiting = True
    for start, length in ranges or ():
        out._add(condition, "write", start, length)


def _check_symbol(condition: Condition, symbols: GuestSymbols, name: str) -> None:
    """Misspelt names fail at once, not after the kernel is placed."""
    linked = symbols.linked
    if linked is None:
        raise ConditionError(
            f"condition '{condition}': {symbols.problem}", condition=str(condition)
        )
    linked.address(name)
