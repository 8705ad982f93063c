//! Snapshots of a replay: whole machines kept in memory, where other sessions of the trace can begin.
//!
//! A snapshot is what a checkpoint is, but it is in no file, it can stand between any two slices, and
//! pages that did not change between two snapshots are in memory once.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::checkpoint::CheckpointError;
use super::machine::Machine;
use crate::memory::PAGE_SIZE;
use crate::trace::{EventStream, TraceError, TraceReader};

/// The pages of RAM that are not zero, by their number, as they were at the last snapshot.
#[derive(Clone, Default)]
pub(super) struct SnapshotPages(BTreeMap<usize, Page>);

type Page = Arc<[u8; PAGE_SIZE as usize]>;

impl SnapshotPages {
    /// Takes over what has changed since the last time. Digests have just been taken.
    fn update(&mut self, machine: &mut Machine) {
        for (page, zero) in machine.take_changed_pages() {
            if zero {
                self.0.remove(&page);
            } else {
                let mut copy = [0; PAGE_SIZE as usize];
                copy.copy_from_slice(machine.engine.memory.ram.page(page));
                self.0.insert(page, Arc::new(copy));
            }
        }
    }

    /// Brings RAM from what these pages are, which it holds now, to what others are.
    fn turn_into(&self, other: &Self, machine: &mut Machine) -> Result<(), CheckpointError> {
        for &page in self.0.keys().filter(|page| !other.0.contains_key(page)) {
            machine.set_page(page, &[0; PAGE_SIZE as usize])?;
        }
        for (&page, bytes) in &other.0 {
            if self.0.get(&page).is_none_or(|now| !Arc::ptr_eq(now, bytes)) {
                machine.set_page(page, bytes)?;
            }
        }
        Ok(())
    }
}

/// A whole machine between two slices of a trace, and where that goes on.
pub struct Snapshot {
    pub icount: u64,
    /// Slices of the trace before it.
    pub(super) decisions: u64,
    reader: TraceReader,
    /// As [`EventStream::position`] has it.
    position: (usize, usize),
    pages: SnapshotPages,
    state: Vec<u8>,
}

impl Snapshot {
    /// Takes one of a machine as it stands, which has been allowed checkpoints before it first ran. `last` are the
    /// pages of its last snapshot.
    pub(super) fn of(
        machine: &mut Machine,
        last: &mut SnapshotPages,
        reader: &TraceReader,
        events: &EventStream,
        decisions: u64,
    ) -> Self {
        let digests = machine.digests();
        last.update(machine);
        Self {
            icount: machine.engine.icount(),
            decisions,
            reader: reader.clone(),
            position: events.position(),
            pages: last.clone(),
            state: machine.save(&digests),
        }
    }

    /// Brings a machine of the same configuration to this snapshot.
    ///
    /// # Errors
    /// [`CheckpointError`] for a snapshot of another machine; then this one must not run.
    pub fn restore(&self, machine: &mut Machine) -> Result<(), CheckpointError> {
        machine.wipe();
        for (&page, bytes) in &self.pages.0 {
            machine.set_page(page, bytes)?;
        }
        machine.restore(&self.state)
    }

    /// Brings a machine of the same run back to this snapshot. `kept` are the pages of the last snapshot that was taken of
    /// it, or that it was brought to, and become this one's. Costs what has changed in between.
    ///
    /// # Errors
    /// [`CheckpointError`] for a snapshot of another machine; then this one must not run.
    pub(super) fn rewind(
        &self,
        machine: &mut Machine,
        kept: &mut SnapshotPages,
    ) -> Result<(), CheckpointError> {
        machine.digests();
        kept.update(machine);
        kept.turn_into(&self.pages, machine)?;
        machine.rewind(&self.state)?;
        // What was put in is the snapshot's, and has not changed since.
        machine.take_changed_pages();
        kept.clone_from(&self.pages);
        Ok(())
    }

    /// Bytes of memory that this snapshot takes, apart from those pages that it shares with `other`.
    pub fn bytes_beside(&self, other: Option<&Self>) -> u64 {
        let shared = |page: &usize, bytes: &Page| {
            other.is_some_and(|o| o.pages.0.get(page).is_some_and(|b| Arc::ptr_eq(b, bytes)))
        };
        let pages = self.pages.0.iter();
        let own = pages.filter(|(page, bytes)| !shared(page, bytes)).count() as u64;
        // A shared page still has its place in the map.
        let places = self.pages.0.len() as u64 * 24;
        own * PAGE_SIZE + places + self.state.len() as u64
    }

    /// The events of the trace from here on; `None` if it has fewer than it had. With `ahead` they also tell which
    /// blocks will be, for a replay that goes on for a while.
    ///
    /// # Errors
    /// [`TraceError`] when they cannot be read.
    pub(super) fn events(&self, ahead: bool) -> Result<Option<EventStream>, TraceError> {
        let (chunks, left) = self.position;
        let chunk = chunks - usize::from(left > 0);
        let mut events = if ahead {
            self.reader.stream_for_replay(chunk)
        } else {
            self.reader.stream_from(chunk)
        };
        while events.position() != self.position {
            match events.next() {
                Some(event) => drop(event?),
                None => return Ok(None),
            }
        }
        Ok(Some(events))
    }
}
