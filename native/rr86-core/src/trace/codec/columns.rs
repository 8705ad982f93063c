//! How a chunk of events becomes bytes: one column per field of each kind.
//!
//! Fields of one kind resemble each other far more than the fields of one event do, so each goes
//! to a column of its own, as a difference to what the events before it in the chunk make likely;
//! zstd then sees long runs of alike bytes. A chunk starts from a blank [`State`], so that each
//! can be decoded alone. Both directions share the state; `docs/trace-format.md` states the rules.

use std::sync::Arc;

use crate::trace::event::{Block, Kind};

/// Columns that one kind may have in this version.
pub(super) const COLUMNS: usize = 10;

/// How many columns each kind has in this version, the moments included. A reader passes over
/// others.
pub(super) const USED: [usize; Kind::COUNT] = [1, 4, 2, 4, 5, 8, 8, 6, 3, 9, 5, 6, 4];

/// An address of a column in a flat table: `kind * COLUMNS + column`. Kind 0 has one column, the
/// order of kinds.
pub(super) const TABLE: usize = Kind::COUNT * COLUMNS;

/// The order column: the kind of each event, one byte each.
pub(super) const ORDER: usize = 0;

/// Column `n` of `kind`.
pub(super) const fn column(kind: Kind, n: usize) -> usize {
    kind.0 as usize * COLUMNS + n
}

/// Events in one chunk at most. It bounds what a reader holds in memory.
pub const MAX_EVENTS: usize = 1 << 17;

/// Slots of the hand-off page table.
const PAGE_SLOTS: usize = 4096;

/// Bits of a hand-off's flags column.
pub(super) mod hand_off {
    /// The page is wanted for writing.
    pub const WRITE: u8 = 1;
    /// The page is the one in the table's slot.
    pub const KNOWN: u8 = 2;
    /// `from` is the slot's owner.
    pub const OWNER: u8 = 4;
    /// `lines` codes 0 to 63 are one line; beyond them:
    pub const LINES_NONE: u8 = 64;
    pub const LINES_ALL: u8 = 65;
    pub const LINES_RUN: u8 = 66;
    pub const LINES_MAP: u8 = 67;
}

/// What is known of a page that changed hands lately.
#[derive(Clone, Copy, Default)]
pub(super) struct PageSlot {
    pub page: u64,
    pub owner: u8,
}

/// What later events of the chunk are coded against. Blank at the start of each chunk.
pub(super) struct State {
    /// Where a new event is expected: the last event's moment or the last slice's end.
    pub last: u64,
    /// Where the next slice is expected to start.
    pub slice_end: u64,
    /// The vCPU of the last event that has one.
    pub vcpu: u8,
    pub to_ns: u64,
    pub names: Vec<Arc<str>>,
    pub next_id: u64,
    pub next_pc: u64,
    /// Physical minus virtual address of the last fetch.
    pub bias: u64,
    pub mode: u32,
    /// The latest fetch of each vCPU, which its next link is expected to equal.
    pub fetched: Vec<Block>,
    pub invalidated: u64,
    pub invalidated_paddr: u64,
    pub pages: Vec<PageSlot>,
    /// The last page that was not in the table.
    pub missed_page: u64,
    pub cross_paddr: u64,
}

impl State {
    pub fn new() -> Self {
        State {
            last: 0,
            slice_end: 0,
            vcpu: 0,
            to_ns: 0,
            names: Vec::new(),
            next_id: 0,
            next_pc: 0,
            bias: 0,
            mode: 0,
            fetched: vec![Block::default(); 256],
            invalidated: 0,
            invalidated_paddr: 0,
            pages: vec![PageSlot::default(); PAGE_SLOTS],
            missed_page: 0,
            cross_paddr: 0,
        }
    }

    /// After a fetch: what the next one is coded against.
    pub fn fetched(&mut self, block: &Block) {
        self.next_id = block.id.wrapping_add(1);
        self.next_pc = block.pc.wrapping_add(u64::from(block.len));
        self.bias = block.paddr.wrapping_sub(block.pc);
        self.mode = block.mode;
        self.fetched[usize::from(block.vcpu)] = *block;
    }

    /// After a slice: where the next event and the next slice are expected.
    pub fn sliced(&mut self, start: u64, instructions: u64) {
        self.slice_end = start.wrapping_add(instructions);
        self.last = self.slice_end;
    }
}

/// The slot of a page in the table: its low bits, so that neighbours do not displace each other.
pub(super) fn page_slot(page: u64) -> u16 {
    (page & 0xfff) as u16
}

/// Where the lines of a hand-off are one unbroken run, its first line and its length.
pub(super) fn run(lines: u64) -> Option<(u8, u8)> {
    let start = lines.trailing_zeros();
    let length = lines.count_ones();
    (lines != 0 && (lines >> start) == u64::MAX >> (64 - length))
        .then_some((start as u8, length as u8))
}

/// The lines `start .. start + length`; `None` where they do not fit into a page.
pub(super) fn run_lines(start: u8, length: u8) -> Option<u64> {
    ((1..=64).contains(&length) && start <= 64 - length)
        .then(|| (u64::MAX >> (64 - length)) << start)
}
