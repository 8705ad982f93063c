//! The last stores to shared lines, for the question "who wrote this?".
//!
//! Of the stores of one agent to the same bytes, between two hand-offs of the page, only the last can be
//! seen by another; the moment of the first tells from when on earlier ones may have been missed. So the
//! log keeps one entry for these, which is complete when the page changes hands.

use std::collections::BTreeMap;

use crate::memory::PAGE_MASK;
use crate::runtime::agent::Agent;

/// The last of a run of stores to the same bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreEntry {
    /// Number of the agent.
    pub agent: u8,
    pub paddr: u64,
    /// Moment of the first store of the run, and of the last, which the rest describes.
    pub first: u64,
    pub last: u64,
    /// rip of the instruction; 0 for a device.
    pub rip: u64,
    pub old: Vec<u8>,
    pub new: Vec<u8>,
}

/// Stores to lines that change hands.
#[derive(Default)]
pub struct StoreLog {
    /// Lines of interest by RAM page index.
    lines: BTreeMap<usize, u64>,
    /// Entries that the page's next hand-off completes, by RAM page index.
    pending: BTreeMap<usize, BTreeMap<(u16, u16), StoreEntry>>,
    /// Complete entries.
    pub done: Vec<StoreEntry>,
}

impl StoreLog {
    /// A log of the stores to these lines of these RAM pages.
    pub fn new(lines: BTreeMap<usize, u64>) -> Self {
        Self {
            lines,
            ..Self::default()
        }
    }

    /// The pages of interest.
    pub fn pages(&self) -> impl Iterator<Item = usize> + '_ {
        self.lines.keys().copied()
    }

    /// Notes a store.
    pub(in crate::runtime) fn note(
        &mut self,
        agent: Agent,
        page: usize,
        paddr: u64,
        at: (u64, u64),
        old: &[u8],
        new: &[u8],
    ) {
        let lines = self.lines.get(&page).copied().unwrap_or(0);
        if lines & crate::runtime::guest_memory::line_mask(paddr, new.len() as u64) == 0 {
            return;
        }
        let (icount, rip) = at;
        let pending = self.pending.entry(page).or_default();
        let agent = agent.number();
        let place = ((paddr & PAGE_MASK) as u16, new.len() as u16);
        let entry = pending.entry(place).or_insert_with(|| StoreEntry {
            agent,
            paddr,
            first: icount,
            last: icount,
            rip,
            old: old.to_vec(),
            new: new.to_vec(),
        });
        entry.last = icount;
        entry.rip = rip;
        entry.old.copy_from_slice(old);
        entry.new.copy_from_slice(new);
    }

    /// A page changes hands.
    pub(in crate::runtime) fn handed(&mut self, page: usize) {
        if let Some(entries) = self.pending.get_mut(&page) {
            self.done.extend(std::mem::take(entries).into_values());
        }
    }

    /// Completes everything, at the end of the run.
    pub fn close(&mut self) {
        for (_, entries) in std::mem::take(&mut self.pending) {
            self.done.extend(entries.into_values());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_to_the_same_bytes_are_one_entry_until_the_page_is_handed_over() {
        let mut log = StoreLog::new(BTreeMap::from([(1, 0b10)]));
        let one = Agent::Vcpu(1);
        log.note(one, 1, 0x1000, (1, 9), &[0], &[1]);
        log.note(one, 1, 0x1040, (2, 9), &[0], &[1]);
        log.note(one, 1, 0x1040, (5, 10), &[1], &[2]);
        log.note(one, 1, 0x1044, (6, 11), &[0], &[7]);
        log.note(one, 2, 0x2040, (7, 9), &[0], &[1]);
        assert!(log.done.is_empty());
        log.handed(1);
        let entry = StoreEntry {
            agent: 1,
            paddr: 0x1040,
            first: 2,
            last: 5,
            rip: 10,
            old: vec![1],
            new: vec![2],
        };
        assert_eq!(log.done.len(), 2);
        assert_eq!(log.done[0], entry);
        log.note(one, 1, 0x1040, (8, 12), &[2], &[3]);
        log.close();
        assert_eq!((log.done[2].first, log.done[2].last), (8, 8));
    }
}
