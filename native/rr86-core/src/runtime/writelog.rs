//! A log of the writes that touch given bytes of RAM, for finding out who changed a block's source.
//!
//! Logging must not change the run, least of all a run in which a protocol lets some stores pass
//! unchecked. A logged page therefore takes stores away from the fast path, as a watchpoint does, but a
//! store that would have taken it ([`Engine::plain`]) is made exactly as the fast path makes it: no
//! check, no window, no marking of blocks.

use crate::memory::pages::PageFlags;
use crate::memory::PAGE_SHIFT;
use crate::runtime::engine::{Agent, Engine};

/// Most entries that are kept until somebody takes them.
const CAPACITY: usize = 1 << 20;

/// How a write got past the block protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// The page had no code, so there was nothing to look for.
    NoCode,
    /// The page's blocks were looked through.
    Checked,
    /// The same, but the data came later, after other vCPUs had run.
    Late,
    /// The page had code, but its guard was gone.
    Unguarded,
    /// The protocol does not check writes of this kind.
    Unchecked,
}

impl Passage {
    pub fn name(self) -> &'static str {
        match self {
            Self::NoCode => "no-code",
            Self::Checked => "checked",
            Self::Late => "late",
            Self::Unguarded => "unguarded",
            Self::Unchecked => "unchecked",
        }
    }
}

/// One write.
#[derive(Clone, Debug)]
pub struct Logged {
    pub agent: Agent,
    /// Moment of the instruction, at which blocks were looked for.
    pub checked: u64,
    /// Moment at which the bytes changed.
    pub committed: u64,
    /// rip of the instruction.
    pub rip: Option<u64>,
    pub linear: Option<u64>,
    pub paddr: u64,
    pub old: Vec<u8>,
    pub new: Vec<u8>,
    pub passage: Passage,
}

/// The log and what it is interested in.
#[derive(Debug, Default)]
pub struct WriteLog {
    /// Disjoint, in the order of their addresses.
    ranges: Vec<(u64, u64)>,
    entries: Vec<Logged>,
    /// There were more than fit.
    overflow: bool,
}

/// What is known of a write when it is committed.
#[derive(Clone, Copy, Debug)]
pub struct Commit {
    pub agent: Agent,
    pub linear: Option<u64>,
    /// Moment and rip of an instruction that was checked earlier.
    pub late: Option<(u64, u64)>,
    pub passage: Passage,
}

/// The same bytes as disjoint ranges (address, length) in order.
fn disjoint(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut out: Vec<(u64, u64)> = Vec::new();
    for (at, len) in ranges {
        // The last byte of the address space can be no RAM.
        let end = at.saturating_add(len);
        match out.last_mut() {
            Some((start, known)) if at <= *start + *known => {
                *known = (*known).max(end - *start);
            }
            _ => out.push((at, end - at)),
        }
    }
    out
}

impl Engine {
    /// Logs every write to these physical ranges (address, length) from now on; none ends the log.
    pub fn log_writes(&mut self, ranges: Vec<(u64, u64)>) {
        let old = std::mem::take(&mut self.write_log);
        for &(at, len) in &old.ranges {
            self.watch_pages(at, len, false);
        }
        self.write_log.ranges = disjoint(ranges);
        self.watch_all();
    }

    /// The writes since the last call; `None` if there were too many.
    pub fn take_writes(&mut self) -> Option<Vec<Logged>> {
        let entries = std::mem::take(&mut self.write_log.entries);
        (!std::mem::take(&mut self.write_log.overflow)).then_some(entries)
    }

    /// Watches the pages of everything that is watched or logged.
    pub(in crate::runtime) fn watch_all(&mut self) {
        let ranges: Vec<(u64, u64)> = self
            .watches
            .iter()
            .chain(&self.write_log.ranges)
            .copied()
            .collect();
        for (at, len) in ranges {
            self.watch_pages(at, len, true);
        }
    }

    /// Takes the pages of a range off the fast path of stores, or lets them back.
    pub(in crate::runtime) fn watch_pages(&mut self, at: u64, len: u64, on: bool) {
        let last = at.saturating_add(len.max(1) - 1);
        for number in at >> PAGE_SHIFT..=last >> PAGE_SHIFT {
            let Some(page) = self.ram.page_index(number << PAGE_SHIFT) else {
                continue;
            };
            self.pages.info[page].flags.set(PageFlags::WATCHED, on);
            self.vcpus.mmus().for_each(|mmu| mmu.tlb.protect_page(page));
        }
    }

    /// Logs a write that is about to change memory.
    pub(in crate::runtime) fn log_write(&mut self, commit: &Commit, paddr: u64, data: &[u8]) {
        let end = paddr + data.len() as u64;
        let ranges = &self.write_log.ranges;
        let behind = ranges.partition_point(|&(at, _)| at < end);
        // Of those that begin before the write's end, the last is the one that ends last.
        if behind == 0 || ranges[behind - 1].0 + ranges[behind - 1].1 <= paddr {
            return;
        }
        if self.write_log.entries.len() == CAPACITY {
            self.write_log.overflow = true;
            return;
        }
        let mut old = vec![0; data.len()];
        self.ram.read(paddr, &mut old);
        let now = self.icount();
        let (checked, rip) = match (commit.agent, commit.late) {
            (Agent::Device, _) => (now, None),
            (_, Some((checked, rip))) => (checked, Some(rip)),
            _ => (now, self.position_rip()),
        };
        self.write_log.entries.push(Logged {
            agent: commit.agent,
            checked,
            committed: now,
            rip,
            linear: commit.linear,
            paddr,
            old,
            new: data.to_vec(),
            passage: commit.passage,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_or_overlap_become_one() {
        let ranges = vec![
            (0x40, 8),
            (0x10, 4),
            (0x44, 2),
            (0x14, 4),
            (u64::MAX - 1, 9),
        ];
        let expected = [(0x10, 8), (0x40, 8), (u64::MAX - 1, 1)];
        assert_eq!(disjoint(ranges), expected);
    }
}
