//! Writes checkpoints; and adds them to a trace: a copy of it is written while it is replayed.
//!
//! A checkpoint can stand only between two event chunks, where the recorder took digests, so the copy
//! has the chunks of the original as they are. Checkpoints that the original had are left out, but for one at which
//! it begins.

use std::path::Path;

use super::machine::Machine;
use crate::host_time::{Phase, Stopwatch};
use crate::trace::format::ChunkKind;
use crate::trace::{TraceError, TraceReader, TraceWriter};

/// Writes a checkpoint of a machine that stands between two slices, and whose digests these are.
pub(super) fn write_checkpoint(
    machine: &mut Machine,
    writer: &mut TraceWriter,
    digests: &[(String, u64)],
) -> Result<(), TraceError> {
    let watch = Stopwatch::start();
    let waited = writer.waited();
    let state = machine.save(digests);
    let changed = machine.take_changed_pages();
    let ram = &machine.engine.memory.ram;
    let pages = changed
        .into_iter()
        .map(|(page, zero)| (page, (!zero).then(|| ram.page(page))));
    let written = writer.checkpoint(machine.engine.icount(), &state, pages);
    let waiting = writer.waited().without(waited);
    let own = watch.read().without(waiting);
    machine.engine.observers.spend(Phase::Checkpoints, own);
    written
}

/// A copy under way.
pub struct Checkpointer {
    reader: TraceReader,
    writer: TraceWriter,
    /// Chunks of the original that are done with, and how many of them were event chunks.
    chunks: usize,
    events: usize,
    /// The chunks with which the original begins, the checkpoint at which it does included.
    opening: usize,
    every: u64,
    due: u64,
}

impl Checkpointer {
    /// Starts a copy at `path`, with a checkpoint at the first digests after every so many instructions.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn create(reader: TraceReader, path: &Path, every: u64) -> Result<Self, TraceError> {
        let every = every.max(1);
        Ok(Self {
            writer: TraceWriter::create_copy(path, &reader)?,
            opening: reader.opening_chunks()?,
            due: reader
                .beginning()?
                .map_or(0, |first| first.icount)
                .saturating_add(every),
            chunks: 0,
            events: 0,
            every,
            reader,
        })
    }

    /// The replay has come to digests, behind which the event chunk number `events` begins.
    pub(super) fn at_digests(
        &mut self,
        machine: &mut Machine,
        events: usize,
        digests: &[(String, u64)],
    ) -> Result<(), TraceError> {
        let icount = machine.engine.icount();
        if icount < self.due {
            return Ok(());
        }
        self.due = icount.saturating_add(self.every);
        while self.events < events && self.copy_chunk()? {}
        write_checkpoint(machine, &mut self.writer, digests)
    }

    /// Whether the copy has RAM as it is when the replay begins.
    pub(super) fn begins_with_pages(&self) -> bool {
        self.opening > 0
    }

    fn copy_chunk(&mut self) -> Result<bool, TraceError> {
        let Some(chunk) = self.reader.raw_chunk(self.chunks) else {
            return Ok(false);
        };
        let (header, table, payload) = chunk?;
        let opens = self.chunks < self.opening;
        self.chunks += 1;
        self.events += usize::from(header.kind == ChunkKind::EVENTS);
        if opens || !matches!(header.kind, ChunkKind::CHECKPOINT | ChunkKind::PAGES) {
            self.writer.copy(header, table, payload)?;
        }
        Ok(true)
    }

    /// Copies what is left. A recording without an end stays one.
    ///
    /// # Errors
    /// When the original is damaged or the copy cannot be written.
    pub fn finish(mut self) -> Result<(), TraceError> {
        while self.copy_chunk()? {}
        if self.reader.complete() {
            self.writer.finish_copy()?;
        } else {
            self.writer.flush()?;
        }
        Ok(())
    }
}
