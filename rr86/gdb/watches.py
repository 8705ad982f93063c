"""Watched memory with a condition, for `monitor watch … if`.

They are conditions of rr86's own with a question added, so that a run backwards stops before the
access, as it does for a plain one.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rr86.gdb.question import Question
from rr86.session.conditions import Access, Condition, Read, Write

if TYPE_CHECKING:
    from rr86.session.view import GuestView


@dataclass(frozen=True)
class Asking:
    """What is asked at an access: an expression about `ranges`, which are (address, length)."""

    question: Question
    ranges: tuple[tuple[int, int], ...]

    def holds(self, view: "GuestView") -> bool:
        """Whether the expression is true there. The access has been made."""
        memory = b"".join(view.memory(paddr, length) for paddr, length in self.ranges)
        value = int.from_bytes(memory[:8], "little")
        names = {**view.registers(), "value": value, "vcpu": view.vcpu, "icount": view.icount}
        return self.question.holds(names)


@dataclass(frozen=True)
class WriteIf(Write):
    """A write after which something is true."""

    asking: Asking | None = None

    def holds(self, stop: "GuestView") -> bool:
        """See `Condition.holds`."""
        return self.asking is None or self.asking.holds(stop)


@dataclass(frozen=True)
class ReadIf(Read):
    """A read at which something is true."""

    asking: Asking | None = None

    def holds(self, stop: "GuestView") -> bool:
        """See `Condition.holds`."""
        return self.asking is None or self.asking.holds(stop)


@dataclass(frozen=True)
class AccessIf(Access):
    """An access after which something is true."""

    asking: Asking | None = None

    def holds(self, stop: "GuestView") -> bool:
        """See `Condition.holds`."""
        return self.asking is None or self.asking.holds(stop)


_PLAIN: dict[str, type[Write] | type[Read] | type[Access]] = {"w": Write, "r": Read, "a": Access}
_ASKED: dict[str, type[WriteIf] | type[ReadIf] | type[AccessIf]] = {
    "w": WriteIf,
    "r": ReadIf,
    "a": AccessIf,
}


def watching(
    kind: str, ranges: tuple[tuple[int, int], ...], question: Question | None
) -> list[Condition]:
    """Conditions for writes ("w"), reads ("r") or both ("a") of physical memory."""
    if question is None:
        return [_PLAIN[kind](paddr, length) for paddr, length in ranges]
    asking = Asking(question, ranges)
    return [_ASKED[kind](paddr, length, asking) for paddr, length in ranges]
