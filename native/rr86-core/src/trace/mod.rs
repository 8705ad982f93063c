//! The trace: a file that holds everything from which a run follows.
//!
//! `event` says what a recording tells, `codec` how a chunk of events becomes bytes, `format` how chunks become
//! a file. `writer` writes it, and `tail` the side file of what is not in a whole chunk yet. `reader` opens it:
//! `scan` finds the chunks, `checkpoints` the checkpoints among them, `side_file` what the side file adds, and
//! `stream` gives all events in order. `summary`, `survey` and `sharing` say what a trace holds.
//!
//! Nothing here knows an engine or a machine: a tool that reads or writes traces needs no other module of this
//! crate but `contents` and `host_time`. The format is described for other readers in `docs/trace-format.md`.

mod checkpoints;
pub mod codec;
pub mod error;
pub mod event;
pub mod format;
mod images;
mod place;
pub mod reader;
pub mod scan;
mod sharing;
mod side_file;
pub mod stream;
pub mod summary;
pub mod survey;
pub mod tail;
pub(crate) mod varint;
pub mod writer;

pub use checkpoints::CheckpointInfo;
pub use error::TraceError;
pub use event::{Access, Block, Event, SliceEnd, Value, CONSOLE, DEADLOCK, NO_VCPU};
pub use reader::{ChunkInfo, ImageInfo, TraceReader};
pub use sharing::{HandOffRow, SharedLine, SharedPage, Sharing};
pub use side_file::SideFile;
pub use stream::EventStream;
pub use summary::{KindSummary, Summary};
pub use writer::TraceWriter;

#[cfg(test)]
mod size_tests;
#[cfg(test)]
mod tests;
