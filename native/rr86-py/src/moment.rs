//! Moments of replays, as Python has them.

use pyo3::prelude::*;
use rr86_core::session;

/// A moment of a replay, for other sessions of its trace.
#[pyclass(frozen, module = "rr86._native")]
pub struct Moment(pub session::Moment);

#[pymethods]
impl Moment {
    #[getter]
    fn icount(&self) -> u64 {
        self.0.icount
    }

    #[pyo3(signature = (other=None))]
    fn bytes_beside(&self, other: Option<&Self>) -> u64 {
        self.0.bytes_beside(other.map(|o| &o.0))
    }
}
