"""The connection to one debugger: packets to and fro, acknowledgements, interrupts.

Nothing that arrives is kept without bound, and nothing waits for ever for a debugger that does not
read: what is wrong with a connection ends it, and never more than it.
"""

import select
import socket
from collections import deque

from rr86.gdb.packet import Decoder, Item, Packet, Signal, frame

_CHUNK = 1 << 16
# Seconds for which a debugger may leave unread what it is sent.
_PATIENCE = 30.0
# Seconds for the last acknowledgement.
_FAREWELL = 1.0
# Packets that may wait while the machine runs.
_MOST_WAITING = 64
# How often in a row a debugger may ask for a packet again.
_MOST_REPEATS = 8


class Link:
    """A connected socket that speaks the protocol."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        connected.settimeout(_PATIENCE)
        self._decoder = Decoder()
        self._items: deque[Item] = deque()
        self._last = b""
        self._repeats = 0
        self._closed = False
        self.acknowledges = True
        """Whether packets are acknowledged; `QStartNoAckMode` ends it."""

    def receive(self) -> bytes | None:
        """The next packet; None where the debugger has gone.

        Raises `ConnectionError` where no sense can be made of it.
        """
        while True:
            while self._items:
                item = self._items.popleft()
                if isinstance(item, Packet):
                    self._repeats = 0
                    self._acknowledge(b"+")
                    return item.data
                if item is Signal.BROKEN:
                    self._acknowledge(b"-")
                elif item is Signal.NACK:
                    self._repeat()
                # An interrupt while nothing runs has come too late.
            if not self._read(None):
                return None

    def send(self, data: bytes) -> None:
        """Send a packet. Raises `ConnectionError` where the debugger does not take it."""
        self._last = frame(data)
        self._write(self._last)

    def interrupted(self) -> bool:
        """Whether the debugger wants the run that is under way to end, or has gone."""
        while not self._closed and len(self._items) < _MOST_WAITING and self._read(0.0):
            pass
        if Signal.INTERRUPT in self._items:
            self._items.remove(Signal.INTERRUPT)
            return True
        # What it says of packets before says nothing of the answer to come.
        self._items = deque(i for i in self._items if i not in (Signal.ACK, Signal.NACK))
        return self._closed or len(self._items) >= _MOST_WAITING

    def finish(self) -> None:
        """Let the debugger acknowledge what it was sent last, or go by itself."""
        if self.acknowledges:
            self._read(_FAREWELL)

    def _read(self, timeout: float | None) -> bool:
        """Take in what has arrived; whether there was anything."""
        try:
            ready, _, _ = select.select([self._socket], [], [], timeout)
            if not ready:
                return False
            data = self._socket.recv(_CHUNK)
        except (OSError, ValueError):
            data = b""
        if not data:
            self._closed = True
            return False
        self._items.extend(self._decoder.feed(data))
        return True

    def _acknowledge(self, mark: bytes) -> None:
        if self.acknowledges:
            self._write(mark)

    def _repeat(self) -> None:
        if not self.acknowledges or not self._last:
            return
        self._repeats += 1
        if self._repeats > _MOST_REPEATS:
            raise ConnectionError("the debugger refuses every answer")
        self._write(self._last)

    def _write(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise ConnectionError(
                f"the debugger takes no answer ({error.strerror or error})"
            ) from None
