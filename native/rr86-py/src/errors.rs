//! Errors of the core as Python exceptions; the messages are the core's own.

use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyKeyboardInterrupt};
use pyo3::prelude::*;
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
    EngineError,
    NativeError,
    "Translated code failed on the host."
);

/// A device that is written in Python raised an exception, which is the error's cause.
pub fn device(py: Python<'_>, name: &str, cause: PyErr) -> PyErr {
    // Ctrl-C reaches whatever Python code is running.
    if cause.is_instance_of::<PyKeyboardInterrupt>(py) {
        return cause;
    }
    let text = format!("the device {name:?} raised {cause}");
    let made = py
        .import("rr86.errors")
        .and_then(|errors| errors.getattr("DeviceError")?.call1((text, name)));
    match made {
        Ok(error) => {
            let error = PyErr::from_value(error);
            error.set_cause(py, Some(cause));
            error
        }
        Err(error) => error,
    }
}

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
