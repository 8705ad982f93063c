//! What the oracle has found, as Python has it.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use rr86_core::memory::pages::DEVICE;
use rr86_core::runtime::oracle::Verdict;

fn agent(number: u8) -> Option<u8> {
    (number != DEVICE).then_some(number)
}

/// A verdict as a dictionary.
pub fn verdict<'py>(
    py: Python<'py>,
    verdict: &Verdict,
    unseen: Option<u64>,
) -> PyResult<Bound<'py, PyDict>> {
    let gaps = PyList::empty(py);
    for gap in &verdict.gaps {
        let d = PyDict::new(py);
        d.set_item("writer", agent(gap.writer))?;
        d.set_item("written", gap.written)?;
        d.set_item("agent", agent(gap.agent))?;
        d.set_item("access", gap.access.name())?;
        d.set_item("icount", gap.icount)?;
        d.set_item("rip", gap.rip)?;
        d.set_item("paddr", gap.paddr)?;
        d.set_item("lines", gap.lines)?;
        d.set_item("accesses", gap.accesses)?;
        gaps.append(d)?;
    }
    let d = PyDict::new(py);
    d.set_item("accesses", verdict.accesses)?;
    d.set_item("foreign", verdict.foreign)?;
    d.set_item("hand_offs", verdict.hand_offs)?;
    d.set_item("missing", verdict.missing)?;
    d.set_item("unseen", unseen)?;
    d.set_item("gaps", gaps)?;
    Ok(d)
}
