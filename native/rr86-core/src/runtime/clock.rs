//! Virtual time: the count of retired instructions, and what time has jumped ahead of it.

use super::cache::BlockId;
use crate::translate::layout::RunState;
use crate::translate::site::Site;

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// Retired instructions of all vCPUs at the last position that was noted.
    pub(in crate::runtime) icount: u64,
    /// Nanoseconds that virtual time has jumped ahead of the instruction count.
    pub skipped_ns: u64,
    /// Block and offset of the instruction whose moment was noted last.
    pub(in crate::runtime) position: (BlockId, u16),
}

impl Clock {
    /// Virtual time in nanoseconds: one per instruction, plus idle jumps.
    #[inline]
    pub fn now(&self) -> u64 {
        self.icount + self.skipped_ns
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
