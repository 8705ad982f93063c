"""Where in physical memory a kernel's variables are, while it runs, for conditions on writes.

Before Linux has entered its first C function, its image lies elsewhere or is being unpacked, and
writes to where its variables will be are none to them. From then on the image is contiguous and
never moves, so that one address that a vCPU maps tells all. Per-CPU variables move into an area for
each CPU; a finished recording says where these are.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from rr86.errors import ConditionError
from rr86.session.conditions import AtSymbol, Condition, InProgram, WriteSymbol
from rr86.session.lowering import all_known, lower

if TYPE_CHECKING:
    from rr86.cpu.guest_symbols import GuestSymbols
    from rr86.cpu.inspection import Inspector
    from rr86.cpu.physical import PhysicalNames
    from rr86.kernel.programs import Programs


# CR0.PG.
_PAGING = 1 << 31


class Mapper(Protocol):
    """What a machine has to offer for variables to be found."""

    def registers(self, vcpu: int) -> dict[str, int]:
        """Registers by name."""

    def translate(self, vcpu: int, address: int) -> int | None:
        """Physical address of a linear one, or None where it is not mapped."""


class Variables:
    """The symbols of a guest's kernel as ranges of physical memory."""

    def __init__(
        self,
        machine: Mapper,
        inspector: "Inspector",
        names: "Callable[[], PhysicalNames] | None" = None,
    ) -> None:
        """`names` are those of a finished recording; without, per-CPU variables have no place."""
        self.machine = machine
        self._inspector = inspector
        self._names = names
        # Distance from a linear address of the image to its physical one.
        self._bias: int | None = None

    def look(self) -> None:
        """Note where the image is, if the kernel has entered its own code by now."""
        table = self._inspector.symbols.table
        # Of the entry itself, the mapping goes once the boot is over.
        text = None if table is None else table.link_address("_text")
        if self._bias is not None or table is None or text is None or not table.relocatable:
            return
        address = text + table.offset
        for vcpu in range(self._inspector.vcpus):
            # Without paging, a vCPU that waits for its start would map anything.
            paged = self.machine.registers(vcpu)["cr0"] & _PAGING
            physical = self.machine.translate(vcpu, address) if paged else None
            if physical is not None:
                self._bias = address - physical
                return

    def learn(self, other: "Variables") -> None:
        """Take over what another run of the same guest has found."""
        if self._bias is None:
            self._bias = other._bias

    def ranges(self, condition: WriteSymbol) -> list[tuple[int, int]] | None:
        """Address and length of what a condition watches; None before that has a place."""
        table = self._inspector.symbols.table
        linked = self._inspector.symbols.linked
        if linked is None:
            return None
        if linked.is_per_cpu(linked.link_address(condition.name) or 0):
            found = self._per_cpu(condition)
            return found if self._bias is not None else None
        if table is None:
            return None
        address = table.address(condition.name)
        if table.relocatable:
            if self._bias is None:
                return None
            physical = address - self._bias
        else:
            physical = address - self._linked_bias(address)
        return [_part(condition, physical, table.size_at(address))]

    def _per_cpu(self, condition: WriteSymbol) -> list[tuple[int, int]]:
        names = None if self._names is None else self._names()
        found = [] if names is None or not names.known else names.ranges(condition.name)
        if not found:
            raise _no_place(condition)
        return [_part(condition, start, size) for start, size in found]

    def _linked_bias(self, address: int) -> int:
        """Of a kernel that does not move: what its ELF segments say."""
        before = [s for s in self._inspector.symbols.kernel.segments if s.vaddr <= address]
        nearest = max(before, key=lambda each: each.vaddr, default=None)
        return 0 if nearest is None else nearest.vaddr - nearest.paddr


def check(conditions: Iterable[Condition], symbols: "GuestSymbols") -> None:
    """Raise what `lower` would raise for a recording, before there is one: `ConditionError` or
    `SymbolsError` for what it could not watch for."""
    named = [each for each in all_known(conditions) if isinstance(each, AtSymbol | WriteSymbol)]
    lower(named, symbols)
    for each in named:
        linked = symbols.linked
        if not isinstance(each, WriteSymbol) or linked is None:
            continue
        if linked.is_per_cpu(linked.link_address(each.name) or 0):
            raise _no_place(each)


def check_programs(conditions: Iterable[Condition], programs: "Programs") -> None:
    """The same for conditions in programs: `SymbolsError` for a program or a function of it that is
    not known."""
    for each in all_known(conditions):
        if isinstance(each, InProgram):
            programs.of_name(each.program).address(each.name)


def _no_place(condition: WriteSymbol) -> ConditionError:
    return ConditionError(
        f"condition '{condition}': {condition.name} is a per-CPU variable, of which only a "
        "finished recording tells where it is",
        condition=str(condition),
    )


def _part(condition: WriteSymbol, start: int, size: int) -> tuple[int, int]:
    length = size - condition.offset if condition.length is None else condition.length
    return start + condition.offset, max(length, 1)
