//! Recording: a scheduler decides, input comes from outside, and a trace keeps what was decided. Without a trace
//! it just runs the machine.

mod sessions;

use std::sync::Arc;

use super::checkpointer::write_checkpoint;
use super::decisions::{Decisions, Next, Stop};
use super::error::SessionError;
use super::machine::Machine;
use super::observe;
use super::scheduler::Scheduler;
use super::slice::{Decision, Finished, Slices, Wait};
use super::suggestions::{Suggestion, Suggestions};
use crate::host_time::{Cadence, HostTime};
use crate::runtime::windows::WindowPolicy;
use crate::trace::{Event, TraceError, TraceWriter, CONSOLE};

/// Instructions between two sets of digests, and the most that a chunk covers.
pub const DIGEST_INTERVAL: u64 = 100_000_000;

/// Names of components, shared by all digest events of a trace.
#[derive(Default)]
struct Names(Vec<Arc<str>>);

impl Names {
    /// The event that tells of these digests.
    fn event(&mut self, digests: Vec<(String, u64)>) -> Event {
        let list = digests
            .into_iter()
            .map(|(name, value)| {
                let known = self.0.iter().find(|n| ***n == *name).cloned();
                let name = known.unwrap_or_else(|| {
                    let name: Arc<str> = name.into();
                    self.0.push(name.clone());
                    name
                });
                (name, value)
            })
            .collect();
        Event::Digests { list }
    }
}

/// Decisions of a scheduler, and the trace that keeps them.
pub struct Recording {
    scheduler: Scheduler,
    writer: Option<TraceWriter>,
    /// When the side file gets its next events.
    cadence: Cadence,
    /// Length of the trace once it is closed, and what waiting for that cost.
    closed_bytes: u64,
    closed_waiting: HostTime,
    names: Names,
    next_digest: u64,
    /// Instructions between two checkpoints, and the moment of the next.
    checkpoints: Option<(u64, u64)>,
    /// Bytes for the console that wait for the next slice boundary.
    input: Vec<u8>,
    /// What decides before the scheduler does.
    pub(super) suggestions: Option<Suggestions>,
    /// The moment at which a branch began; `None` after power-on.
    pub(super) began: Option<u64>,
}

impl Recording {
    /// Whether it keeps a trace, or has.
    pub(super) fn has_trace(&self) -> bool {
        self.writer.is_some() || self.closed_bytes != 0
    }

    fn push(&mut self, icount: u64, event: &Event) -> Result<(), TraceError> {
        match &mut self.writer {
            Some(writer) => writer.push(icount, event),
            None => Ok(()),
        }
    }

    /// Digests, and a checkpoint if it is time for one. The chunk under way ends.
    fn take_stock(&mut self, machine: &mut Machine, icount: u64) -> Result<(), TraceError> {
        let due = self.checkpoints.is_some_and(|(_, next)| icount >= next);
        if icount < self.next_digest && !due {
            return Ok(());
        }
        let Some(writer) = &mut self.writer else {
            return Ok(());
        };
        self.next_digest = icount + DIGEST_INTERVAL;
        let digests = machine.digests();
        writer.push(icount, &self.names.event(digests.clone()))?;
        match self.checkpoints {
            Some((every, next)) if icount >= next => {
                self.checkpoints = Some((every, icount.saturating_add(every)));
                write_checkpoint(machine, writer, &digests)
            }
            _ => writer.seal(),
        }
    }

    fn give_input(&mut self, machine: &mut Machine, icount: u64) -> Result<(), TraceError> {
        if let Some(suggestions) = &mut self.suggestions {
            while let Some(bytes) = suggestions.input()? {
                self.input.extend(bytes);
            }
        }
        if self.input.is_empty() {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.input);
        machine.console_input(&bytes);
        let source = CONSOLE;
        self.push(icount, &Event::Input { source, bytes })
    }

    /// Which vCPU runs next: the suggested one if it can, otherwise whom the scheduler says.
    fn decide(&mut self, machine: &mut Machine) -> Result<Decision, TraceError> {
        let runnable = machine.runnable();
        if let Some(suggestions) = &mut self.suggestions {
            if let Some(Suggestion { decision, window }) = suggestions.slice()? {
                if runnable.get(decision.vcpu) == Some(&true) {
                    machine.slices = Slices::Recorded;
                    machine.engine.set_windows(WindowPolicy::Expect(window));
                    return Ok(decision);
                }
            }
            machine.slices = Slices::New;
            machine.engine.set_windows(WindowPolicy::Closed);
        }
        Ok(self.scheduler.next(&runnable))
    }

    /// Writes down what the engine has observed.
    fn drain(&mut self, machine: &mut Machine) -> Result<(), TraceError> {
        let mut observed = machine.engine.observers.take_events();
        if let Some(writer) = &mut self.writer {
            for (icount, what) in &mut observed {
                writer.push(icount, &observe::event(&what))?;
            }
        }
        Ok(())
    }
}

impl Decisions for Recording {
    fn slices(&self) -> Slices {
        Slices::New
    }

    fn over(&self, machine: &Machine) -> Option<Stop> {
        machine.ending().map(Stop::Ended)
    }

    fn next(&mut self, machine: &mut Machine) -> Result<Next, SessionError> {
        let icount = machine.engine.icount();
        self.take_stock(machine, icount)?;
        self.give_input(machine, icount)?;
        let noted = machine.semantics().last_timers_are_recorded();
        let due = noted && machine.is_due();
        let stop = match machine.prepare() {
            Wait::Ready => return Ok(Next::Slice(self.decide(machine)?)),
            Wait::Skipped(to_ns) => {
                if let Some(suggestions) = &mut self.suggestions {
                    suggestions.pass_skip()?;
                }
                self.push(icount, &Event::TimeSkip { to_ns })?;
                return Ok(Next::More);
            }
            Wait::Deadlock => Stop::Deadlock,
            Wait::Ended(ending) => Stop::Ended(ending),
        };
        if due {
            // No slice and no jump of time follows that would tell of the timers that fired last, and they have left
            // their marks on the devices. So this is a jump to where time is already.
            let to_ns = machine.engine.now();
            self.push(icount, &Event::TimeSkip { to_ns })?;
        }
        Ok(Next::Stop(stop))
    }

    fn done(&mut self, machine: &mut Machine, slice: &Finished) -> Result<(), SessionError> {
        self.drain(machine)?;
        self.scheduler.note(slice.stop);
        let event = Event::Slice {
            vcpu: slice.vcpu as u8,
            instructions: slice.instructions,
            stop: observe::slice_end(slice.stop),
        };
        Ok(self.push(slice.start, &event)?)
    }

    fn keep(&mut self, returning: bool) -> Result<(), SessionError> {
        if returning || self.cadence.due() {
            if let Some(writer) = &mut self.writer {
                writer.keep()?;
            }
        }
        Ok(())
    }

    fn waited(&self) -> HostTime {
        let written = self.writer.as_ref().map(TraceWriter::waited);
        let mut waited = written.unwrap_or(self.closed_waiting);
        if let Some(suggestions) = &self.suggestions {
            waited += suggestions.waited();
        }
        waited
    }
}
