//! A recording, as Python has it.

use std::path::Path;

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;
use rr86_core::contents::Contents;
use rr86_core::session::{self, Session};
use rr86_core::trace::TraceReader;

use crate::branch::BranchPoint;
use crate::errors;
use crate::face::whole_machine;
use crate::held::{scheduler, Held, Return};
use crate::machine::Machine;
use crate::protocol::BlockProtocol;
use crate::view;

#[pyclass(module = "rr86._native")]
pub struct Recording {
    held: Held<session::Recording>,
    /// What the trace's closing event says of the last stop.
    last: (u8, u32, String),
}

impl Recording {
    fn returned(&mut self, found: &Return) {
        self.last = found.closing();
    }
}

whole_machine! { Recording {
    #[new]
    #[pyo3(signature = (machine, *, seed=0, quantum=100_000, schedule="uniform", window_bias=8192))]
    fn new(
        machine: &mut Machine,
        seed: u64,
        quantum: u64,
        schedule: &str,
        window_bias: u32,
    ) -> PyResult<Self> {
        let scheduler = scheduler(schedule, seed, quantum)?;
        let mut session = Session::record(machine.take()?, scheduler);
        session.machine.draw_windows(seed, window_bias);
        Ok(Self {
            held: Held::new(session),
            last: (0, 0, String::new()),
        })
    }

    #[staticmethod]
    #[pyo3(signature = (machine, point, *, seed=0, quantum=100_000, schedule="uniform",
        window_bias=8192))]
    fn branch(
        py: Python<'_>,
        machine: &mut Machine,
        point: &BranchPoint,
        seed: u64,
        quantum: u64,
        schedule: &str,
        window_bias: u32,
    ) -> PyResult<Self> {
        let scheduler = scheduler(schedule, seed, quantum)?;
        let machine = machine.take()?;
        let session = py.detach(|| Session::branch(machine, &point.0, scheduler));
        let mut session = session.map_err(errors::session)?;
        session.machine.draw_windows(seed, window_bias);
        Ok(Self {
            held: Held::new(session),
            last: (0, 0, String::new()),
        })
    }

    #[pyo3(signature = (path, header, images, checkpoints=None))]
    fn record_to(
        &mut self,
        path: &str,
        header: &[u8],
        images: Vec<(String, PyBackedBytes)>,
        checkpoints: Option<u64>,
    ) -> PyResult<()> {
        let session = self.held.session()?;
        let images: Vec<(String, Contents)> = images
            .into_iter()
            .map(|(name, data)| (name, Contents::new(data)))
            .collect();
        if let (Some(every), false) = (checkpoints, session.is_branch()) {
            session.set_checkpoints(every).map_err(errors::checkpoint)?;
        }
        session
            .record_to(Path::new(path), header, &images)
            .map_err(errors::session)?;
        if let (Some(every), true) = (checkpoints, session.is_branch()) {
            session.set_checkpoints(every).map_err(errors::checkpoint)?;
        }
        Ok(())
    }

    fn change_memory(&mut self, paddr: u64, data: &[u8]) -> PyResult<()> {
        let session = self.held.session()?;
        session.change_memory(paddr, data).map_err(errors::branch)
    }

    fn change_protocol(&mut self, protocol: BlockProtocol) -> PyResult<()> {
        let session = self.held.session()?;
        session.change_protocol(protocol.into()).map_err(errors::branch)
    }

    fn follow(&mut self, point: &BranchPoint, trace: &str) -> PyResult<()> {
        let reader = TraceReader::open(Path::new(trace)).map_err(errors::trace)?;
        let session = self.held.session()?;
        session.follow(&point.0, &reader).map_err(errors::branch)
    }

    fn finish(&mut self, footer: &[u8]) -> PyResult<()> {
        let (reason, code, detail) = &self.last;
        let session = self.held.session()?;
        session
            .finish(*reason, *code, detail, footer)
            .map_err(errors::session)
    }

    fn without_side_file(&mut self) -> PyResult<Option<String>> {
        Ok(self.held.session()?.without_tail().map(ToString::to_string))
    }

    fn trace_bytes(&mut self) -> PyResult<u64> {
        Ok(self.held.session()?.trace_bytes())
    }

    fn console_input(&mut self, data: &[u8]) -> PyResult<()> {
        self.held.session()?.console_input(data);
        Ok(())
    }

    fn detect_stale(&mut self, on: bool) -> PyResult<()> {
        self.machine()?.engine.detect_stale(on);
        Ok(())
    }

    fn touched_ram<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(view::touched_ram(py, self.machine()?))
    }
} }
