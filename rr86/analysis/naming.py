"""Names in place of the numbers that a replay tells of: of system calls and interrupts."""

import functools
from dataclasses import replace
from typing import TYPE_CHECKING

from rr86.analysis.linux import LinuxNames, handler_name
from rr86.analysis.timeline import Ipi, Kind, Span
from rr86.kernel.running import RunningKernel

if TYPE_CHECKING:
    from rr86.replay.session import ReplaySession


class Names:
    """Puts names in place of the numbers that a replay tells of."""

    def __init__(self, session: "ReplaySession", handlers: dict[int, int]) -> None:
        self._symbols = session.inspector.symbols
        self._handlers = handlers
        self._linux = LinuxNames(RunningKernel(session.inspector))
        # One answer for all spans of one kind and name: there are few of them.
        self._of = functools.cache(self._look_up)

    def span(self, span: Span) -> Span:
        """The span with the name that a person knows."""
        if span.kind not in (Kind.SYSTEM_CALL, Kind.INTERRUPT, Kind.TIMER):
            return span
        name = self._of(span.vcpu, span.name)
        return span if name == span.name else replace(span, name=name)

    def ipi(self, ipi: Ipi) -> Ipi:
        """The same for an IPI."""
        name = self._of(ipi.to, ipi.name)
        return ipi if name == ipi.name else replace(ipi, name=name)

    def _look_up(self, vcpu: int, name: str) -> str:
        what, _, number = name.rpartition(" ")
        found = None
        if what == "system call":
            found = self._linux.system_call(int(number))
        elif what == "ia32 system call":
            found = self._linux.system_call(int(number), 32)
        elif what == "vector":
            found = self._interrupt(vcpu, int(number))
        return found or name

    def _interrupt(self, vcpu: int, vector: int) -> str | None:
        table = self._symbols.table
        handler = self._handlers.get(vector)
        found = None if table is None or handler is None else table.resolve(handler)
        if found is None:
            return None
        if table is not None and table.relocatable and found[0].name.startswith("irq_entries"):
            device = self._linux.interrupt(vcpu, vector)
            return None if device is None else f"{device} (vector {vector})"
        return handler_name(found[0].name) if not found[1] else None
