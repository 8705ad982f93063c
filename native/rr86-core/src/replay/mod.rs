//! The replaying side of a trace: reading the file that `crate::record` wrote.

mod expand;
pub mod expansion;
pub mod reader;
mod replayer;
pub mod scan;
mod solo;
pub mod stream;
pub mod summary;

pub use reader::{ChunkInfo, ImageInfo, TraceReader};
pub use stream::EventStream;
pub use summary::{KindSummary, Summary};

#[cfg(test)]
mod size_tests;
#[cfg(test)]
mod tests;

pub use expand::Expander;
pub use expansion::{ExpansionReader, ExpansionWriter};
pub use replayer::{Divergence, ReplayError, Replayer};
pub use solo::Solo;
