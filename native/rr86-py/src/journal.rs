//! The journal of a machine for Python.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};
use rr86_core::runtime::engine::Engine;
use rr86_core::runtime::journal::{Entry, Fetch, Noted, Probe};

use crate::errors::NativeError;

/// (address, what to note there as (register, offset, length))
pub type ProbeRow = (u64, Vec<(String, i64, usize)>);

/// General registers, by their numbers in instructions.
const REGISTERS: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];
/// Most bytes that one fetch may have.
const LONGEST: usize = 4096;

/// Keeps a journal from now on, with these probes.
///
/// # Errors
/// For a register that does not exist, and for fetches that are too long.
pub fn keep(engine: &mut Engine, rows: Vec<ProbeRow>) -> PyResult<()> {
    let probes: PyResult<Vec<Probe>> = rows.into_iter().map(probe).collect();
    engine.keep_journal(probes?);
    Ok(())
}

fn probe((rip, rows): ProbeRow) -> PyResult<Probe> {
    let fetch = |(name, offset, length): (String, i64, usize)| {
        let register = REGISTERS.iter().position(|&each| each == name);
        let register = register
            .ok_or_else(|| NativeError::new_err(format!("there is no register {name:?}")))?;
        if length > LONGEST {
            return Err(NativeError::new_err(format!(
                "a probe notes at most {LONGEST} bytes at a time, not {length}"
            )));
        }
        Ok(Fetch {
            register,
            offset,
            length,
        })
    };
    let fetches: PyResult<Vec<Fetch>> = rows.into_iter().map(fetch).collect();
    Ok(Probe {
        rip,
        fetches: fetches?,
    })
}

/// The entries since the last call, and how many did not fit.
pub fn take<'py>(py: Python<'py>, engine: &mut Engine) -> PyResult<(Bound<'py, PyList>, u64)> {
    let (entries, left_out) = engine.take_journal();
    let list = PyList::empty(py);
    for entry in &entries {
        list.append(row(py, entry)?)?;
    }
    Ok((list, left_out))
}

fn row<'py>(py: Python<'py>, entry: &Entry) -> PyResult<Bound<'py, PyTuple>> {
    let head = (entry.time_ns, entry.icount, entry.vcpu);
    let (time, icount, vcpu) = head;
    match &entry.noted {
        Noted::Delivered {
            cause,
            vector,
            timer,
            user,
            from,
            handler,
            stack,
            accumulator,
            address,
        } => {
            let more = (
                vector,
                timer,
                user,
                from,
                handler,
                stack,
                accumulator,
                address,
            );
            (time, icount, vcpu, cause.name(), more).into_pyobject(py)
        }
        Noted::Returned { user, rip, stack } => {
            (time, icount, vcpu, "return", (user, rip, stack)).into_pyobject(py)
        }
        Noted::SystemCall { number, rip } => {
            (time, icount, vcpu, "system-call", (number, rip)).into_pyobject(py)
        }
        Noted::SystemReturn { rip } => {
            (time, icount, vcpu, "system-return", (rip,)).into_pyobject(py)
        }
        Noted::Ipi(ipi) => {
            let more = (ipi.mode, ipi.vector, ipi.targets);
            (time, icount, vcpu, "ipi", more).into_pyobject(py)
        }
        Noted::Output { byte } => (time, icount, vcpu, "output", (byte,)).into_pyobject(py),
        Noted::Probe { number, bytes } => {
            let more = (number, PyBytes::new(py, bytes));
            (time, icount, vcpu, "probe", more).into_pyobject(py)
        }
    }
}
