"""Where the output of a guest's consoles goes."""

from collections.abc import Callable

# Gets what the guest has sent to its debug consoles, and how many bytes of that it sent before it
# used its serial console.
DebugSink = Callable[[bytes, int], None]


class Heard:
    """Remembers what the guest says, and hands it on.

    An object of its own, so that a session does not refer to itself: its machine is hundreds of
    megabytes, which have to go with the last reference, and not when the collector comes by.
    """

    def __init__(self, sink: Callable[[bytes], None] | None) -> None:
        self.heard = bytearray()
        self._sink = sink

    def __call__(self, data: bytes) -> None:
        """Take what the guest sent."""
        self.heard += data
        if self._sink is not None:
            self._sink(data)


class HeardDebug:
    """The same for the debug consoles."""

    def __init__(self, sink: DebugSink | None) -> None:
        self.heard = bytearray()
        self._sink = sink

    def __call__(self, data: bytes, alone: int) -> None:
        """Take what the guest sent; see `DebugSink`."""
        self.heard += data
        if self._sink is not None:
            self._sink(data, alone)
