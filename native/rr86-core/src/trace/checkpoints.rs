//! Which checkpoints a trace holds, and where the newest copy of each page is.
//!
//! Tables of chunks tell all of it, and the index of a finished trace repeats them, so no payload is
//! read before it is needed.

use std::collections::BTreeSet;
use std::ops::Range;

use super::error::TraceError;
use super::format::{self, ChunkKind, PagesTable, StateTable};
use super::scan::Located;

/// A whole checkpoint of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointInfo {
    /// Its moment.
    pub icount: u64,
    /// The event chunk with which a replay from it goes on.
    pub chunk: usize,
    /// What it adds to the file, in bytes.
    pub stored_len: u64,
    /// Pages of RAM that changed since the one before.
    pub pages: u64,
    /// Places of its state in the list of chunks.
    pub(super) state: Range<usize>,
}

/// What is known of a checkpoint whose last piece has not come yet.
#[derive(Default)]
struct Open {
    stored_len: u64,
    pages: u64,
    state: Option<usize>,
    done: u64,
}

/// All checkpoints that are whole. One whose end is missing is none.
pub(super) fn list(chunks: &[Located]) -> Result<Vec<CheckpointInfo>, TraceError> {
    let mut found: Vec<CheckpointInfo> = Vec::new();
    let mut open = Open::default();
    let mut events = 0;
    for (n, chunk) in chunks.iter().enumerate() {
        let number = found.len() as u32;
        match chunk.header.kind {
            ChunkKind::EVENTS => events += 1,
            ChunkKind::PAGES => {
                let table = pages_table(chunk)?;
                if table.checkpoint != number || open.state.is_some() {
                    return Err(chunk.malformed("its pages belong to another checkpoint"));
                }
                open.pages += table.pages.len() as u64;
                open.stored_len += chunk.header.total_len();
            }
            ChunkKind::CHECKPOINT => {
                let table = StateTable::parse(&chunk.table)
                    .filter(|t| t.total <= format::MAX_STATE)
                    .ok_or_else(|| chunk.malformed("its table makes no sense"))?;
                if table.checkpoint != number || table.offset != open.done {
                    return Err(chunk.malformed("a piece of a checkpoint is missing before it"));
                }
                let start = *open.state.get_or_insert(n);
                open.stored_len += chunk.header.total_len();
                open.done += u64::from(chunk.header.raw_len);
                if open.done > table.total {
                    return Err(chunk.malformed("its checkpoint is longer than it says"));
                }
                if open.done == table.total {
                    found.push(CheckpointInfo {
                        icount: table.icount,
                        chunk: events,
                        stored_len: open.stored_len,
                        pages: open.pages,
                        state: start..n + 1,
                    });
                    open = Open::default();
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

fn pages_table(chunk: &Located) -> Result<PagesTable, TraceError> {
    PagesTable::parse(&chunk.table)
        .filter(|table| table.payload() == chunk.header.raw_len as usize)
        .ok_or_else(|| chunk.malformed("its table makes no sense"))
}

/// A place in the list of chunks, and of its pages those that are wanted, with their places in its
/// payload.
type Wanted = (usize, Vec<(usize, usize)>);

/// For each page that is not zero in the end, the newest of the chunks that hold it.
pub(super) fn newest_pages(chunks: &[Located]) -> Result<Vec<Wanted>, TraceError> {
    let mut known = BTreeSet::new();
    let mut all = Vec::new();
    for (n, chunk) in chunks.iter().enumerate().rev() {
        if chunk.header.kind != ChunkKind::PAGES {
            continue;
        }
        let mut wanted = Vec::new();
        let mut slot = 0;
        for (page, zero) in pages_table(chunk)?.pages {
            if known.insert(page) && !zero {
                wanted.push((page, slot));
            }
            slot += usize::from(!zero);
        }
        if !wanted.is_empty() {
            all.push((n, wanted));
        }
    }
    Ok(all)
}
