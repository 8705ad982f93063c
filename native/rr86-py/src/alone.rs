//! One vCPU alone, as Python has it.

use std::path::Path;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use rr86_core::session::{self, Session};
use rr86_core::trace::TraceReader;

use crate::errors;
use crate::face::session;
use crate::held::{Held, Wanted};
use crate::machine::Machine;

#[pyclass(module = "rr86._native")]
pub struct Alone {
    held: Held<session::Alone>,
}

session! { Alone {
    #[new]
    #[pyo3(signature = (machine, path, expansion, vcpu, verify=true))]
    fn new(
        machine: &mut Machine,
        path: &str,
        expansion: &str,
        vcpu: usize,
        verify: bool,
    ) -> PyResult<Self> {
        let reader = TraceReader::open(Path::new(path)).map_err(errors::trace)?;
        let known = machine.machine()?.check_vcpu(vcpu);
        known.map_err(errors::machine)?;
        let machine = machine.take()?;
        let alone = Session::alone(machine, &reader, Path::new(expansion), vcpu, verify);
        let held = Held::new(alone.map_err(errors::session)?);
        Ok(Self { held })
    }

    fn run<'py>(
        &mut self,
        py: Python<'py>,
        max_instructions: u64,
    ) -> PyResult<Bound<'py, PyDict>> {
        let found = self.held.run(py, max_instructions, Wanted::default(), false)?;
        self.held.answer(py, &found)
    }

    #[getter]
    fn instructions(&mut self) -> PyResult<u64> {
        Ok(self.held.session()?.instructions())
    }
} }
