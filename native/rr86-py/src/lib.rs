//! `rr86._native`: the thin face of `rr86-core` for Python. Conversion and error mapping only.

use pyo3::prelude::*;

#[pymodule]
mod _native {
    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");
}
