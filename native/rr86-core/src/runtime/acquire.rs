//! Who may touch which page: an agent that needs a right comes here, the others lose it, and the trace is
//! told (docs/determinism.md, "Cross-vCPU writes").

use crate::memory::pages::{HandOff, HandOffKind, PageFlags, NOBODY};
use crate::memory::PAGE_SHIFT;
use crate::runtime::engine::{Engine, Observed};
use crate::runtime::inputs::Inputs;

impl Engine {
    /// Makes an agent the owner, or a reader, of a page, taking rights from others where needed.
    #[inline]
    pub fn acquire(&mut self, agent: u8, page: usize, kind: HandOffKind) {
        if !self.tracking {
            return;
        }
        let allowed = match kind {
            HandOffKind::Read => self.pages.reads(page, agent),
            HandOffKind::Write => self.pages.owns(page, agent),
        };
        if !allowed {
            self.hand_off(agent, page, kind);
        }
    }

    fn hand_off(&mut self, agent: u8, page: usize, kind: HandOffKind) {
        match self.inputs {
            Inputs::Live => {}
            Inputs::Logged(_) => self.log_hand_off(agent, page, kind),
            Inputs::Played(_) => self.play_hand_off(agent, page, kind),
        }
        let owned = self.pages.info[page].flags.contains(PageFlags::OWNED);
        let from = self.transfer(agent, page, kind);
        if from == NOBODY {
            return;
        }
        self.stats.hand_offs += 1;
        let lines = if owned { self.ram.take_lines(page) } else { 0 };
        let page = self.ram.page_address(page) >> PAGE_SHIFT;
        let hand_off = HandOff {
            page,
            from,
            to: agent,
            kind,
            lines,
        };
        self.observed
            .push((self.icount, Observed::HandOff(hand_off)));
    }

    /// Takes a page's rights from those who must not keep them, and gives them to an agent. Returns who wrote
    /// it last.
    pub(in crate::runtime) fn transfer(&mut self, agent: u8, page: usize, kind: HandOffKind) -> u8 {
        let before = self.pages.info[page];
        for index in 0..self.vcpus.len() {
            let number = index as u8;
            if number == agent || !self.pages.reads(page, number) {
                continue;
            }
            let other = self.vcpus.mmu_mut(index);
            match kind {
                HandOffKind::Read => other.tlb.protect_page(page),
                HandOffKind::Write => {
                    other.tlb.revoke_page(page);
                    if before.flags.contains(PageFlags::FETCHED) {
                        other.revoke_fetches(self.ram.page_address(page));
                    }
                }
            }
        }
        self.pages.give(page, agent, kind)
    }

    /// Switches the tracking of who writes and reads which page on or off, before anything has run.
    pub fn set_tracking(&mut self, on: bool) {
        self.tracking = on;
    }

    /// Whether it is tracked who writes and reads which page.
    pub fn tracking(&self) -> bool {
        self.tracking
    }

    /// Whether a vCPU may write a page without asking.
    pub(in crate::runtime) fn may_write(&self, page: usize, vcpu: u8) -> bool {
        !self.tracking || self.pages.owns(page, vcpu)
    }

    /// Notes a write to RAM by Rust code.
    #[inline]
    pub(in crate::runtime) fn mark_lines(&mut self, host: *const u8, len: usize) {
        if self.tracking {
            self.ram.mark_lines(host, len);
        }
    }
}
