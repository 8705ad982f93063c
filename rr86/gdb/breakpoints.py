"""What a debugger has asked to stop at, as conditions of a run.

Breakpoints are at linear addresses and hold on every vCPU. Watchpoints are on physical memory: the
linear address is translated when the watchpoint is inserted, which gdb does each time it lets the
machine run. One that spans several pages is a condition for each piece.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rr86.errors import Error
from rr86.gdb.threads import parse_hex
from rr86.session.conditions import Access, Condition, Read, Rip, RipWhere, Write

_PAGE = 4096
MOST = 1024
"""Breakpoints and watchpoints that there may be at a time."""
LONGEST = 1 << 16
"""Bytes that one watchpoint may have."""
_MOST_AGENT_BYTES = 1 << 16

SOFTWARE, HARDWARE, WRITE, READ, ACCESS = range(5)
_WATCH: dict[int, tuple[str, type[Write] | type[Read] | type[Access]]] = {
    WRITE: ("watch", Write),
    READ: ("rwatch", Read),
    ACCESS: ("awatch", Access),
}


class BreakpointError(Error):
    """A breakpoint or watchpoint that cannot be."""


Translate = Callable[[int], int | None]
Key = tuple[int, int, int]


@dataclass(frozen=True)
class Placed:
    """One condition that stands for a breakpoint, or for a piece of a watchpoint."""

    kind: int
    address: int
    condition: Condition

    def reason(self, pc: int) -> tuple[str, str] | None:
        """What a stop reply says of it. A breakpoint that is not at gdb's pc (in code with a
        segment base) is left out: gdb would take the stop for an old one, and go on."""
        if self.kind in _WATCH:
            return _WATCH[self.kind][0], f"{self.address:x}"
        if pc != self.address:
            return None
        return ("swbreak" if self.kind == SOFTWARE else "hwbreak"), ""


def parse_agents(text: bytes) -> tuple[bytes, ...]:
    """The conditions of a breakpoint, agent expressions: `;X<length>,<bytes in hexadecimal>…`.

    Raises `BreakpointError` for anything else.
    """
    found: list[bytes] = []
    while text:
        head, comma, rest = text.partition(b",")
        size = parse_hex(head[2:], 4) if head[:2] == b";X" and comma else None
        if size is None or size == 0 or len(rest) < 2 * size:
            raise BreakpointError("a breakpoint's condition makes no sense")
        code = rest[: 2 * size]
        if any(byte not in b"0123456789abcdefABCDEF" for byte in code):
            raise BreakpointError("a breakpoint's condition makes no sense")
        found.append(bytes.fromhex(code.decode("ascii")))
        text = rest[2 * size :]
    if sum(len(each) for each in found) > _MOST_AGENT_BYTES:
        raise BreakpointError("a breakpoint's conditions are too long")
    return tuple(found)


def pieces(address: int, length: int, translate: Translate) -> Iterator[tuple[int, int, int]]:
    """The parts of a linear range page by page: (linear, physical, length).

    Raises `BreakpointError` where one is not mapped.
    """
    at, end = address, address + length
    while at < end:
        size = min(end, (at & -_PAGE) + _PAGE) - at
        paddr = translate(at)
        if paddr is None:
            raise BreakpointError(f"{at:#x} is not mapped here, so it cannot be watched")
        yield at, paddr, size
        at += size


def _breakpoint(address: int, agents: tuple[bytes, ...]) -> Condition:
    return RipWhere(address, agent=agents) if agents else Rip(address)


class Breakpoints:
    """Those of one debugger."""

    def __init__(self, translate: Translate) -> None:
        self._translate = translate
        self._inserted: dict[Key, list[Placed]] = {}

    def insert(self, kind: int, address: int, size: int, agents: tuple[bytes, ...] = ()) -> None:
        """Insert one; an equal one gets the new conditions.

        Raises `BreakpointError` for one that cannot be, and `ConditionError` for an agent
        expression that cannot be evaluated.
        """
        key = (kind, address, size)
        if key not in self._inserted and len(self._inserted) >= MOST:
            raise BreakpointError(f"there are {MOST} breakpoints already")
        if kind in _WATCH:
            if not 0 < size <= LONGEST or address + size > 1 << 64:
                raise BreakpointError(f"a watchpoint has 1 to {LONGEST} bytes")
            make = _WATCH[kind][1]
            placed = [
                Placed(kind, linear, make(paddr, length))
                for linear, paddr, length in pieces(address, size, self._translate)
            ]
        elif kind in (SOFTWARE, HARDWARE):
            placed = [Placed(kind, address, _breakpoint(address, agents))]
        else:
            raise BreakpointError(f"there is no breakpoint of type {kind}")
        self._inserted[key] = placed

    def remove(self, kind: int, address: int, size: int) -> None:
        """Remove one; it need not be there."""
        self._inserted.pop((kind, address, size), None)

    def drop_agents(self) -> bool:
        """Have breakpoints hold without their conditions; whether there were any."""
        dropped = False
        for group in self._inserted.values():
            for index, each in enumerate(group):
                if isinstance(each.condition, RipWhere):
                    dropped = True
                    group[index] = Placed(each.kind, each.address, Rip(each.address))
        return dropped

    def clear(self) -> None:
        """Remove all."""
        self._inserted.clear()

    @property
    def placed(self) -> list[Placed]:
        """Every condition to run with."""
        return [each for group in self._inserted.values() for each in group]

    @property
    def conditions(self) -> list[Condition]:
        """The same, as `TimeTravel.run` takes them."""
        return [each.condition for each in self.placed]

    @property
    def watches(self) -> bool:
        """Whether memory is watched."""
        return any(kind in _WATCH for kind, _, _ in self._inserted)

    def of(self, condition: Condition | None) -> Placed | None:
        """The breakpoint whose condition has held."""
        return next((each for each in self.placed if each.condition == condition), None)
