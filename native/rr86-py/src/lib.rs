//! `rr86._native`: the thin face of `rr86-core` for Python. Conversion and error mapping only.
//!
//! A `Machine` is set up, and a session takes it over: `Recording`, `Replay`, `Diversion` (which a replay becomes, or
//! a snapshot of one) or `Alone`. What several of them can do is written once, in `face`.

mod alone;
mod blocks;
mod branch;
mod bytes;
mod device;
mod diversion;
mod errors;
mod expansion;
mod face;
mod held;
mod journal;
mod machine;
mod oracle;
mod panics;
mod protocol;
mod recording;
mod replay;
mod snapshot;
mod trace;
mod view;

use pyo3::prelude::*;

#[pymodule]
mod _native {
    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");

    #[pymodule_export]
    use super::protocol::block_protocols;

    #[pymodule_export]
    use super::alone::Alone;
    #[pymodule_export]
    use super::branch::BranchPoint;
    #[pymodule_export]
    use super::diversion::Diversion;
    #[pymodule_export]
    use super::expansion::ExpansionReader;
    #[pymodule_export]
    use super::machine::Machine;
    #[pymodule_export]
    use super::recording::Recording;
    #[pymodule_export]
    use super::replay::Replay;
    #[pymodule_export]
    use super::snapshot::Snapshot;
    #[pymodule_export]
    use super::trace::{Events, TraceReader};

    #[pymodule_init]
    fn init(_module: &pyo3::Bound<'_, pyo3::types::PyModule>) -> pyo3::PyResult<()> {
        super::panics::install();
        Ok(())
    }
}
