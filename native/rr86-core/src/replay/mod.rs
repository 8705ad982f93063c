//! The replaying side of a trace: reading the file that `crate::record` wrote.

pub mod checkpointer;
mod checkpoints;
pub mod reader;
mod replayer;
pub mod scan;
pub mod stream;
pub mod summary;

pub use checkpointer::Checkpointer;
pub use checkpoints::CheckpointInfo;
pub use reader::{ChunkInfo, ImageInfo, TraceReader};
pub use stream::EventStream;
pub use summary::{KindSummary, Summary};

#[cfg(test)]
mod size_tests;
#[cfg(test)]
mod tests;

pub use replayer::{Divergence, ReplayError, Replayer};
