//! What is noted beside the run: events of blocks and pages, counters, logs, and the oracle. None of it influences
//! the run.

use super::journal::Journal;
use super::oracle::Oracle;
use super::writelog::WriteLog;
use crate::host_time::{HostTime, Phase, Spent, Stopwatch};
use crate::memory::pages::HandOff;
use crate::translate::layout::Exit;

/// All observers of a run.
pub struct Observers {
    /// What happened since the recorder last looked, with its moment.
    events: Vec<(u64, Observed)>,
    /// Counters, which whatever is counted raises itself.
    pub(in crate::runtime) stats: Stats,
    /// What the run has cost the host.
    spent: Spent,
    helpers: HelperCounts,
    pub(in crate::runtime) write_log: WriteLog,
    pub(in crate::runtime) journal: Journal,
    /// Hears of every access; see `oracle`.
    pub(in crate::runtime) oracle: Option<Box<Oracle>>,
}

impl Default for Observers {
    fn default() -> Self {
        Self {
            events: Vec::new(),
            stats: Stats::default(),
            spent: Spent::default(),
            helpers: HelperCounts::new(),
            write_log: WriteLog::default(),
            journal: Journal::default(),
            oracle: None,
        }
    }
}

impl Observers {
    /// Notes what has happened at a moment.
    #[inline]
    pub(in crate::runtime) fn note(&mut self, icount: u64, what: Observed) {
        self.events.push((icount, what));
    }

    /// What happened since this was last asked or forgotten, with its moment.
    pub fn events(&self) -> &[(u64, Observed)] {
        &self.events
    }

    /// The same, once.
    pub fn take_events(&mut self) -> impl Iterator<Item = (u64, Observed)> + '_ {
        self.events.drain(..)
    }

    /// Forgets what has happened.
    pub fn forget_events(&mut self) {
        self.events.clear();
    }

    /// Counters of the run.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Counts a call of a helper.
    #[inline]
    pub(in crate::runtime) fn count_helper(&mut self, mnemonic: iced_x86::Mnemonic) {
        self.helpers.count(mnemonic);
    }

    /// Helper calls by instruction.
    pub fn helpers(&self) -> &HelperCounts {
        &self.helpers
    }

    /// What the run has cost the host so far.
    pub fn spent(&self) -> Spent {
        self.spent
    }

    /// Notes a call of the core that has lasted so long.
    pub fn spend_call(&mut self, time: HostTime) {
        self.spent.whole += time;
    }

    /// Notes time that a phase has taken.
    pub fn spend(&mut self, phase: Phase, time: HostTime) {
        self.spent.add(phase, time);
    }

    /// Starts a watch now and then, for what comes by the hundred thousand.
    #[inline]
    pub(in crate::runtime) fn sample_time(&mut self) -> Option<Stopwatch> {
        self.spent.sample()
    }

    /// Notes what such a watch has measured.
    #[inline]
    pub(in crate::runtime) fn spend_sample(&mut self, phase: Phase, watch: Option<Stopwatch>) {
        self.spent.add_sample(phase, watch);
    }

    /// Whether the oracle is asked.
    #[inline]
    pub(in crate::runtime) fn asks_oracle(&self) -> bool {
        self.oracle.is_some()
    }
}

/// What the engine tells about blocks and pages, for the recorder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// A block came into being.
    Link {
        serial: u64,
        vcpu: u8,
        rip: u64,
        paddr: u64,
        len: u16,
        mode: u32,
        digest: u32,
    },
    /// A block's bytes were read. The block has no number yet if its link comes later.
    Fetch {
        serial: Option<u64>,
        vcpu: u8,
        rip: u64,
        paddr: u64,
        len: u16,
        mode: u32,
        digest: u32,
    },
    /// A block no longer matches memory, and the protocol has left it in place. `born`: it never
    /// did since it was linked.
    Stale {
        serial: u64,
        vcpu: u8,
        born: bool,
    },
    /// A stale block was entered; told once a block.
    StaleEntry {
        serial: u64,
        vcpu: u8,
    },
    /// A breakpoint instruction was executed that memory does not hold; told once a block.
    StaleInt3 {
        serial: u64,
        vcpu: u8,
    },
    /// A write removed a block.
    Invalidate {
        serial: u64,
        by: u8,
        paddr: u64,
        len: u32,
    },
    /// All blocks were removed because the cache was full.
    Flush {
        vcpu: u8,
    },
    HandOff(HandOff),
}

/// Counters; none of them influences the run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    pub blocks_translated: u64,
    /// Blocks whose code was there before they were.
    pub blocks_ahead: u64,
    pub instructions_translated: u64,
    pub blocks_invalidated: u64,
    /// Blocks that a protocol left stale, and executions of such blocks.
    pub stale_blocks: u64,
    pub stale_entries: u64,
    /// Executions of breakpoint instructions that memory did not hold.
    pub stale_int3s: u64,
    /// Superblocks made.
    pub superblocks: u64,
    pub block_flushes: u64,
    pub code_drops: u64,
    pub dispatches: u64,
    /// Returns of translated code by [`Exit`].
    pub exits: [u64; Exit::COUNT],
    pub lookups: u64,
    /// Look-ups that found the page not known for fetches.
    pub fetch_misses: u64,
    /// Accesses that called Rust, and those of them that took place in the bounce buffer. What `across` makes
    /// is in neither.
    pub slow_accesses: u64,
    pub bounced_accesses: u64,
    pub tlb_fills: u64,
    pub tlb_flushes: u64,
    pub page_walks: u64,
    pub helper_calls: u64,
    pub hand_offs: u64,
    pub exceptions: u64,
    pub interrupts: u64,
}

/// Helper calls by instruction.
pub struct HelperCounts(Vec<u64>);

impl HelperCounts {
    fn new() -> Self {
        Self(vec![0; iced_x86::Mnemonic::values().count()])
    }

    fn count(&mut self, mnemonic: iced_x86::Mnemonic) {
        self.0[mnemonic as usize] += 1;
    }

    /// (mnemonic, calls), most calls first.
    pub fn sorted(&self) -> Vec<(String, u64)> {
        let mut all: Vec<(String, u64)> = iced_x86::Mnemonic::values()
            .zip(&self.0)
            .filter(|(_, &calls)| calls > 0)
            .map(|(m, &calls)| (format!("{m:?}").to_lowercase(), calls))
            .collect();
        all.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        all
    }
}
