//! What reaches a vCPU from outside of itself: answers of devices, interrupts, and the bytes that others
//! have written.
//!
//! In an ordinary run these come from the bus and from RAM. A replay can *log* them, vCPU by vCPU, and
//! then one vCPU can be run alone, with its inputs *played* back (`session::alone`). This works
//! because a page that others have written is never touched without being acquired first: whatever a
//! vCPU can see of the others has passed through [`Engine::acquire`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::cpu::interrupt::Event;
use crate::memory::pages::{HandOffKind, PageFlags, PageInfo, DEVICE, NOBODY};
use crate::memory::ram::GuestRam;
use crate::memory::PAGE_SIZE;
use crate::runtime::coherence::Writer;
use crate::runtime::engine::{Agent, Engine};
use crate::runtime::protocol::Source;
use crate::runtime::storelog::StoreLog;
use crate::runtime::vcpu::Vcpu;
use crate::runtime::writelog::Commit;

type PageBytes = [u8; PAGE_SIZE as usize];

/// An interrupt or NMI that was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub icount: u64,
    /// Where the handler returns to: it tells the order of a fault and an interrupt at one moment.
    pub rip: u64,
    /// `None` is an NMI.
    pub vector: Option<u8>,
}

/// A page that a vCPU acquired, and what others had changed in it since it last could read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acquired {
    pub icount: u64,
    pub page: u32,
    pub write: bool,
    /// Offset in the page and new bytes.
    pub changes: Vec<(u16, Vec<u8>)>,
}

/// Inputs of one vCPU, each kind in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tape {
    /// What devices answered; a refused MSR access is `None`.
    pub answers: VecDeque<Option<u64>>,
    pub deliveries: VecDeque<Delivery>,
    pub acquired: VecDeque<Acquired>,
}

impl Tape {
    pub fn is_empty(&self) -> bool {
        self.answers.is_empty() && self.deliveries.is_empty() && self.acquired.is_empty()
    }
}

/// The log of all vCPUs' inputs.
#[derive(Default)]
pub struct InputLog {
    pub tapes: Vec<Tape>,
    /// RAM as it was when the log began, where it was not zero.
    initial: BTreeMap<usize, Box<PageBytes>>,
    /// What vCPUs that can no longer read a page last saw of it.
    seen: BTreeMap<(usize, u8), Arc<PageBytes>>,
    /// The last stores to shared lines, if they are wanted.
    pub stores: Option<StoreLog>,
}

impl InputLog {
    /// A log of the inputs of `vcpus` vCPUs, which begins now.
    pub fn new(vcpus: usize, engine: &Engine) -> Self {
        let copy = |page: usize| -> Box<PageBytes> {
            engine
                .ram
                .page(page)
                .to_vec()
                .try_into()
                .expect("a whole page")
        };
        let written = (0..engine.ram.pages()).filter(|&p| engine.pages.info[p].writer != NOBODY);
        Self {
            tapes: vec![Tape::default(); vcpus],
            initial: written.map(|page| (page, copy(page))).collect(),
            seen: BTreeMap::new(),
            stores: None,
        }
    }

    /// A page is about to change hands.
    fn handed(
        &mut self,
        ram: &GuestRam,
        page: usize,
        before: PageInfo,
        agent: u8,
        kind: HandOffKind,
        icount: u64,
    ) {
        if let Some(stores) = &mut self.stores {
            // Until its owner changes, nobody else writes the page.
            if before.writer != agent || kind == HandOffKind::Read {
                stores.handed(page);
            }
        }
        let now: &PageBytes = ram.page(page).try_into().expect("a whole page");
        let readers = before.readers;
        if agent != DEVICE && before.writer != NOBODY {
            let mut changes = Vec::new();
            if readers >> agent & 1 == 0 {
                let zero = [0; PAGE_SIZE as usize];
                let seen = self.seen.remove(&(page, agent));
                let old = seen
                    .as_deref()
                    .or_else(|| self.initial.get(&page).map(|p| &**p))
                    .unwrap_or(&zero);
                changes = differences(old, now);
            }
            self.tapes[usize::from(agent)].acquired.push_back(Acquired {
                icount,
                page: page as u32,
                write: kind == HandOffKind::Write,
                changes,
            });
        }
        if kind == HandOffKind::Write {
            let mut copy = None;
            for other in 0..self.tapes.len() as u8 {
                if other != agent && readers >> other & 1 != 0 {
                    let copy = copy.get_or_insert_with(|| Arc::new(*now));
                    self.seen.insert((page, other), copy.clone());
                }
            }
        }
    }
}

/// Runs of bytes that differ; runs less than eight bytes apart are joined.
fn differences(old: &PageBytes, new: &PageBytes) -> Vec<(u16, Vec<u8>)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for at in (0..old.len()).step_by(8) {
        if old[at..at + 8] == new[at..at + 8] {
            continue;
        }
        for n in (at..at + 8).filter(|&n| old[n] != new[n]) {
            match runs.last_mut() {
                Some((_, end)) if n < *end + 8 => *end = n + 1,
                _ => runs.push((n, n + 1)),
            }
        }
    }
    runs.iter()
        .map(|&(start, end)| (start as u16, new[start..end].to_vec()))
        .collect()
}

/// Where a vCPU's inputs come from.
#[derive(Default)]
pub enum Inputs {
    /// From the bus and from RAM.
    #[default]
    Live,
    /// The same, and they are logged.
    Logged(Box<InputLog>),
    /// From a tape.
    Played(Box<Tape>),
}

impl Engine {
    fn answer(&mut self, vcpu: usize, live: impl FnOnce(&mut Self) -> Option<u64>) -> Option<u64> {
        if let Inputs::Played(tape) = &mut self.inputs {
            return match tape.answers.pop_front() {
                Some(answer) => answer,
                None => {
                    self.astray("it asks a device for more than was answered");
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

    fn played(&self) -> bool {
        matches!(self.inputs, Inputs::Played(_))
    }

    /// Notes that a vCPU that runs alone does something else than was logged.
    fn astray(&mut self, what: &str) {
        if self.astray.is_none() {
            self.astray = Some((self.icount(), what.to_string()));
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
            self.bus.io_write(vcpu, port, size, value, now);
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
            e.bus.apic_msr_write(vcpu, msr, value, now).map(|()| 0)
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
    pub(in crate::runtime) fn has_signals(&self) -> bool {
        !self.played() && self.bus.has_signals()
    }

    /// A maskable interrupt could be delivered if RFLAGS.IF allowed. Of a tape's, this is not known before
    /// its moment.
    pub(in crate::runtime) fn pending_interrupt(&self, vcpu: usize) -> bool {
        !self.played() && self.bus.pending_interrupt(vcpu)
    }

    /// The interrupt or NMI that the tape has for this moment.
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
            self.pages.info[page].flags |= PageFlags::LOGGED;
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
                let old = &self.ram.page(page)[offset..offset + data.len()];
                stores.note(commit.agent, page, paddr, (icount, rip), old, data);
            }
        }
    }

    /// Logs a hand-off that is about to be made.
    pub(in crate::runtime) fn log_hand_off(&mut self, agent: u8, page: usize, kind: HandOffKind) {
        let icount = self.icount();
        let before = self.pages.info[page];
        if let Inputs::Logged(log) = &mut self.inputs {
            log.handed(&self.ram, page, before, agent, kind, icount);
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
            let writer = &mut self.pages.info[page].writer;
            if *writer == NOBODY {
                // Others have touched it, which leaves no event; so it is not this one's own.
                *writer = DEVICE;
            }
            let at = self.ram.page_address(page);
            for (offset, bytes) in changes.unwrap_or_default() {
                self.put_foreign(agent, page, at + u64::from(offset), &bytes);
            }
        } else if self.pages.info[page].writer != NOBODY {
            let due = due.map(|d| (d.icount, d.page, d.write));
            self.astray(&format!(
                "it acquires page {page:#x} (write: {write}), the log has (moment, page, write) {due:x?}"
            ));
        }
    }

    /// Writes what another agent has written earlier. Not by `write`: that would make the page somebody's
    /// and mark its lines, and who has it is what the caller is about to say.
    fn put_foreign(&mut self, vcpu: u8, page: usize, paddr: u64, bytes: &[u8]) {
        let room = PAGE_SIZE as usize - (paddr % PAGE_SIZE) as usize;
        let bytes = &bytes[..bytes.len().min(room)];
        self.current_vcpu = vcpu;
        let writer = Writer {
            agent: Agent::Device,
            source: Source::Device,
            linear: None,
            running: None,
        };
        self.check(writer, paddr, bytes.len());
        let offset = (paddr % PAGE_SIZE) as usize;
        self.ram.page_mut(page)[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.pages.mark_dirty(page);
    }

    /// Lets another agent have a page, while one vCPU runs alone.
    pub fn lose_page(&mut self, agent: u8, page: usize, kind: HandOffKind) {
        self.transfer(agent, page, kind);
    }

    /// What a vCPU that runs alone did otherwise than logged, and when.
    pub fn take_astray(&mut self) -> Option<(u64, String)> {
        self.astray.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_runs_that_join_when_close() {
        let old = [0; PAGE_SIZE as usize];
        let mut new = old;
        assert!(differences(&old, &new).is_empty());
        new[7] = 1;
        new[9] = 2;
        new[100] = 3;
        new[4095] = 4;
        assert_eq!(
            differences(&old, &new),
            [(7, vec![1, 0, 2]), (100, vec![3]), (4095, vec![4])]
        );
    }
}
