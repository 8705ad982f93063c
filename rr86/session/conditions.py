"""Stop conditions: what `--until` understands, and what users add to it (docs/conditions.md).

A condition is parsed without a guest; `rr86.session.lowering` puts it to the native core.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rr86.errors import ConditionError
from rr86.session.units import count_of

if TYPE_CHECKING:
    from rr86.session.view import GuestView

VALID = (
    "int3 | any-int3 | stale-int3 | stale | panic | rip=ADDR | rip=PROCESS:ADDR | symbol=NAME "
    "| symbol=PROGRAM:NAME | icount=N "
    "| console=TEXT | write=PADDR[:LEN] | write=SYMBOL[:LEN] | read=PADDR[:LEN] "
    "| access=PADDR[:LEN] | irq=N | end"
)
_U64 = 1 << 64
# No processor has more physical address lines.
_PHYSICAL_END = 1 << 52


class Condition:
    """Something that stops a run.

    To make one, derive from it: `places` says where the guest is to be looked at, `holds` whether
    the run stops there.
    """

    kind: ClassVar[str] = "condition"

    def __str__(self) -> str:
        return self.kind

    def places(self) -> "Until":
        """Where to ask `holds`: text as for `--until`, conditions of rr86's own, or several.

        Raises `ConditionError` here, since the core knows nothing of this condition.
        """
        raise ConditionError(
            f"condition '{self}' ({type(self).__name__}) cannot be watched for: it does not say "
            "where it wants to be asked (define places(), or decorate a function with "
            "rr86.asked_at)",
            condition=str(self),
        )

    def holds(self, stop: "GuestView") -> bool:
        """Whether the run stops here, at one of its `places`. It may look, and change nothing."""
        return True


@dataclass(frozen=True)
class Int3(Condition):
    """The INT3 that matters: in a replay of a trace in which INT3s were executed that memory did
    not hold (`Trace.stale_int3s`), before such a one; otherwise as `AnyInt3`."""

    kind = "int3"


@dataclass(frozen=True)
class AnyInt3(Condition):
    """Before an INT3 (CC) or INT 3 (CD 03) executes on any vCPU, or the handler of an interrupt
    that came with vector 3."""

    kind = "any-int3"


@dataclass(frozen=True)
class StaleInt3(Condition):
    """Before an INT3 or INT 3 executes that is in a stale block, and not in memory."""

    kind = "stale-int3"


@dataclass(frozen=True)
class Stale(Condition):
    """Before a block executes whose source bytes memory no longer holds."""

    kind = "stale"


@dataclass(frozen=True)
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
class RipWhere(Condition):
    """Before the instruction at this linear address executes on one vCPU (None: on any), if one of
    some agent expressions holds, or there is none (GDB manual, "Agent Expressions")."""

    kind = "rip"
    address: int
    vcpu: int | None = None
    agent: tuple[bytes, ...] = ()

    def __str__(self) -> str:
        where = "" if self.vcpu is None else f" on vCPU {self.vcpu}"
        return f"rip={self.address:#x}{where}"


@dataclass(frozen=True)
class Before(Condition):
    """Before the n-th instruction, counted from 0 over all vCPUs, with everything done that comes
    between two instructions: interrupts that come before it are delivered."""

    kind = "before"
    count: int

    def __str__(self) -> str:
        return f"before={self.count}"


@dataclass(frozen=True)
class Read(Condition):
    """After an instruction read any of these bytes of physical memory. Page walks and instruction
    fetches do not count."""

    kind = "read"
    paddr: int
    length: int = 1

    def __str__(self) -> str:
        return f"read={self.paddr:#x}:{self.length}"


@dataclass(frozen=True)
class Access(Condition):
    """After an instruction read or wrote any of these bytes of physical memory."""

    kind = "access"
    paddr: int
    length: int = 1

    def __str__(self) -> str:
        return f"access={self.paddr:#x}:{self.length}"


@dataclass(frozen=True)
class AtSymbol(Condition):
    """Before the instruction at a kernel symbol (plus `offset` bytes) executes."""

    kind = "symbol"
    name: str
    offset: int = 0

    def __str__(self) -> str:
        return f"symbol={self.name}" + (f"+{self.offset:#x}" if self.offset else "")


@dataclass(frozen=True)
class InProgram(Condition):
    """Before an instruction of a program's function executes, `offset` bytes from its start, in a
    process that runs the program. It is also asked where Linux starts programs: it is only then
    known where one lies."""

    kind = "symbol"
    program: str
    name: str
    offset: int = 0

    def __str__(self) -> str:
        offset = f"+{self.offset:#x}" if self.offset else ""
        return f"symbol={self.program}:{self.name}{offset}"

    def holds(self, stop: "GuestView") -> bool:
        """See `Condition.holds`."""
        processes = stop.inspector.processes
        return processes is not None and processes.is_at(
            stop.vcpu, self.program, self.name, self.offset, stop.rip
        )


@dataclass(frozen=True)
class RipIn(Condition):
    """Before the instruction at this linear address executes in a process of this name: that of
    its program's file, or the task's own."""

    kind = "rip"
    process: str
    address: int

    def __str__(self) -> str:
        return f"rip={self.process}:{self.address:#x}"

    def places(self) -> "Until":
        """See `Condition.places`."""
        return Rip(self.address)

    def holds(self, stop: "GuestView") -> bool:
        """See `Condition.holds`."""
        processes = stop.inspector.processes
        return processes is not None and processes.is_running(stop.vcpu, self.process)


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


@dataclass(frozen=True)
class Every(Condition):
    """Before every instruction whose number, counted over all vCPUs, is a multiple of `count`."""

    kind = "every"
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConditionError(f"condition '{self}': there is no such multiple")

    def __str__(self) -> str:
        return f"every {self.count} instructions"


@dataclass(frozen=True)
class Asked(Condition):
    """A function that is asked at some places whether to stop there; see `asked_at`."""

    kind = "asked"
    function: "Question"
    at: tuple[Condition, ...]

    def __str__(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))

    def __call__(self, stop: "GuestView") -> bool:
        """What the function says."""
        return self.function(stop)

    def places(self) -> "Until":
        """See `Condition.places`."""
        return self.at

    def holds(self, stop: "GuestView") -> bool:
        """See `Condition.holds`."""
        return self.function(stop)


@dataclass(frozen=True)
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
    if kind not in ("rip", "symbol", "icount", "console", "write", "read", "access", "irq"):
        raise _fail(text, 0, f"unknown condition {kind!r}" if kind else "nothing")
    if not value:
        raise _fail(text, len(text), f"{kind!r} needs a value")
    if kind == "rip" and ":" in value:
        process, _, address = value.rpartition(":")
        if not process:
            raise _fail(text, start, "expected the name of a process")
        where = start + len(process) + 1
        return RipIn(process, _number(text, where, address, "an address", _U64 - 1))
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
    if kind in ("read", "access"):
        written = _write(text, start, value)
        if not isinstance(written, Write):
            raise _fail(text, start, f"expected a physical address, found {value!r}")
        made = Read if kind == "read" else Access
        return made(written.paddr, written.length)
    program, colon, function = value.partition(":")
    name, plus, distance = (function if colon else value).partition("+")
    where = start + len(value) - len(distance)
    if colon:
        if not program or not name:
            raise _fail(text, start, "expected PROGRAM:NAME")
        far = _number(text, where, distance, "an offset", 1 << 30) if plus else 0
        return InProgram(program, name, far)
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


Question = Callable[["GuestView"], bool]
Until = str | Condition | Iterable[str | Condition] | None
"""Conditions as a caller finds them handy: text, objects, several, or none."""


def as_conditions(until: Until) -> list[Condition]:
    """Conditions as a list.

    Raises `ConditionError` for text that is none, and for what is neither text nor condition.
    """
    if until is None:
        return []
    if isinstance(until, str | Condition):
        until = [until]
    elif not isinstance(until, Iterable):
        raise _no_condition(until)
    return [_as_condition(each) for each in until]


def _as_condition(each: object) -> Condition:
    if isinstance(each, Condition):
        return each
    if isinstance(each, str):
        return parse(each)
    raise _no_condition(each)


def _no_condition(each: object) -> ConditionError:
    if callable(each):
        name = getattr(each, "__name__", repr(each))
        return ConditionError(
            f"{name} cannot be a condition as it is: say where it is to be asked, with "
            f"rr86.asked_at('symbol=…')({name})",
            condition=name,
        )
    return ConditionError(f"{each!r} is no condition", condition=repr(each))


def asked_at(*places: str | Condition) -> Callable[[Question], Asked]:
    """Make a function into a condition that is asked at these places.

    `places` are text as for `--until`, or conditions of rr86's own (`Every(n)` for every n
    instructions). The function gets a `GuestView`, and a true answer stops the run there.

    Raises `ConditionError` if there is no place, or text that is none.
    """
    at = tuple(as_conditions(places))
    if not at:
        raise ConditionError("asked_at needs a place, such as 'symbol=panic' or Every(1000)")
    return lambda function: Asked(function, at)
