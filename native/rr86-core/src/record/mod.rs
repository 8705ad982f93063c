//! The recording side of a run.

mod observe;
mod recorder;

pub(crate) use recorder::{completed_line, write_checkpoint};

pub use observe::{event as observed_event, slice_end, window};
pub use recorder::{Recorder, Stop};
