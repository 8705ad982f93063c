"""The recorded machine as a debugger drives it: run and step to and fro, and say who stopped where.

Time moves for the whole machine, since vCPUs run one at a time in the order that the trace says.
A step of one vCPU is a run up to its next instruction, or back to its last one; what other vCPUs
meet on the way (their breakpoints, watched memory) stops it, as it would stop a `continue`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rr86.errors import NativeError
from rr86.gdb.breakpoints import Breakpoints, Placed
from rr86.gdb.registers import RegisterFile
from rr86.gdb.threads import name_of
from rr86.machine.memory_map import HIGH_RAM_BASE, MemoryMap
from rr86.session.conditions import Before, Condition, Icount

if TYPE_CHECKING:
    from rr86.replay.trace import Trace
    from rr86.replay.travel import TimeTravel
    from rr86.session.stop import Stop

SIGINT, SIGTRAP = 2, 5
_PAGE = 4096
# A true answer ends the run.
Tick = Callable[["Stop"], bool | None]


@dataclass(frozen=True)
class Halt:
    """A stop as a reply reports it: the vCPU, the signal, reasons as (name, value), and what
    a person may want to read besides."""

    vcpu: int
    signal: int = SIGTRAP
    reasons: tuple[tuple[str, str], ...] = ()
    note: str = ""


@dataclass
class Watch:
    """A watchpoint that was set by `monitor watch`."""

    text: str
    conditions: list[Condition] = field(default_factory=list)


class Debuggee:
    """A recording under a debugger. One debugger after the other may drive it; where one has left
    it, the next one finds it."""

    def __init__(self, trace: "Trace", travel: "TimeTravel") -> None:
        self.trace = trace
        self.travel = travel
        self.vcpus: int = trace.spec.vcpus
        ram = MemoryMap(trace.spec.memory)
        self._ram = ((0, ram.low), (HIGH_RAM_BASE, HIGH_RAM_BASE + ram.high))
        self.halt = Halt(travel.vcpu)
        self.selected = travel.vcpu
        """The vCPU whose registers and memory are looked at."""
        self.physical = False
        """Whether addresses of memory are physical ones."""
        self.breakpoints = Breakpoints(self.translate)
        self.watches: dict[int, Watch] = {}
        """By the number that `monitor watch` gave."""
        self.follows = False
        """Whether the debugger asks for moves of the monitor (`take_moved`)."""
        self.moved = False

    def begin(self) -> None:
        """Forget what the debugger before this one has set."""
        self.breakpoints.clear()
        self.watches.clear()
        self.physical = self.follows = self.moved = False
        self.halt = Halt(self.travel.vcpu)
        self.selected = self.travel.vcpu

    # -- looking --

    def registers(self, vcpu: int) -> RegisterFile:
        """The registers of a vCPU as gdb has them."""
        return RegisterFile(self.travel.session.machine, vcpu)

    def pc(self, vcpu: int) -> int:
        """What gdb takes for a vCPU's program counter."""
        return int.from_bytes(self.registers(vcpu).named("rip"), "little")

    def thread_names(self) -> list[str]:
        """A name for each vCPU, with what it does."""
        session = self.travel.session
        return [name_of(vcpu, session.registers(vcpu)) for vcpu in range(self.vcpus)]

    def read(self, address: int, length: int) -> bytes:
        """Memory as the selected vCPU has it, or physical memory; short, maybe empty, where some
        of it is not mapped, or is no RAM: devices are not read, since that may change them."""
        session = self.travel.session
        found = b""
        while length > 0 and address < 1 << 64:
            size = min(length, _PAGE - address % _PAGE)
            paddr = address if self.physical else session.machine.translate(self.selected, address)
            if paddr is None or not self._is_ram(paddr):
                break
            found += session.memory(paddr, size)
            address, length = address + size, length - size
        return found

    def _is_ram(self, paddr: int) -> bool:
        return any(start <= paddr < end for start, end in self._ram)

    def translate(self, address: int) -> int | None:
        """The physical address of a linear one: by the tables of the selected vCPU or, where it
        maps nothing there, of the others; else by what the trace knows of the kernel's own
        memory, which is where it is before the kernel has made its tables."""
        if self.physical:
            return address
        machine = self.travel.session.machine
        for vcpu in (self.selected, *range(self.vcpus)):
            paddr = machine.translate(vcpu, address)
            if paddr is not None:
                return paddr
        names = self.trace.names()
        return names.physical(address) if names.known and address >> 63 else None

    def console(self) -> bytes:
        """What the guest has sent to its serial console up to now."""
        return self.travel.console

    def take_moved(self) -> int | None:
        """The vCPU that runs where the monitor has moved to, if it has moved since the last
        call."""
        self.follows = True
        moved, self.moved = self.moved, False
        return self.halt.vcpu if moved else None

    # -- moving --

    def forward(self, tick: Tick | None = None) -> Halt:
        """`continue`."""
        return self._arrived(self._run(self.travel.run, (), tick))

    def backward(self, tick: Tick | None = None) -> Halt:
        """`reverse-continue`."""
        return self._arrived(self._run(self.travel.run_back, (), tick))

    def step(self, vcpu: int, tick: Tick | None = None) -> Halt:
        """Run until a vCPU has executed its next instruction."""
        travel = self.travel
        here = travel.icount < travel.last and travel.vcpu == vcpu
        moment = travel.icount if here else travel.next_of(vcpu, travel.icount)
        if moment is None:
            return self._turn(Halt(vcpu, reasons=(("replaylog", "end"),)))
        if moment > travel.icount:
            stop = self._run(travel.run, (Before(moment),), tick)
            if stop.condition != Before(moment) and (stop.icount, stop.vcpu) != (moment, vcpu):
                return self._arrived(stop)
        if self.breakpoints.watches or self.watches:
            watched = [each for each in self._conditions() if each.kind != "rip"]
            return self._arrived(travel.run([*watched, Before(moment + 1)], tick), vcpu)
        return self._arrived(travel.step(vcpu, tick=tick), vcpu)

    def step_back(self, vcpu: int, tick: Tick | None = None) -> Halt:
        """Run back to where a vCPU is about to execute the instruction that it executed last."""
        travel = self.travel
        moment = travel.previous_of(vcpu, travel.icount)
        if moment is None:
            return self._turn(Halt(vcpu, reasons=(("replaylog", "begin"),)))
        conditions = self._conditions()
        far = moment < travel.icount - 1
        if conditions and (far or self.breakpoints.watches or self.watches):
            return self._arrived(self._run(travel.run_back, (Icount(moment),), tick), vcpu)
        return self._arrived(travel.step_back(vcpu, tick=tick), vcpu)

    def goto(self, moment: int, tick: Tick | None = None) -> "Stop":
        """Go to a moment, at once."""
        stop = self.travel.goto(moment, tick)
        self._turn(Halt(self.travel.vcpu))
        return stop

    def run_until(self, until: Sequence[Condition], back: bool, tick: Tick | None = None) -> "Stop":
        """Run to conditions of rr86's, whatever breakpoints there are."""
        run = self.travel.run_back if back else self.travel.run
        stop = run(list(until), tick)
        self._arrived(stop)
        return stop

    def _run(
        self,
        run: "Callable[[Sequence[Condition], Tick | None], Stop]",
        more: tuple[Condition, ...],
        tick: Tick | None,
    ) -> "Stop":
        """Run with all breakpoints. Where the core cannot evaluate a condition of one, it holds:
        gdb evaluates conditions itself, too."""
        origin = self.travel.icount
        try:
            return run([*self._conditions(), *more], tick)
        except NativeError as error:
            if type(error) is not NativeError or not self.breakpoints.drop_agents():
                raise
            if self.travel.icount != origin:
                self.travel.goto(origin)
            return run([*self._conditions(), *more], tick)

    def _conditions(self) -> list[Condition]:
        watched = [each for watch in self.watches.values() for each in watch.conditions]
        return [*self.breakpoints.conditions, *watched]

    def _turn(self, halt: Halt) -> Halt:
        self.halt = halt
        self.selected = halt.vcpu
        return halt

    def _arrived(self, stop: "Stop", stepping: int | None = None) -> Halt:
        """What a stop means; `stepping` is the vCPU that is stepped."""
        if stop.reason == "interrupted":
            return self._turn(Halt(stop.vcpu, SIGINT))
        if stop.over or stop.reason == "begin":
            end = "begin" if stop.reason == "begin" else "end"
            note = "" if end == "begin" else stop.describe(self.travel.session.symbolize)
            return self._turn(Halt(stop.vcpu, reasons=(("replaylog", end),), note=note))
        placed = self.breakpoints.of(stop.condition)
        if placed is not None:
            return self._turn(self._at(placed, stop.vcpu))
        number = next(
            (n for n, watch in self.watches.items() if stop.condition in watch.conditions), None
        )
        if number is not None:
            note = f"monitor watch {number} ({self.watches[number].text}) on vCPU {stop.vcpu}"
            return self._turn(Halt(stop.vcpu, note=note))
        return self._turn(Halt(stop.vcpu if stepping is None else stepping))

    def _at(self, placed: Placed, vcpu: int) -> Halt:
        reason = placed.reason(self.pc(vcpu))
        return Halt(vcpu, reasons=() if reason is None else (reason,))
