//! What can go wrong with a trace file, said so that a person can act on it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::format;

/// An error of the trace writer or reader. Cloning is cheap: a writer reports the same failure on
/// every later call.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TraceError {
    /// The operating system refused to open, read or write the file.
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        source: Arc<std::io::Error>,
    },
    /// The file does not begin with the magic of a trace.
    #[error("{} is not an rr86 trace", path.display())]
    NotATrace { path: PathBuf },
    /// The file is a trace of a format that this version cannot read.
    #[error(
        "{} has trace format {major}.{minor}; this version of rr86 reads formats {}.x and {}.x",
        path.display(),
        format::MAJOR,
        format::AT_CHECKPOINT.0
    )]
    OtherVersion {
        path: PathBuf,
        major: u16,
        minor: u16,
    },
    /// The file ends inside of a chunk, or before the index: the recorder was killed, or a copy
    /// was cut short. Everything before the chunk is readable.
    #[error(
        "the trace is cut off in chunk {chunk} (byte {offset}); the chunks before it are whole"
    )]
    Truncated { chunk: u32, offset: u64 },
    /// The bytes of a chunk are not those that were written.
    #[error("checksum mismatch in chunk {chunk} (byte {offset}): the trace is damaged there")]
    Checksum { chunk: u32, offset: u64 },
    /// A chunk is intact by its checksum, or has none yet, and still makes no sense.
    #[error("chunk {chunk} (byte {offset}) is malformed: {why}")]
    Malformed {
        chunk: u32,
        offset: u64,
        why: &'static str,
    },
    /// The file header is damaged, so that not even the format version is known.
    #[error("{} begins like an rr86 trace, but its file header is damaged", path.display())]
    FileHeader { path: PathBuf },
    /// The trace begins at a checkpoint that is not there.
    #[error("{} begins at a checkpoint, and that is not whole: it cannot be replayed", path.display())]
    NoBeginning { path: PathBuf },
    /// Another process writes to the file.
    #[error("{} is being written by another recording", path.display())]
    InUse { path: PathBuf },
    /// There is a file of another kind where the trace's side file belongs.
    #[error("{} is not a side file of a trace, and is left as it is", path.display())]
    NotASideFile { path: PathBuf },
    /// The trace has no image of this name.
    #[error("the trace holds no image named {name:?}")]
    NoImage { name: String },
    /// The stored content of an image is not whole, or not what its hash says.
    #[error("image {name:?} in the trace is not whole: {why}")]
    Image { name: String, why: &'static str },
    /// The trace has fewer event chunks than asked for.
    #[error("the trace has {count} event chunks; there is no chunk {index}")]
    NoChunk { index: usize, count: usize },
    /// Something given to the writer is larger than a reader would accept.
    #[error("{what} of {len} bytes is larger than the {limit} that a trace may hold")]
    TooLarge {
        what: &'static str,
        len: u64,
        limit: u64,
    },
    /// A second image of one name was given to the writer.
    #[error("two images are named {name:?}")]
    DuplicateImage { name: String },
    /// A helper thread of the writer or reader ended without a result.
    #[error("the trace's background thread ended unexpectedly")]
    Thread,
}

impl TraceError {
    /// The number of the damaged chunk, and where that begins in the file.
    pub fn place(&self) -> Option<(u32, u64)> {
        match *self {
            TraceError::Truncated { chunk, offset }
            | TraceError::Checksum { chunk, offset }
            | TraceError::Malformed { chunk, offset, .. } => Some((chunk, offset)),
            _ => None,
        }
    }

    /// The file, where the error is about one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            TraceError::Io { path, .. }
            | TraceError::NotATrace { path }
            | TraceError::OtherVersion { path, .. }
            | TraceError::FileHeader { path }
            | TraceError::NoBeginning { path }
            | TraceError::InUse { path }
            | TraceError::NotASideFile { path } => Some(path),
            _ => None,
        }
    }

    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        TraceError::Io {
            path: path.to_owned(),
            source: Arc::new(source),
        }
    }
}
