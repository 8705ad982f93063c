//! Errors of the core as Python exceptions; the messages are the core's own.

use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::import_exception;
use pyo3::prelude::*;
use rr86_core::session::{self as schedule, SessionError};

// The classes are Python's, so that all errors of rr86 have one root and typed attributes.
import_exception!(rr86.errors, NativeError);
import_exception!(rr86.errors, TraceError);
import_exception!(rr86.errors, DivergenceError);
import_exception!(rr86.errors, HostError);
import_exception!(rr86.errors, EngineError);
import_exception!(rr86.errors, DeviceError);

/// A device that is written in Python raised an exception, which is the error's cause.
pub fn device(py: Python<'_>, name: &str, cause: PyErr) -> PyErr {
    // Ctrl-C reaches whatever Python code is running.
    if cause.is_instance_of::<PyKeyboardInterrupt>(py) {
        return cause;
    }
    let text = format!("the device {name:?} raised {cause}");
    let error = DeviceError::new_err((text, name.to_string()));
    error.set_cause(py, Some(cause));
    error
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

pub fn trace(error: rr86_core::trace::TraceError) -> PyErr {
    TraceError::new_err(error.to_string())
}

pub fn checkpoint(error: schedule::CheckpointError) -> PyErr {
    match error {
        schedule::CheckpointError::Impossible(_) => NativeError::new_err(error.to_string()),
        damaged => TraceError::new_err(damaged.to_string()),
    }
}

pub fn session(error: SessionError) -> PyErr {
    match error {
        SessionError::Trace(e) => trace(e),
        SessionError::Divergence(e) => DivergenceError::new_err(e.to_string()),
        SessionError::Checkpoint(e) => checkpoint(e),
    }
}
