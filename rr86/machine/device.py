"""Devices by users: a class in Python that is part of a guest's machine. See docs/devices.md.

A device is called when the guest touches one of its ports or addresses, when its timer fires, and
when a transfer between it and guest memory is done. What it may know is what these calls tell it,
and `now`; anything else (the clock, files, random numbers) would differ in a replay, and is found
out there by the device's digest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from rr86.errors import DeviceError

Option = int | str | bool
"""What a device can be made with: plain values that a trace's header can name."""

PAGE = 4096
ISA_LINES = frozenset({*range(3, 8), *range(9, 16)})
IOAPIC_PINS = range(16, 24)
_MOST_RANGES = 64


@dataclass
class _Transfer:
    """An access to guest memory under way: `data` is what is left to write, or what has been read
    so far of `left` more bytes."""

    address: int
    data: bytes
    left: int = 0
    done: str | None = None

    def front(self) -> tuple[int, int | bytes]:
        """The next access; none crosses a page."""
        room = PAGE - self.address % PAGE
        if self.done is None:
            return self.address, self.data[:room]
        return self.address, min(self.left, room)


@dataclass
class _Wires:
    """What the base class keeps of a device between calls."""

    level: bool = False
    deadline: int | None = None
    transfers: list[_Transfer] = field(default_factory=list)


class Device:
    """Base class of devices.

    A subclass says where it answers (`ports`, `memory`: sequences of `range`), which interrupt
    line it drives (`irq`), and what it is called (`name`, by default the class's name in small
    letters), as class attributes or before it calls `super().__init__`. It overrides what it has:
    `reset`, `read_port`, `write_port`, `read_memory`, `write_memory`, `timer`, `save`, `load`.

    The arguments of `__init__` are the device's options: numbers, texts and truth values. They are
    taken from the call that makes the device, so none can be forgotten, and are in `self.options`
    with their defaults from the start. The trace's header names them and the class, and a replay
    makes the device anew from both, so `cls(**options)` has to give an equal one.

    Where a range is of several bytes, an access never goes beyond it; accesses to ports are of 1, 2
    or 4 bytes, those to memory of 1, 2, 4 or 8, little-endian.
    """

    name: str = ""
    ports: Sequence[range] = ()
    memory: Sequence[range] = ()
    irq: int | None = None
    """An ISA interrupt line (3 to 7, 9 to 15), or a pin of the I/O APIC (16 to 23)."""

    options: Mapping[str, Option]
    """What the device was made with, by name; defaults are in it, those of None are not."""

    def __new__(cls, *args: Any, **named: Any) -> Self:
        """Raises `DeviceError` for options that are no plain values."""
        device = super().__new__(cls)
        device.options = _options(cls, args, named)
        return device

    def __init__(self, **options: Option) -> None:
        """A subclass may hand its options on, and need not.

        Raises `DeviceError` for others than the device is made with.
        """
        for key, value in options.items():
            if self.options.get(key) != value:
                raise DeviceError(
                    f"{type(self).__name__} is made with {dict(self.options)} and hands on "
                    f"{key}={value!r}"
                )
        self._now = 0
        self._wires = _Wires()
        self._plugged = False
        # Whether a call from the machine is under way, or the device is being made.
        self._called = True
        self.reset()
        self._called = False

    # -- for subclasses to override ------------------------------------------------------------

    def reset(self) -> None:
        """Set all state to that of power-on. Called by `__init__`, too."""

    def read_port(self, port: int, size: int) -> int:
        """What the guest reads from a port."""
        raise NotImplementedError(f"{type(self).__name__} has ports but no read_port")

    def write_port(self, port: int, size: int, value: int) -> None:
        """The guest writes to a port."""
        raise NotImplementedError(f"{type(self).__name__} has ports but no write_port")

    def read_memory(self, address: int, size: int) -> int:
        """What the guest reads from an address."""
        raise NotImplementedError(f"{type(self).__name__} has memory but no read_memory")

    def write_memory(self, address: int, size: int, value: int) -> None:
        """The guest writes to an address."""
        raise NotImplementedError(f"{type(self).__name__} has memory but no write_memory")

    def timer(self) -> None:
        """The time that `set_timer` named has come."""

    def save(self) -> bytes:
        """All state of the device, for digests and checkpoints: equal states, equal bytes."""
        return b""

    def load(self, state: bytes) -> None:
        """Take over what `save` gave. Raise `ValueError` for bytes that it never gives."""

    # -- for subclasses to call ----------------------------------------------------------------

    @property
    def now(self) -> int:
        """Virtual time in nanoseconds."""
        return self._now

    def set_irq(self, level: bool) -> None:
        """Hold the interrupt line high, or let it fall."""
        if self.irq is None:
            raise DeviceError(f"{type(self).__name__} has no interrupt line")
        self._inside().level = bool(level)

    def set_timer(self, at: int | None) -> None:
        """Have `timer` called at a moment of virtual time later than `now`, and only then."""
        if at is not None and at <= self._now:
            raise DeviceError(f"a timer cannot fire at {at} ns: it is {self._now} ns already")
        self._inside().deadline = at

    def dma_write(self, address: int, data: bytes) -> None:
        """Write to guest memory, before the guest's next instruction. Where there is no RAM, the
        bytes are lost."""
        if data:
            self._inside().transfers.append(_Transfer(_physical(address), bytes(data)))

    def dma_read(self, address: int, length: int, done: "Callable[[bytes | None], None]") -> None:
        """Read guest memory, before the guest's next instruction, and call `done`, a method of
        this device, with the bytes; with None if part of the range is no RAM."""
        method = getattr(done, "__name__", "")
        if getattr(done, "__self__", None) is not self or getattr(self, method, None) != done:
            raise DeviceError("what a transfer calls has to be a method of the device")
        if not 0 < length <= 1 << 30:
            raise DeviceError(f"a transfer of {length} bytes cannot be made")
        self._inside().transfers.append(_Transfer(_physical(address), b"", length, method))

    def _inside(self) -> _Wires:
        if not self._called:
            raise DeviceError("a device can act only while the machine calls it")
        return self._wires

    # -- for the core, by name -----------------------------------------------------------------

    def _describe(self) -> tuple[str, list[tuple[int, int]], list[tuple[int, int]], int | None]:
        """Name, ranges of ports and of memory (base and length), interrupt line."""
        if self._plugged:
            raise DeviceError(f"the device {component_name(self)!r} is part of a machine already")
        self._plugged = True
        ports = _ranges("ports", self.ports, 1 << 16)
        memory = _ranges("memory", self.memory, 1 << 40)
        if len(ports) + len(memory) > _MOST_RANGES:
            raise DeviceError(f"a device has at most {_MOST_RANGES} ranges")
        if self.irq is not None and self.irq not in ISA_LINES and self.irq not in IOAPIC_PINS:
            raise DeviceError(f"a device cannot drive the interrupt line {self.irq}")
        return component_name(self), ports, memory, self.irq

    def _serve(
        self, what: str, address: int, size: int, value: Any, now: int
    ) -> tuple[int, bool, int | None, tuple[int, int | bytes] | None]:
        """One call of the machine; gives its answer, and what the device waits for afterwards."""
        answer = 0
        self._called = True
        try:
            if what != "look":
                self._now = max(self._now, now)
            match what:
                case "read_port" | "read_memory":
                    answer = getattr(self, what)(address, size)
                    if type(answer) is not int or answer < 0 or answer >> (8 * size):
                        raise DeviceError(f"{what} gave {answer!r} for {size} bytes")
                case "write_port" | "write_memory":
                    getattr(self, what)(address, size, value)
                case "timer":
                    self._wires.deadline = None
                    self.timer()
                case "dma":
                    self._transferred(value)
                case "reset":
                    self._wires = _Wires()
                    self.reset()
        finally:
            self._called = False
        wires = self._wires
        front = wires.transfers[0].front() if wires.transfers else None
        return answer, wires.level, wires.deadline, front

    def _transferred(self, data: bytes | None) -> None:
        """The first transfer's access was made; `data` is None where there is no RAM."""
        first = self._wires.transfers[0]
        _, part = first.front()
        if first.done is None:
            count = len(part) if isinstance(part, bytes) else part
            first.data = first.data[count:]
            finished = not first.data
        else:
            first.data += data or b""
            count = len(data or b"")
            first.left -= count
            finished = data is None or first.left == 0
        first.address = (first.address + count) % (1 << 64)
        if finished:
            self._wires.transfers.pop(0)
            if first.done is not None:
                getattr(self, first.done)(None if data is None else first.data)

    def _save(self) -> bytes:
        """Everything, in one piece."""
        import msgpack

        wires = self._wires
        rows = [[each.address, each.data, each.left, each.done] for each in wires.transfers]
        state = self.save()
        if type(state) is not bytes:
            raise DeviceError(f"save gave {type(state).__name__} instead of bytes")
        packed: bytes = msgpack.packb([self._now, wires.level, wires.deadline, rows, state])
        return packed

    def _load(self, packed: bytes) -> None:
        """The reverse; `ValueError` for what `_save` never gives."""
        import msgpack

        try:
            now, level, deadline, rows, state = msgpack.unpackb(packed)
            wires = _Wires(level, deadline, [_Transfer(*row) for row in rows])
            kinds = [type(each) for each in (now, level, state)]
            if kinds != [int, bool, bytes] or not _is_time(deadline, now):
                raise ValueError("values of other kinds")
            for each in wires.transfers:
                self._check_transfer(each)
        except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
            raise ValueError(f"it is damaged ({error})") from None
        self._called = True
        try:
            self.load(state)
        finally:
            self._called = False
        self._now, self._wires = now, wires

    def _check_transfer(self, each: _Transfer) -> None:
        if type(each.data) is not bytes or type(each.left) is not int:
            raise ValueError("a transfer of another kind")
        _physical(each.address)
        if each.done is None:
            if not each.data:
                raise ValueError("an empty transfer")
        elif each.left <= 0 or not callable(getattr(type(self), each.done, None)):
            raise ValueError(f"a transfer for {each.done!r}")


def _options(cls: type, args: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Option]:
    """The arguments of a device's `__init__`, by name."""
    import inspect

    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    bound = signature.bind(None, *args, **named)
    bound.apply_defaults()
    found: dict[str, Any] = {}
    for parameter in list(signature.parameters.values())[1:]:
        value = bound.arguments[parameter.name]
        if parameter.kind is parameter.VAR_KEYWORD:
            found |= value
        elif parameter.kind is parameter.VAR_POSITIONAL:
            if value:
                raise DeviceError(f"the options of {cls.__name__} have names, and {value!r} none")
        elif value is not None or parameter.default is not None:
            found[parameter.name] = value
    for key, value in found.items():
        if type(value) not in (int, str, bool):
            raise DeviceError(f"the option {key}={value!r} is no number, text or truth value")
    return found


def _is_time(deadline: Any, now: int) -> bool:
    return deadline is None or (type(deadline) is int and now <= deadline < 1 << 64)


def _physical(address: int) -> int:
    if type(address) is not int or not 0 <= address < 1 << 64:
        raise DeviceError(f"{address!r} is no physical address")
    return address


def _ranges(what: str, ranges: Sequence[range], end: int) -> list[tuple[int, int]]:
    for each in ranges:
        if not (each.step == 1 and len(each) and each.start >= 0 and each.stop <= end):
            raise DeviceError(f"{each!r} is no range of {what}")
    return [(each.start, len(each)) for each in ranges]


def component_name(device: Device) -> str:
    """What a device is called in digests and checkpoints."""
    return device.name or type(device).__name__.lower()
