//! Filling the journal: what is noted where a helper runs anyway, and at probes. See `journal`.

use super::engine::Engine;
use super::journal::{Cause, Entry, Fetch, Noted, Probe};
use super::vcpu::Vcpu;
use crate::cpu::interrupt::Event;
use crate::cpu::paging;
use crate::cpu::state::{gpr, CpuState};
use crate::memory::{PAGE_MASK, PAGE_SIZE};

impl Engine {
    /// Keeps a journal from now on, with these probes.
    pub fn keep_journal(&mut self, probes: Vec<Probe>) {
        // Hooked when the next run sets its stops.
        self.observers.journal.begin(probes);
        self.outside.bus().note_ipis(true);
    }

    /// What was noted since the last call, and how many entries did not fit.
    pub fn take_journal(&mut self) -> (Vec<Entry>, u64) {
        self.observers.journal.take()
    }

    /// Notes what a vCPU does now.
    #[inline]
    pub(in crate::runtime) fn note(&mut self, vcpu: u8, noted: impl FnOnce() -> Noted) {
        if self.observers.journal.is_on() {
            let (icount, time_ns) = (self.icount(), self.now());
            self.observers.journal.push(Entry {
                icount,
                time_ns,
                vcpu,
                noted: noted(),
            });
        }
    }

    /// Notes the delivery of an event that was due where `user` code ran.
    pub(in crate::runtime) fn note_delivery(
        &mut self,
        cpu: &CpuState,
        event: &Event,
        user: bool,
        from: u64,
    ) {
        if !self.observers.journal.is_on() {
            return;
        }
        let vector = event.vector();
        let external = matches!(event, Event::External(_));
        let timer = external && self.outside.timer_vector(usize::from(cpu.id)) == Some(vector);
        self.note(cpu.id, || Noted::Delivered {
            cause: Cause::of(event),
            vector,
            timer,
            user,
            from,
            handler: cpu.rip,
            stack: cpu.gpr[gpr::RSP],
            accumulator: cpu.gpr[gpr::RAX],
            address: cpu.cr2,
        });
    }

    /// Notes the interprocessor interrupts that an access to a local APIC has sent.
    #[inline]
    pub(in crate::runtime) fn note_ipis(&mut self, vcpu: usize) {
        if self.observers.journal.is_on() {
            for ipi in self.outside.bus().take_ipis() {
                self.note(vcpu as u8, || Noted::Ipi(ipi));
            }
        }
    }

    /// Notes the console output that an access has added to what waited.
    #[inline]
    pub(in crate::runtime) fn note_output(&mut self, vcpu: usize, before: usize) {
        if self.observers.journal.is_on() {
            let waiting = self.outside.console_waiting();
            let new: Vec<u8> = waiting.get(before..).unwrap_or_default().into();
            for byte in new {
                self.note(vcpu as u8, || Noted::Output { byte });
            }
        }
    }

    /// Notes what the probes before the instruction at `rip` ask for. Whether no one else waits there.
    pub(in crate::runtime) fn probe(&mut self, v: &Vcpu, rip: u64) -> bool {
        let passed = self.observers.journal.pass(rip, self.clock.icount());
        for (number, fetches) in passed {
            let bytes = self.fetched(&v.cpu, &fetches);
            self.note(v.cpu.id, || Noted::Probe { number, bytes });
        }
        self.stops.is_probe_only(rip)
    }

    fn fetched(&self, cpu: &CpuState, fetches: &[Fetch]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for fetch in fetches {
            let at = cpu.gpr[fetch.register & 15].wrapping_add_signed(fetch.offset);
            if fetch.length == 0 {
                bytes.extend_from_slice(&at.to_le_bytes());
            } else {
                let start = bytes.len();
                bytes.resize(start + fetch.length, 0);
                self.peek_linear(cpu, at, &mut bytes[start..]);
            }
        }
        bytes
    }

    /// Reads linear memory as a vCPU maps it, without any effect; what is not mapped stays as it is in `into`.
    fn peek_linear(&self, cpu: &CpuState, at: u64, into: &mut [u8]) {
        let ram = &self.memory.ram;
        let mut read = |paddr: u64, size: usize| {
            let mut bytes = [0; 8];
            ram.read(paddr, &mut bytes[..size]);
            u64::from_le_bytes(bytes)
        };
        let mut done = 0;
        while done < into.len() {
            let address = at.wrapping_add(done as u64);
            let room = (PAGE_SIZE - (address & PAGE_MASK)) as usize;
            let n = room.min(into.len() - done);
            let paddr = if cpu.paging() {
                paging::peek(cpu, &mut read, address)
            } else {
                Some(address)
            };
            if let Some(paddr) = paddr {
                ram.read(paddr, &mut into[done..done + n]);
            }
            done += n;
        }
    }
}
