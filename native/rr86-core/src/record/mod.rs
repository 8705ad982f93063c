//! The recording side of a trace: the vocabulary of events, the file format and its writer.
//!
//! `event` and `codec` say what an event is and how a chunk of them becomes bytes; `format` says
//! how chunks become a file. The replaying side (`crate::replay`) reads with the same definitions.
//! The format is described for other readers in `docs/trace-format.md`.

pub mod codec;
pub mod error;
pub mod event;
pub mod format;
mod images;
pub mod tail;
pub(crate) mod varint;
pub mod writer;

pub use error::TraceError;
pub use event::{Access, Block, Event, SliceEnd, Value, DEADLOCK, NO_VCPU};
pub use writer::TraceWriter;

mod observe;
mod recorder;

pub(crate) use recorder::{completed_line, write_checkpoint};

pub use observe::{event as observed_event, slice_end, window};
pub use recorder::{Recorder, Stop, CONSOLE};
