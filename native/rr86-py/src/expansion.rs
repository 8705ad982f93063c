//! Expansions of traces for Python.

use std::path::Path;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rr86_core::memory::pages::DEVICE;
use rr86_core::session;
use rr86_core::trace::TraceReader;

use crate::errors;

/// A store: (vCPU or -1 for a device, paddr, first, last, rip, old, new).
type Store<'py> = (
    i64,
    u64,
    u64,
    u64,
    u64,
    Bound<'py, PyBytes>,
    Bound<'py, PyBytes>,
);

#[pyclass(frozen, module = "rr86._native")]
pub struct ExpansionReader(session::ExpansionReader);

#[pymethods]
impl ExpansionReader {
    /// The expansion of a trace, or None if there is no whole one.
    #[staticmethod]
    fn open(trace: &str, path: &str) -> PyResult<Option<Self>> {
        let trace = TraceReader::open(Path::new(trace)).map_err(errors::trace)?;
        let reader =
            session::ExpansionReader::open(Path::new(path), &trace).map_err(errors::trace)?;
        Ok(reader.map(Self))
    }

    fn has_stores(&self) -> bool {
        self.0.has_stores()
    }

    fn stores<'py>(&self, py: Python<'py>, paddr: u64, length: u64) -> PyResult<Vec<Store<'py>>> {
        let found = py
            .detach(|| self.0.stores(paddr, length))
            .map_err(errors::trace)?;
        Ok(found
            .iter()
            .map(|e| {
                let agent = if e.agent == DEVICE {
                    -1
                } else {
                    i64::from(e.agent)
                };
                let (old, new) = (PyBytes::new(py, &e.old), PyBytes::new(py, &e.new));
                (agent, e.paddr, e.first, e.last, e.rip, old, new)
            })
            .collect())
    }
}
