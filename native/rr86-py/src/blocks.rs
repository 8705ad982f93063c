//! Blocks and logged writes for Python.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use rr86_core::runtime::agent::Agent;
use rr86_core::runtime::cache::BlockId;
use rr86_core::runtime::engine::Engine;
use rr86_core::runtime::writelog::Logged;

/// What there is to know about a block.
pub fn describe<'py>(
    py: Python<'py>,
    engine: &Engine,
    id: BlockId,
) -> PyResult<Bound<'py, PyDict>> {
    let block = engine.blocks().get(id);
    let d = PyDict::new(py);
    d.set_item("serial", block.serial)?;
    d.set_item("rip", block.rip)?;
    d.set_item("mode", block.mode.0)?;
    d.set_item("bits", block.mode.bits())?;
    d.set_item("instructions", block.count)?;
    d.set_item("ranges", block.ranges().collect::<Vec<(u64, u64)>>())?;
    d.set_item("source", PyBytes::new(py, &block.bytes))?;
    d.set_item("memory", PyBytes::new(py, &engine.memory_of(block)))?;
    d.set_item("stale", engine.is_stale(id))?;
    d.set_item("vcpu", block.made.by)?;
    d.set_item("fetched_at", block.made.fetched_at)?;
    d.set_item("linked_at", block.made.linked_at)?;
    Ok(d)
}

/// Logged writes, in the order in which they were committed.
pub fn writes<'py>(py: Python<'py>, entries: &[Logged]) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for entry in entries {
        let d = PyDict::new(py);
        let vcpu = match entry.agent {
            Agent::Vcpu(v) => Some(v),
            Agent::Device => None,
        };
        d.set_item("vcpu", vcpu)?;
        d.set_item("checked", entry.checked)?;
        d.set_item("committed", entry.committed)?;
        d.set_item("rip", entry.rip)?;
        d.set_item("linear", entry.linear)?;
        d.set_item("paddr", entry.paddr)?;
        d.set_item("old", PyBytes::new(py, &entry.old))?;
        d.set_item("new", PyBytes::new(py, &entry.new))?;
        d.set_item("passage", entry.passage.name())?;
        list.append(d)?;
    }
    Ok(list)
}
