//! Errors of the core as Python exceptions. The messages are the core's own, and so are the attributes.

use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use pyo3::{import_exception, PyTypeInfo};
use rr86_core::session::{
    BranchError, CheckpointError, Divergence, Fact, Machine, MachineError, SessionError, Wait,
};
use rr86_core::trace;

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

/// An exception with attributes; `fill` gives them by the names of its keyword arguments.
fn with_fields<E: PyTypeInfo>(
    message: String,
    fill: impl FnOnce(&Bound<'_, PyDict>) -> PyResult<()>,
) -> PyErr {
    Python::attach(|py| {
        let fields = PyDict::new(py);
        let made = fill(&fields).and_then(|()| py.get_type::<E>().call((message,), Some(&fields)));
        made.map_or_else(|error| error, PyErr::from_value)
    })
}

/// What has failed, as the engine has it.
pub fn host_fault(machine: &Machine) -> PyErr {
    let Some(fault) = machine.engine.host_fault() else {
        return EngineError::new_err("translated code failed on the host");
    };
    with_fields::<EngineError>(fault.to_string(), |fields| {
        fields.set_item("vcpu", fault.vcpu)?;
        fields.set_item("moment", fault.icount)?;
        fields.set_item("rip", fault.place.as_ref().map(|place| place.rip))
    })
}

pub fn machine(error: MachineError) -> PyErr {
    match error {
        MachineError::Host(e) => HostError::new_err(e.to_string()),
        other => NativeError::new_err(other.to_string()),
    }
}

pub fn trace(error: trace::TraceError) -> PyErr {
    with_fields::<TraceError>(error.to_string(), |fields| {
        if let Some((chunk, offset)) = error.place() {
            fields.set_item("chunk", chunk)?;
            fields.set_item("offset", offset)?;
        }
        let path = error.path().map(|path| path.to_path_buf());
        fields.set_item("path", path)
    })
}

pub fn checkpoint(error: CheckpointError) -> PyErr {
    match error {
        CheckpointError::Impossible(_) => NativeError::new_err(error.to_string()),
        damaged => TraceError::new_err(damaged.to_string()),
    }
}

pub fn branch(error: BranchError) -> PyErr {
    match error {
        BranchError::Checkpoint(e) => checkpoint(e),
        BranchError::Machine(e) => machine(e),
        BranchError::Trace(e) => trace(e),
        other => NativeError::new_err(other.to_string()),
    }
}

pub fn session(error: SessionError) -> PyErr {
    match error {
        SessionError::Trace(e) => trace(e),
        SessionError::Divergence(e) => divergence(&e),
        SessionError::Checkpoint(e) => checkpoint(e),
        SessionError::Panicked => EngineError::new_err(error.to_string()),
    }
}

fn divergence(error: &Divergence) -> PyErr {
    with_fields::<DivergenceError>(error.to_string(), |fields| {
        fields.set_item("component", &error.component)?;
        fields.set_item("decision", error.decision)?;
        fields.set_item("moment", error.icount)?;
        fields.set_item("vcpu", error.vcpu)?;
        set_fact(fields, "expected", &error.expected)?;
        set_fact(fields, "found", &error.found)
    })
}

/// Digests, counts and times are numbers; the rest is said in words, and `None` is nothing.
fn set_fact(fields: &Bound<'_, PyDict>, name: &str, fact: &Fact) -> PyResult<()> {
    match fact {
        Fact::Nothing => fields.set_item(name, None::<u64>),
        Fact::Digest(number)
        | Fact::Instructions(number)
        | Fact::SliceStart(number)
        | Fact::SliceEnd(number)
        | Fact::Jump(number)
        | Fact::Wait(Wait::Skipped(number)) => fields.set_item(name, number),
        other => fields.set_item(name, other.to_string()),
    }
}
