//! What differs between a recording, a replay, a diversion and one vCPU alone: who decides.

use super::error::SessionError;
use super::machine::Machine;
use super::slice::{Decision, Ending, Finished, SliceReport, Slices};
use crate::host_time::HostTime;

/// Why a run came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The condition with this index holds.
    Condition(usize),
    /// About as many instructions as asked for have run.
    Limit,
    /// The call has lasted long enough, maybe inside a slice; the next one goes on.
    TimeUp,
    /// The machine ended.
    Ended(Ending),
    /// The end of the replayed trace.
    End,
    /// Every vCPU waits, and nothing but input could wake one.
    Deadlock,
    /// Translated code failed on the host; see [`crate::runtime::engine::Engine::host_fault`].
    Failed,
}

/// What happens between two slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// This slice runs.
    Slice(Decision),
    /// One step is done (time has jumped, an event has been followed); there is more before the next slice.
    More,
    /// No slice runs now.
    Stop(Stop),
}

/// The answers to the questions of a run: which vCPU next, for how long, which input now, and whether what
/// happened was expected.
///
/// A [`Session`](super::Session) asks them in a fixed order. Between two slices it asks [`over`](Self::over), then
/// [`next`](Self::next) until that gives a slice; then [`begin`](Self::begin), and [`resume`](Self::resume) as often
/// as the slice was stopped inside; then [`done`](Self::done).
pub trait Decisions {
    /// Whether the slices are decided on now or were recorded.
    fn slices(&self) -> Slices;

    /// Why nothing more will be decided.
    fn over(&self, machine: &Machine) -> Option<Stop>;

    /// Takes one step towards the next slice. Inputs reach the machine here, and what is due between two slices
    /// is served.
    ///
    /// # Errors
    /// [`SessionError`] when the trace cannot be read or written, or the machine differs from the recorded one.
    fn next(&mut self, machine: &mut Machine) -> Result<Next, SessionError>;

    /// Carries a decision out, up to the slice's end or to a stop inside it.
    ///
    /// # Errors
    /// [`SessionError`] when the machine differs from the recorded one.
    fn begin(
        &mut self,
        machine: &mut Machine,
        decision: Decision,
    ) -> Result<SliceReport, SessionError> {
        Ok(machine.run_slice(decision))
    }

    /// Goes on with a slice that was stopped inside.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    fn resume(&mut self, machine: &mut Machine) -> Result<SliceReport, SessionError> {
        Ok(machine.resume())
    }

    /// A slice is over: writes down what it was, or compares it.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    fn done(&mut self, machine: &mut Machine, slice: &Finished) -> Result<(), SessionError>;

    /// The instruction count that limits of a run are about.
    fn progress(&self, machine: &Machine) -> u64 {
        machine.engine.icount()
    }

    /// In a replay, where its trace goes on behind the slice under way.
    fn position(&self) -> Option<(usize, usize)> {
        None
    }

    /// Puts what is known so far where it survives this process, if it is time for that. `returning`: the call
    /// is about to come back to its caller, who may take any time before the next one.
    ///
    /// # Errors
    /// When it cannot be written.
    fn keep(&mut self, _returning: bool) -> Result<(), SessionError> {
        Ok(())
    }

    /// How long the thread that runs the guest has waited for those that read and write traces.
    fn waited(&self) -> HostTime;
}
