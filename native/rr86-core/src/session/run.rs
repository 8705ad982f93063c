//! The run loop: the same for everything that runs a machine. What differs is in [`Decisions`].

use super::conditions::Conditions;
use super::decisions::{Decisions, Next, Stop};
use super::error::SessionError;
use super::machine::Machine;
use super::slice::SliceReport;
use crate::host_time::{Phase, Spent, Stopwatch};
use crate::runtime::stops::StopCause;

/// A machine under way, and who decides for it.
pub struct Session<D> {
    pub machine: Machine,
    pub decisions: D,
    /// Whether `run` comes back with [`Stop::Limit`] after the slice in which the guest has completed a
    /// line of console output, so that somebody who reads it need not wait.
    pub by_lines: bool,
    /// vCPU of the last slice.
    pub vcpu: usize,
    /// Slices that have run to their end.
    pub slices: u64,
    /// Output of COM1 that waits to be taken.
    console: Vec<u8>,
    /// A slice was stopped inside, and goes on at the next call.
    inside: bool,
    /// A call is under way, or was when it panicked.
    called: bool,
}

impl<D: Decisions> Session<D> {
    /// A session of a machine that stands between two slices.
    pub fn start(mut machine: Machine, decisions: D) -> Self {
        machine.slices = decisions.slices();
        Self {
            machine,
            decisions,
            by_lines: false,
            vcpu: 0,
            slices: 0,
            console: Vec::new(),
            inside: false,
            called: false,
        }
    }

    /// The same machine, maybe inside a slice, with somebody else to decide for it from here on.
    pub(super) fn hand_over<E: Decisions>(self, other: impl FnOnce(D) -> E) -> Session<E> {
        let mut session = Session {
            decisions: other(self.decisions),
            machine: self.machine,
            by_lines: self.by_lines,
            vcpu: self.vcpu,
            slices: self.slices,
            console: self.console,
            inside: self.inside,
            called: self.called,
        };
        session.machine.slices = session.decisions.slices();
        session
    }

    /// Whether a slice is under way.
    pub fn inside_slice(&self) -> bool {
        self.inside
    }

    /// After the machine was brought to another moment: what it has sent before is over.
    pub(super) fn stand_between_slices(&mut self) {
        self.inside = false;
        self.machine.board().take_serial_output();
        self.machine.board().take_debugcon_output();
        self.console.clear();
    }

    /// Console output since the last call.
    pub fn take_console(&mut self) -> Vec<u8> {
        self.console
            .extend(self.machine.board().take_serial_output());
        std::mem::take(&mut self.console)
    }

    /// What the run has cost the host.
    pub fn spent(&self) -> Spent {
        let mut spent = self.machine.engine.observers.spent();
        spent.add(Phase::Trace, self.decisions.waited());
        spent
    }

    /// Runs until a condition holds, nothing more will be decided, or about `limit` instructions have retired.
    ///
    /// # Errors
    /// [`SessionError`] when a trace cannot be read or written, the machine does something else than recorded, or an
    /// earlier call has panicked. A machine whose trace could not be written has stopped at a slice boundary.
    pub fn run(&mut self, limit: u64, conditions: &mut Conditions) -> Result<Stop, SessionError> {
        if std::mem::replace(&mut self.called, true) {
            return Err(SessionError::Panicked);
        }
        let watch = Stopwatch::start();
        self.machine.engine.begin_call();
        conditions.arm(&mut self.machine);
        let stop = self.drive(limit, conditions);
        let kept = self.decisions.keep(true);
        self.machine.engine.observers.spend_call(watch.read());
        self.called = false;
        kept.and(stop)
    }

    fn drive(&mut self, limit: u64, conditions: &mut Conditions) -> Result<Stop, SessionError> {
        let end = self.decisions.progress(&self.machine).saturating_add(limit);
        loop {
            if self.machine.engine.host_fault().is_some() {
                return Ok(Stop::Failed);
            }
            self.decisions.keep(false)?;
            let report = if self.inside {
                self.decisions.resume(&mut self.machine)?
            } else {
                match self.between_slices(end)? {
                    Next::Slice(decision) => {
                        self.vcpu = decision.vcpu;
                        self.decisions.begin(&mut self.machine, decision)?
                    }
                    Next::More => continue,
                    Next::Stop(stop) => return Ok(stop),
                }
            };
            self.inside = matches!(report, SliceReport::Stopped(_) | SliceReport::TimeUp);
            if let Some(stop) = self.after(report, conditions)? {
                return Ok(stop);
            }
        }
    }

    fn between_slices(&mut self, end: u64) -> Result<Next, SessionError> {
        if let Some(stop) = self.decisions.over(&self.machine) {
            return Ok(Next::Stop(stop));
        }
        if self.decisions.progress(&self.machine) >= end {
            return Ok(Next::Stop(Stop::Limit));
        }
        if self.machine.engine.call_is_over() {
            return Ok(Next::Stop(Stop::TimeUp));
        }
        self.machine.engine.count_step();
        self.decisions.next(&mut self.machine)
    }

    /// What becomes of the run now that a slice is over, or was stopped inside.
    fn after(
        &mut self,
        report: SliceReport,
        conditions: &mut Conditions,
    ) -> Result<Option<Stop>, SessionError> {
        Ok(match report {
            SliceReport::Done(slice) => {
                self.slices += 1;
                self.decisions.done(&mut self.machine, &slice)?;
                let heard = self.listen(conditions);
                heard.or_else(|| (self.by_lines && self.has_line()).then_some(Stop::Limit))
            }
            SliceReport::Failed => {
                // The slice has no end, so what it did cannot be written down or compared.
                self.machine.engine.observers.forget_events();
                Some(Stop::Failed)
            }
            SliceReport::TimeUp => Some(Stop::TimeUp),
            SliceReport::Stopped(StopCause::Output) => self.listen(conditions),
            SliceReport::Stopped(cause) => conditions
                .index_of(&mut self.machine, self.vcpu, cause)
                .map(Stop::Condition),
        })
    }

    /// Takes over new console output; some condition may have waited for it.
    fn listen(&mut self, conditions: &mut Conditions) -> Option<Stop> {
        let output = self.machine.board().take_serial_output();
        self.console.extend_from_slice(&output);
        conditions.console(&output).map(Stop::Condition)
    }

    /// Whether console output that waits to be taken has a whole line. Not when the machine has ended: that is
    /// what the call comes back with.
    fn has_line(&mut self) -> bool {
        self.machine.ending().is_none()
            && (self.console.contains(&b'\n') || self.machine.board().has_debugcon_line())
    }
}
