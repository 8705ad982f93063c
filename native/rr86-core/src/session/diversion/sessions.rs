//! Leaving a replay for a diversion, and beginning one at a snapshot.

use super::{Choice, Diversion};
use crate::runtime::windows::WindowPolicy;
use crate::session::conditions::Conditions;
use crate::session::error::SessionError;
use crate::session::machine::Machine;
use crate::session::replay::Replay;
use crate::session::run::Session;
use crate::session::scheduler::Scheduler;
use crate::session::snapshot::Snapshot;

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
