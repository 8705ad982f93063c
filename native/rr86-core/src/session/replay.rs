//! Replaying: decisions and inputs come from a trace, and what the machine does is compared with what the recorder
//! saw.

mod sessions;

use std::sync::Arc;

use super::ahead::translate_ahead;
use super::checkpointer::Checkpointer;
use super::decisions::{Decisions, Next, Stop};
use super::error::{Fact, SessionError};
use super::expander::Expander;
use super::machine::Machine;
use super::observe;
use super::slice::{Decision, Finished, Slices, Wait};
use super::snapshot::SnapshotPages;
use super::verify::Position;
use crate::host_time::HostTime;
use crate::memory::pages::DEVICE;
use crate::runtime::windows::WindowPolicy;
use crate::trace::{Event, EventStream, SliceEnd};
use crate::trace::{CONSOLE, DEADLOCK, NO_VCPU};

/// How much of the machine's state a replay has found as recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    pub digests: u64,
    pub moments: u64,
}

/// Decisions of a trace, and what else it says of the run.
pub struct Replay {
    events: EventStream,
    verify: bool,
    /// Recorded observations of the slice that is about to run or under way.
    observations: Vec<(u64, Event)>,
    position: Position,
    /// How many instructions the last slice that was read has in the recording.
    instructions: u64,
    /// Digests that were compared and equal, and the moments at which they were.
    pub compared: Compared,
    finished: bool,
    /// Where checkpoints go, if this replay makes them.
    checkpointer: Option<Checkpointer>,
    /// RAM as it was at the last snapshot.
    last_snapshot: Option<SnapshotPages>,
    expander: Option<Box<Expander>>,
}

impl Replay {
    pub(super) fn of(events: EventStream, decisions: u64, verify: bool) -> Self {
        Self {
            events,
            verify,
            observations: Vec::new(),
            position: Position { decisions, vcpu: 0 },
            instructions: 0,
            compared: Compared::default(),
            finished: false,
            checkpointer: None,
            last_snapshot: None,
            expander: None,
        }
    }

    /// What the trace says of the rest of the run.
    pub(super) fn into_events(self) -> EventStream {
        self.events
    }

    /// Follows one event of the trace.
    fn follow(
        &mut self,
        machine: &mut Machine,
        icount: u64,
        event: Event,
    ) -> Result<Next, SessionError> {
        match event {
            Event::Slice {
                vcpu,
                instructions,
                stop,
            } => {
                self.position.vcpu = vcpu;
                self.position.decisions += 1;
                self.instructions = instructions;
                return self.begin_slice(machine, icount, stop).map(Next::Slice);
            }
            Event::TimeSkip { to_ns } => match machine.prepare() {
                Wait::Skipped(to) if to == to_ns => {}
                // The recording ended here, after the last timers had fired.
                Wait::Deadlock | Wait::Ended(_) if to_ns == machine.engine.now() => {}
                other => {
                    let (expected, found) = (Fact::Jump(to_ns), Fact::Wait(other));
                    return Err(self.diverged(machine, "time", expected, found));
                }
            },
            Event::Input { source, bytes } => {
                if source == CONSOLE {
                    machine.console_input(&bytes);
                }
            }
            Event::Digests { list } => {
                if let Some(expander) = &mut self.expander {
                    expander.digests(machine)?;
                }
                self.serve_unrecorded(machine);
                self.check_digests(machine, &list)?;
            }
            Event::Stop { .. } => {}
            other => {
                tell_oracle(machine, icount, &other);
                self.observations.push((icount, other));
            }
        }
        Ok(Next::More)
    }

    /// Whether the slice that was just read can run here.
    fn begin_slice(
        &mut self,
        machine: &mut Machine,
        icount: u64,
        stop: SliceEnd,
    ) -> Result<Decision, SessionError> {
        let window = observe::window(stop);
        machine.engine.set_windows(WindowPolicy::Expect(window));
        let vcpu = usize::from(self.position.vcpu);
        match machine.prepare() {
            Wait::Ready => {}
            other => {
                let (expected, found) = (Fact::Wait(Wait::Ready), Fact::Wait(other));
                return Err(self.diverged(machine, "schedule", expected, found));
            }
        }
        if machine.runnable().get(vcpu) != Some(&true) {
            let can = |runnable| Fact::Runnable { vcpu, runnable };
            return Err(self.diverged(machine, "schedule", can(true), can(false)));
        }
        let now = machine.engine.icount();
        if icount != now {
            let (expected, found) = (Fact::SliceStart(icount), Fact::SliceStart(now));
            return Err(self.diverged(machine, "schedule", expected, found));
        }
        if let Some(expander) = &mut self.expander {
            expander.before_slice(machine, vcpu);
        }
        // The instruction that shuts a vCPU down never retires.
        let more = u64::from(stop == SliceEnd::Shutdown);
        let budget = self.instructions.saturating_add(more);
        Ok(Decision { vcpu, budget })
    }

    /// Before the last digests of an older trace: has timers fire that had in the recording, of which it
    /// does not tell when no vCPU could run any more.
    fn serve_unrecorded(&mut self, machine: &mut Machine) {
        let recorded = machine.semantics().last_timers_are_recorded();
        let next = self.events.upcoming();
        if !recorded && matches!(next, Some(Event::Stop { reason, .. }) if *reason == DEADLOCK) {
            machine.prepare();
        }
    }

    fn diverged(
        &self,
        machine: &Machine,
        component: &str,
        expected: Fact,
        found: Fact,
    ) -> SessionError {
        let icount = machine.engine.icount();
        self.position.diverged(component, icount, expected, found)
    }

    /// Compares what the engine has observed in a slice with what was recorded of it.
    fn check_observations(&mut self, machine: &mut Machine) -> Result<(), SessionError> {
        let recorded = std::mem::take(&mut self.observations);
        if self.verify {
            let observed = machine.engine.observers.events();
            self.position.check_observations(&recorded, observed)?;
        }
        machine.engine.observers.forget_events();
        Ok(())
    }

    fn check_digests(
        &mut self,
        machine: &mut Machine,
        list: &[(Arc<str>, u64)],
    ) -> Result<(), SessionError> {
        if !self.verify && self.checkpointer.is_none() {
            return Ok(());
        }
        let digests = machine.digests();
        if self.verify {
            let icount = machine.engine.icount();
            for (name, value) in &digests {
                self.position.check_digest(icount, list, name, *value)?;
                self.compared.digests += 1;
            }
            self.compared.moments += 1;
        }
        if let (Some(copy), Some(chunks)) = (&mut self.checkpointer, self.events.between_chunks()) {
            copy.at_digests(machine, chunks, &digests)?;
        }
        Ok(())
    }
}

/// Reads a hand-off to the oracle, if one is asked.
fn tell_oracle(machine: &mut Machine, icount: u64, event: &Event) {
    if let (
        Some(oracle),
        &Event::HandOff {
            page, from, lines, ..
        },
    ) = (machine.engine.oracle_mut(), event)
    {
        let from = if from == NO_VCPU { DEVICE } else { from };
        oracle.read_log(icount, page, from, lines);
    }
}

impl Decisions for Replay {
    fn slices(&self) -> Slices {
        Slices::Recorded
    }

    /// A machine that has ended is not enough: the trace has digests of its end.
    fn over(&self, machine: &Machine) -> Option<Stop> {
        self.finished
            .then(|| machine.ending().map_or(Stop::End, Stop::Ended))
    }

    fn next(&mut self, machine: &mut Machine) -> Result<Next, SessionError> {
        translate_ahead(machine, &mut self.events);
        match self.events.next() {
            Some(next) => {
                let (icount, event) = next?;
                self.follow(machine, icount, event)
            }
            None => {
                self.finished = true;
                Ok(Next::More)
            }
        }
    }

    fn done(&mut self, machine: &mut Machine, slice: &Finished) -> Result<(), SessionError> {
        if let Some(expander) = &mut self.expander {
            expander.after_slice(machine, slice.vcpu);
        }
        if slice.instructions != self.instructions {
            let expected = Fact::Instructions(self.instructions);
            let found = Fact::Instructions(slice.instructions);
            return Err(self.diverged(machine, "schedule", expected, found));
        }
        self.check_observations(machine)
    }

    fn position(&self) -> Option<(usize, usize)> {
        Some(self.events.position())
    }

    fn waited(&self) -> HostTime {
        self.events.waited()
    }
}
