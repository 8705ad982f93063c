//! The images of a trace that is being written: pieces, each compressed by itself, which the trace's
//! thread writes in their order. It compresses them too; but a trace cannot be closed before all of
//! them are in it, so whoever waits for that can lend a hand.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::format;
use crate::contents::Contents;

/// How many pieces may be begun before the one that is written next: what bounds memory.
const AHEAD: usize = 8;

/// A piece as it goes into a chunk.
pub(super) struct Packed {
    pub table: Vec<u8>,
    pub payload: Vec<u8>,
    pub raw_len: usize,
}

#[derive(Clone)]
struct Piece {
    hash: u128,
    content: Contents,
    bytes: Range<usize>,
}

impl Piece {
    fn pack(&self, compressor: &mut zstd::bulk::Compressor<'_>) -> io::Result<Packed> {
        let mut table = self.hash.to_be_bytes().to_vec();
        table.extend_from_slice(&(self.bytes.start as u64).to_le_bytes());
        let raw = &self.content[self.bytes.clone()];
        let mut payload = Vec::new();
        format::compress(compressor, raw, &mut payload)?;
        Ok(Packed {
            table,
            payload,
            raw_len: raw.len(),
        })
    }
}

#[derive(Default)]
struct State {
    /// `None` until it is known which contents differ.
    pieces: Option<Vec<Piece>>,
    /// Of the pieces, how many somebody has begun to compress, and how many have been written.
    begun: usize,
    written: usize,
    packed: BTreeMap<usize, io::Result<Packed>>,
    /// Nothing will be written any more.
    ended: bool,
}

/// Pieces of images on their way into a trace.
#[derive(Default)]
pub(super) struct Images {
    state: Mutex<State>,
    changed: Condvar,
}

impl Images {
    /// Says which contents there are, in the order in which they are written.
    pub(super) fn begin(&self, distinct: &BTreeMap<u128, Contents>) {
        let mut pieces = Vec::new();
        for (&hash, content) in distinct {
            for start in (0..content.len()).step_by(format::IMAGE_CHUNK) {
                pieces.push(Piece {
                    hash,
                    content: content.clone(),
                    bytes: start..content.len().min(start + format::IMAGE_CHUNK),
                });
            }
        }
        self.lock().pieces = Some(pieces);
        self.changed.notify_all();
    }

    /// The next piece in order, for the thread that writes them; `None` after the last one.
    pub(super) fn next(
        &self,
        compressor: &mut zstd::bulk::Compressor<'_>,
    ) -> Option<io::Result<Packed>> {
        loop {
            let mut state = self.lock();
            let wanted = state.written;
            if let Some(packed) = state.packed.remove(&wanted) {
                state.written += 1;
                self.changed.notify_all();
                return Some(packed);
            }
            if wanted == state.pieces.as_ref().map_or(0, Vec::len) {
                return None;
            }
            // What is wanted is in a helper's hands, or is the next to begin.
            match claim(&mut state) {
                Some((n, piece)) => {
                    drop(state);
                    self.put(n, piece.pack(compressor));
                }
                None => drop(self.wait(state)),
            }
        }
    }

    /// Compresses pieces for as long as some are not begun.
    pub(super) fn help(&self, level: i32) {
        let Ok(mut compressor) = zstd::bulk::Compressor::new(level) else {
            return;
        };
        let mut state = self.lock();
        while !state.ended {
            if let Some((n, piece)) = claim(&mut state) {
                drop(state);
                self.put(n, piece.pack(&mut compressor));
                state = self.lock();
            } else if state
                .pieces
                .as_ref()
                .is_some_and(|p| state.begun == p.len())
            {
                return;
            } else {
                state = self.wait(state);
            }
        }
    }

    /// Sends helpers away: all is written, or nothing more can be.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        // Contents are many megabytes, and a recording is long.
        state.pieces = None;
        self.changed.notify_all();
    }

    fn put(&self, n: usize, packed: io::Result<Packed>) {
        self.lock().packed.insert(n, packed);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first piece that is not begun, if it is not too far ahead.
fn claim(state: &mut State) -> Option<(usize, Piece)> {
    let n = state.begun;
    let piece = state.pieces.as_ref()?.get(n)?.clone();
    if n >= state.written + AHEAD {
        return None;
    }
    state.begun += 1;
    Some((n, piece))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const LEVEL: i32 = 3;

    /// Contents that compress to something, and differ everywhere.
    fn content(len: usize, salt: u32) -> Contents {
        let words = (0..len as u32).map(|n| (n ^ salt).wrapping_mul(2_654_435_761) >> 20);
        Contents::from(words.map(|w| w as u8).collect::<Vec<u8>>())
    }

    fn all(images: &Images) -> Vec<(Vec<u8>, Vec<u8>, usize)> {
        let mut compressor = zstd::bulk::Compressor::new(LEVEL).expect("a compressor");
        let mut out = Vec::new();
        while let Some(packed) = images.next(&mut compressor) {
            let packed = packed.expect("a piece");
            out.push((packed.table, packed.payload, packed.raw_len));
        }
        out
    }

    #[test]
    fn helpers_change_nothing_in_what_is_written() {
        let len = format::IMAGE_CHUNK * 2 * AHEAD + 5;
        let distinct = BTreeMap::from([(7, content(len, 1)), (9, content(100, 2))]);
        let alone = Images::default();
        alone.begin(&distinct);
        let expected = all(&alone);
        assert_eq!(expected.len(), 2 * AHEAD + 2);

        let helped = Arc::new(Images::default());
        let helpers: Vec<_> = (0..2)
            .map(|_| {
                let images = helped.clone();
                std::thread::spawn(move || images.help(LEVEL))
            })
            .collect();
        helped.begin(&distinct);
        assert!(all(&helped) == expected);
        helped.end();
        for helper in helpers {
            helper.join().expect("a helper that ends");
        }
    }

    #[test]
    fn helpers_do_not_run_far_ahead_of_what_is_written() {
        let images = Arc::new(Images::default());
        let len = format::IMAGE_CHUNK * (AHEAD + 3);
        images.begin(&BTreeMap::from([(1, content(len, 3))]));
        let helper = {
            let images = images.clone();
            std::thread::spawn(move || images.help(LEVEL))
        };
        let mut state = images.lock();
        while state.packed.len() < AHEAD {
            state = images.wait(state);
        }
        assert_eq!(state.begun, AHEAD);
        drop(state);
        assert_eq!(all(&images).len(), AHEAD + 3);
        helper.join().expect("a helper that ends");
    }

    #[test]
    fn a_helper_goes_when_nothing_more_will_be_written() {
        let images = Arc::new(Images::default());
        let helper = {
            let images = images.clone();
            std::thread::spawn(move || images.help(LEVEL))
        };
        images.end();
        helper.join().expect("a helper that ends");
    }
}
