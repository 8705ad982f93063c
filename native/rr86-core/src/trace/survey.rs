//! What the events of a whole trace say together, without running anything.

use std::collections::BTreeMap;

use super::error::TraceError;
use super::event::{Block, Event, NO_VCPU};
use super::reader::TraceReader;

/// The lines that one agent wrote and another then got: a bit for each of the 64 lines of a page, by the
/// page's number (physical address / 4096).
///
/// # Errors
/// When the trace is damaged.
pub fn shared_lines(trace: &TraceReader) -> Result<BTreeMap<u64, u64>, TraceError> {
    let mut all = BTreeMap::new();
    for next in trace.stream() {
        if let Event::HandOff {
            page,
            from,
            to,
            lines,
            ..
        } = next?.1
        {
            if from != to && from != NO_VCPU {
                *all.entry(page).or_default() |= lines;
            }
        }
    }
    Ok(all)
}

/// Instructions that each vCPU retired.
///
/// # Errors
/// When the trace is damaged.
pub fn retired(trace: &TraceReader) -> Result<BTreeMap<u8, u64>, TraceError> {
    let mut all = BTreeMap::new();
    for next in trace.stream() {
        if let Event::Slice {
            vcpu, instructions, ..
        } = next?.1
        {
            let sum: &mut u64 = all.entry(vcpu).or_default();
            *sum = sum.saturating_add(instructions);
        }
    }
    Ok(all)
}

/// A block that was executed although memory held something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaleBlock {
    /// As it was linked.
    pub block: Block,
    /// When its bytes were read, and when it was linked.
    pub fetched: u64,
    pub linked: u64,
    /// When the slice began in which its bytes were read.
    pub slice: u64,
    /// Whether memory did not hold it from the start.
    pub born: bool,
    /// Its first stale execution.
    pub executed: u64,
    pub executed_by: u8,
}

/// What a trace says of its stale blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StaleBlocks {
    /// How many memory did not hold when they were linked.
    pub born: u64,
    /// How many were left in place by a write.
    pub survived: u64,
    /// Those that were executed, in the order of their first stale executions.
    pub executed: Vec<StaleBlock>,
}

/// A block that may yet turn out to be stale.
struct Linked {
    block: Block,
    fetched: u64,
    linked: u64,
    /// How many slices were over when its bytes were read.
    slices: usize,
    born: bool,
}

/// Whether these bytes are the ones that a block was made from. The block has its number since it was linked.
fn same_source(read: &Block, linked: &Block) -> bool {
    let source = |b: &Block| (b.paddr, b.len, b.mode, b.digest);
    source(read) == source(linked)
}

/// Collects the stale blocks of a trace.
///
/// # Errors
/// When the trace is damaged.
pub fn stale_blocks(trace: &TraceReader) -> Result<StaleBlocks, TraceError> {
    let mut found = StaleBlocks::default();
    let mut starts = Vec::new();
    let mut fetches: BTreeMap<u8, (u64, Block, usize)> = BTreeMap::new();
    // All of them: a block that was removed may be executed through a jump that was left behind.
    let mut linked: BTreeMap<u64, Linked> = BTreeMap::new();
    let mut slices_of = Vec::new();
    for next in trace.stream() {
        let (icount, event) = next?;
        match event {
            Event::Slice { .. } => starts.push(icount),
            Event::Fetch(block) => {
                fetches.insert(block.vcpu, (icount, block, starts.len()));
            }
            Event::Link(block) => {
                let (fetched, slices) = match fetches.get(&block.vcpu) {
                    Some((at, read, slices)) if same_source(read, &block) => (*at, *slices),
                    _ => (icount, starts.len()),
                };
                let entry = Linked {
                    block,
                    fetched,
                    linked: icount,
                    slices,
                    born: false,
                };
                linked.insert(block.id, entry);
            }
            Event::Stale { id, what: 0, .. } => {
                found.born += 1;
                if let Some(entry) = linked.get_mut(&id) {
                    entry.born = true;
                }
            }
            Event::Stale { what: 1, .. } => found.survived += 1,
            Event::Stale { id, vcpu, what: 2 } => {
                if let Some(entry) = linked.get(&id) {
                    slices_of.push(entry.slices);
                    found.executed.push(StaleBlock {
                        block: entry.block,
                        fetched: entry.fetched,
                        linked: entry.linked,
                        slice: entry.fetched,
                        born: entry.born,
                        executed: icount,
                        executed_by: vcpu,
                    });
                }
            }
            _ => {}
        }
    }
    // A slice is told behind the events inside it; the last one of an unfinished trace never was.
    for (stale, slices) in found.executed.iter_mut().zip(slices_of) {
        if let Some(&start) = starts.get(slices) {
            stale.slice = start;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{SliceEnd, TraceWriter};

    fn block(id: u64, vcpu: u8, paddr: u64) -> Block {
        Block {
            id,
            vcpu,
            paddr,
            len: 5,
            ..Block::default()
        }
    }

    fn slice(vcpu: u8, instructions: u64) -> Event {
        Event::Slice {
            vcpu,
            instructions,
            stop: SliceEnd::Quantum,
        }
    }

    fn stale(id: u64, vcpu: u8, what: u8) -> Event {
        Event::Stale { id, vcpu, what }
    }

    fn survey(events: &[(u64, Event)]) -> StaleBlocks {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("t.rr86");
        let mut writer = TraceWriter::create(&path, b"", &[]).expect("a writer");
        for (icount, event) in events {
            writer.push(*icount, event).expect("a push");
        }
        writer.finish(b"").expect("a finish");
        stale_blocks(&TraceReader::open(&path).expect("a reader")).expect("a survey")
    }

    #[test]
    fn a_link_is_paired_with_the_fetch_before_its_window() {
        let found = survey(&[
            (0, slice(0, 8)),
            (10, Event::Fetch(block(0, 0, 0x1ffe))),
            (8, slice(0, 2)),
            (12, Event::Fetch(block(3, 1, 0x3000))),
            (12, Event::Link(block(3, 1, 0x3000))),
            (10, slice(1, 25)),
            (40, Event::Link(block(4, 0, 0x1ffe))),
            (40, stale(4, 0, 0)),
            (44, stale(4, 2, 2)),
            (45, stale(3, 2, 1)),
            (35, slice(2, 11)),
        ]);
        assert_eq!((found.born, found.survived), (1, 1));
        assert_eq!(
            found.executed,
            [StaleBlock {
                block: block(4, 0, 0x1ffe),
                fetched: 10,
                linked: 40,
                slice: 8,
                born: true,
                executed: 44,
                executed_by: 2,
            }]
        );
    }

    #[test]
    fn a_link_without_a_fetch_of_the_same_bytes_was_read_then() {
        let found = survey(&[
            (10, Event::Fetch(block(0, 0, 0x5000))),
            (5, slice(0, 10)),
            (20, Event::Link(block(4, 0, 0x1000))),
            (21, stale(4, 0, 2)),
        ]);
        let told = found.executed[0];
        assert_eq!((told.fetched, told.slice, told.born), (20, 20, false));
    }

    #[test]
    fn a_block_that_was_removed_may_be_executed() {
        let gone = Event::Invalidate {
            id: 4,
            by: 0,
            paddr: 0x1000,
            len: 1,
            reason: 0,
        };
        let found = survey(&[
            (20, Event::Link(block(4, 0, 0x1000))),
            (30, gone),
            (30, stale(4, 0, 1)),
            (35, stale(4, 0, 2)),
        ]);
        assert_eq!((found.survived, found.executed.len()), (1, 1));
    }
}
