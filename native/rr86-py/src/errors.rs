//! Errors of the core as Python exceptions; the messages are the core's own.

use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::PyErr;
use rr86_core::record;
use rr86_core::replay::ReplayError;
use rr86_core::schedule;

create_exception!(
    rr86._native,
    NativeError,
    PyException,
    "Any failure of the core."
);
create_exception!(
    rr86._native,
    TraceError,
    NativeError,
    "A trace file that cannot be read."
);
create_exception!(
    rr86._native,
    DivergenceError,
    NativeError,
    "A replay left the recorded path."
);
create_exception!(
    rr86._native,
    HostError,
    NativeError,
    "The host lacks something."
);

create_exception!(
    rr86._native,
    DeviceError,
    NativeError,
    "A device that is written in Python raised an exception."
);

create_exception!(
    rr86._native,
    EngineError,
    NativeError,
    "Translated code failed on the host."
);

/// What has failed, as the engine has it.
pub fn host_fault(machine: &schedule::Machine) -> PyErr {
    let text = machine.engine.host_fault().map(ToString::to_string);
    EngineError::new_err(text.unwrap_or_default())
}

pub fn machine(error: schedule::MachineError) -> PyErr {
    match error {
        schedule::MachineError::Host(e) => HostError::new_err(e.to_string()),
        other => NativeError::new_err(other.to_string()),
    }
}

pub fn trace(error: record::TraceError) -> PyErr {
    TraceError::new_err(error.to_string())
}

pub fn checkpoint(error: schedule::CheckpointError) -> PyErr {
    match error {
        schedule::CheckpointError::Impossible(_) => NativeError::new_err(error.to_string()),
        damaged => TraceError::new_err(damaged.to_string()),
    }
}

pub fn replay(error: ReplayError) -> PyErr {
    match error {
        ReplayError::Trace(e) => trace(e),
        ReplayError::Divergence(e) => DivergenceError::new_err(e.to_string()),
        ReplayError::Checkpoint(e) => checkpoint(e),
    }
}
