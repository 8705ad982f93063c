//! A replay, as Python has it.

use std::path::Path;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use rr86_core::session::{self, Checkpointer, Session};
use rr86_core::trace::TraceReader;

use crate::diversion::Diversion;
use crate::errors::{self, NativeError};
use crate::face::whole_machine;
use crate::held::{scheduler, Held, Return};
use crate::machine::Machine;
use crate::oracle;
use crate::snapshot::Snapshot;
use crate::trace::Events;

/// An instruction: (icount, linear address, bits, bytes).
type StepRow<'py> = (u64, u64, u32, Bound<'py, PyBytes>);

#[pyclass(module = "rr86._native")]
pub struct Replay {
    held: Held<session::Replay>,
}

impl Replay {
    fn of(session: Session<session::Replay>) -> Self {
        let held = Held::new(session);
        Self { held }
    }

    fn returned(&mut self, _found: &Return) {}
}

fn open(path: &str) -> PyResult<TraceReader> {
    TraceReader::open(Path::new(path)).map_err(errors::trace)
}

whole_machine! { Replay {
    #[new]
    #[pyo3(signature = (machine, path, verify=true, checkpoint=None))]
    fn new(
        py: Python<'_>,
        machine: &mut Machine,
        path: &str,
        verify: bool,
        checkpoint: Option<usize>,
    ) -> PyResult<Self> {
        let reader = open(path)?;
        let Some(n) = checkpoint else {
            let machine = machine.take()?;
            return py.detach(|| Session::from_beginning(machine, &reader, verify))
                .map(Self::of)
                .map_err(errors::session);
        };
        let all = reader.checkpoints().map_err(errors::trace)?;
        let info = all.get(n).ok_or_else(|| {
            NativeError::new_err(format!("the trace has no checkpoint {n}"))
        })?;
        let machine = machine.take()?;
        py.detach(|| Session::from_checkpoint(machine, &reader, info, verify))
            .map(Self::of)
            .map_err(errors::session)
    }

    #[staticmethod]
    fn of_events(machine: &mut Machine, events: &Events, verify: bool) -> PyResult<Self> {
        let events = events.take()?;
        Ok(Self::of(Session::replay(machine.take()?, events, verify)))
    }

    #[staticmethod]
    fn from_snapshot(
        py: Python<'_>,
        machine: &mut Machine,
        snapshot: &Snapshot,
        verify: bool,
    ) -> PyResult<Self> {
        let machine = machine.take()?;
        py.detach(|| Session::<session::Replay>::from_snapshot(machine, &snapshot.0, verify))
            .map(Self::of)
            .map_err(errors::session)
    }

    fn snapshot(&mut self, py: Python<'_>, trace: &str) -> PyResult<Snapshot> {
        let reader = open(trace)?;
        let session = self.held.session()?;
        let snapshot = py.detach(|| session.snapshot(&reader));
        snapshot.map(Snapshot).map_err(errors::checkpoint)
    }

    fn stands_before(&mut self, icount: u64) -> PyResult<bool> {
        Ok(self.machine()?.engine.stands_before(icount))
    }

    #[pyo3(signature = (max_instructions, before, conditions, console_patterns=Vec::new(), filters=Vec::new()))]
    fn run_over<'py>(
        &mut self,
        py: Python<'py>,
        max_instructions: u64,
        before: u64,
        conditions: Vec<crate::held::ConditionRow>,
        console_patterns: Vec<Vec<u8>>,
        filters: Vec<crate::held::FilterRow>,
    ) -> PyResult<(Bound<'py, PyDict>, Option<Bound<'py, PyDict>>)> {
        let wanted = crate::held::Wanted {
            rows: conditions,
            patterns: console_patterns,
            filters,
        };
        let (found, hit) = self.held.run_over(py, (max_instructions, before), wanted)?;
        let answer = self.held.answer(py, &found)?;
        Ok((answer, hit.map(|hit| crate::held::hit(py, &hit)).transpose()?))
    }

    fn path<'py>(
        &mut self,
        py: Python<'py>,
        ranges: Vec<(u64, u64)>,
        whole: bool,
    ) -> PyResult<(Vec<StepRow<'py>>, bool)> {
        let session = self.held.session()?;
        let path = py.detach(|| session.path(&ranges, whole)).map_err(errors::session)?;
        let row = |s: &session::Step| (s.icount, s.linear, s.bits, PyBytes::new(py, &s.bytes));
        Ok((path.steps.iter().map(row).collect(), path.gaps))
    }

    #[pyo3(signature = (snapshot, heard=None, ahead=false))]
    fn rewind(
        &mut self,
        py: Python<'_>,
        snapshot: &Snapshot,
        heard: Option<Vec<u8>>,
        ahead: bool,
    ) -> PyResult<()> {
        self.held.moved(heard.unwrap_or_default());
        let session = self.held.session()?;
        let done = py.detach(|| session.rewind(&snapshot.0, ahead));
        if done.is_err() {
            // A machine that is neither here nor there must not run.
            drop(self.held.take()?);
        }
        done.map_err(errors::session)
    }

    fn divert(&mut self) -> PyResult<Diversion> {
        Ok(Diversion::of(self.held.take()?.divert()))
    }

    #[pyo3(signature = (*, seed=0, quantum=100_000, schedule="uniform", window_bias=8192))]
    fn divert_with(
        &mut self,
        py: Python<'_>,
        seed: u64,
        quantum: u64,
        schedule: &str,
        window_bias: u32,
    ) -> PyResult<Diversion> {
        let scheduler = scheduler(schedule, seed, quantum)?;
        let session = self.held.take()?;
        let diversion = py.detach(|| session.divert_with(scheduler));
        let mut diversion = diversion.map_err(errors::session)?;
        diversion.machine.draw_windows(seed, window_bias);
        Ok(Diversion::of(diversion))
    }

    fn make_checkpoints(&mut self, source: &str, path: &str, every: u64) -> PyResult<()> {
        let reader = open(source)?;
        let copy = Checkpointer::create(reader, Path::new(path), every).map_err(errors::trace)?;
        let session = self.held.session()?;
        session.make_checkpoints(copy).map_err(errors::checkpoint)
    }

    fn finish_checkpoints(&mut self, py: Python<'_>) -> PyResult<()> {
        let copy = self.held.session()?.take_checkpointer();
        let copy = copy.ok_or_else(|| NativeError::new_err("no checkpoints are being made"))?;
        py.detach(|| copy.finish()).map_err(errors::trace)
    }

    #[pyo3(signature = (trace, path, stores=false))]
    fn expand_to(&mut self, trace: &str, path: &str, stores: bool) -> PyResult<()> {
        let reader = open(trace)?;
        let session = self.held.session()?;
        session
            .expand(&reader, Path::new(path), stores)
            .map_err(errors::trace)
    }

    fn finish_expansion(&mut self) -> PyResult<()> {
        let session = self.held.session()?;
        session.finish_expansion().map_err(errors::trace)
    }

    fn compared_digests(&mut self) -> PyResult<(u64, u64)> {
        let compared = self.held.session()?.decisions.compared;
        Ok((compared.digests, compared.moments))
    }

    fn oracle_verdict<'py>(&mut self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let engine = &self.machine()?.engine;
        let oracle = engine.oracle();
        oracle
            .map(|o| oracle::verdict(py, o.verdict(), engine.unseen_by_oracle()))
            .transpose()
    }
} }
