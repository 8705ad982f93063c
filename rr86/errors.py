"""The errors that the Python side raises itself.

The native core has its own (`rr86._native.NativeError` and below it `TraceError`,
`DivergenceError`, `HostError`); every message, there and here, is one sentence for a person.
"""


class Rr86Error(Exception):
    """Base of every error that the Python side of rr86 raises on purpose."""


class ConditionError(Rr86Error):
    """A stop condition that cannot be understood, or cannot be watched for on this guest."""


class KernelImageError(Rr86Error):
    """A kernel image that cannot be unpacked or does not have the tables that were asked for."""


class SymbolsError(Rr86Error):
    """A guest without symbols, or without the symbol that was asked for."""


class TraceContentError(Rr86Error):
    """A trace whose header, footer or images make no sense although its chunks are intact."""


class RecordingError(Rr86Error):
    """A recording that cannot be started: its output cannot be written, or its limits are odd."""


class ExpansionError(Rr86Error):
    """An expansion that cannot be written or used, or a trace that cannot have one."""


class DeviceError(Rr86Error):
    """A device in Python that cannot be used like this, that raised an exception (the error's
    cause), or that a trace needs and was not given. `device` is its name, where it is known."""

    def __init__(self, message: str, device: str | None = None) -> None:
        super().__init__(message)
        self.device = device


class AddressError(Rr86Error):
    """An address that is not what was asked for: outside of RAM, or not mapped."""
