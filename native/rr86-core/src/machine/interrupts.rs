//! The interrupt controllers, and the wires and messages between them.
//!
//! They are devices like all others where it is about ports, memory, state, reset and timers. But a vCPU that takes an
//! interrupt, a message that looks for the least busy processor and an EOI that comes back to a pin each concern several
//! of them at once, after every access to any device. So they are kept together, by type.

use super::device::{Device, LoadError, Outbox, Reader, State, Writer};
use super::ioapic::{IoApic, PINS};
use super::lapic::Lapic;
use super::message::{Delivery, Message};
use super::pic::Pic;
use super::signal::Signal;
use crate::runtime::bus::Ipi;

/// Levels as they were last carried to the interrupt controllers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wires {
    /// ISA lines, at the 8259 pair.
    pub isa: u16,
    /// Pins of the I/O APIC.
    pub pins: u32,
    /// PCI interrupt lines A to H.
    pub pirqs: u8,
}

impl State for Wires {
    fn save(&self, w: &mut Writer) {
        w.u16(self.isa);
        w.u32(self.pins);
        w.u8(self.pirqs);
    }

    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        self.isa = r.u16()?;
        self.pins = r.u32()?;
        self.pirqs = r.u8()?;
        Ok(())
    }
}

/// All interrupt controllers of a board.
#[derive(Clone)]
pub struct Interrupts {
    pub lapics: Vec<Lapic>,
    pub ioapic: IoApic,
    pub pic: Pic,
    pub wires: Wires,
    /// Cached: whether each vCPU has a deliverable maskable interrupt.
    pending: Vec<bool>,
}

impl Interrupts {
    /// The controllers after power-on, for so many processors.
    #[must_use]
    pub fn new(vcpus: usize) -> Self {
        Self {
            lapics: (0..vcpus as u32).map(Lapic::new).collect(),
            ioapic: IoApic::new(),
            pic: Pic::new(),
            wires: Wires::default(),
            pending: vec![false; vcpus],
        }
    }

    /// How many devices the controllers are: one for each processor, the I/O APIC, the 8259 pair.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lapics.len() + 2
    }

    /// One of the controllers by number, in the order of [`Interrupts::count`].
    #[must_use]
    pub fn device(&self, number: usize) -> &dyn Device {
        match number.checked_sub(self.lapics.len()) {
            None => &self.lapics[number],
            Some(0) => &self.ioapic,
            Some(_) => &self.pic,
        }
    }

    /// One of the controllers by number, to be changed.
    pub fn device_mut(&mut self, number: usize) -> &mut dyn Device {
        match number.checked_sub(self.lapics.len()) {
            None => &mut self.lapics[number],
            Some(0) => &mut self.ioapic,
            Some(_) => &mut self.pic,
        }
    }

    /// Whether a maskable interrupt would be delivered if IF were set.
    #[must_use]
    pub fn pending(&self, vcpu: usize) -> bool {
        self.pending[vcpu]
    }

    /// The levels after a reset of all controllers.
    pub fn reset_wires(&mut self) {
        self.wires = Wires::default();
        self.pending.fill(false);
    }

    /// Carries levels to the controllers that they changed for.
    pub fn set_levels(&mut self, isa: u16, pins: u32, out: &mut Outbox) {
        let changed = isa ^ self.wires.isa;
        for line in (0..16u8).filter(|line| changed >> line & 1 != 0) {
            self.pic.set_irq(line, isa >> line & 1 != 0);
        }
        let changed = pins ^ self.wires.pins;
        for pin in (0..PINS).filter(|pin| changed >> pin & 1 != 0) {
            let level = pins >> pin & 1 != 0;
            self.ioapic.set_irq(pin, level, &mut out.messages);
        }
        self.wires.isa = isa;
        self.wires.pins = pins;
    }

    /// Carries the output of the 8259 pair to the LINT0 inputs.
    pub fn carry_intr(&mut self, out: &mut Outbox) {
        let level = self.pic.irq();
        self.set_lint0(level, out);
    }

    fn set_lint0(&mut self, level: bool, out: &mut Outbox) {
        for (vcpu, lapic) in self.lapics.iter_mut().enumerate() {
            if lapic.set_lint0(level) {
                out.signals.push(Signal::Nmi(vcpu));
            }
        }
    }

    /// The INTA cycle: takes the vector to deliver. The local APIC goes before the 8259 pair.
    pub fn acknowledge(&mut self, vcpu: usize, out: &mut Outbox) -> Option<u8> {
        match self.lapics[vcpu].acknowledge() {
            Some(vector) => Some(vector),
            None if self.pic.irq() && self.lapics[vcpu].accepts_extint() => {
                // The pair drops its output for a moment, so that the next request is an edge again.
                let vector = self.pic.acknowledge();
                self.set_lint0(false, out);
                self.carry_intr(out);
                Some(vector)
            }
            None => None,
        }
    }

    /// Delivers messages, and finds out which vCPUs have an interrupt.
    pub fn deliver(&mut self, out: &mut Outbox) {
        if let Some(vector) = out.served.take() {
            self.ioapic.end_of_interrupt(vector, &mut out.messages);
        }
        for message in out.messages.drain(..) {
            let targets = deliver(&mut self.lapics, &message, &mut out.signals);
            if out.sent.first() == Some(&message) {
                out.sent.remove(0);
                out.ipis.get_or_insert_default().push(Ipi {
                    mode: message.delivery.bits(),
                    vector: message.vector,
                    targets,
                });
            }
        }
        let extint = self.pic.irq();
        for (vcpu, lapic) in self.lapics.iter().enumerate() {
            let pending = lapic.pending() || extint && lapic.accepts_extint();
            if pending && !self.pending[vcpu] {
                out.signals.push(Signal::Interrupt(vcpu));
            }
            self.pending[vcpu] = pending;
        }
    }

    /// Whether these controllers are those but for when timers of local APICs fire.
    #[must_use]
    pub fn differ_only_in_time(&self, others: &Self) -> bool {
        self.wires == others.wires
            && self.pic == others.pic
            && self.ioapic == others.ioapic
            && self.lapics.len() == others.lapics.len()
            && (self.lapics.iter())
                .zip(&others.lapics)
                .all(|(lapic, other)| lapic.differs_only_in_time(other))
    }
}

/// Delivers a message to the vCPUs of which it returns a bit each. What APICs cannot hold themselves is added to
/// `signals`.
fn deliver(lapics: &mut [Lapic], message: &Message, signals: &mut Vec<Signal>) -> u64 {
    let concerned =
        |lapic: &Lapic| message.except != Some(lapic.id) && lapic.matches(message.destination);
    if message.delivery == Delivery::LowestPriority {
        let winner = lapics
            .iter_mut()
            .filter(|lapic| concerned(lapic) && lapic.software_enabled())
            .min_by_key(|lapic| (lapic.arbitration_priority(), lapic.id));
        return winner.map_or(0, |lapic| {
            lapic.accept(message.vector, message.level_triggered);
            1 << lapic.id
        });
    }
    let mut targets = 0;
    for (vcpu, lapic) in lapics.iter_mut().enumerate() {
        if !concerned(lapic) {
            continue;
        }
        targets |= 1 << vcpu;
        match message.delivery {
            Delivery::Fixed => lapic.accept(message.vector, message.level_triggered),
            Delivery::Nmi => signals.push(Signal::Nmi(vcpu)),
            Delivery::Init => {
                lapic.reset_registers();
                signals.push(Signal::Init(vcpu));
            }
            Delivery::StartUp => signals.push(Signal::Sipi(vcpu, message.vector)),
            Delivery::LowestPriority | Delivery::Smi | Delivery::ExtInt => {}
        }
    }
    targets
}
