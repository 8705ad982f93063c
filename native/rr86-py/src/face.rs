//! The methods that several classes have, written once. A class has one block of methods, so these macros put the
//! common ones behind its own.

/// Methods of everything that has a machine to look at: of `Machine` itself and of each session. The class has
/// `fn machine(&mut self) -> PyResult<&mut session::Machine>`.
macro_rules! looking {
    ($class:ident { $($own:tt)* }) => {
        #[pymethods]
        impl $class {
            $($own)*

            fn registers<'py>(
                &mut self,
                py: Python<'py>,
                vcpu: usize,
            ) -> PyResult<Bound<'py, pyo3::types::PyDict>> {
                crate::view::registers(py, self.machine()?, vcpu)
            }

            fn fpu_state<'py>(
                &mut self,
                py: Python<'py>,
                vcpu: usize,
            ) -> PyResult<Bound<'py, pyo3::types::PyBytes>> {
                crate::view::fpu_state(py, self.machine()?, vcpu)
            }

            fn read_physical<'py>(
                &mut self,
                py: Python<'py>,
                paddr: u64,
                length: usize,
            ) -> PyResult<Bound<'py, pyo3::types::PyBytes>> {
                crate::view::read_physical(py, self.machine()?, paddr, length)
            }

            fn read_virtual<'py>(
                &mut self,
                py: Python<'py>,
                vcpu: usize,
                address: u64,
                length: usize,
            ) -> PyResult<Bound<'py, pyo3::types::PyBytes>> {
                crate::view::read_virtual(py, self.machine()?, vcpu, address, length)
            }

            fn translate(&mut self, vcpu: usize, address: u64) -> PyResult<Option<u64>> {
                crate::view::translate(self.machine()?, vcpu, address)
            }

            fn digests<'py>(
                &mut self,
                py: Python<'py>,
            ) -> PyResult<Bound<'py, pyo3::types::PyDict>> {
                crate::view::digests(py, self.machine()?)
            }
        }
    };
}

/// Methods of each session. The class has a field `held`.
macro_rules! session {
    ($class:ident { $($own:tt)* }) => {
        impl $class {
            fn machine(&mut self) -> PyResult<&mut rr86_core::session::Machine> {
                self.held.machine()
            }
        }

        crate::face::looking! { $class {
            $($own)*

            fn set_call_limit(&mut self, steps: u32) -> PyResult<()> {
                use rr86_core::host_time::{CallLimit, Limit};
                let limit = CallLimit::new(Limit::Steps(steps));
                self.machine()?.engine.limit_calls(limit);
                Ok(())
            }

            fn current_block<'py>(
                &mut self,
                py: Python<'py>,
                vcpu: usize,
            ) -> PyResult<Option<Bound<'py, pyo3::types::PyDict>>> {
                let machine = self.machine()?;
                machine.check_vcpu(vcpu).map_err(crate::errors::machine)?;
                let engine = &machine.engine;
                let id = engine.current_block(vcpu);
                id.map(|id| crate::blocks::describe(py, engine, id)).transpose()
            }

            fn block<'py>(
                &mut self,
                py: Python<'py>,
                serial: u64,
            ) -> PyResult<Option<Bound<'py, pyo3::types::PyDict>>> {
                let engine = &self.machine()?.engine;
                let id = engine.block_with_serial(serial);
                id.map(|id| crate::blocks::describe(py, engine, id)).transpose()
            }

            fn serialised_at(&mut self, vcpu: usize) -> PyResult<Option<u64>> {
                let machine = self.machine()?;
                machine.check_vcpu(vcpu).map_err(crate::errors::machine)?;
                Ok(machine.engine.serialised_at(vcpu))
            }

            fn log_writes(&mut self, ranges: Vec<(u64, u64)>) -> PyResult<()> {
                self.machine()?.engine.log_writes(ranges);
                Ok(())
            }

            fn logged_writes<'py>(
                &mut self,
                py: Python<'py>,
            ) -> PyResult<Bound<'py, pyo3::types::PyList>> {
                let entries = self.machine()?.engine.take_writes();
                let entries = entries.ok_or_else(|| {
                    crate::errors::NativeError::new_err(
                        "there were too many writes to log them all",
                    )
                })?;
                crate::blocks::writes(py, &entries)
            }

            fn keep_journal(&mut self, probes: Vec<crate::journal::ProbeRow>) -> PyResult<()> {
                crate::journal::keep(&mut self.machine()?.engine, probes)
            }

            fn take_journal<'py>(
                &mut self,
                py: Python<'py>,
            ) -> PyResult<(Bound<'py, pyo3::types::PyList>, u64)> {
                crate::journal::take(py, &mut self.machine()?.engine)
            }

            fn seconds(&mut self) -> PyResult<std::collections::BTreeMap<&'static str, f64>> {
                Ok(crate::view::seconds(&self.held.session()?.spent()))
            }

            fn stats<'py>(
                &mut self,
                py: Python<'py>,
            ) -> PyResult<Bound<'py, pyo3::types::PyDict>> {
                let session = self.held.session()?;
                crate::view::stats(py, &session.machine.engine, session.slices)
            }
        } }
    };
}

/// Methods of the sessions of a whole machine: one with devices, that stops at conditions. The class has
/// `fn returned(&mut self, &Return)`, which is told where each call came back.
macro_rules! whole_machine {
    ($class:ident { $($own:tt)* }) => {
        crate::face::session! { $class {
            $($own)*

            #[pyo3(signature = (max_instructions, conditions=Vec::new(), console_patterns=Vec::new(),
                by_lines=false, filters=Vec::new()))]
            fn run<'py>(
                &mut self,
                py: Python<'py>,
                max_instructions: u64,
                conditions: Vec<crate::held::ConditionRow>,
                console_patterns: Vec<Vec<u8>>,
                by_lines: bool,
                filters: Vec<crate::held::FilterRow>,
            ) -> PyResult<Bound<'py, pyo3::types::PyDict>> {
                let wanted = crate::held::Wanted {
                    rows: conditions,
                    patterns: console_patterns,
                    filters,
                };
                let found = self.held.run(py, max_instructions, wanted, by_lines)?;
                self.returned(&found);
                self.held.answer(py, &found)
            }

            fn branch_point(&mut self, py: Python<'_>) -> PyResult<crate::branch::BranchPoint> {
                let session = self.held.session()?;
                let point = py.detach(|| session.branch_point());
                point.map(crate::branch::BranchPoint).map_err(crate::errors::branch)
            }

            fn console_output<'py>(
                &mut self,
                py: Python<'py>,
            ) -> PyResult<Bound<'py, pyo3::types::PyBytes>> {
                let bytes = self.held.session()?.take_console();
                Ok(pyo3::types::PyBytes::new(py, &bytes))
            }

            fn debugcon_output<'py>(
                &mut self,
                py: Python<'py>,
            ) -> PyResult<(Bound<'py, pyo3::types::PyBytes>, usize)> {
                let (bytes, alone) = self.machine()?.board().take_debugcon_output();
                Ok((pyo3::types::PyBytes::new(py, &bytes), alone))
            }
        } }
    };
}

pub(crate) use {looking, session, whole_machine};
