//! A diversion, as Python has it.

use pyo3::prelude::*;
use rr86_core::session::{self, Session};

use crate::errors;
use crate::face::whole_machine;
use crate::held::{scheduler, Held, Return};
use crate::machine::Machine;
use crate::snapshot::Snapshot;

#[pyclass(module = "rr86._native")]
pub struct Diversion {
    held: Held<session::Diversion>,
}

impl Diversion {
    pub fn of(session: Session<session::Diversion>) -> Self {
        let held = Held::new(session);
        Self { held }
    }

    fn returned(&mut self, _found: &Return) {}
}

whole_machine! { Diversion {
    #[staticmethod]
    #[pyo3(signature = (machine, snapshot, *, seed=0, quantum=100_000, schedule="uniform",
        window_bias=8192))]
    fn from_snapshot(
        py: Python<'_>,
        machine: &mut Machine,
        snapshot: &Snapshot,
        seed: u64,
        quantum: u64,
        schedule: &str,
        window_bias: u32,
    ) -> PyResult<Self> {
        let scheduler = scheduler(schedule, seed, quantum)?;
        let machine = machine.take()?;
        let begin = || Session::<session::Diversion>::from_snapshot(machine, &snapshot.0, scheduler);
        let mut session = py.detach(begin).map_err(errors::session)?;
        session.machine.draw_windows(seed, window_bias);
        Ok(Self::of(session))
    }

    fn console_input(&mut self, data: &[u8]) -> PyResult<()> {
        self.held.session()?.console_input(data);
        Ok(())
    }

    fn invalidate_block(&mut self, serial: u64) -> PyResult<bool> {
        Ok(self.machine()?.engine.invalidate_serial(serial))
    }

    fn refetch_block(&mut self, serial: u64, vcpu: usize, fetched: u64) -> PyResult<()> {
        self.machine()?.engine.refetch(serial, vcpu, fetched);
        Ok(())
    }
} }
