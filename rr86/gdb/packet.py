"""Packets of gdb's remote serial protocol, as bytes on a line (gdb manual, "Remote Protocol").

`Decoder` takes whatever arrives, in any pieces, and finds packets, acknowledgements and
interrupts in it. It never holds more than one packet of the agreed size, and what makes no sense
costs a packet and nothing else: the next `$` begins anew.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

LARGEST = 1 << 16
"""Bytes that a packet may have between `$` and `#`, as `qSupported` says (PacketSize)."""

_ESCAPED = b"}$#*"
_HEX = b"0123456789abcdefABCDEF"


class Signal(Enum):
    """What can be on the line besides packets."""

    ACK = "+"
    NACK = "-"
    INTERRUPT = "\x03"
    BROKEN = "broken"
    """A packet that is too long, or whose checksum is wrong or none."""


@dataclass(frozen=True)
class Packet:
    """What a packet says, escapes undone."""

    data: bytes


Item = Packet | Signal


def checksum(data: bytes) -> int:
    """The sum of the bytes between `$` and `#` as they are on the line, modulo 256."""
    return sum(data) & 0xFF


def frame(data: bytes) -> bytes:
    """A packet for the line."""
    escaped = escape(data)
    return b"$%s#%02x" % (escaped, checksum(escaped))


def escape(data: bytes) -> bytes:
    """Put `}` before the bytes that mean something on the line, and flip their bit 5.

    `*` is one of them in what a server sends: there it announces a repetition.
    """
    if not any(byte in _ESCAPED for byte in data):
        return data
    out = bytearray()
    for byte in data:
        if byte in _ESCAPED:
            out += bytes((0x7D, byte ^ 0x20))
        else:
            out.append(byte)
    return bytes(out)


def unescape(data: bytes) -> bytes | None:
    """Undo `escape`; None where an escape has nothing behind it."""
    if 0x7D not in data:
        return data
    out = bytearray()
    after = iter(data)
    for byte in after:
        if byte != 0x7D:
            out.append(byte)
            continue
        following = next(after, None)
        if following is None:
            return None
        out.append(following ^ 0x20)
    return bytes(out)


class Decoder:
    """Finds packets in what a debugger sends."""

    def __init__(self, largest: int = LARGEST) -> None:
        self._largest = largest
        # The packet that has begun, from behind its `$`; None between packets.
        self._begun: bytearray | None = None
        # Its checksum's digits, once its `#` has come.
        self._digits: bytearray | None = None
        self._too_long = False

    def feed(self, data: bytes) -> Iterator[Item]:
        """What has become complete with these bytes, in order."""
        for byte in data:
            item = self._take(byte)
            if item is not None:
                yield item

    def _take(self, byte: int) -> Item | None:
        if self._begun is None:
            return self._between(byte)
        if self._digits is not None:
            if byte == 0x24:
                self._begin()
                return Signal.BROKEN
            self._digits.append(byte)
            return self._finish() if len(self._digits) == 2 else None
        if byte == 0x24:
            # It has to be escaped inside of a packet: the one that had begun was cut off.
            self._begin()
        elif byte == 0x23:
            self._digits = bytearray()
        elif len(self._begun) < self._largest:
            self._begun.append(byte)
        else:
            self._too_long = True
        return None

    def _between(self, byte: int) -> Item | None:
        if byte == 0x24:
            self._begin()
            return None
        # Everything else between packets is noise.
        return {0x2B: Signal.ACK, 0x2D: Signal.NACK, 0x03: Signal.INTERRUPT}.get(byte)

    def _begin(self) -> None:
        self._begun = bytearray()
        self._digits = None
        self._too_long = False

    def _finish(self) -> Item:
        assert self._begun is not None
        assert self._digits is not None
        begun, digits, too_long = bytes(self._begun), bytes(self._digits), self._too_long
        self._begun = self._digits = None
        if too_long or any(digit not in _HEX for digit in digits):
            return Signal.BROKEN
        data = unescape(begun)
        if data is None or int(digits, 16) != checksum(begun):
            return Signal.BROKEN
        return Packet(data)
