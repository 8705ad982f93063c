//! Page ownership: an agent that needs a right acquires the page, others lose it, and a hand-off is recorded
//! (docs/determinism.md, "Cross-vCPU writes").

use crate::memory::pages::{HandOff, HandOffKind, PageFlags, DEVICE, NO_AGENT};
use crate::memory::{PAGE_SHIFT, PAGE_SIZE};
use crate::runtime::agent::{Agent, Writer};
use crate::runtime::engine::Engine;
use crate::runtime::inputs::{Acquisition, InputDivergence, Inputs};
use crate::runtime::observers::Observed;
use crate::runtime::protocol::Source;

impl Engine {
    /// Makes an agent the owner, or a reader, of a page, taking rights from others where needed.
    #[inline]
    pub fn acquire(&mut self, agent: u8, page: usize, kind: HandOffKind) {
        if self.memory.must_acquire(agent, page, kind) {
            self.hand_off(agent, page, kind);
        }
    }

    fn hand_off(&mut self, agent: u8, page: usize, kind: HandOffKind) {
        match self.outside.inputs() {
            Inputs::Live => {}
            Inputs::Logged(_) => self.log_hand_off(agent, page, kind),
            Inputs::Replayed(_) => self.replay_hand_off(agent, page, kind),
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

    /// Logs a hand-off that is about to be made.
    fn log_hand_off(&mut self, agent: u8, page: usize, kind: HandOffKind) {
        let icount = self.icount();
        let before = self.memory.pages.info[page];
        if let Some(log) = self.outside.recorder() {
            log.handed(&self.memory.ram, page, before, agent, kind, icount);
        }
    }

    /// Puts in what others have written to a page that a vCPU running alone acquires.
    fn replay_hand_off(&mut self, agent: u8, page: usize, kind: HandOffKind) {
        let (icount, write) = (self.icount(), kind == HandOffKind::Write);
        let Some(inputs) = self.outside.replayed() else {
            return;
        };
        let due = inputs.acquired.front();
        if due.is_some_and(|d| (d.icount, d.page as usize, d.write) == (icount, page, write)) {
            let changes = inputs.acquired.pop_front().map(|d| d.changes);
            let writer = &mut self.memory.pages.info[page].writer;
            if *writer == NO_AGENT {
                // Others have touched it, which leaves no event; so it is not this one's own.
                *writer = DEVICE;
            }
            let at = self.memory.ram.page_address(page);
            for (offset, bytes) in changes.unwrap_or_default() {
                self.put_foreign(agent, page, at + u64::from(offset), &bytes);
            }
        } else if self.memory.pages.info[page].writer != NO_AGENT {
            let logged = due.map(|d| (d.icount, Acquisition::new(d.page as usize, d.write)));
            let found = Acquisition::new(page, write);
            self.outside
                .diverge(icount, InputDivergence::Page { logged, found });
        }
    }

    /// Writes what another agent has written earlier. Not by `write`: that would make the page somebody's
    /// and mark its lines, and who has it is what the caller is about to say.
    fn put_foreign(&mut self, vcpu: u8, page: usize, paddr: u64, bytes: &[u8]) {
        let room = PAGE_SIZE as usize - (paddr % PAGE_SIZE) as usize;
        let bytes = &bytes[..bytes.len().min(room)];
        self.slice.set_vcpu(vcpu);
        let writer = Writer {
            agent: Agent::Device,
            source: Source::Device,
            linear: None,
            running: None,
        };
        self.check(writer, paddr, bytes.len());
        let offset = (paddr % PAGE_SIZE) as usize;
        self.memory.ram.write(page, offset, bytes);
        self.memory.pages.mark_dirty(page);
    }

    /// Lets another agent have a page, while one vCPU runs alone.
    pub fn lose_page(&mut self, agent: u8, page: usize, kind: HandOffKind) {
        self.transfer(agent, page, kind);
    }

    /// Switches the tracking of who writes and reads which page on or off, before anything has run.
    pub fn set_tracking(&mut self, on: bool) {
        self.memory.set_tracking(on);
    }

    /// Whether it is tracked who writes and reads which page.
    pub fn tracking(&self) -> bool {
        self.memory.tracking()
    }
}
