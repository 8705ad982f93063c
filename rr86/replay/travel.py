"""Moving in a recording, both ways.

To go back is to begin at a snapshot before and to run up to the moment; to find the last moment at
which a condition held is to run the stretches between snapshots, the latest first, and to remember.
Snapshots are taken on the way, in memory, and share what does not change. All of this is a replay:
nothing that is done here changes the guest.

A moment that is gone to is always the same state: before its instruction, with everything done that
comes between two instructions. After a condition the machine stands where the condition was met.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from rr86.errors import NativeError, UsageError
from rr86.replay.session import Executed
from rr86.replay.snapshots import Snapshots
from rr86.session.conditions import (
    Access,
    Before,
    Condition,
    Icount,
    Read,
    Until,
    Write,
    WriteSymbol,
    as_conditions,
)
from rr86.session.execution import Tick
from rr86.session.lowering import is_asked
from rr86.session.stop import Stop
from rr86.trace.checkpoint import nearest
from rr86.trace.slices import Slices

if TYPE_CHECKING:
    from rr86.replay.recorded import RecordedRun
    from rr86.replay.session import ReplaySession
    from rr86.session.devices import Given

# Instructions between the snapshots that are taken on the way, while there is memory for them.
_SPACING = 300_000_000
# A moment that is gone back to is left with a snapshot at most so far before it.
_NEAR = 300_000
DEFAULT_MEMORY = 1 << 30
"""Bytes that snapshots may take together."""
# Searches whose results are remembered.
_SEARCHES = 256
# So many instructions are worth a thread that translates ahead.
_FAR = 20_000_000
# Instructions that are rather replayed than that a checkpoint is read from the trace.
_DETOUR = 500_000_000
# Stops behind the instruction that fulfils them; backwards they stop before it.
_AFTER = (Write, WriteSymbol, Read, Access)


class Searched:
    """Stretches in which some conditions have been looked for, with the last stop in each."""

    def __init__(self) -> None:
        self._stretches: list[tuple[int, int, Stop | None]] = []

    def add(self, begin: int, end: int, last: Stop | None) -> None:
        """Note the last stop behind `begin`, up to the moment `end`."""
        self._stretches.append((begin, end, last))

    def before(self, end: int) -> tuple[int, Stop | None] | None:
        """What is known of a stretch that ends at a moment: where it begins, and its last stop."""
        for begin, until, last in self._stretches:
            if begin < end <= until and (last is None or last.icount <= end - (not _after(last))):
                return begin, last
        return None


def _after(stop: Stop) -> bool:
    """Whether a stop is behind the instruction that its condition is about."""
    return isinstance(stop.condition, _AFTER)


class TimeTravel:
    """A recording in which one moves both ways, by moments: counts of instructions over all vCPUs.

    `session` is the machine where it stands, to be looked at.
    """

    def __init__(
        self,
        trace: "RecordedRun",
        *,
        memory_for_snapshots: int = DEFAULT_MEMORY,
        console: Callable[[bytes], None] | None = None,
        verify: bool = False,
        devices: "Given | None" = None,
        spacing: int = _SPACING,
    ) -> None:
        """`memory_for_snapshots` in bytes; `console` gets what the guest sends to its serial
        console, each byte once; `verify` compares digests with the recorded ones on the way.

        Raises what `rr86.open_trace` and `Trace.session` raise.
        """
        self.trace = trace
        self._verify = verify
        self._devices = devices
        self._sink = console
        # All that the guest is known to send to its consoles.
        self._console = bytearray()
        self._debugcon = bytearray()
        self._spacing = spacing
        self._snapshots = Snapshots(memory_for_snapshots)
        self._keeps = True
        # What a search has found once is so for ever: the recording does not change.
        self._searched: dict[tuple[Condition, ...], Searched] = {}
        self._checkpoints = trace.checkpoints()
        # Behind a checkpoint that was jumped to: what the guest sent before is not known.
        self._console_unknown = False
        self.session: ReplaySession = self._open()
        self._take_snapshot()
        self.first = self.session.icount
        """The first moment; 0, but for a recording that began at a later one."""
        self.last: int = trace.summary()["last_icount"]
        """The last moment: nothing more was recorded."""

    # -- where it stands -------------------------------------------------------------------------

    @property
    def icount(self) -> int:
        """The present moment: instructions retired, over all vCPUs."""
        return self.session.icount

    @property
    def vcpu(self) -> int:
        """The vCPU that executes the next instruction; at the end, the one that ran last."""
        return self.vcpu_at(self.icount)

    @property
    def stop(self) -> Stop | None:
        """Where the last move ended, and why."""
        return self.session.stop

    @property
    def snapshots(self) -> list[int]:
        """The moments of which there is a snapshot."""
        return self._snapshots.moments()

    @property
    def snapshot_bytes(self) -> int:
        """What the snapshots take of memory."""
        return self._snapshots.size

    @property
    def console(self) -> bytes:
        """What the guest has sent to its serial console up to the present moment; behind a
        checkpoint of the trace that was jumped to, since then."""
        return self.session.console

    @cached_property
    def slices(self) -> Slices:
        """Which vCPU ran when."""
        return Slices(self.trace.slice_source)

    def vcpu_at(self, icount: int) -> int:
        """The vCPU that executes instruction `icount`, counted from 0; behind the last one, the
        vCPU that executed that."""
        found = self.slices.at(icount) or next(self.slices.backward(icount), None)
        return 0 if found is None else found.vcpu

    def next_of(self, vcpu: int, icount: int) -> int | None:
        """The first moment after `icount` at which a vCPU executes an instruction."""
        return self.slices.next_of(vcpu, icount)

    def previous_of(self, vcpu: int, icount: int) -> int | None:
        """The last moment before `icount` at which a vCPU executes an instruction."""
        found = self.slices.previous_of(vcpu, icount)
        return found if found is not None and found >= self.first else None

    # -- moving ----------------------------------------------------------------------------------

    def goto(self, icount: int, tick: Tick | None = None) -> Stop:
        """Go to a moment, back or forward.

        A true answer of `tick`, which is called about 20 times a second, ends the way there with
        reason "interrupted". Raises `UsageError` for a moment that the recording does not have, and
        what `ReplaySession.run` raises.
        """
        if not self.first <= icount <= self.last:
            raise UsageError(
                f"moment {icount:,} is not in the recording, which has {self.first:,} to "
                f"{self.last:,}"
            )
        return self._go(icount, tick, near=icount < self.icount)

    def _go(self, icount: int, tick: Tick | None = None, near: bool = False) -> Stop:
        """`goto`; with `near`, snapshots are taken closer and closer to the moment."""
        if self.stop is not None and self.session.machine.stands_before(icount):
            return self._at_moment(self.stop)
        base = self._snapshots.at_or_before(icount)
        checkpoint = nearest(self._checkpoints, icount)
        leap = checkpoint is not None and checkpoint.icount > self.icount + _DETOUR
        if icount < self.icount or leap or (base is not None and base.icount > self.icount):
            self._rewind(icount)
        for point in self._points(icount, near):
            stop = self._run((), point - self.icount, tick)
            if stop.reason != "limit":
                return stop
            self._take_snapshot()
        stop = self._run((Before(icount),), None, tick)
        if stop.reason == "condition":
            return self._at_moment(stop)
        return stop

    def run(self, until: Until = None, tick: Tick | None = None) -> Stop:
        """Run on until a condition holds or the recording ends, as `ReplaySession.run`."""
        conditions = as_conditions(until)
        while True:
            point = (self.icount // self._spacing + 1) * self._spacing
            stop = self._run(conditions, point - self.icount, tick)
            if stop.reason != "limit":
                return stop
            self._take_snapshot()

    def run_back(self, until: Until = None, tick: Tick | None = None) -> Stop:
        """Go back to the last moment before the present one at which a condition held.

        The machine then stands before the instruction: also before one that wrote or read what a
        condition is about, after which a run forward stops. If there is no such moment, it goes to
        the first one, and the reason is "begin". Interrupted by `tick`, it goes back to where it
        was.

        Raises `ConditionError` for a condition that cannot be watched for, or on a symbol that has
        no place yet at the present moment.
        """
        conditions = as_conditions(until)
        searched = self._searched_for(conditions)
        origin = self.icount
        end = origin
        while conditions and end > self.first:
            known = searched.before(end)
            if known is not None:
                begin, hit = known
            else:
                self._rewind(end - 1)
                begin = self.icount
                hit = self._last_hit(conditions, end, tick)
                if hit is not None and hit.reason == "interrupted":
                    return self._set_stop(replace(self.goto(origin), reason="interrupted"))
                searched.add(begin, end, hit)
            if hit is not None:
                # The next step back leaves snapshots near it.
                self._go(max(hit.icount - _after(hit), self.first))
                return self._set_stop(replace(hit, icount=self.icount, rip=self._rip(hit.vcpu)))
            end = begin
        stop = self._go(self.first, tick)
        return (
            stop if stop.reason == "interrupted" else self._set_stop(replace(stop, reason="begin"))
        )

    def step(self, vcpu: int | None = None, count: int = 1, tick: Tick | None = None) -> Stop:
        """Execute the next instruction, or the next ones, of a vCPU (None: of any)."""
        moment = self.icount - 1
        for _ in range(count):
            following = moment + 1 if vcpu is None else self.next_of(vcpu, moment)
            if following is None or following >= self.last:
                return self.run(None, tick)
            moment = following
        return self.goto(moment + 1, tick)

    def step_back(self, vcpu: int | None = None, count: int = 1, tick: Tick | None = None) -> Stop:
        """Go back before the last instruction, or the last ones, of a vCPU (None: of any)."""
        moment = self.icount
        for _ in range(count):
            before = moment - 1 if vcpu is None else self.previous_of(vcpu, moment)
            if before is None or before < self.first:
                stop = self.goto(self.first, tick)
                return self._set_stop(replace(stop, reason="begin"))
            moment = before
        return self.goto(moment, tick)

    def path(self, vcpu: int, begin: int, end: int) -> list[Executed]:
        """The instructions that a vCPU executes from the moment `begin` on and before `end`, in
        their order. Faulting ones are among them: they count, and have done nothing. Of REP MOVS
        and REP STOS only the first iteration is there, and the first after an interrupt. Stands at
        `end` then.

        Raises `UsageError` for moments that the recording does not have.
        """
        self.goto(begin)
        ranges = []
        for each in self.slices.forward(begin):
            if each.start >= end:
                break
            if each.vcpu == vcpu:
                ranges.append((max(each.start, begin), min(each.end, end)))
        found, gaps = self.session.path([*ranges, (end, end)], whole=False)
        if gaps:
            self.goto(begin)
            found, _ = self.session.path([*ranges, (end, end)])
        return found

    # -- how -------------------------------------------------------------------------------------

    def _open(self, icount: int | None = None) -> "ReplaySession":
        return self.trace.session(self._verify, at=icount, devices=self._devices)

    def _searched_for(self, conditions: Sequence[Condition]) -> "Searched":
        """What is known of earlier searches for the same. Functions that are asked may answer
        otherwise next time."""
        if any(is_asked(each) for each in conditions):
            return Searched()
        key = tuple(conditions)
        searched = self._searched.pop(key, None) or Searched()
        self._searched[key] = searched
        if len(self._searched) > _SEARCHES:
            del self._searched[next(iter(self._searched))]
        return searched

    def _rip(self, vcpu: int) -> int:
        return self.session.registers(vcpu)["rip"]

    def _set_stop(self, stop: Stop) -> Stop:
        self.session.stop = stop
        return stop

    def _at_moment(self, stop: Stop) -> Stop:
        """What a move to the present moment comes back with."""
        vcpu = self.vcpu
        condition = Icount(self.icount)
        return self._set_stop(
            replace(stop, reason="condition", vcpu=vcpu, rip=self._rip(vcpu), condition=condition)
        )

    def _run(self, conditions: Sequence[Condition], limit: int | None, tick: Tick | None) -> Stop:
        try:
            return self.session.run(conditions, limit, tick)
        finally:
            self._collect_console()

    def _collect_console(self) -> None:
        """Remember what the guest sends to its consoles, and hand it on the first time."""
        heard, debugcon = self.session.console, self.session.debugcon
        if self._console_unknown:
            return
        new = heard[len(self._console) :]
        self._console += new
        self._debugcon += debugcon[len(self._debugcon) :]
        if new and self._sink is not None:
            self._sink(new)

    def _rewind(self, icount: int) -> None:
        """Stand at the last snapshot at or before a moment, or at a checkpoint of the trace that is
        much nearer."""
        base = self._snapshots.at_or_before(icount)
        checkpoint = nearest(self._checkpoints, icount)
        began = self.first if base is None else base.icount
        if base is None or (checkpoint is not None and checkpoint.icount > began + _DETOUR):
            known = self.session
            self.session = self._open(icount)
            self.session.learn_places(known)
            self._console_unknown = self.session.began > self.first
            self._take_snapshot()
            return
        self._console_unknown = base.console is None
        heard = bytes(self._console[: base.console]), bytes(self._debugcon[: base.debugcon])
        ahead = icount - base.icount > _FAR
        self.session.rewind(base.snapshot, *((b"", b"") if self._console_unknown else heard), ahead)

    def _points(self, icount: int, near: bool) -> Iterator[int]:
        """Where snapshots are taken on the way to a moment: every so often, and with `near` closer
        and closer to it."""
        while self._keeps:
            distance = icount - self.icount
            point = (self.icount // self._spacing + 1) * self._spacing
            if near and distance > _NEAR:
                point = min(point, icount - distance // 8)
            # A run that is limited ends with a slice: it shall not end behind the moment.
            there = self._slice_start(point) if point < icount else None
            if there is not None and there <= self.icount:
                there = self._slice_start(min(point + self._spacing, icount))
            if there is None or there <= self.icount:
                return
            yield there

    def _slice_start(self, icount: int) -> int | None:
        found = self.slices.at(icount)
        return None if found is None else found.start

    def _take_snapshot(self) -> None:
        if not self._keeps:
            return
        try:
            snapshot = self.session.snapshot()
        except NativeError:
            # Block protocols with state that no snapshot holds: every way back begins at power-on.
            self._keeps = False
            return
        heard = self.session.console, self.session.debugcon
        self._snapshots.add(
            snapshot, *(None if self._console_unknown else len(each) for each in heard)
        )

    def _last_hit(
        self, conditions: Sequence[Condition], end: int, tick: Tick | None
    ) -> Stop | None:
        """The last stop for one of the conditions up to the moment `end`; the reason is
        "interrupted" if `tick` wanted that."""
        hit: Stop | None = None
        while self.icount < end:
            point = (self.icount // self._spacing + 1) * self._spacing
            found, over = self.session.run_over(conditions, point - self.icount, end)
            self._collect_console()
            hit = found or hit
            if tick is not None and self.stop is not None and tick(self.stop):
                return replace(self.stop, reason="interrupted")
            if over:
                break
            if self.stop is not None and self.stop.reason == "limit":
                self._take_snapshot()
        return hit
