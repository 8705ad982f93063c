//! The machine in motion: virtual time, wake-ups, and which vCPU runs for how long.
//!
//! `machine` executes one decision at a time and never makes one; `scheduler` makes decisions from a
//! seed. A recorder feeds the one with the other and writes the decisions down; a replayer feeds the
//! machine from the trace.

pub mod checkpoint;
pub mod conditions;
pub mod machine;
pub mod scheduler;

pub use checkpoint::CheckpointError;
pub use conditions::{Condition, Conditions};
pub use machine::{
    Decision, Ending, Machine, MachineConfig, MachineError, SliceReport, SliceStop, Wait,
};
pub use scheduler::{Policy, Scheduler};
