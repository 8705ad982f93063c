//! Where branches begin, as Python has it.

use pyo3::prelude::*;
use rr86_core::session;

/// A whole machine at a moment, for any number of recordings to begin with.
#[pyclass(frozen, module = "rr86._native")]
pub struct BranchPoint(pub session::BranchPoint);

#[pymethods]
impl BranchPoint {
    #[getter]
    fn icount(&self) -> u64 {
        self.0.icount
    }

    #[getter]
    fn vcpu(&self) -> usize {
        self.0.vcpu
    }
}
