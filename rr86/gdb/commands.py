"""What each packet does (gdb manual, "Packets", "General Query Packets", "Stop Reply Packets").

The tables at the end have every packet that is understood. Others get the empty answer, which tells
a debugger that they are not; those that would change the guest are refused in words.
"""

import time
from collections.abc import Callable

from rr86.errors import Error
from rr86.gdb import monitor
from rr86.gdb.breakpoints import BreakpointError, parse_agents
from rr86.gdb.debuggee import Debuggee, Halt
from rr86.gdb.description import ANNEX, NUMBERS, REGISTERS, target_description
from rr86.gdb.link import Link
from rr86.gdb.packet import LARGEST
from rr86.gdb.threads import ANY, parse_hex, parse_thread, thread_list, thread_of

CANNOT_CHANGE = (
    "a recording cannot be changed; 'rr86 branch' goes on from a moment of it, with changes"
)
UNKNOWN = b""
OK = b"OK"
INVALID = b"E16"
NO_MEMORY = b"E14"
NO_THREAD = b"E03"
# Seconds for which a monitor verb may say nothing.
_SILENCE = 1.0
# Registers that a stop reply brings along, because gdb always asks for them.
_EXPEDITED = ("rbp", "rsp", "rip")
_FEATURES = (
    f"PacketSize={LARGEST:x};QStartNoAckMode+;qXfer:features:read+;qXfer:threads:read+;"
    "ReverseStep+;ReverseContinue+;ConditionalBreakpoints+;vContSupported+;swbreak+;hwbreak+;"
    "multiprocess-;QNonStop-"
)


class Commands:
    """One debugger's conversation about a recording."""

    def __init__(
        self,
        debuggee: Debuggee,
        link: Link,
        say: Callable[[str], None],
        interrupted: Callable[[], bool],
    ) -> None:
        """`say` gets what the protocol has no place for, `interrupted` tells of interrupts that
        reach this process another way."""
        self.debuggee = debuggee
        self._link = link
        self._say = say
        self._interrupted = interrupted
        self._resumed: int | None = None
        self._knows: set[str] = set()
        self.over = False
        """Whether the debugger has said goodbye."""
        debuggee.begin()

    def answer(self, packet: bytes) -> bytes | None:
        """What a packet is answered with; None for those that have no answer."""
        whole = _BY_BYTES.get(packet)
        if whole is not None:
            return whole(self, b"")
        for beginning, handler in _BY_BEGINNING:
            if packet.startswith(beginning):
                return handler(self, packet[len(beginning) :])
        return UNKNOWN

    def tick(self, _: object = None) -> bool:
        """Whether a run has to end."""
        # Both are asked: an interrupt that came by both ways is one.
        by_link = self._link.interrupted()
        return self._interrupted() or by_link

    def print(self, text: str) -> None:
        """Text on the debugger's console, while it waits for an answer to something else."""
        data = text.encode("utf-8", "replace")
        size = LARGEST // 4
        for start in range(0, len(data), size):
            self._link.send(b"O" + data[start : start + size].hex().encode())

    # -- threads --

    def select(self, arguments: bytes) -> bytes:
        """`Hg`, `Hc`: the thread for what follows."""
        what, name = arguments[:1], arguments[1:]
        thread = parse_thread(name, self.debuggee.vcpus)
        if thread is None or what not in (b"g", b"c"):
            return INVALID
        if what == b"c":
            self._resumed = thread - 1 if thread > ANY else None
        elif thread > ANY:
            self.debuggee.selected = thread - 1
        return OK

    def alive(self, arguments: bytes) -> bytes:
        """`T`: whether there is such a thread."""
        thread = parse_thread(arguments, self.debuggee.vcpus)
        return OK if thread is not None and thread > ANY else NO_THREAD

    def current_thread(self, _: bytes) -> bytes:
        """`qC`."""
        return b"QC%x" % thread_of(self.debuggee.selected)

    def first_threads(self, _: bytes) -> bytes:
        """`qfThreadInfo`."""
        threads = (f"{thread_of(vcpu):x}" for vcpu in range(self.debuggee.vcpus))
        return b"m" + ",".join(threads).encode()

    def more_threads(self, _: bytes) -> bytes:
        """`qsThreadInfo`: all have been told of."""
        return b"l"

    def thread_name(self, arguments: bytes) -> bytes:
        """`qThreadExtraInfo`."""
        thread = parse_thread(arguments, self.debuggee.vcpus)
        if thread is None or thread <= ANY:
            return NO_THREAD
        return self.debuggee.thread_names()[thread - 1].encode().hex().encode()

    # -- registers and memory --

    def read_registers(self, _: bytes) -> bytes:
        """`g`."""
        return self.debuggee.registers(self.debuggee.selected).all().hex().encode()

    def read_register(self, arguments: bytes) -> bytes:
        """`p`."""
        number = parse_hex(arguments, 4)
        if number is None or number >= len(REGISTERS):
            return INVALID
        return self.debuggee.registers(self.debuggee.selected).read(number).hex().encode()

    def read_memory(self, arguments: bytes) -> bytes:
        """`m`."""
        place = _place(arguments)
        if place is None:
            return INVALID
        address, length = place
        # What does not fit may be left out: a debugger asks again for the rest.
        data = self.debuggee.read(address, min(length, LARGEST // 2 - 1))
        return data.hex().encode() if data or not length else NO_MEMORY

    def write_binary(self, arguments: bytes) -> bytes:
        """`X`: gdb asks with no bytes at all whether it is understood."""
        place = _place(arguments.partition(b":")[0])
        return UNKNOWN if place is not None and not place[1] else self.refuse(arguments)

    def refuse(self, _: bytes) -> bytes:
        """`G`, `P`, `M`: a replay is what it was."""
        self._say(CANNOT_CHANGE)
        return b"E." + CANNOT_CHANGE.encode()

    # -- breakpoints --

    def insert(self, arguments: bytes) -> bytes:
        """`Z0` to `Z4`."""
        plain, semicolon, agents = arguments.partition(b";")
        key = _breakpoint(plain)
        if key is None:
            return INVALID
        kind, address, size = key
        if kind > 4:
            return UNKNOWN
        try:
            self.debuggee.breakpoints.insert(
                kind, address, size, parse_agents(semicolon + agents) if semicolon else ()
            )
        except Error as error:
            self._say(str(error))
            return _error(error)
        return OK

    def remove(self, arguments: bytes) -> bytes:
        """`z0` to `z4`."""
        key = _breakpoint(arguments.partition(b";")[0])
        if key is None:
            return INVALID
        if key[0] > 4:
            return UNKNOWN
        self.debuggee.breakpoints.remove(*key)
        return OK

    # -- running --

    def why(self, _: bytes) -> bytes:
        """`?`."""
        return self.stop_reply(self.debuggee.halt)

    def resume_all(self, arguments: bytes) -> bytes:
        """`c` and `C`. Signals are for programs; a machine gets none."""
        return INVALID if b";" in arguments else self._run(self.debuggee.forward)

    def go_on(self, arguments: bytes) -> bytes:
        """`c`, which may name an address: then registers would have to change."""
        return self.refuse(b"") if arguments else self._run(self.debuggee.forward)

    def step_on(self, arguments: bytes) -> bytes:
        """`s`."""
        return self.refuse(b"") if arguments else self._step(self._resumed)

    def step_with_signal(self, arguments: bytes) -> bytes:
        """`S`."""
        return INVALID if b";" in arguments else self._step(self._resumed)

    def go_back(self, _: bytes) -> bytes:
        """`bc`."""
        return self._run(self.debuggee.backward)

    def step_back(self, _: bytes) -> bytes:
        """`bs`: of the vCPU that `Hc` named, or else of the one that stopped last."""
        vcpu = self._resumed if self._resumed is not None else self.debuggee.halt.vcpu
        return self._run(lambda tick: self.debuggee.step_back(vcpu, tick))

    def resume(self, arguments: bytes) -> bytes:
        """`vCont`: the first action that steps one thread, or all, decides."""
        step = False
        vcpu: int | None = None
        for action in arguments.split(b";"):
            verb, colon, name = action.partition(b":")
            thread = parse_thread(name, self.debuggee.vcpus) if colon else None
            if verb[:1] not in (b"c", b"C", b"s", b"S") or (colon and thread is None):
                return INVALID
            if verb[:1] in (b"s", b"S") and not step:
                step = True
                vcpu = thread - 1 if thread is not None and thread > ANY else None
        return self._step(vcpu) if step else self._run(self.debuggee.forward)

    def resume_actions(self, _: bytes) -> bytes:
        """`vCont?`."""
        return b"vCont;c;C;s;S"

    def _step(self, vcpu: int | None) -> bytes:
        who = vcpu if vcpu is not None else self.debuggee.halt.vcpu
        return self._run(lambda tick: self.debuggee.step(who, tick))

    def _run(self, how: Callable[[Callable[[object], bool]], Halt]) -> bytes:
        self._interrupted()
        try:
            halt = how(self.tick)
        except Error as error:
            self.print(f"rr86: {error}\n")
            halt = Halt(self.debuggee.travel.vcpu)
            self.debuggee.halt = halt
        if halt.note:
            self.print(f"rr86: {halt.note}\n")
        return self.stop_reply(halt)

    def stop_reply(self, halt: Halt) -> bytes:
        """`T`, with the reasons that the debugger knows."""
        registers = self.debuggee.registers(halt.vcpu)
        rows = [(f"{NUMBERS[name]:02x}", registers.named(name).hex()) for name in _EXPEDITED]
        rows.append(("thread", f"{thread_of(halt.vcpu):x}"))
        for name, value in halt.reasons:
            if name not in ("swbreak", "hwbreak") or name in self._knows:
                rows.append((name, value))
        text = "".join(f"{name}:{value};" for name, value in rows)
        return f"T{halt.signal:02x}{text}".encode()

    def moved(self, _: bytes) -> bytes:
        """`qRr86.Moved`: the thread to look at after a monitor verb has moved, or 0."""
        vcpu = self.debuggee.take_moved()
        return b"0" if vcpu is None else b"%x" % thread_of(vcpu)

    # -- the conversation --

    def supported(self, arguments: bytes) -> bytes:
        """`qSupported`."""
        offered = arguments.removeprefix(b":").decode("latin-1").split(";")
        self._knows = {name for name in ("swbreak", "hwbreak") if f"{name}+" in offered}
        return _FEATURES.encode()

    def no_acknowledgements(self, _: bytes) -> bytes:
        """`QStartNoAckMode`."""
        self._link.acknowledges = False
        return OK

    def transfer(self, arguments: bytes) -> bytes:
        """`qXfer:…:read:…`: a piece of a document."""
        parts = arguments.split(b":")
        if len(parts) != 4 or parts[1] != b"read":
            return UNKNOWN
        place = _place(parts[3])
        if place is None:
            return INVALID
        if parts[0] == b"features" and parts[2] == ANNEX.encode():
            document = target_description()
        elif parts[0] == b"threads" and not parts[2]:
            document = thread_list(self.debuggee.thread_names())
        else:
            return b"E00" if parts[0] == b"features" else UNKNOWN
        start, length = place
        # Half: bytes that are escaped take two.
        piece = document[start : start + min(length, LARGEST // 2 - 1)]
        return (b"m" if start + len(piece) < len(document) else b"l") + piece

    def physical_mode(self, _: bytes) -> bytes:
        """`qqemu.PhyMemMode`, as QEMU has it."""
        return b"%d" % self.debuggee.physical

    def set_physical_mode(self, arguments: bytes) -> bytes:
        """`Qqemu.PhyMemMode:1`."""
        if arguments not in (b"0", b"1"):
            return INVALID
        self.debuggee.physical = arguments == b"1"
        return OK

    def command(self, arguments: bytes) -> bytes:
        """`qRcmd`: what comes behind `monitor`."""
        try:
            line = bytes.fromhex(arguments.decode("ascii")).decode()
        except ValueError:
            return INVALID
        self._interrupted()
        said = time.monotonic()

        def tick(_: object) -> bool:
            nonlocal said
            if time.monotonic() - said > _SILENCE:
                # Nothing, said aloud: gdb waits for an answer no longer than some seconds.
                self._link.send(b"O")
                said = time.monotonic()
            return self.tick()

        try:
            monitor.run(line, self.debuggee, self.print, tick)
        except Error as error:
            self.print(f"{error}\n")
        return OK

    def attached(self, _: bytes) -> bytes:
        """`qAttached`: a debugger that goes leaves the machine, and does not end it."""
        return b"1"

    def detach(self, _: bytes) -> bytes:
        """`D`."""
        self.over = True
        return OK

    def kill(self, _: bytes) -> None:
        """`k`: nothing dies, the debugger goes."""
        self.over = True

    def fine(self, _: bytes) -> bytes:
        """`qSymbol::`: no symbols are wanted."""
        return OK


def _place(text: bytes) -> tuple[int, int] | None:
    """`address,length`."""
    address, comma, length = text.partition(b",")
    numbers = parse_hex(address), parse_hex(length, 8)
    return None if not comma or None in numbers else (numbers[0] or 0, numbers[1] or 0)


def _breakpoint(text: bytes) -> tuple[int, int, int] | None:
    """`type,address,kind`."""
    kind, comma, place = text.partition(b",")
    number, found = parse_hex(kind, 2), _place(place)
    return None if not comma or number is None or found is None else (number, *found)


def _error(error: Error) -> bytes:
    return NO_MEMORY if isinstance(error, BreakpointError) else INVALID


Handler = Callable[[Commands, bytes], bytes | None]
# Packets that are all there is of them, and packets that something may follow.
_WHOLE: dict[str, Handler] = {
    "?": Commands.why,
    "QStartNoAckMode": Commands.no_acknowledgements,
    "bc": Commands.go_back,
    "bs": Commands.step_back,
    "g": Commands.read_registers,
    "k": Commands.kill,
    "qC": Commands.current_thread,
    "qRr86.Moved": Commands.moved,
    "qSymbol::": Commands.fine,
    "qfThreadInfo": Commands.first_threads,
    "qqemu.PhyMemMode": Commands.physical_mode,
    "qsThreadInfo": Commands.more_threads,
    "vCont?": Commands.resume_actions,
}
_BEGINNINGS: dict[str, Handler] = {
    "C": Commands.resume_all,
    "D": Commands.detach,
    "G": Commands.refuse,
    "H": Commands.select,
    "M": Commands.refuse,
    "P": Commands.refuse,
    "Qqemu.PhyMemMode:": Commands.set_physical_mode,
    "S": Commands.step_with_signal,
    "T": Commands.alive,
    "X": Commands.write_binary,
    "Z": Commands.insert,
    "c": Commands.go_on,
    "m": Commands.read_memory,
    "p": Commands.read_register,
    "qAttached": Commands.attached,
    "qRcmd,": Commands.command,
    "qSupported": Commands.supported,
    "qThreadExtraInfo,": Commands.thread_name,
    "qXfer:": Commands.transfer,
    "s": Commands.step_on,
    "vCont;": Commands.resume,
    "z": Commands.remove,
}
PACKETS = (*_WHOLE, *_BEGINNINGS)
"""The packets that are understood."""
_BY_BYTES = {name.encode(): handler for name, handler in _WHOLE.items()}
_BY_BEGINNING = [(name.encode(), handler) for name, handler in _BEGINNINGS.items()]
