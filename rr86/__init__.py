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

if TYPE_CHECKING:
    from rr86._native import DivergenceError, EngineError, HostError, NativeError, TraceError
    from rr86.cpu.symbols import Symbol, SymbolTable
    from rr86.errors import (
        ConditionError,
        DeviceError,
        KernelImageError,
        RecordingError,
        Rr86Error,
        SymbolsError,
        TraceContentError,
    )
    from rr86.machine.spec import BoardSpec, SpecError
    from rr86.record.recorder import Limits, Recorder, Recording, record
    from rr86.record.recorder import start as start_recording
    from rr86.replay.conditions import Condition
    from rr86.replay.conditions import parse as parse_condition
    from rr86.replay.session import ReplaySession
    from rr86.replay.stop import Stop
    from rr86.replay.trace import Event, Trace, open_trace

else:

    def record(*args: Any, **options: Any) -> Any:
        """Record a run of a guest; see `rr86.record.recorder.record` for the options."""
        return import_module("rr86.record.recorder").record(*args, **options)


__version__ = "0.1.0"

_HOMES = {
    "BoardSpec": "rr86.machine.spec",
    "Condition": "rr86.replay.conditions",
    "ConditionError": "rr86.errors",
    "DeviceError": "rr86.errors",
    "DivergenceError": "rr86._native",
    "EngineError": "rr86._native",
    "Event": "rr86.replay.trace",
    "HostError": "rr86._native",
    "KernelImageError": "rr86.errors",
    "Limits": "rr86.record.recorder",
    "NativeError": "rr86._native",
    "Recorder": "rr86.record.recorder",
    "Recording": "rr86.record.recorder",
    "RecordingError": "rr86.errors",
    "ReplaySession": "rr86.replay.session",
    "Rr86Error": "rr86.errors",
    "SpecError": "rr86.machine.spec",
    "Stop": "rr86.replay.stop",
    "Symbol": "rr86.cpu.symbols",
    "SymbolTable": "rr86.cpu.symbols",
    "SymbolsError": "rr86.errors",
    "Trace": "rr86.replay.trace",
    "TraceContentError": "rr86.errors",
    "TraceError": "rr86._native",
    "open_trace": "rr86.replay.trace",
    "parse_condition": "rr86.replay.conditions:parse",
    "start_recording": "rr86.record.recorder:start",
}

__all__ = [
    "BoardSpec",
    "Condition",
    "ConditionError",
    "DeviceError",
    "DivergenceError",
    "EngineError",
    "Event",
    "HostError",
    "KernelImageError",
    "Limits",
    "NativeError",
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
    "__version__",
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
