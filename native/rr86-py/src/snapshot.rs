//! Snapshots of replays, as Python has them.

use pyo3::prelude::*;
use rr86_core::session;

/// A machine kept at a moment of a replay, for other sessions of its trace to begin at.
#[pyclass(frozen, module = "rr86._native")]
pub struct Snapshot(pub session::Snapshot);

#[pymethods]
impl Snapshot {
    #[getter]
    fn icount(&self) -> u64 {
        self.0.icount
    }

    #[pyo3(signature = (other=None))]
    fn bytes_beside(&self, other: Option<&Self>) -> u64 {
        self.0.bytes_beside(other.map(|o| &o.0))
    }
}
