//! The hand-offs of a trace, or of a part of it, without its other events; and what they add up to: the
//! pages and lines that vCPUs share.

use std::collections::{BTreeMap, BTreeSet};

use super::error::TraceError;
use super::event::{Access, Event, Kind, NO_VCPU};
use super::format::{LINE_SHIFT, PAGE_SHIFT};
use super::reader::TraceReader;

/// A hand-off as the trace has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandOffRow {
    pub icount: u64,
    /// Physical page number.
    pub page: u64,
    pub from: u8,
    pub to: u8,
    pub access: Access,
    /// Bit n: line n was written since the page's last hand-off.
    pub lines: u64,
}

impl TraceReader {
    /// Hand-offs at `first` to `last`, of certain pages if these are given, in their order. Chunks that
    /// have none by their headers are not read.
    pub fn hand_offs(
        &self,
        first: u64,
        last: u64,
        pages: Option<&BTreeSet<u64>>,
    ) -> Result<Vec<HandOffRow>, TraceError> {
        let mut rows = Vec::new();
        for n in 0..self.chunk_count() {
            let info = self.chunk_info(n)?;
            let outside = info.last.0 < first || info.first.0 > last;
            if outside || self.count_of(n, Kind::HAND_OFF)? == 0 {
                continue;
            }
            rows.extend(self.chunk(n)?.iter().filter_map(|(icount, event)| {
                let &Event::HandOff {
                    page,
                    from,
                    to,
                    access,
                    lines,
                } = event
                else {
                    return None;
                };
                let wanted = (first..=last).contains(icount)
                    && pages.is_none_or(|pages| pages.contains(&page));
                wanted.then_some(HandOffRow {
                    icount: *icount,
                    page,
                    from,
                    to,
                    access,
                    lines,
                })
            }));
        }
        Ok(rows)
    }
}

/// Bit of an agent in a set: its number for a vCPU, [`DEVICE_BIT`] otherwise.
const DEVICE_BIT: u32 = 127;
const LINES: usize = 64;

/// A set of agents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agents(u128);

impl Agents {
    fn insert(&mut self, agent: u8) {
        let bit = if agent == NO_VCPU {
            DEVICE_BIT
        } else {
            u32::from(agent) % DEVICE_BIT
        };
        self.0 |= 1 << bit;
    }

    /// vCPUs in ascending order, then [`NO_VCPU`] for a device or a loader.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..=DEVICE_BIT)
            .filter(move |bit| self.0 >> bit & 1 != 0)
            .map(|bit| {
                if bit == DEVICE_BIT {
                    NO_VCPU
                } else {
                    bit as u8
                }
            })
    }
}

/// A line that was written and then seen by another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SharedLine {
    /// Physical address.
    pub address: u64,
    /// Hand-offs that tell of writes to it.
    pub hand_offs: u64,
    pub writers: Agents,
    /// Who got the page then.
    pub readers: Agents,
}

/// A page that changed hands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedPage {
    /// Physical address.
    pub address: u64,
    /// Hand-offs between different agents; those for writing among them.
    pub hand_offs: u64,
    pub for_writing: u64,
    pub writers: Agents,
    pub readers: Agents,
    /// Those that were written, by address.
    pub lines: Vec<SharedLine>,
}

/// What the hand-offs of a trace, or of a part of it, add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sharing {
    /// Hand-offs between different agents, and the pages and lines that they were of.
    pub hand_offs: u64,
    pub page_count: usize,
    pub line_count: usize,
    /// The pages and the lines with the most hand-offs, in descending order.
    pub pages: Vec<SharedPage>,
    pub lines: Vec<SharedLine>,
}

/// What is counted of one page.
#[derive(Clone)]
struct Tally {
    hand_offs: u64,
    for_writing: u64,
    readers: Agents,
    lines: [SharedLine; LINES],
}

impl TraceReader {
    /// Sums the hand-offs at `first` to `last` up, and names the `top` pages and lines.
    pub fn sharing(&self, first: u64, last: u64, top: usize) -> Result<Sharing, TraceError> {
        let mut pages: BTreeMap<u64, Box<Tally>> = BTreeMap::new();
        let mut sharing = Sharing::default();
        for row in self.hand_offs(first, last, None)? {
            if row.from == row.to {
                continue;
            }
            sharing.hand_offs += 1;
            let tally = pages.entry(row.page).or_insert_with(|| {
                Box::new(Tally {
                    hand_offs: 0,
                    for_writing: 0,
                    readers: Agents::default(),
                    lines: [SharedLine::default(); LINES],
                })
            });
            tally.hand_offs += 1;
            tally.for_writing += u64::from(row.access == Access::Write);
            tally.readers.insert(row.to);
            for (n, line) in tally.lines.iter_mut().enumerate() {
                if row.lines >> n & 1 != 0 {
                    line.hand_offs += 1;
                    line.writers.insert(row.from);
                    line.readers.insert(row.to);
                }
            }
        }
        sharing.page_count = pages.len();
        for (number, tally) in pages {
            let page = SharedPage::new(number, &tally);
            sharing.line_count += page.lines.len();
            sharing.lines.extend(&page.lines);
            sharing.pages.push(page);
        }
        sharing
            .pages
            .sort_by(|a, b| (b.hand_offs, a.address).cmp(&(a.hand_offs, b.address)));
        sharing
            .lines
            .sort_by(|a, b| (b.hand_offs, a.address).cmp(&(a.hand_offs, b.address)));
        sharing.pages.truncate(top);
        sharing.lines.truncate(top);
        Ok(sharing)
    }
}

impl SharedPage {
    fn new(number: u64, tally: &Tally) -> Self {
        let address = number << PAGE_SHIFT;
        let mut writers = Agents::default();
        let lines: Vec<SharedLine> = (tally.lines.iter().zip(0u64..))
            .filter(|(line, _)| line.hand_offs != 0)
            .map(|(line, n)| {
                writers.0 |= line.writers.0;
                SharedLine {
                    address: address + (n << LINE_SHIFT),
                    ..*line
                }
            })
            .collect();
        Self {
            address,
            hand_offs: tally.hand_offs,
            for_writing: tally.for_writing,
            writers,
            readers: tally.readers,
            lines,
        }
    }
}
