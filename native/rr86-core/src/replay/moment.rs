//! Moments of a replay that are kept in memory, so that another replay of the trace can begin there.
//!
//! A moment is what a checkpoint is, but it is in no file, it can stand between any two slices, and
//! pages that did not change between two moments are in memory once.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::replayer::{ReplayError, Replayer};
use crate::memory::PAGE_SIZE;
use crate::schedule::{CheckpointError, Machine};
use crate::trace::TraceReader;

/// The pages that are not zero, by their number.
pub(super) type KeptPages = BTreeMap<usize, Arc<[u8; PAGE_SIZE as usize]>>;

/// A whole machine between two slices, and where its trace goes on.
pub struct Moment {
    pub icount: u64,
    reader: TraceReader,
    /// As [`crate::trace::EventStream::position`] has it.
    position: (usize, usize),
    pages: KeptPages,
    state: Vec<u8>,
}

impl Replayer {
    /// Keeps this moment, for other replays of the same trace.
    ///
    /// # Errors
    /// Inside a slice, off the recorded path, and for machines with state that checkpoints do not hold.
    pub fn keep(&mut self, reader: &TraceReader) -> Result<Moment, CheckpointError> {
        if self.machine.inside_slice() || self.free {
            let why = "the replay does not stand between two recorded slices";
            return Err(CheckpointError::Impossible(why));
        }
        // Both ask the machine which pages changed since they last did.
        if self.checkpointer.is_some() {
            let why = "the replay makes checkpoints for a trace";
            return Err(CheckpointError::Impossible(why));
        }
        if self.kept.is_none() {
            self.machine.allow_checkpoints()?;
        }
        let digests = self.machine.digests();
        let kept = self.kept.get_or_insert_default();
        for (page, zero) in self.machine.take_changed_pages() {
            if zero {
                kept.remove(&page);
            } else {
                let mut copy = [0; PAGE_SIZE as usize];
                copy.copy_from_slice(self.machine.engine.ram.page(page));
                kept.insert(page, Arc::new(copy));
            }
        }
        Ok(Moment {
            icount: self.machine.engine.icount(),
            reader: reader.clone(),
            position: self.events.position(),
            pages: kept.clone(),
            state: self.machine.save(&digests),
        })
    }

    /// A replay that begins at a moment, on a machine of the same configuration.
    ///
    /// # Errors
    /// [`ReplayError`] for a moment of another machine, and when the trace cannot be read.
    pub fn from_moment(
        mut machine: Machine,
        moment: &Moment,
        verify: bool,
    ) -> Result<Self, ReplayError> {
        machine.wipe();
        for (&page, bytes) in &moment.pages {
            machine.set_page(page, bytes)?;
        }
        machine.restore(&moment.state)?;
        let (chunks, left) = moment.position;
        let mut events = moment.reader.stream_from(chunks - usize::from(left > 0));
        while events.position() != moment.position {
            events.next().ok_or(CheckpointError::Moment)??;
        }
        Ok(Self::new(machine, events, verify))
    }
}
