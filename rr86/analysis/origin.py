"""Where does this value come from?

A value is followed back through copies: from memory to the instruction that wrote it there, from
the register that was stored to the instruction that loaded that, and on, on whatever vCPU, until an
instruction has computed it, it is a constant, or it came in from outside. Every hop is checked: the
place that it leads to has to have held the same bytes at that moment. Where that is not so, or an
instruction cannot be followed, the answer says so and ends there.

Memory is followed by physical addresses, so that it does not matter through which page tables it
was written and read.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rr86.analysis import inputs
from rr86.analysis.hops import Hop, in_order
from rr86.analysis.past import Past, Step, Written
from rr86.cpu import registers as regs
from rr86.cpu.dataflow import WIDTHS, Effect, Mem, Place, Reg, holds
from rr86.cpu.moves import decode
from rr86.errors import AddressError, UsageError
from rr86.replay.places import is_ram

if TYPE_CHECKING:
    from rr86._native import LoggedWrite
    from rr86.replay.travel import TimeTravel
    from rr86.session.execution import Tick

MOST_BYTES = 64
"""Most bytes in one question."""
MOST_HOPS = 500
FAR = 2_000_000
"""Instructions of a vCPU that are looked through for one register, at the most."""
_PAGE = 4096
_LONGEST = 15
_XMM_IN_AREA = 160

_COPIES = {(Mem, Reg): "store", (Reg, Mem): "load", (Reg, Reg): "move", (Mem, Mem): "copy"}


@dataclass(frozen=True)
class _Piece:
    """Bytes to be followed: at `place` right before the instruction at `moment`."""

    # A physical address, or bytes of a vCPU's register.
    place: int | Reg
    vcpu: int
    moment: int
    value: bytes
    parent: int | None

    @property
    def text(self) -> str:
        if isinstance(self.place, Reg):
            return str(self.place)
        return _physical(self.place, len(self.value))

    def part(self, offset: int, size: int) -> "_Piece":
        place = (
            self.place.part(offset, size) if isinstance(self.place, Reg) else self.place + offset
        )
        return replace(self, place=place, value=self.value[offset : offset + size])


def _physical(paddr: int, size: int) -> str:
    return f"physical {paddr:#x}" + (f":{size}" if size > 1 else "")


@dataclass
class _At:
    """A vCPU right before an instruction, and that instruction."""

    icount: int
    vcpu: int
    registers: Mapping[str, int]
    linear: int
    text: str
    length: int
    effects: tuple[Effect, ...]


@dataclass
class _Search:
    travel: "TimeTravel"
    past: Past
    through: bool
    hops: list[Hop] = field(default_factory=list)
    waiting: list[_Piece] = field(default_factory=list)

    def run(self) -> list[Hop]:
        while self.waiting and len(self.hops) < MOST_HOPS:
            piece = self.waiting.pop()
            if isinstance(piece.place, Reg):
                self._register(piece, piece.place)
            else:
                self._memory(piece, piece.place)
        for piece in reversed(self.waiting):
            self._lost(piece, f"there are more than {MOST_HOPS} hops")
        return in_order(self.hops)

    # -- a value in memory -----------------------------------------------------------------------

    def _memory(self, piece: _Piece, paddr: int) -> None:
        writers = self.past.writers(paddr, len(piece.value), piece.moment)
        for group in _repetitions(writers):
            first, last = group[0], group[-1]
            size = last.paddr + last.size - first.paddr
            part = piece.part(first.paddr - paddr, size)
            if len(group) > 1 and self._repeated(part, group):
                continue
            for found in group:
                self._written(piece.part(found.paddr - paddr, found.size), found)

    def _repeated(self, piece: _Piece, group: list[Written]) -> bool:
        """Follow what several iterations of one string instruction have stored, if all of it can be
        followed from the first of them."""
        write = group[0].write
        assert write is not None
        vcpu = write["vcpu"]
        assert vcpu is not None
        at = self._stand(write["checked"], vcpu)
        effect = at.effects[0] if at.effects and at.text.startswith("rep") else None
        if effect is None or not isinstance(effect.dest, Mem) or effect.source is None:
            return False
        dest, source = effect.dest, effect.source
        offset = group[0].paddr - write["paddr"]
        size = len(piece.value)
        if isinstance(source, Mem):
            # The log has the store of this iteration.
            wide = replace(source.part(offset, dest.size - offset), size=size)
            if self._value(wide, at) != piece.value:
                return False
            whole = Effect(replace(dest.part(offset, dest.size - offset), size=size), source=wide)
            self._copied(piece, whole, wide, at)
            return True
        held = self._register_bytes(source, at)
        pattern = (held * (size // len(held) + 2))[offset : offset + size]
        if pattern != piece.value:
            return False
        number = self._hop("store", piece, at, str(source))
        self.waiting.append(_Piece(source, vcpu, at.icount, held, number))
        return True

    def _written(self, piece: _Piece, found: Written) -> None:
        write = found.write
        if write is None:
            self._never_written(piece)
        elif write["vcpu"] is None:
            place = _physical(found.paddr, found.size)
            self._end("device", piece, place, "a device's DMA", icount=write["committed"])
        elif not write["rip"]:
            self._interrupt(piece, write)
        else:
            self._store(piece, found.paddr, write, write["vcpu"])

    def _never_written(self, piece: _Piece) -> None:
        begins = self.travel.first
        if begins:
            text = f"memory where the recording begins, at instruction {begins:,}"
            self._end("beginning", piece, piece.text, text)
        else:
            zero = not any(piece.value)
            text = "zero since power-on" if zero else "loaded into memory before power-on"
            self._end("loaded", piece, piece.text, text)

    def _interrupt(self, piece: _Piece, write: "LoggedWrite") -> None:
        text = "the frame of an interrupt or an exception"
        icount, vcpu = write["committed"], write["vcpu"]
        self._end("interrupt", piece, piece.text, text, icount=icount, vcpu=vcpu)

    def _store(self, piece: _Piece, paddr: int, write: "LoggedWrite", vcpu: int) -> None:
        """Follow what an instruction has stored."""
        at = self._stand(write["checked"], vcpu)
        size = len(piece.value)
        covered = [False] * size
        for effect in at.effects:
            dest = effect.dest
            if not isinstance(dest, Mem) or not self._happens(effect, at):
                continue
            for start, offset, length in self._physical_parts(dest, at):
                begin, end = max(start, paddr), min(start + length, paddr + size)
                if begin >= end or covered[begin - paddr]:
                    continue
                covered[begin - paddr : end - paddr] = [True] * (end - begin)
                own = effect.part(offset + begin - start, end - begin)
                self._follow(piece.part(begin - paddr, end - begin), own, at)
        for offset, length in _gaps(covered):
            why = (
                "the page walk of this instruction set a bit"
                if _is_bit(write)
                else ("this instruction wrote it in a way that is not followed")
            )
            self._lost(piece.part(offset, length), why, at)

    def _physical_parts(self, dest: Mem, at: _At) -> list[tuple[int, int, int]]:
        """Physical address, offset in the operand and length of each page's part of it."""
        parts = []
        linear, offset = dest.address(at.registers), 0
        while offset < dest.size:
            here = (linear + offset) & (1 << 64) - 1
            length = min(dest.size - offset, _PAGE - here % _PAGE)
            paddr = self.travel.session.machine.translate(at.vcpu, here)
            if paddr is not None:
                parts.append((paddr, offset, length))
            offset += length
        return parts

    # -- a value in a register -------------------------------------------------------------------

    def _register(self, piece: _Piece, wanted: Reg) -> None:
        if wanted.name not in WIDTHS:
            self._lost(piece, f"{wanted.name} is not followed")
            return
        for step in self.past.path_back(piece.vcpu, piece.moment):
            executed = step.executed
            text, length, effects = decode(executed.code, executed.linear, executed.bits)
            own = [each for each in effects if _overlap(each.dest, wanted)]
            if not own:
                continue
            at = self._stand(executed.icount, piece.vcpu)
            at = replace(at, linear=executed.linear, text=text, length=length, effects=effects)
            own = [each for each in own if self._happens(each, at)]
            if not own or self._has_faulted(step, piece, at):
                continue
            self._set_by(piece, wanted, own, at)
            return
        if self._reaches_beginning(piece):
            self._at_beginning(piece)
        else:
            self._lost(piece, f"not set by the last {FAR:,} instructions of vCPU {piece.vcpu}")

    def _reaches_beginning(self, piece: _Piece) -> bool:
        """Whether a vCPU has executed less than is looked through."""
        left = FAR
        for each in self.travel.slices.backward(piece.moment - 1):
            if each.vcpu == piece.vcpu:
                left -= min(each.end, piece.moment) - each.start
                if left < 0:
                    return False
        return True

    def _at_beginning(self, piece: _Piece) -> None:
        begins = self.travel.first
        when = f"where the recording begins, at instruction {begins:,}" if begins else "at reset"
        kind = "beginning" if begins else "loaded"
        text = f"{piece.text} of vCPU {piece.vcpu} {when}"
        self._end(kind, piece, piece.text, text, vcpu=piece.vcpu)

    def _set_by(self, piece: _Piece, wanted: Reg, effects: list[Effect], at: _At) -> None:
        """Follow what an instruction has put into parts of a register; the rest is older."""
        covered = [False] * wanted.size
        for effect in effects:
            dest = effect.dest
            assert isinstance(dest, Reg)
            begin = max(dest.start, wanted.start)
            end = min(dest.start + dest.size, wanted.start + wanted.size)
            if covered[begin - wanted.start]:
                continue
            covered[begin - wanted.start : end - wanted.start] = [True] * (end - begin)
            part = piece.part(begin - wanted.start, end - begin)
            self._follow(part, effect.part(begin - dest.start, end - begin), at)
        for offset, length in reversed(_gaps(covered)):
            self.waiting.append(replace(piece.part(offset, length), moment=at.icount))

    def _has_faulted(self, step: Step, piece: _Piece, at: _At) -> bool:
        """Whether an instruction raised an exception instead of doing its work: then the address
        that the handler returns to is its own."""
        following = step.following
        linear = following.linear if following is not None else None
        if linear == at.linear + at.length:
            return False
        moment = following.icount if following is not None else piece.moment
        after = self._stand(moment, piece.vcpu)
        if after.linear == at.linear + at.length or at.text.startswith("rep"):
            return False
        stack = after.registers["rsp"]
        frame = self.travel.session.read_virtual(stack, 16, piece.vcpu)
        returns = {int.from_bytes(frame[n : n + 8], "little") for n in (0, 8)}
        # Back from looking ahead.
        self._stand(at.icount, piece.vcpu)
        return at.linear in returns and after.linear != at.linear

    # -- one hop ---------------------------------------------------------------------------------

    def _stand(self, icount: int, vcpu: int) -> _At:
        """Go to an instruction of a vCPU."""
        stop = self.travel.goto(icount)
        if self.past.told(stop):
            raise KeyboardInterrupt
        session = self.travel.session
        registers = session.registers(vcpu)
        linear, bits = regs.linear_rip(registers), regs.code_bits(registers)
        block = session.machine.current_block(vcpu)
        offset = -1 if block is None else registers["rip"] - block["rip"]
        if block is not None and 0 <= offset < len(block["source"]):
            code = block["source"][offset : offset + _LONGEST]
        else:
            code = session.read_virtual(linear, _LONGEST, vcpu)
        text, length, effects = decode(code, linear, bits)
        return _At(icount, vcpu, registers, linear, text, length, effects)

    def _happens(self, effect: Effect, at: _At) -> bool:
        """Whether an instruction's effect takes place, if that depends on something."""
        if effect.when is None:
            return True
        if effect.when not in ("equal", "different"):
            return holds(effect.when, at.registers["rflags"])
        return (effect.when == "equal") == self._compares_equal(at)

    def _compares_equal(self, at: _At) -> bool:
        """Whether CMPXCHG finds what it expects: RAX, or RDX:RAX."""
        # Where it does not, it loads that from memory.
        return all(
            self._value(each.source, at) == self._value(each.dest, at)
            for each in at.effects
            if each.when == "different" and isinstance(each.dest, Reg) and each.source is not None
        )

    def _value(self, place: Place, at: _At) -> bytes | None:
        """What a place holds before an instruction; None where there is no RAM."""
        if isinstance(place, Reg):
            return self._register_bytes(place, at)
        data = bytearray()
        for paddr, _, length in self._physical_parts(place, at):
            if not is_ram(self.travel.trace, paddr, length):
                return None
            data += self.travel.session.memory(paddr, length)
        return bytes(data) if len(data) == place.size else None

    def _register_bytes(self, place: Reg, at: _At) -> bytes:
        if place.name.startswith("xmm"):
            area = self.travel.session.machine.fpu_state(at.vcpu)
            start = _XMM_IN_AREA + 16 * int(place.name[3:])
            whole = area[start : start + 16]
        elif place.name.startswith("mm"):
            area = self.travel.session.machine.fpu_state(at.vcpu)
            start = 32 + 16 * int(place.name[2:])
            whole = area[start : start + 8]
        else:
            whole = at.registers[place.name].to_bytes(8, "little")
        return whole[place.start : place.start + place.size]

    def _follow(self, piece: _Piece, effect: Effect, at: _At) -> None:
        """Go on with what an instruction put where the piece is."""
        if effect.source is not None:
            self._copied(piece, effect, effect.source, at)
        elif effect.constant is not None:
            if effect.constant == piece.value:
                self._hop("constant", piece, at, "the instruction itself")
            else:
                self._lost(piece, f"the instruction wrote {effect.constant.hex(' ')}", at)
        elif effect.device is not None:
            self._hop("input", piece, at, self._device(effect.device, at))
        else:
            self._computed(piece, effect.inputs or (), at)

    def _copied(self, piece: _Piece, effect: Effect, source: Place, at: _At) -> None:
        value = piece.value[::-1] if effect.reverse else piece.value
        kind = _COPIES[type(effect.dest), type(source)]
        if isinstance(source, Reg):
            if self._value(source, at) != value:
                self._lost(piece, f"{source} held something else", at)
                return
            number = self._hop(kind, piece, at, str(source))
            self.waiting.append(_Piece(source, at.vcpu, at.icount, value, number))
            return
        parts = self._physical_parts(source, at)
        if sum(length for _, _, length in parts) != source.size:
            self._lost(piece, f"{source.address(at.registers):#x} was not mapped", at)
            return
        held = self._value(source, at)
        if held is None:
            paddr = parts[0][0]
            self._hop("input", piece, at, inputs.mmio(paddr), paddr=paddr)
            return
        if held != value:
            self._lost(piece, f"memory held {held.hex(' ')}", at)
            return
        where = ", ".join(_physical(paddr, length) for paddr, _, length in parts)
        number = self._hop(kind, piece, at, where, paddr=parts[0][0])
        for paddr, offset, length in reversed(parts):
            part = value[offset : offset + length]
            self.waiting.append(_Piece(paddr, at.vcpu, at.icount, part, number))

    def _computed(self, piece: _Piece, inputs: tuple[Place, ...], at: _At) -> None:
        texts, next_pieces = [], []
        for place in inputs:
            held = self._value(place, at)
            name = str(place) if isinstance(place, Reg) else self._memory_name(place, at)
            texts.append(f"{name} = {_number(held)}")
            if held is None:
                continue
            if isinstance(place, Reg):
                next_pieces.append(_Piece(place, at.vcpu, at.icount, held, None))
            else:
                for paddr, offset, length in self._physical_parts(place, at):
                    part = held[offset : offset + length]
                    next_pieces.append(_Piece(paddr, at.vcpu, at.icount, part, None))
        source = ", ".join(texts) or "nothing that is followed"
        number = self._hop("computed", piece, at, source, inputs=tuple(texts))
        if self.through:
            for each in reversed(next_pieces):
                self.waiting.append(replace(each, parent=number))

    def _memory_name(self, place: Mem, at: _At) -> str:
        parts = self._physical_parts(place, at)
        linear = place.address(at.registers)
        return _physical(parts[0][0], place.size) if parts else f"{linear:#x}, not mapped"

    def _device(self, what: str, at: _At) -> str:
        if what == "port":
            return self._port(at)
        if what == "CPUID":
            leaf, sub = at.registers["rax"] & 0xFFFFFFFF, at.registers["rcx"] & 0xFFFFFFFF
            return f"CPUID leaf {leaf:#x}, subleaf {sub:#x}"
        if what == "MSR":
            return f"MSR {at.registers['rcx'] & 0xFFFFFFFF:#x}"
        return what

    def _port(self, at: _At) -> str:
        last = at.text.rpartition(",")[2].strip()
        port = int(last, 0) if last[:1].isdigit() else at.registers["rdx"] & 0xFFFF
        text = inputs.port(port)
        if port == inputs.COM1:
            typed = self._typed(at.icount)
            if typed is not None:
                text += f"; typed before instruction {typed:,}"
        return text

    def _typed(self, icount: int) -> int | None:
        """The moment of the last input to the console before another one."""
        moments = [each.icount for each in self.travel.trace.events(("input",), last=icount)]
        return moments[-1] if moments else None

    def _hop(
        self,
        kind: str,
        piece: _Piece,
        at: _At,
        source: str,
        inputs: tuple[str, ...] = (),
        paddr: int | None = None,
    ) -> int:
        own = piece.place if isinstance(piece.place, int) else paddr
        self.hops.append(
            Hop(
                kind,
                piece.text,
                source,
                piece.value,
                at.icount,
                at.vcpu,
                at.linear,
                self.travel.session.symbolize(at.linear),
                at.text,
                inputs,
                piece.parent,
                own,
            )
        )
        return len(self.hops) - 1

    def _end(
        self,
        kind: str,
        piece: _Piece,
        place: str,
        source: str,
        icount: int | None = None,
        vcpu: int | None = None,
    ) -> None:
        paddr = piece.place if isinstance(piece.place, int) else None
        self.hops.append(
            Hop(
                kind,
                place,
                source,
                piece.value,
                icount,
                vcpu,
                parent=piece.parent,
                paddr=paddr,
            )
        )

    def _lost(self, piece: _Piece, why: str, at: _At | None = None) -> None:
        if at is None:
            self._end("lost", piece, piece.text, why, vcpu=piece.vcpu)
        else:
            self._hop("lost", piece, at, why)


def _number(data: bytes | None) -> str:
    return "?" if data is None else f"{int.from_bytes(data, 'little'):#x}"


def _is_bit(write: "LoggedWrite") -> bool:
    """Whether a write changes accessed or dirty bits of a page-table entry, and nothing else."""
    old, new = (int.from_bytes(write[name], "little") for name in ("old", "new"))
    return (
        len(write["new"]) in (4, 8) and old | new & 0x60 == new and old ^ new in (0x20, 0x40, 0x60)
    )


def _repetitions(writers: list[Written]) -> Iterator[list[Written]]:
    """Writes to neighbouring bytes that may be iterations of one string instruction together."""
    group: list[Written] = []
    for each in writers:
        before = group[-1].write if group else None
        if before is None or each.write is None or not _follows(before, each.write):
            if group:
                yield group
            group = []
        group.append(each)
    if group:
        yield group


def _follows(before: "LoggedWrite", write: "LoggedWrite") -> bool:
    """Whether a write is that of the same instruction's next iteration."""
    return (
        write["vcpu"] is not None
        and bool(write["rip"])
        and (write["vcpu"], write["rip"]) == (before["vcpu"], before["rip"])
        and write["checked"] == before["checked"] + 1
    )


def _overlap(dest: Place, wanted: Reg) -> bool:
    return (
        isinstance(dest, Reg)
        and dest.name == wanted.name
        and dest.start < wanted.start + wanted.size
        and wanted.start < dest.start + dest.size
    )


def _gaps(covered: list[bool]) -> list[tuple[int, int]]:
    """Offset and length of each run that is not covered."""
    gaps = []
    start: int | None = None
    for offset, each in enumerate([*covered, True]):
        if each and start is not None:
            gaps.append((start, offset - start))
            start = None
        elif not each and start is None:
            start = offset
    return gaps


def origin(
    travel: "TimeTravel",
    paddr: int,
    length: int = 1,
    *,
    through: bool = False,
    tick: "Tick | None" = None,
) -> list[Hop]:
    """Where the bytes at a physical address come from that memory holds at the present moment of
    `travel`, which stands there again afterwards.

    Hops come in the order of the way back; `Hop.parent` says which one led to another, where bytes
    come from several places. With `through`, what an instruction computed is followed to all of its
    inputs. `tick` is called now and then, and ends the search with a true answer.

    Raises `UsageError` for too many bytes, `AddressError` where there is no RAM, and
    `KeyboardInterrupt` if `tick` wanted that.
    """
    if not 1 <= length <= MOST_BYTES:
        raise UsageError(
            f"the origin of 1 to {MOST_BYTES} bytes can be asked for, not of {length:,}"
        )
    if not is_ram(travel.trace, paddr, length):
        raise AddressError(f"{paddr:#x} to {paddr + length - 1:#x} is not all RAM", address=paddr)
    moment = travel.icount
    value = travel.session.memory(paddr, length)
    search = _Search(travel, Past(travel, FAR, tick), through)
    search.waiting.append(_Piece(paddr, travel.vcpu, moment, value, None))
    try:
        return search.run()
    finally:
        travel.goto(moment)


__all__ = ["FAR", "MOST_BYTES", "MOST_HOPS", "Hop", "origin"]
