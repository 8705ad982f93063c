//! Page ownership: an agent that needs a right acquires the page, others lose it, and a hand-off is recorded
//! (docs/determinism.md, "Cross-vCPU writes").

use crate::memory::pages::{HandOff, HandOffKind, PageFlags, NO_AGENT};
use crate::memory::PAGE_SHIFT;
use crate::runtime::engine::Engine;
use crate::runtime::inputs::Inputs;
use crate::runtime::observers::Observed;

impl Engine {
    /// Makes an agent the owner, or a reader, of a page, taking rights from others where needed.
    #[inline]
    pub fn acquire(&mut self, agent: u8, page: usize, kind: HandOffKind) {
        if !self.memory.tracking {
            return;
        }
        let allowed = match kind {
            HandOffKind::Read => self.memory.pages.reads(page, agent),
            HandOffKind::Write => self.memory.pages.owns(page, agent),
        };
        if !allowed {
            self.hand_off(agent, page, kind);
        }
    }

    fn hand_off(&mut self, agent: u8, page: usize, kind: HandOffKind) {
        match self.inputs {
            Inputs::Live => {}
            Inputs::Logged(_) => self.log_hand_off(agent, page, kind),
            Inputs::Replayed(_) => self.play_hand_off(agent, page, kind),
        }
        let owned = self.memory.pages.info[page]
            .flags
            .contains(PageFlags::OWNED);
        let from = self.transfer(agent, page, kind);
        if from == NO_AGENT {
            return;
        }
        self.observers.stats.hand_offs += 1;
        let lines = if owned {
            self.memory.ram.take_lines(page)
        } else {
            0
        };
        let page = self.memory.ram.page_address(page) >> PAGE_SHIFT;
        let hand_off = HandOff {
            page,
            from,
            to: agent,
            kind,
            lines,
        };
        self.observers
            .note(self.clock.icount(), Observed::HandOff(hand_off));
    }

    /// Takes a page's rights from those who must not keep them, and gives them to an agent. Returns who wrote
    /// it last.
    pub(in crate::runtime) fn transfer(&mut self, agent: u8, page: usize, kind: HandOffKind) -> u8 {
        let before = self.memory.pages.info[page];
        for index in 0..self.vcpus.count() {
            let number = index as u8;
            if number == agent || !self.memory.pages.reads(page, number) {
                continue;
            }
            let other = self.vcpus.mmu_mut(index);
            match kind {
                HandOffKind::Read => other.tlb.protect_page(page),
                HandOffKind::Write => {
                    other.tlb.revoke_page(page);
                    if before.flags.contains(PageFlags::FETCHED) {
                        other.revoke_fetches(self.memory.ram.page_address(page));
                    }
                }
            }
        }
        self.memory.pages.give(page, agent, kind)
    }

    /// Switches the tracking of who writes and reads which page on or off, before anything has run.
    pub fn set_tracking(&mut self, on: bool) {
        self.memory.tracking = on;
    }

    /// Whether it is tracked who writes and reads which page.
    pub fn tracking(&self) -> bool {
        self.memory.tracking
    }
}
