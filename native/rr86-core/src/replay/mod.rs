//! The replaying side of a trace: reading the file that `crate::record` wrote.

pub mod checkpointer;
mod checkpoints;
mod expand;
pub mod expansion;
mod moment;
pub mod reader;
mod replayer;
pub mod scan;
mod sharing;
mod solo;
pub mod stream;
pub mod summary;
pub mod survey;
mod tail;

pub use checkpointer::Checkpointer;
pub use checkpoints::CheckpointInfo;
pub use moment::Moment;
pub use reader::{ChunkInfo, ImageInfo, TraceReader};
pub use sharing::{HandOffRow, SharedLine, SharedPage, Sharing};
pub use stream::EventStream;
pub use summary::{KindSummary, Summary};
pub use tail::SideFile;

#[cfg(test)]
mod size_tests;
#[cfg(test)]
mod tests;

pub use expand::Expander;
pub use expansion::{ExpansionReader, ExpansionWriter};
pub use replayer::{Divergence, ReplayError, Replayer};
pub use solo::Solo;
