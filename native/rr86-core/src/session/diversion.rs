//! A diversion: a machine taken at a moment of a replay, that goes on without the recording's authority.
//!
//! What it does from there on is its own: nothing is compared, and nothing is written down. It is as deterministic
//! as anything else, so a diversion with the same decisions from the same moment is the same run.

mod sessions;

use super::decisions::{Decisions, Next, Stop};
use super::error::SessionError;
use super::machine::Machine;
use super::observe;
use super::scheduler::Scheduler;
use super::slice::{Decision, Finished, Slices, Wait};
use crate::host_time::HostTime;
use crate::runtime::windows::WindowPolicy;
use crate::trace::{Event, EventStream, CONSOLE};

/// Instructions in a slice for which the recording has no suggestion.
const OWN_SLICE: u64 = 10_000;

/// Who decides.
enum Choice {
    /// A scheduler of its own.
    Scheduler(Box<Scheduler>),
    /// The recorded slices and inputs are suggestions. Where one does not fit, and after the last, the vCPUs take
    /// turns, of which this is the last.
    Suggestions { events: EventStream, turn: usize },
}

/// Decisions of a run that has left its recording.
pub struct Diversion {
    choice: Choice,
    /// Bytes for the console that wait for the next slice boundary.
    input: Vec<u8>,
}

impl Diversion {
    fn of(choice: Choice) -> Self {
        let input = Vec::new();
        Self { choice, input }
    }
}

/// The next slice that the recording suggests, or a vCPU's turn.
fn suggested(
    machine: &mut Machine,
    events: &mut EventStream,
    turn: &mut usize,
) -> Result<Option<Decision>, SessionError> {
    let runnable = machine.runnable();
    for next in events.by_ref() {
        match next?.1 {
            Event::Slice {
                vcpu,
                instructions,
                stop,
            } => {
                let vcpu = usize::from(vcpu);
                if runnable.get(vcpu) != Some(&true) {
                    break;
                }
                let window = observe::window(stop);
                machine.engine.set_windows(WindowPolicy::Expect(window));
                let budget = instructions;
                return Ok(Some(Decision { vcpu, budget }));
            }
            Event::Input { source, bytes } if source == CONSOLE => machine.console_input(&bytes),
            _ => {}
        }
    }
    machine.engine.set_windows(WindowPolicy::Closed);
    let count = runnable.len();
    let mut turns = (1..=count).map(|step| (*turn + step) % count);
    let next = turns.find(|&v| runnable[v]);
    Ok(next.map(|vcpu| {
        *turn = vcpu;
        let budget = OWN_SLICE;
        Decision { vcpu, budget }
    }))
}

impl Decisions for Diversion {
    fn slices(&self) -> Slices {
        match self.choice {
            Choice::Scheduler(_) => Slices::New,
            Choice::Suggestions { .. } => Slices::Recorded,
        }
    }

    fn over(&self, machine: &Machine) -> Option<Stop> {
        machine.ending().map(Stop::Ended)
    }

    fn next(&mut self, machine: &mut Machine) -> Result<Next, SessionError> {
        if !self.input.is_empty() {
            machine.console_input(&std::mem::take(&mut self.input));
        }
        match machine.prepare() {
            Wait::Ready => {}
            Wait::Skipped(_) => return Ok(Next::More),
            Wait::Deadlock => return Ok(Next::Stop(Stop::Deadlock)),
            Wait::Ended(ending) => return Ok(Next::Stop(Stop::Ended(ending))),
        }
        let decision = match &mut self.choice {
            Choice::Scheduler(scheduler) => Some(scheduler.next(&machine.runnable())),
            Choice::Suggestions { events, turn } => suggested(machine, events, turn)?,
        };
        Ok(decision.map_or(Next::Stop(Stop::Deadlock), Next::Slice))
    }

    fn done(&mut self, machine: &mut Machine, slice: &Finished) -> Result<(), SessionError> {
        machine.engine.observers.forget_events();
        if let Choice::Scheduler(scheduler) = &mut self.choice {
            scheduler.note(slice.stop);
        }
        Ok(())
    }

    fn waited(&self) -> HostTime {
        match &self.choice {
            Choice::Scheduler(_) => HostTime::default(),
            Choice::Suggestions { events, .. } => events.waited(),
        }
    }
}
