//! Bytes of a Python `bytes` object, or of a `memoryview` of a part of one: they cannot change, so the
//! core may keep them without a copy.

use std::ops::Range;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

/// A part of a `bytes` object, which it keeps alive.
pub struct Slice {
    whole: PyBackedBytes,
    part: Range<usize>,
}

impl<'py> FromPyObject<'_, 'py> for Slice {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(bytes) = object.cast::<PyBytes>() {
            let whole = PyBackedBytes::from(bytes.to_owned());
            let part = 0..whole.len();
            return Ok(Self { whole, part });
        }
        let view = PyBuffer::<u8>::get(&object)?;
        let owner = object
            .getattr_opt("obj")?
            .and_then(|owner| owner.cast_into::<PyBytes>().ok())
            .ok_or_else(|| PyTypeError::new_err("expected bytes, or a memoryview of bytes"))?;
        let whole = PyBackedBytes::from(owner);
        let start = (view.buf_ptr() as usize).checked_sub(whole.as_ptr() as usize);
        let end = start.and_then(|start| start.checked_add(view.len_bytes()));
        match (start, end) {
            (Some(start), Some(end)) if view.is_c_contiguous() && end <= whole.len() => Ok(Self {
                whole,
                part: start..end,
            }),
            _ => Err(PyValueError::new_err(
                "a memoryview has to show one piece of its bytes",
            )),
        }
    }
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        &self.whole[self.part.clone()]
    }
}
