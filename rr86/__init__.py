"""Deterministic record and replay of whole multi-core x86-64 machines.

    recording = rr86.record("bzImage", smp=4, initrd="initrd.img", append="console=ttyS0")
    trace = rr86.open_trace(recording.path)
    session = trace.session()
    stop = session.run("int3")
    print(stop.describe(session.symbolize))

Whatever is costly here is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Importing the package `rr86.record` sets the attribute of that name on this one. It has to happen
# before the function `record` is defined below, or the package would replace it later.
import rr86.record  # noqa: F401
from rr86.version import __version__

if TYPE_CHECKING:
    from rr86.cpu.symbols import Symbol, SymbolTable
    from rr86.errors import (
        AddressError,
        ConditionError,
        DeviceError,
        DivergenceError,
        EngineError,
        Error,
        ExpansionError,
        GuestImageError,
        HostError,
        KernelError,
        KernelImageError,
        NativeError,
        RecordingError,
        SpecError,
        SymbolsError,
        TraceContentError,
        TraceError,
        UsageError,
    )
    from rr86.errors import Error as Rr86Error
    from rr86.machine.spec import BoardSpec
    from rr86.record.recorder import Recorder, record
    from rr86.record.recorder import start as start_recording
    from rr86.replay.diversion import Diversion
    from rr86.replay.session import ReplaySession
    from rr86.replay.trace import Trace, open_trace
    from rr86.session.conditions import Condition, Every, asked_at
    from rr86.session.conditions import parse as parse_condition
    from rr86.session.limits import Limits
    from rr86.session.live import Recording
    from rr86.session.stop import Stop
    from rr86.session.view import GuestView
    from rr86.trace.events import Event
    from rr86.translate.protocols import Protocol

else:

    def record(*args: Any, **options: Any) -> Any:
        """Record a run of a guest; see `rr86.record.recorder.record` for the options."""
        return import_module("rr86.record.recorder").record(*args, **options)


_HOMES = {
    "AddressError": "rr86.errors",
    "BoardSpec": "rr86.machine.spec",
    "Condition": "rr86.session.conditions",
    "ConditionError": "rr86.errors",
    "DeviceError": "rr86.errors",
    "DivergenceError": "rr86.errors",
    "Diversion": "rr86.replay.diversion",
    "EngineError": "rr86.errors",
    "Error": "rr86.errors",
    "Every": "rr86.session.conditions",
    "Event": "rr86.trace.events",
    "ExpansionError": "rr86.errors",
    "GuestImageError": "rr86.errors",
    "GuestView": "rr86.session.view",
    "HostError": "rr86.errors",
    "KernelError": "rr86.errors",
    "KernelImageError": "rr86.errors",
    "Limits": "rr86.session.limits",
    "NativeError": "rr86.errors",
    "Protocol": "rr86.translate.protocols",
    "Recorder": "rr86.record.recorder",
    "Recording": "rr86.session.live",
    "RecordingError": "rr86.errors",
    "ReplaySession": "rr86.replay.session",
    "Rr86Error": "rr86.errors:Error",
    "SpecError": "rr86.errors",
    "Stop": "rr86.session.stop",
    "Symbol": "rr86.cpu.symbols",
    "SymbolTable": "rr86.cpu.symbols",
    "SymbolsError": "rr86.errors",
    "Trace": "rr86.replay.trace",
    "TraceContentError": "rr86.errors",
    "TraceError": "rr86.errors",
    "UsageError": "rr86.errors",
    "asked_at": "rr86.session.conditions",
    "open_trace": "rr86.replay.trace",
    "parse_condition": "rr86.session.conditions:parse",
    "start_recording": "rr86.record.recorder:start",
}

__all__ = [
    "AddressError",
    "BoardSpec",
    "Condition",
    "ConditionError",
    "DeviceError",
    "DivergenceError",
    "Diversion",
    "EngineError",
    "Error",
    "Event",
    "Every",
    "ExpansionError",
    "GuestImageError",
    "GuestView",
    "HostError",
    "KernelError",
    "KernelImageError",
    "Limits",
    "NativeError",
    "Protocol",
    "Recorder",
    "Recording",
    "RecordingError",
    "ReplaySession",
    "Rr86Error",
    "SpecError",
    "Stop",
    "Symbol",
    "SymbolTable",
    "SymbolsError",
    "Trace",
    "TraceContentError",
    "TraceError",
    "UsageError",
    "__version__",
    "asked_at",
    "open_trace",
    "parse_condition",
    "record",
    "start_recording",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'rr86' has no attribute {name!r}")
    module, _, attribute = home.partition(":")
    return getattr(import_module(module), attribute or name)
