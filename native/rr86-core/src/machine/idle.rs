//! What timers can do while no vCPU runs.
//!
//! No instruction changes a device's registers then, so what comes of a timer's firing follows from the state of the
//! interrupt controllers, and is found by trying. A timer that leaves them as they are, and asks nothing of a
//! vCPU, does so for ever unless another timer changes them. What they keep can only become more, so after some
//! jumps either a vCPU wakes or no timer has an effect any more: then the machine sleeps for ever.

use super::{Board, Hpet, IoApic, Lapic, Pic, Pit, Pm, Rtc, Signal, Wires};
use crate::machine::hpet;

/// A source of interrupts that follows time.
#[derive(Clone, Copy)]
enum Source {
    Pit,
    /// A comparator.
    Hpet(usize),
    Rtc,
    Pm,
    Lapic(usize),
}

/// What firing a timer changes.
struct Before {
    lapics: Vec<Lapic>,
    ioapic: IoApic,
    pic: Pic,
    pit: Pit,
    hpet: Hpet,
    rtc: Rtc,
    pm: Pm,
    wires: Wires,
    pending: Vec<bool>,
    deadline: Option<u64>,
    signals: Vec<Signal>,
}

impl Board {
    /// The time of the next timer that changes an interrupt controller, or has the board send a signal that
    /// `acts` on a vCPU, as long as no vCPU touches a device. `None` if that will never happen again.
    pub fn next_effect(&mut self, acts: &dyn Fn(&Signal) -> bool) -> Option<u64> {
        let mut sources: Vec<(u64, Source)> = Vec::new();
        let mut add =
            |deadline: Option<u64>, source| sources.extend(deadline.map(|at| (at, source)));
        add(self.pit.next_deadline(), Source::Pit);
        for index in 0..hpet::TIMERS {
            add(self.hpet.deadline_of(index), Source::Hpet(index));
        }
        add(self.rtc.next_deadline(), Source::Rtc);
        add(self.pm.next_deadline(), Source::Pm);
        for (vcpu, lapic) in self.lapics.iter().enumerate() {
            add(lapic.next_deadline(), Source::Lapic(vcpu));
        }
        sources.sort_by_key(|&(at, _)| at);
        sources
            .into_iter()
            .find(|&(at, source)| self.has_effect(source, at, acts))
            .map(|(at, _)| at)
    }

    /// Lets time pass up to just before `at`, the time of the next timer with an effect. The others may fire
    /// many times until then. All but the PIT catch up in one step, however late they are asked.
    pub fn pass_until(&mut self, at: u64) {
        if self.pit.next_deadline().is_some_and(|next| next < at) {
            self.pit.advance(at - 1);
            self.carry_lines();
            self.refresh();
        }
    }

    /// Whether firing a timer changes an interrupt controller or acts on a vCPU. All is then as before.
    fn has_effect(&mut self, source: Source, at: u64, acts: &dyn Fn(&Signal) -> bool) -> bool {
        let before = self.keep();
        self.fire(source, at);
        if matches!(source, Source::Pit) {
            // Its line comes back to where it was, with the other one of its edges.
            if let Some(next) = self.pit.next_deadline() {
                self.fire(source, next);
            }
        }
        let acted = self.signals.iter().any(acts);
        let same = self.wires == before.wires
            && self.pic == before.pic
            && self.ioapic == before.ioapic
            && self.lapics.len() == before.lapics.len()
            && (self.lapics.iter())
                .zip(&before.lapics)
                .all(|(now, old)| now.differs_only_in_time(old));
        self.put_back(before);
        acted || !same
    }

    fn fire(&mut self, source: Source, at: u64) {
        match source {
            Source::Pit => self.pit.advance(at),
            Source::Hpet(index) => self.hpet.advance_one(index, at),
            Source::Rtc => self.rtc.advance(at),
            Source::Pm => self.pm.advance(at),
            Source::Lapic(vcpu) => self.lapics[vcpu].advance(at),
        }
        if !matches!(source, Source::Lapic(_)) {
            self.carry_lines();
        }
        self.refresh();
    }

    fn keep(&mut self) -> Before {
        Before {
            lapics: self.lapics.clone(),
            ioapic: self.ioapic.clone(),
            pic: self.pic.clone(),
            pit: self.pit.clone(),
            hpet: self.hpet.clone(),
            rtc: self.rtc.clone(),
            pm: self.pm.clone(),
            wires: self.wires,
            pending: self.pending.clone(),
            deadline: self.deadline,
            signals: std::mem::take(&mut self.signals),
        }
    }

    fn put_back(&mut self, before: Before) {
        self.lapics = before.lapics;
        self.ioapic = before.ioapic;
        self.pic = before.pic;
        self.pit = before.pit;
        self.hpet = before.hpet;
        self.rtc = before.rtc;
        self.pm = before.pm;
        self.wires = before.wires;
        self.pending = before.pending;
        self.deadline = before.deadline;
        self.signals = before.signals;
    }
}

#[cfg(test)]
#[path = "idle_tests.rs"]
mod tests;
