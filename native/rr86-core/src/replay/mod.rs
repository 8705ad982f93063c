//! The replaying side of a run.

pub mod checkpointer;
mod expand;
pub mod expansion;
mod moment;
mod replayer;
mod solo;

pub use checkpointer::Checkpointer;
pub use expand::Expander;
pub use expansion::{ExpansionReader, ExpansionWriter};
pub use moment::Moment;
pub use replayer::{Divergence, ReplayError, Replayer};
pub use solo::Solo;
