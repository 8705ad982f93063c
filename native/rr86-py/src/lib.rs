//! `rr86._native`: the thin face of `rr86-core` for Python. Conversion and error mapping only.

mod blocks;
mod bytes;
mod device;
mod errors;
mod expansion;
mod machine;
mod oracle;
mod panics;
mod trace;

use pyo3::prelude::*;

#[pymodule]
mod _native {
    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");

    #[pymodule_export]
    use super::machine::{block_protocols, disable_shortcuts};

    #[pymodule_export]
    use super::expansion::ExpansionReader;
    #[pymodule_export]
    use super::machine::{Machine, Moment};
    #[pymodule_export]
    use super::trace::{Events, TraceReader};

    #[pymodule_init]
    fn init(_module: &pyo3::Bound<'_, pyo3::types::PyModule>) -> pyo3::PyResult<()> {
        super::panics::install();
        Ok(())
    }
}
