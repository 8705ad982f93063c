//! Virtual time: the count of retired instructions, and what time has jumped ahead of it.

use super::cache::BlockId;
use crate::translate::layout::RunState;
use crate::translate::site::Site;

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// Retired instructions of all vCPUs at the last position that was noted.
    icount: u64,
    /// Nanoseconds that virtual time has jumped ahead of the instruction count.
    skipped_ns: u64,
    /// Block and offset of the instruction whose moment was noted last.
    position: (BlockId, u16),
}

impl Clock {
    /// Retired instructions of all vCPUs.
    #[inline]
    pub(in crate::runtime) fn icount(&self) -> u64 {
        self.icount
    }

    /// Virtual time in nanoseconds: one per instruction, plus idle jumps.
    #[inline]
    pub(in crate::runtime) fn now(&self) -> u64 {
        self.icount + self.skipped_ns
    }

    /// How far virtual time has jumped ahead of the instruction count, in nanoseconds.
    #[inline]
    pub(in crate::runtime) fn skipped_ns(&self) -> u64 {
        self.skipped_ns
    }

    /// The block whose instruction was noted last, and the instruction's offset in it.
    #[inline]
    pub(in crate::runtime) fn position(&self) -> (BlockId, u16) {
        self.position
    }

    /// Says that so many instructions have retired.
    #[inline]
    pub(in crate::runtime) fn set_icount(&mut self, icount: u64) {
        self.icount = icount;
    }

    /// Lets time jump ahead to a nanosecond while no vCPU runs; a time that has passed already is now.
    pub(in crate::runtime) fn jump_to(&mut self, ns: u64) {
        self.skipped_ns = ns.saturating_sub(self.icount);
    }

    /// Replaces the time by that of a checkpoint; no instruction is at work.
    pub(in crate::runtime) fn restore(&mut self, icount: u64, skipped_ns: u64) {
        *self = Self {
            icount,
            skipped_ns,
            position: (BlockId::MAX, 0),
        };
    }

    /// Notes the moment of the instruction at `site` of the running block.
    #[inline]
    pub(in crate::runtime) fn note_position(&mut self, run: &RunState, site: Site) {
        self.icount = (run.icount_base - run.budget - i64::from(site.remaining)) as u64;
        self.position = (run.site_block, site.offset);
    }

    /// Notes the moment between two blocks.
    #[inline]
    pub(in crate::runtime) fn note_boundary(&mut self, run: &RunState) {
        self.icount = (run.icount_base - run.budget) as u64;
    }
}
