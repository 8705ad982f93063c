//! A diversion: a machine taken at a moment of a replay, that goes on without the recording's authority.
//!
//! What it does from there on is its own: nothing is compared, and nothing is written down. It is as deterministic
//! as anything else, so a diversion with the same decisions from the same moment is the same run.

use super::conditions::Conditions;
use super::decisions::{Decisions, Next, Stop};
use super::error::SessionError;
use super::machine::Machine;
use super::observe;
use super::replay::Replay;
use super::run::Session;
use super::scheduler::Scheduler;
use super::slice::{Decision, Finished, Slices, Wait};
use super::snapshot::Snapshot;
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
        machine.engine.observers.events.clear();
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

impl Session<Replay> {
    /// Leaves the recording here, maybe inside a slice. Its slices and inputs become suggestions.
    #[must_use]
    pub fn divert(mut self) -> Session<Diversion> {
        self.machine.engine.dismiss_oracle();
        self.hand_over(|replay| {
            Diversion::of(Choice::Suggestions {
                events: replay.into_events(),
                turn: 0,
            })
        })
    }

    /// Leaves the recording at the end of the slice that is under way, and goes on with another scheduler. The
    /// switches in windows of the block protocol are [`Machine::draw_windows`]' from here on, of which there are none
    /// unless they are asked for.
    ///
    /// # Errors
    /// [`SessionError`] when the slice under way does not end as recorded.
    pub fn divert_with(mut self, scheduler: Scheduler) -> Result<Session<Diversion>, SessionError> {
        while self.inside_slice() {
            self.run(0, &mut Conditions::default())?;
        }
        self.machine.engine.dismiss_oracle();
        self.machine.engine.set_windows(WindowPolicy::Closed);
        let choice = Choice::Scheduler(Box::new(scheduler));
        Ok(self.hand_over(|_| Diversion::of(choice)))
    }
}

impl Session<Diversion> {
    /// A run from a snapshot of a replay, on a machine of the same configuration, with its own scheduler.
    ///
    /// # Errors
    /// [`SessionError`] for a snapshot of another machine.
    pub fn from_snapshot(
        mut machine: Machine,
        snapshot: &Snapshot,
        scheduler: Scheduler,
    ) -> Result<Self, SessionError> {
        snapshot.restore(&mut machine)?;
        let choice = Choice::Scheduler(Box::new(scheduler));
        Ok(Self::start(machine, Diversion::of(choice)))
    }

    /// Queues bytes for the console; they arrive at the next slice boundary.
    pub fn console_input(&mut self, data: &[u8]) {
        self.decisions.input.extend_from_slice(data);
    }
}
