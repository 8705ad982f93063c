//! What reaches a vCPU from outside of itself, live, logged or played: see `inputs`.

use super::agent::{Agent, Writer};
use super::engine::Engine;
use super::inputs::{Acquisition, Delivery, InputDivergence, Inputs};
use super::protocol::Source;
use super::storelog::StoreLog;
use super::vcpu::Vcpu;
use super::writelog::Commit;
use crate::cpu::interrupt::Event;
use crate::memory::pages::{HandOffKind, PageFlags, DEVICE, NO_AGENT};
use crate::memory::PAGE_SIZE;

impl Engine {
    fn answer(&mut self, vcpu: usize, live: impl FnOnce(&mut Self) -> Option<u64>) -> Option<u64> {
        if let Inputs::Played(tape) = &mut self.inputs {
            return match tape.answers.pop_front() {
                Some(answer) => answer,
                None => {
                    self.diverge(InputDivergence::Answer);
                    Some(0)
                }
            };
        }
        let answer = live(self);
        if let Inputs::Logged(log) = &mut self.inputs {
            log.tapes[vcpu].answers.push_back(answer);
        }
        answer
    }

    #[inline]
    fn played(&self) -> bool {
        matches!(self.inputs, Inputs::Played(_))
    }

    /// Notes that a vCPU that runs alone does something else than was logged.
    fn diverge(&mut self, what: InputDivergence) {
        if self.diverged.is_none() {
            self.diverged = Some((self.icount(), what));
        }
    }

    pub(in crate::runtime) fn io_read(&mut self, vcpu: usize, port: u16, size: usize) -> u32 {
        let now = self.now();
        let answer = self.answer(vcpu, |e| Some(e.bus.io_read(vcpu, port, size, now).into()));
        answer.unwrap_or(0) as u32
    }

    pub(in crate::runtime) fn io_write(&mut self, vcpu: usize, port: u16, size: usize, value: u32) {
        let now = self.now();
        if !self.played() {
            let before = self.bus.console_waiting().len();
            self.bus.io_write(vcpu, port, size, value, now);
            self.note_output(vcpu, before);
        }
    }

    pub(in crate::runtime) fn mmio_read(&mut self, vcpu: usize, paddr: u64, size: usize) -> u64 {
        let now = self.now();
        let answer = self.answer(vcpu, |e| Some(e.bus.mmio_read(vcpu, paddr, size, now)));
        answer.unwrap_or(0)
    }

    pub(in crate::runtime) fn mmio_write(
        &mut self,
        vcpu: usize,
        paddr: u64,
        size: usize,
        value: u64,
    ) {
        let now = self.now();
        if !self.played() {
            self.bus.mmio_write(vcpu, paddr, size, value, now);
            self.note_ipis(vcpu);
        }
    }

    /// `None` is #GP.
    pub(in crate::runtime) fn apic_msr_read(
        &mut self,
        vcpu: usize,
        msr: u32,
        now: u64,
    ) -> Option<u64> {
        self.answer(vcpu, |e| e.bus.apic_msr_read(vcpu, msr, now))
    }

    /// `None` is #GP.
    pub(in crate::runtime) fn apic_msr_write(
        &mut self,
        vcpu: usize,
        msr: u32,
        value: u64,
    ) -> Option<()> {
        let now = self.now();
        self.answer(vcpu, |e| {
            let done = e.bus.apic_msr_write(vcpu, msr, value, now);
            e.note_ipis(vcpu);
            done.map(|()| 0)
        })
        .map(|_| ())
    }

    pub(in crate::runtime) fn cr8(&mut self, vcpu: usize) -> u8 {
        let answer = self.answer(vcpu, |e| Some(e.bus.cr8(vcpu).into()));
        answer.unwrap_or(0) as u8
    }

    pub(in crate::runtime) fn set_cr8(&mut self, vcpu: usize, value: u8) {
        if !self.played() {
            self.bus.set_cr8(vcpu, value);
        }
    }

    /// Something waits for the machine.
    #[inline]
    pub(in crate::runtime) fn has_signals(&self) -> bool {
        !self.played() && self.bus.has_signals()
    }

    /// A maskable interrupt could be delivered if RFLAGS.IF allowed. Of a tape's, this is not known before
    /// its moment.
    #[inline]
    pub(in crate::runtime) fn pending_interrupt(&self, vcpu: usize) -> bool {
        !self.played() && self.bus.pending_interrupt(vcpu)
    }

    /// The interrupt or NMI that the tape has for this moment.
    #[inline]
    pub(in crate::runtime) fn played_delivery(&mut self, v: &Vcpu) -> Option<Event> {
        let now = self.icount();
        let Inputs::Played(tape) = &mut self.inputs else {
            return None;
        };
        let due = tape.deliveries.front()?;
        if due.icount != now || due.rip != v.cpu.rip {
            return None;
        }
        let vector = due.vector;
        tape.deliveries.pop_front();
        Some(vector.map_or(Event::Nmi, Event::External))
    }

    /// Logs a delivery that is about to be made.
    pub(in crate::runtime) fn log_delivery(&mut self, v: &Vcpu, vector: Option<u8>) {
        let icount = self.icount();
        if let Inputs::Logged(log) = &mut self.inputs {
            let delivery = Delivery {
                icount,
                rip: v.cpu.rip,
                vector,
            };
            log.tapes[usize::from(v.cpu.id)]
                .deliveries
                .push_back(delivery);
        }
    }

    /// Logs the last stores to shared lines from now on.
    pub fn log_stores(&mut self, stores: StoreLog) {
        let Inputs::Logged(log) = &mut self.inputs else {
            return;
        };
        for page in stores.pages() {
            self.memory.pages.info[page].flags |= PageFlags::LOGGED;
            self.vcpus.mmus().for_each(|mmu| mmu.tlb.protect_page(page));
        }
        log.stores = Some(stores);
    }

    /// Logs a store that is about to change a page of interest.
    pub(in crate::runtime) fn log_store(
        &mut self,
        commit: &Commit,
        page: usize,
        paddr: u64,
        data: &[u8],
    ) {
        let icount = self.icount();
        let rip = match commit.agent {
            Agent::Device => 0,
            Agent::Vcpu(_) => self.position_rip().unwrap_or(0),
        };
        let offset = (paddr % PAGE_SIZE) as usize;
        if let Inputs::Logged(log) = &mut self.inputs {
            if let Some(stores) = &mut log.stores {
                let old = &self.memory.ram.page(page)[offset..offset + data.len()];
                stores.note(commit.agent, page, paddr, (icount, rip), old, data);
            }
        }
    }

    /// Logs a hand-off that is about to be made.
    pub(in crate::runtime) fn log_hand_off(&mut self, agent: u8, page: usize, kind: HandOffKind) {
        let icount = self.icount();
        let before = self.memory.pages.info[page];
        if let Inputs::Logged(log) = &mut self.inputs {
            log.handed(&self.memory.ram, page, before, agent, kind, icount);
        }
    }

    /// Puts in what others have written to a page that a vCPU running alone acquires.
    pub(in crate::runtime) fn play_hand_off(&mut self, agent: u8, page: usize, kind: HandOffKind) {
        let (icount, write) = (self.icount(), kind == HandOffKind::Write);
        let Inputs::Played(tape) = &mut self.inputs else {
            return;
        };
        let due = tape.acquired.front();
        if due.is_some_and(|d| (d.icount, d.page as usize, d.write) == (icount, page, write)) {
            let changes = tape.acquired.pop_front().map(|d| d.changes);
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
            self.diverge(InputDivergence::Page { logged, found });
        }
    }

    /// Writes what another agent has written earlier. Not by `write`: that would make the page somebody's
    /// and mark its lines, and who has it is what the caller is about to say.
    fn put_foreign(&mut self, vcpu: u8, page: usize, paddr: u64, bytes: &[u8]) {
        let room = PAGE_SIZE as usize - (paddr % PAGE_SIZE) as usize;
        let bytes = &bytes[..bytes.len().min(room)];
        self.slice.vcpu = vcpu;
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

    /// What a vCPU that runs alone did otherwise than logged, and when.
    pub fn take_divergence(&mut self) -> Option<(u64, InputDivergence)> {
        self.diverged.take()
    }
}
