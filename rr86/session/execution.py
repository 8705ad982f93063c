"""Running a machine up to a condition, in calls short enough to keep Python in charge.

A native run goes on for at most a twentieth of a second, so that Ctrl-C, console and progress are
served in between; where it ends changes nothing in the guest. Mostly it has retired as many
instructions as were asked for; where they take longer, its time is up, maybe inside a slice.
Symbol conditions in a kernel that has not placed itself yet (KASLR) wait: the run is then watched
at every address where the kernel's first C function can be, and the conditions are lowered anew
once it is found. Conditions on writes to the kernel's variables wait for that function even where
its place is known.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rr86.cpu.inspection import Inspector
from rr86.cpu.kaslr import ENTRY_SYMBOL, entry_candidates
from rr86.errors import ConditionError
from rr86.session.conditions import Before, Condition, End
from rr86.session.console import DebugSink
from rr86.session.int3 import look
from rr86.session.lowering import Lowered, is_asked, lower
from rr86.session.stop import Stop, from_native
from rr86.session.variables import Variables
from rr86.session.view import GuestView

if TYPE_CHECKING:
    from rr86._native import WholeMachine
    from rr86.cpu.physical import PhysicalNames

_FIRST_CALL = 2_000_000
_SHORTEST_CALL = 100_000
_LONGEST_CALL = 200_000_000
_CALL_SECONDS = 0.03
# While the kernel's place is looked for, vCPUs are asked this often.
_WAITING_CALL = 5_000_000
# While conditions are asked and say no, whoever watches the run is told at least this often.
_TOLD_SECONDS = 0.05

# Called after each call of the core with the moment reached; a true answer interrupts the run.
Tick = Callable[[Stop], bool | None]


class Execution:
    """A machine under way, with the bytes it has sent to its serial console so far."""

    def __init__(
        self,
        machine: "WholeMachine",
        inspector: Inspector,
        console: Callable[[bytes], None] | None = None,
        began: int = 0,
        stale_int3: bool = False,
        debugcon: DebugSink | None = None,
        names: "Callable[[], PhysicalNames] | None" = None,
        by_lines: bool = False,
    ) -> None:
        """`console` and `debugcon` get what the guest sends there; with `by_lines` every line as
        soon as the slice is over in which it was completed. `names` are those of a trace."""
        self.machine = machine
        self._stale_int3 = stale_int3
        self.inspector = inspector
        self.stop: Stop | None = None
        self._sink = console
        self._debug_sink = debugcon
        self._by_lines = by_lines
        self._variables = Variables(machine, inspector, names)
        self._call = _FIRST_CALL
        self._icount = began

    def hand_over(self, machine: "WholeMachine") -> None:
        """Go on with another session, which has taken the machine over."""
        self.machine = machine
        self.inspector.guest = machine
        self._variables.machine = machine

    def learn_places(self, other: "Execution") -> None:
        """Take over where another run of the same guest has found the kernel."""
        if self.inspector.symbols.offset is None:
            self.inspector.symbols.offset = other.inspector.symbols.offset
        self._variables.learn(other._variables)

    def moved(self, icount: int) -> None:
        """The machine was brought to another moment."""
        self._icount = icount
        self.stop = None

    @property
    def icount(self) -> int:
        """Instructions retired so far, over all vCPUs."""
        return self._icount

    def drain(self) -> bytes:
        """Hand new console output to the sinks; also returns that of the serial console."""
        debug, alone = self.machine.debugcon_output()
        data = self.machine.console_output()
        if alone and self._debug_sink is not None:
            # The guest was silent on its serial console until it had sent these.
            self._debug_sink(debug[:alone], alone)
        if data and self._sink is not None:
            self._sink(data)
        if debug[alone:] and self._debug_sink is not None:
            self._debug_sink(debug[alone:], 0)
        return data

    def run(
        self,
        conditions: Sequence[Condition] = (),
        max_instructions: int | None = None,
        tick: Tick | None = None,
    ) -> Stop:
        """Run until a condition holds, the run is over, or `max_instructions` have retired."""
        lowered = self._lower(conditions)
        if lowered.waiting and self.inspector.locate_kernel() is not None:
            self._variables.look()
            lowered = self._lower(conditions)
        last = None if max_instructions is None else self._icount + max_instructions
        told = time.monotonic()
        while True:
            stop, met = self._one_call(lowered, last)
            owner = self._owner(lowered, met, stop)
            placed = None
            if lowered.waiting and not stop.over:
                placed = self._look_for_kernel(stop, met, conditions)
            if placed is not None:
                lowered = placed
                if stop.reason == "condition" and not met:
                    owner = self._owner(lowered, _already_there(lowered, stop), stop)
            elif lowered.moving and stop.reason == "condition":
                lowered = self._lower(conditions)
            stop = replace(stop, condition=owner)
            if stop.reason == "condition" and owner is None:
                if last is None or stop.icount < last:
                    # Whoever was asked said no.
                    if time.monotonic() - told < _TOLD_SECONDS:
                        continue
                    stop = replace(stop, reason="time-up")
                else:
                    stop = replace(stop, reason="limit")
            if stop.over and any(isinstance(each, End) for each in conditions):
                stop = replace(stop, condition=End())
            self.stop = stop
            if stop.reason != "time-up" and (
                stop.reason != "limit" or (last is not None and stop.icount >= last)
            ):
                return stop
            told = time.monotonic()
            if tick is not None and tick(stop):
                self.stop = replace(stop, reason="interrupted")
                return self.stop

    def _lower(self, conditions: Sequence[Condition]) -> Lowered:
        return lower(
            conditions,
            self.inspector.symbols,
            self._stale_int3,
            self._variables.ranges,
            self._icount,
            self.inspector.processes,
        )

    def _owner(self, lowered: Lowered, met: Sequence[int], stop: Stop) -> Condition | None:
        """The condition that holds at a stop, of those that the core's entries stand for."""
        if not met:
            return None
        owner = lowered.owners[met[0]]
        if not is_asked(owner):
            return owner
        int3 = look(self.machine, stop.vcpu)
        view = GuestView(stop.vcpu, stop.icount, stop.time_ns, stop.rip, self.inspector)
        candidates = lowered.at(met, None if int3 is None else int3.stale)
        return next((each for each in candidates if not is_asked(each) or each.holds(view)), None)

    def _entries(self) -> list[int]:
        """Where the kernel's first C function is, or can be."""
        symbols = self.inspector.symbols
        if symbols.linked is None:
            return []
        entry = symbols.linked.link_address(ENTRY_SYMBOL)
        if symbols.offset is not None and entry is not None:
            return [entry + symbols.offset]
        return entry_candidates(symbols.linked)

    def run_over(
        self, conditions: Sequence[Condition], max_instructions: int, before: int
    ) -> tuple[Stop | None, bool]:
        """See `rr86.replay.session.ReplaySession.run_over`."""
        lowered = self._placed(conditions)
        if lowered.moving or any(is_asked(each) for each in conditions):
            return self._ask_over(conditions, max_instructions, before)
        machine: Any = self.machine
        info, found = machine.run_over(
            max_instructions, before, lowered.native, lowered.patterns, lowered.filters
        )
        self.drain()
        self._icount = info["icount"]
        self.stop = from_native(info, None)
        hit = None
        if found is not None:
            hit = from_native(found, lowered.owners[found["conditions"][0]])
        reached = info["reason"] == "condition"
        return hit, reached or self.stop.over

    def _ask_over(
        self, conditions: Sequence[Condition], max_instructions: int, before: int
    ) -> tuple[Stop | None, bool]:
        """The same for conditions that are asked themselves: one stop."""
        stop = self.run([*conditions, Before(before)], max_instructions)
        if stop.reason != "condition":
            return None, stop.over
        over = isinstance(stop.condition, Before)
        return (None if over else stop), over

    def _placed(self, conditions: Sequence[Condition]) -> Lowered:
        lowered = self._lower(conditions)
        if lowered.waiting and self.inspector.locate_kernel() is not None:
            self._variables.look()
            lowered = self._lower(conditions)
        if lowered.waiting:
            raise ConditionError(
                "the kernel has not placed itself yet, so that its symbols have no addresses here"
            )
        return lowered

    def complete_slice(self) -> Stop:
        """Run the slice under way, if there is one, to its end."""
        while True:
            info = self.machine.run(0, [], [])
            self.drain()
            self._icount = info["icount"]
            if info["reason"] != "time-up":
                return from_native(info, None)

    def _one_call(self, lowered: Lowered, last: int | None) -> tuple[Stop, list[int]]:
        """Where the core came back, and the entries of `lowered` that it stopped for."""
        length = self._call
        native = lowered.native
        if lowered.waiting:
            length = min(length, _WAITING_CALL)
            native = [*native, *(("rip", address, 0) for address in self._entries())]
        if last is not None:
            length = max(1, min(length, last - self._icount))
        started = time.monotonic()
        before = self._icount
        try:
            info = self.machine.run(
                length, native, lowered.patterns, self._by_lines, filters=lowered.filters
            )
        finally:
            self.drain()
        self._icount = info["icount"]
        self._adapt(info["icount"] - before, time.monotonic() - started)
        # Those behind the conditions' own are where the kernel may be entered.
        met = [index for index in info["conditions"] if index < len(lowered.owners)]
        return from_native(info, None), met

    def _adapt(self, instructions: int, seconds: float) -> None:
        """Choose the next call's length so that it takes about `_CALL_SECONDS`."""
        if instructions < self._call // 2:
            return
        wanted = int(instructions * _CALL_SECONDS / max(seconds, 1e-6))
        bounded = min(max(wanted, self._call // 4), self._call * 4)
        self._call = min(max(bounded, _SHORTEST_CALL), _LONGEST_CALL)

    def _look_for_kernel(
        self, stop: Stop, met: Sequence[int], conditions: Sequence[Condition]
    ) -> Lowered | None:
        """The conditions lowered anew, if this stop tells where the kernel is."""
        symbols = self.inspector.symbols
        linked = symbols.linked
        if linked is None:
            return None
        entry = linked.link_address(ENTRY_SYMBOL)
        if stop.reason == "condition" and not met and entry is not None:
            symbols.offset = stop.rip - entry
            self._variables.look()
        elif self.inspector.locate_kernel() is None:
            return None
        elif any(self.inspector.registers(each)["lstar"] for each in range(self.inspector.vcpus)):
            # Should its entry have been missed: by now it has long been there.
            self._variables.look()
        return self._lower(conditions)


def _already_there(lowered: Lowered, stop: Stop) -> list[int]:
    """The entries of conditions newly placed that are exactly where the stop is."""
    return [
        index
        for index, (kind, address, _) in enumerate(lowered.native)
        if kind == "rip" and address == stop.rip
    ]
