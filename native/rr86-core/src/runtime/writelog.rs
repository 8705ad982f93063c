//! A log of the writes that touch given bytes of RAM, for finding out who changed a block's source.
//!
//! Logging must not change the run, least of all a run in which a protocol lets some stores pass
//! unchecked. A logged page therefore takes stores away from the fast path, as a watchpoint does, but a
//! store that would have taken it (`Slice::plain`) is made exactly as the fast path makes it: no
//! check, no window, no marking of blocks.

use crate::runtime::agent::Agent;

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

impl WriteLog {
    /// Logs the writes to these ranges from now on; those before are forgotten. Gives back the old ranges.
    pub(in crate::runtime) fn begin(&mut self, ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
        let new = Self {
            ranges: disjoint(ranges),
            ..Self::default()
        };
        std::mem::replace(self, new).ranges
    }

    /// The ranges that are logged.
    pub(in crate::runtime) fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges
    }

    /// Whether a write to these bytes is to be logged. Where the log is full, that is noted.
    #[inline]
    pub(in crate::runtime) fn wants(&mut self, paddr: u64, len: u64) -> bool {
        let end = paddr + len;
        let behind = self.ranges.partition_point(|&(at, _)| at < end);
        // Of those that begin before the write's end, the last is the one that ends last.
        let Some(&(at, size)) = behind.checked_sub(1).and_then(|n| self.ranges.get(n)) else {
            return false;
        };
        let inside = at + size > paddr;
        let full = self.entries.len() == CAPACITY;
        self.overflow |= inside && full;
        inside && !full
    }

    pub(in crate::runtime) fn push(&mut self, write: Logged) {
        self.entries.push(write);
    }

    /// The writes since the last call; `None` if there were too many.
    pub(in crate::runtime) fn take(&mut self) -> Option<Vec<Logged>> {
        let entries = std::mem::take(&mut self.entries);
        (!std::mem::take(&mut self.overflow)).then_some(entries)
    }
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
