//! A machine in motion, and who decides for it.
//!
//! [`Machine`] carries out one decision at a time and never makes one. [`Session`] is the run loop: it asks its
//! [`Decisions`] which vCPU runs next and for how long, has the machine do that, and tells them what became of it.
//! Stops, limits, console output and the time that a call may take are its own. Those who decide are
//!
//! - [`Recording`]: a seeded [`Scheduler`], and a trace that keeps what it decided, from power-on or from a
//!   [`BranchPoint`] on;
//! - [`Replay`]: the trace, and the comparison with what it says;
//! - [`Diversion`]: from a moment of a replay on, a scheduler of its own, or the recorded slices as suggestions;
//! - [`Alone`]: the trace and its [`expansion`], for one vCPU without the others.

mod agent;
mod ahead;
mod alone;
mod branch;
mod checkpoint;
mod checkpointer;
mod conditions;
mod decisions;
mod diversion;
mod error;
mod expander;
pub mod expansion;
mod foreign;
mod last;
mod machine;
mod observe;
mod path;
mod recording;
mod replay;
mod run;
mod run_slice;
mod scheduler;
mod slice;
mod snapshot;
mod suggestions;
#[doc(hidden)]
pub mod testing;
mod verify;

pub use agent::{AgentError, Expression};
pub use alone::Alone;
pub use branch::{BranchError, BranchPoint};
pub use checkpoint::CheckpointError;
pub use checkpointer::Checkpointer;
pub use conditions::{Condition, Conditions};
pub use decisions::{Decisions, Next, Stop};
pub use diversion::Diversion;
pub use error::{Divergence, Fact, SessionError};
pub use expansion::{ExpansionReader, ExpansionWriter};
pub use last::Hit;
pub use machine::{Machine, MachineConfig, MachineError};
pub use path::{Path, Step};
pub use recording::{Recording, DIGEST_INTERVAL};
pub use replay::{Compared, Replay};
pub use run::Session;
pub use scheduler::{Policy, Scheduler, UnknownPolicy};
pub use slice::{Decision, Ending, Finished, SliceReport, SliceStop, Slices, Wait};
pub use snapshot::Snapshot;

// The trace has sizes of its own, so that it needs no machine.
const _: () = {
    use crate::memory::{ram, PAGE_SHIFT, PAGE_SIZE};
    use crate::trace::format;
    assert!(format::PAGE_SIZE as u64 == PAGE_SIZE);
    assert!(format::PAGE_SHIFT == PAGE_SHIFT);
    assert!(format::LINE_SHIFT == ram::LINE_SHIFT);
};
