//! Why a session cannot go on, with everything that is known about it.

use std::fmt;

use thiserror::Error;

use super::checkpoint::CheckpointError;
use super::slice::Wait;
use crate::cpu::save::RestoreError;
use crate::runtime::dispatch::RunEnd;
use crate::runtime::inputs::Acquisition;
use crate::trace::{Event, TraceError};

/// Why a session cannot go on.
#[derive(Debug, Error)]
pub enum SessionError {
    /// A trace cannot be read or written, or is damaged.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// A replay left the recorded path.
    #[error(transparent)]
    Divergence(#[from] Box<Divergence>),
    /// A checkpoint or a moment cannot be made or restored.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// An earlier call has panicked, and left the machine as it was then.
    #[error("the machine cannot run on: an earlier call was ended by a bug in rr86")]
    Panicked,
}

/// The replay left the recorded path.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{component} differs at instruction {icount}, vCPU {vcpu}: recorded {expected}, replayed {found}"
)]
pub struct Divergence {
    /// "schedule", "time", "pages", "blocks", "ram", "cpu0", a device, …
    pub component: String,
    /// Slices of the trace that had begun, that of the divergence included.
    pub decision: u64,
    /// Where it was noticed: the instruction count, and the vCPU of the last slice.
    pub icount: u64,
    pub vcpu: u8,
    /// What the recording has.
    pub expected: Fact,
    /// What the replay has instead.
    pub found: Fact,
}

/// Something that a recording and a replay can differ in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// There is no such thing.
    Nothing,
    /// The digest of a component.
    Digest(u64),
    /// The length of a slice.
    Instructions(u64),
    /// A slice starts at this instruction count.
    SliceStart(u64),
    /// A slice ends at this instruction count.
    SliceEnd(u64),
    /// Virtual time jumps to this nanosecond.
    Jump(u64),
    /// What comes before the next slice.
    Wait(Wait),
    /// Whether this vCPU can run.
    Runnable { vcpu: usize, runnable: bool },
    /// An observation, and its instruction count.
    Event(u64, Event),
    /// A vCPU alone acquires a page at this moment.
    Acquired(u64, Acquisition),
    /// A vCPU alone asks a device something.
    Question,
    /// Inputs of a vCPU alone that it has not taken.
    Inputs,
    /// A vCPU alone comes to a stop inside its slice.
    Stopped(RunEnd),
    /// What others did to the state of a vCPU alone cannot be done.
    State(RestoreError),
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => write!(f, "nothing"),
            Self::Digest(value) => write!(f, "digest {value:016x}"),
            Self::Instructions(count) => write!(f, "a slice of {count} instructions"),
            Self::SliceStart(icount) => write!(f, "a slice that starts at {icount}"),
            Self::SliceEnd(icount) => write!(f, "a slice that ends at {icount}"),
            Self::Jump(ns) => write!(f, "a jump to {ns} ns"),
            Self::Wait(Wait::Ready) => write!(f, "a vCPU that can run"),
            Self::Wait(Wait::Skipped(ns)) => write!(f, "a jump to {ns} ns"),
            Self::Wait(Wait::Deadlock) => write!(f, "a deadlock"),
            Self::Wait(Wait::Ended(ending)) => write!(f, "the end of the machine ({ending:?})"),
            Self::Runnable { vcpu, runnable } => {
                let can = if *runnable { "can" } else { "cannot" };
                write!(f, "vCPU {vcpu}, which {can} run")
            }
            Self::Event(icount, event) => write!(f, "{event:?} at {icount}"),
            Self::Acquired(icount, Acquisition { page, write }) => {
                let what = if *write { "writing" } else { "reading" };
                write!(f, "page {page:#x} of RAM acquired for {what} at {icount}")
            }
            Self::Question => write!(f, "a question to a device"),
            Self::Inputs => write!(f, "inputs"),
            Self::Stopped(end) => write!(f, "a stop inside the slice ({end:?})"),
            Self::State(error) => write!(f, "a state that does not fit the log: {error}"),
        }
    }
}
