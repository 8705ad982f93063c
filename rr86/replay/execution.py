"""Running a machine up to a condition, in slices that keep Python in charge.

A native run goes on for at most a twentieth of a second, so that Ctrl-C, console and progress are
served in between; where it ends changes nothing in the guest. Mostly it has retired as many
instructions as were asked for; where they take longer, its time is up, maybe inside a slice.
Symbol conditions in a kernel that has not placed itself yet (KASLR) wait: the run is then watched
at every address where the kernel's first C function can be, and the conditions are lowered anew
once it is found.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rr86.cpu.inspection import Inspector
from rr86.cpu.kaslr import ENTRY_SYMBOL, entry_candidates
from rr86.replay.conditions import Condition, End, Lowered, lower
from rr86.replay.stop import Stop, from_native

if TYPE_CHECKING:
    from rr86._native import Machine

_FIRST_SLICE = 2_000_000
_SHORTEST_SLICE = 100_000
_LONGEST_SLICE = 200_000_000
_SLICE_SECONDS = 0.03
# While the kernel's place is looked for, vCPUs are asked this often.
_WAITING_SLICE = 5_000_000

# Called after each slice with the moment reached; a true answer interrupts the run.
Tick = Callable[[Stop], bool | None]


class Execution:
    """A machine under way, with the bytes it has sent to its serial console so far."""

    def __init__(
        self,
        machine: "Machine",
        inspector: Inspector,
        console: Callable[[bytes], None] | None = None,
        began: int = 0,
        stale_int3: bool = False,
    ) -> None:
        self.machine = machine
        self._stale_int3 = stale_int3
        self.inspector = inspector
        self.stop: Stop | None = None
        self._sink = console
        self._slice = _FIRST_SLICE
        self._icount = began

    @property
    def icount(self) -> int:
        """Instructions retired so far, over all vCPUs."""
        return self._icount

    def drain(self) -> bytes:
        """Hand new console output to the sink; also returns it."""
        data = self.machine.console_output()
        if data and self._sink is not None:
            self._sink(data)
        return data

    def run(
        self,
        conditions: Sequence[Condition] = (),
        max_instructions: int | None = None,
        tick: Tick | None = None,
    ) -> Stop:
        """Run until a condition holds, the run is over, or `max_instructions` have retired."""
        lowered = lower(conditions, self.inspector.symbols, self._stale_int3)
        if lowered.waiting and self.inspector.locate_kernel() is not None:
            lowered = lower(conditions, self.inspector.symbols, self._stale_int3)
        last = None if max_instructions is None else self._icount + max_instructions
        while True:
            stop = self._one_slice(lowered, last)
            if lowered.waiting and not stop.over:
                placed = self._look_for_kernel(stop, conditions)
                if placed is not None:
                    lowered = placed
                    here = _already_there(lowered, stop)
                    if here is not None:
                        stop = here
                    elif stop.reason == "condition" and stop.condition is None:
                        continue
            if stop.over and any(isinstance(each, End) for each in conditions):
                stop = replace(stop, condition=End())
            self.stop = stop
            if stop.reason != "time-up" and (
                stop.reason != "limit" or (last is not None and stop.icount >= last)
            ):
                return stop
            if tick is not None and tick(stop):
                self.stop = replace(stop, reason="interrupted")
                return self.stop

    def complete_slice(self) -> Stop:
        """Run the slice under way, if there is one, to its end."""
        while True:
            info = self.machine.run(0, [], [])
            self.drain()
            self._icount = info["icount"]
            if info["reason"] != "time-up":
                return from_native(info, None)

    def _one_slice(self, lowered: Lowered, last: int | None) -> Stop:
        length = self._slice
        native = lowered.native
        if lowered.waiting:
            length = min(length, _WAITING_SLICE)
            linked = self.inspector.symbols.linked
            candidates = [] if linked is None else entry_candidates(linked)
            native = [*native, *(("rip", address, 0) for address in candidates)]
        if last is not None:
            length = max(1, min(length, last - self._icount))
        started = time.monotonic()
        before = self._icount
        try:
            info = self.machine.run(length, native, lowered.patterns)
        finally:
            self.drain()
        self._icount = info["icount"]
        self._adapt(info["icount"] - before, time.monotonic() - started)
        index = info["condition"]
        owner = lowered.owners[index] if 0 <= index < len(lowered.owners) else None
        return from_native(info, owner)

    def _adapt(self, instructions: int, seconds: float) -> None:
        """Choose the next slice's length so that it takes about `_SLICE_SECONDS`."""
        if instructions < self._slice // 2:
            return
        wanted = int(instructions * _SLICE_SECONDS / max(seconds, 1e-6))
        bounded = min(max(wanted, self._slice // 4), self._slice * 4)
        self._slice = min(max(bounded, _SHORTEST_SLICE), _LONGEST_SLICE)

    def _look_for_kernel(self, stop: Stop, conditions: Sequence[Condition]) -> Lowered | None:
        """The conditions lowered anew, if this stop tells where the kernel is."""
        symbols = self.inspector.symbols
        linked = symbols.linked
        if linked is None:
            return None
        entry = linked.link_address(ENTRY_SYMBOL)
        if stop.reason == "condition" and stop.condition is None and entry is not None:
            symbols.offset = stop.rip - entry
        elif self.inspector.locate_kernel() is None:
            return None
        return lower(conditions, symbols, self._stale_int3)


def _already_there(lowered: Lowered, stop: Stop) -> Stop | None:
    """The stop as a condition's own, if a condition newly placed is exactly where it is."""
    if stop.reason != "condition" or stop.condition is not None:
        return None
    for (kind, address, _), owner in zip(lowered.native, lowered.owners, strict=True):
        if kind == "rip" and address == stop.rip:
            return replace(stop, condition=owner)
    return None
