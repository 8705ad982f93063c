//! The Q35 board: all devices, their wires, and the one door through which vCPUs reach them.
//!
//! After every access the board looks at the devices that it concerned: their interrupt outputs, their next deadline,
//! what they ask for. Changes go to the 8259 pair and the I/O APIC, and from there to the local APICs. What vCPUs have
//! to do about it is collected as [`Signal`]s. Before an access all timers due by then are fired, so that what an
//! access sees depends on its time alone.

use thiserror::Error;

use super::bus::Bus;
use super::device::{load_from_bytes, save_to_bytes, Device, Lines, LoadError, Outbox};
use super::dma::DmaAccess;
use super::interrupts::Interrupts;
use super::message;
use super::misc::Misc;
use super::pci::Pci;
use super::q35::{devices, BoardConfig};
use super::range::Range;
use super::serial::Serial;
use super::signal::Signal;
use crate::runtime::bus::Ipi;

/// The component behind all devices: the levels of the wires.
const WIRES: &str = "wires";

/// A device that cannot be plugged in.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PlugError {
    #[error("the machine has a component {0:?} already, so a device needs another name")]
    Name(String),
    #[error("the device {device:?} wants {first:#x} to {last:#x}, where the machine has something already")]
    Taken {
        device: String,
        first: u64,
        last: u64,
    },
    #[error("the device {0:?} wants a place on the PCI bus that is taken")]
    Function(String),
}

/// What the board knows of a device since it last looked.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    lines: Lines,
    deadline: Option<u64>,
    wants_dma: bool,
}

/// Numbers of the devices that the board has to do with by type.
#[derive(Debug, Clone, Copy)]
struct Known {
    pci: usize,
    serial: usize,
    misc: usize,
}

/// The board.
pub struct Board {
    pub(super) bus: Bus,
    known: Known,
    /// For each device, in the order of the bus; those of interrupt controllers stay empty.
    pub(super) seen: Vec<Seen>,
    /// Cached: the earliest deadline of all timers.
    pub(super) deadline: Option<u64>,
    /// Cached: whether a device waits for DMA.
    wants_dma: bool,
    pub(super) out: Outbox,
}

/// I/O APIC pin of an ISA line. Line 0 is wired to pin 2; the cascade line 2 has no pin.
fn pin_of_isa(line: u8) -> Option<u8> {
    match line {
        0 => Some(2),
        2 => None,
        line => Some(line),
    }
}

fn pins_of_isa(lines: u16) -> u32 {
    (0..16)
        .filter(|line| lines >> line & 1 != 0)
        .filter_map(pin_of_isa)
        .fold(0, |pins, pin| pins | 1 << pin)
}

impl Board {
    /// A board as firmware would leave it for a direct boot.
    ///
    /// # Panics
    /// If the list of devices lacks one that every board has.
    #[must_use]
    pub fn new(config: &BoardConfig) -> Self {
        let bus = Bus::new(Interrupts::new(config.vcpus.max(1)), devices(config));
        let known = "every board has a PCI bus, a serial port and the small ports";
        let known = Known {
            pci: bus.find::<Pci>().expect(known),
            serial: bus.find::<Serial>().expect(known),
            misc: bus.find::<Misc>().expect(known),
        };
        let mut board = Self {
            seen: vec![Seen::default(); bus.count()],
            bus,
            known,
            deadline: None,
            wants_dma: false,
            out: Outbox::default(),
        };
        board.start();
        board
    }

    /// Carries everything for the first time.
    fn start(&mut self) {
        self.look_at_all();
        self.carry_lines();
        self.refresh();
        self.out.signals.clear();
    }

    /// Resets all devices. Virtual time goes on; console bytes that are on their way to or from the host stay.
    pub fn reset(&mut self) {
        for number in 0..self.bus.count() {
            self.bus.device_mut(number).reset();
        }
        self.bus.interrupts.reset_wires();
        self.bus.remap();
        self.start();
    }

    /// Plugs a further device in, behind all others. A board's devices do not change once it runs.
    ///
    /// # Errors
    /// [`PlugError`] when its name or its addresses are taken.
    pub fn plug(&mut self, device: Box<dyn Device>) -> Result<(), PlugError> {
        let name = device.name();
        let own = ["ram", "blocks", "windows", "time", WIRES];
        let taken = own.contains(&name.as_ref()) || name.starts_with("cpu") || name.is_empty();
        if taken || (0..self.bus.count()).any(|number| self.bus.device(number).name() == name) {
            return Err(PlugError::Name(name.into_owned()));
        }
        let is_taken = |range: &Range| self.bus.is_taken(range) || range.last().is_none();
        if let Some(range) = device.ranges().iter().find(|range| is_taken(range)) {
            return Err(PlugError::Taken {
                device: name.into_owned(),
                first: range.base,
                last: range.last().unwrap_or(range.base),
            });
        }
        let mut functions = device.functions().into_iter();
        if functions.any(|devfn| self.bus.function(devfn).is_some()) {
            return Err(PlugError::Function(name.into_owned()));
        }
        self.bus.add(device);
        self.seen.push(Seen::default());
        self.start();
        Ok(())
    }

    /// All devices of a kind, but for interrupt controllers.
    pub fn devices_of<D: Device>(&mut self) -> impl Iterator<Item = &mut D> {
        self.bus.devices_of()
    }

    // --- Accesses -----------------------------------------------------------------------------

    /// Reads a port. `size` is 1, 2 or 4; what no device answers reads as ones.
    pub fn io_read(&mut self, _vcpu: usize, port: u16, size: usize, now: u64) -> u32 {
        let before = self.deadline;
        self.catch_up(now);
        let value = self.bus.io_read(port, size, now, &mut self.out);
        self.settle(before, now);
        value
    }

    /// Writes a port. `size` is 1, 2 or 4.
    pub fn io_write(&mut self, _vcpu: usize, port: u16, size: usize, value: u32, now: u64) {
        let before = self.deadline;
        self.catch_up(now);
        self.bus.io_write(port, size, value, now, &mut self.out);
        self.settle(before, now);
    }

    /// Reads physical memory that is not RAM. `size` is 1, 2, 4 or 8; what no device answers reads
    /// as ones.
    pub fn mmio_read(&mut self, vcpu: usize, paddr: u64, size: usize, now: u64) -> u64 {
        let before = self.deadline;
        self.catch_up(now);
        let value = self.bus.memory_read(vcpu, paddr, size, now, &mut self.out);
        self.settle(before, now);
        value
    }

    /// Writes physical memory that is not RAM. `size` is 1, 2, 4 or 8.
    pub fn mmio_write(&mut self, vcpu: usize, paddr: u64, size: usize, value: u64, now: u64) {
        let before = self.deadline;
        self.catch_up(now);
        self.bus
            .memory_write(vcpu, paddr, size, value, now, &mut self.out);
        self.settle(before, now);
    }

    /// Reads IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register. The only failure is #GP(0).
    #[allow(clippy::result_unit_err)]
    pub fn apic_msr_read(&mut self, vcpu: usize, msr: u32, now: u64) -> Result<u64, ()> {
        let before = self.deadline;
        self.catch_up(now);
        let value = self.bus.interrupts.lapics[vcpu].read_msr(msr, now);
        self.announce(before);
        value.map_err(|_| ())
    }

    /// Writes IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register. The only failure is #GP(0).
    #[allow(clippy::result_unit_err)]
    pub fn apic_msr_write(
        &mut self,
        vcpu: usize,
        msr: u32,
        value: u64,
        now: u64,
    ) -> Result<(), ()> {
        let before = self.deadline;
        self.catch_up(now);
        let lapic = &mut self.bus.interrupts.lapics[vcpu];
        let page = lapic.mmio_page();
        let result = lapic.write_msr(msr, value, now);
        self.out.moved |= lapic.mmio_page() != page;
        if let Ok(action) = result {
            action.send(&mut self.out);
        }
        self.remap_if_moved();
        self.refresh();
        self.catch_up(now);
        self.announce(before);
        result.map(|_| ()).map_err(|_| ())
    }

    /// CR8 of a vCPU.
    #[must_use]
    pub fn cr8(&self, vcpu: usize) -> u8 {
        self.bus.interrupts.lapics[vcpu].cr8()
    }

    /// Writes CR8. The caller has checked that the upper bits are zero.
    pub fn set_cr8(&mut self, vcpu: usize, value: u8) {
        self.bus.interrupts.lapics[vcpu].set_cr8(value);
        self.refresh();
    }

    // --- Interrupts ---------------------------------------------------------------------------

    /// Whether a maskable interrupt would be delivered if IF were set.
    #[must_use]
    pub fn pending_interrupt(&self, vcpu: usize) -> bool {
        self.bus.interrupts.pending(vcpu)
    }

    /// The INTA cycle: takes the vector to deliver. The local APIC goes before the 8259 pair.
    /// Timers due by now have to be fired before, by [`Board::advance`].
    pub fn acknowledge_interrupt(&mut self, vcpu: usize) -> Option<u8> {
        let vector = self.bus.interrupts.acknowledge(vcpu, &mut self.out);
        self.refresh();
        vector
    }

    /// The vector of the interrupts of a local APIC's timer.
    #[must_use]
    pub fn timer_vector(&self, vcpu: usize) -> u8 {
        self.bus.interrupts.lapics[vcpu].timer_vector()
    }

    /// Whether to keep what [`Board::take_ipis`] gives.
    pub fn note_ipis(&mut self, on: bool) {
        self.out.ipis = on.then(Vec::new);
    }

    /// The interprocessor interrupts sent since the last call.
    pub fn take_ipis(&mut self) -> Vec<Ipi> {
        self.out
            .ipis
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// A message-signalled interrupt: a write to the window at 0xfee00000.
    pub fn send_msi(&mut self, address: u64, data: u32, now: u64) {
        self.out.messages.extend(message::msi(address, data));
        let before = self.deadline;
        self.refresh();
        self.catch_up(now);
        self.announce(before);
    }

    /// Carries the levels of all lines to the interrupt controllers.
    pub(super) fn carry_lines(&mut self) {
        let (isa, pins) = self.levels();
        self.bus.interrupts.set_levels(isa, pins, &mut self.out);
        self.carry_pulses(isa, pins);
        self.bus.interrupts.carry_intr(&mut self.out);
    }

    /// ISA lines and pins of the I/O APIC that are high.
    fn levels(&mut self) -> (u16, u32) {
        let cuts = self
            .seen
            .iter()
            .fold(0, |cuts, seen| cuts | seen.lines.cuts);
        let (mut isa, mut pins, mut pirqs) = (0, 0, 0u8);
        for Seen { lines, .. } in &self.seen {
            isa |= lines.isa & if lines.cuts == 0 { !cuts } else { u16::MAX };
            pins |= lines.pins;
            if let Some((devfn, pin)) = lines.intx {
                let pci: &Pci = self.bus.get(self.known.pci);
                pirqs |= 1 << (pci.pirq_of(devfn, pin) & 7);
            }
        }
        pins |= pins_of_isa(isa);
        for pirq in (0..8).filter(|pirq| pirqs >> pirq & 1 != 0) {
            let pci: &Pci = self.bus.get(self.known.pci);
            let (line, pin) = pci.pirq_route(pirq);
            isa |= line.map_or(0, |line| 1 << (line & 15));
            pins |= 1 << (pin & 31);
        }
        self.bus.interrupts.wires.pirqs = pirqs;
        (isa, pins)
    }

    /// Carries short pulses of edge-triggered outputs on top of the standing levels.
    fn carry_pulses(&mut self, isa: u16, pins: u32) {
        for number in self.bus.others() {
            while let Some(pulse) = self.bus.device_mut(number).take_pulse() {
                let interrupts = &mut self.bus.interrupts;
                let high = pins | pulse.pins | pins_of_isa(pulse.isa);
                interrupts.set_levels(isa | pulse.isa, high, &mut self.out);
                interrupts.set_levels(isa, pins, &mut self.out);
            }
        }
    }

    /// When the device's next timer fires.
    pub(super) fn seen_deadline(&self, number: usize) -> Option<u64> {
        self.seen[number].deadline
    }

    /// Looks at a device that something has happened to. Says whether lines have to be carried.
    pub(super) fn look_at(&mut self, number: usize) -> bool {
        let device = self.bus.device(number);
        let seen = Seen {
            lines: device.lines(),
            deadline: device.next_deadline(),
            wants_dma: device.wants_dma(),
        };
        let before = std::mem::replace(&mut self.seen[number], seen);
        if seen.wants_dma != before.wants_dma {
            self.wants_dma = self.seen.iter().any(|seen| seen.wants_dma);
        }
        seen.lines != before.lines
    }

    fn look_at_all(&mut self) {
        for number in self.bus.others() {
            self.look_at(number);
        }
    }

    fn remap_if_moved(&mut self) {
        if std::mem::take(&mut self.out.moved) {
            self.bus.remap();
        }
    }

    /// Delivers messages and brings the cached answers up to date.
    pub(super) fn refresh(&mut self) {
        self.bus.interrupts.deliver(&mut self.out);
        self.deadline = self.earliest().map(|(at, _)| at);
    }

    /// After an access: looks at all devices that it touched.
    fn settle(&mut self, before: Option<u64>, now: u64) {
        let (mut touched, mut carry) = (false, false);
        while let Some(number) = self.bus.pop_touched() {
            touched = true;
            carry |= self.look_after_access(number);
        }
        if touched {
            self.remap_if_moved();
            if carry {
                self.carry_lines();
            }
            self.refresh();
            // The access may have armed a timer for a time that has already come.
            self.catch_up(now);
        }
        self.announce(before);
    }

    /// Looks at a device that was accessed. Says whether lines have to be carried.
    fn look_after_access(&mut self, number: usize) -> bool {
        let interrupts = &self.bus.interrupts;
        if number < interrupts.count() {
            // Local APICs and the I/O APIC drive no lines, but for messages.
            return number + 1 == interrupts.count();
        }
        if number == self.known.misc && !self.serial().used() {
            self.bus.get_mut::<Misc>(number).note_alone();
        }
        let routes = number == self.known.pci && self.bus.interrupts.wires.pirqs != 0;
        self.look_at(number) || routes
    }

    fn announce(&mut self, before: Option<u64>) {
        if self.deadline != before {
            self.out.signals.push(Signal::DeadlineChanged);
        }
    }

    // --- Time ---------------------------------------------------------------------------------

    /// The earliest deadline, and whose it is. At the same time devices of the list go first, in their order, and then
    /// local APICs.
    fn earliest(&self) -> Option<(u64, usize)> {
        let mut best: Option<(u64, usize)> = None;
        let mut consider = |deadline: Option<u64>, number: usize| {
            if let Some(at) = deadline {
                if best.is_none_or(|(earliest, _)| at < earliest) {
                    best = Some((at, number));
                }
            }
        };
        for number in self.bus.others() {
            consider(self.seen[number].deadline, number);
        }
        for (number, lapic) in self.bus.interrupts.lapics.iter().enumerate() {
            consider(lapic.next_deadline(), number);
        }
        best
    }

    /// The earliest time at which [`Board::advance`] has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// Fires all timers due at or before `now`, in the order of their deadlines.
    pub fn advance(&mut self, now: u64) {
        self.catch_up(now);
    }

    fn catch_up(&mut self, now: u64) {
        while self.deadline.is_some_and(|at| at <= now) {
            let Some((at, number)) = self.earliest() else {
                break;
            };
            self.bus.device_mut(number).advance(at, now, &mut self.out);
            self.after_firing(number);
        }
    }

    /// After a timer of a device fired.
    pub(super) fn after_firing(&mut self, number: usize) {
        if number >= self.bus.interrupts.count() {
            self.look_at(number);
            self.carry_lines();
        }
        self.refresh();
    }

    // --- DMA ----------------------------------------------------------------------------------

    fn waiting_for_dma(&self) -> Option<usize> {
        if !self.wants_dma {
            return None;
        }
        self.seen.iter().position(|seen| seen.wants_dma)
    }

    /// The access to guest memory that a device needs next. Tell its outcome with
    /// [`Board::dma_done`], and ask again until there is none.
    #[must_use]
    pub fn dma_access(&self) -> Option<DmaAccess> {
        self.bus.device(self.waiting_for_dma()?).dma_access()
    }

    /// The access that [`Board::dma_access`] gave has been made: the bytes read (none for a write),
    /// or `None` where there is no RAM.
    pub fn dma_done(&mut self, bytes: Option<&[u8]>, now: u64) {
        let Some(number) = self.waiting_for_dma() else {
            return;
        };
        let before = (self.deadline, self.seen[number].deadline);
        self.bus
            .device_mut(number)
            .dma_done(bytes, now, &mut self.out);
        let moved = self.out.moved;
        self.remap_if_moved();
        let carry = self.look_at(number);
        let rearmed = self.seen[number].deadline != before.1;
        // Without such a change timers wait for the next access, as if there had been no transfer.
        if carry || rearmed || moved || !self.out.messages.is_empty() {
            if carry {
                self.carry_lines();
            }
            self.refresh();
            self.catch_up(now);
            self.announce(before.0);
        }
    }

    // --- Signals and consoles -----------------------------------------------------------------

    /// Whether [`Board::take_signals`] or [`Board::dma_access`] has something to give.
    #[must_use]
    pub fn has_signals(&self) -> bool {
        !self.out.signals.is_empty() || self.wants_dma
    }

    /// What the calls since the last time ask of vCPUs and machine, in order.
    pub fn take_signals(&mut self) -> Vec<Signal> {
        std::mem::take(&mut self.out.signals)
    }

    /// What the calls since the last [`Board::take_signals`] ask for, without taking it.
    #[must_use]
    pub fn signals(&self) -> &[Signal] {
        &self.out.signals
    }

    /// Replaces what is asked for; each concerns a vCPU that exists.
    pub fn set_signals(&mut self, signals: Vec<Signal>) {
        self.out.signals = signals;
    }

    pub(super) fn serial(&self) -> &Serial {
        self.bus.get(self.known.serial)
    }

    /// Bytes that arrive at COM1 from outside.
    pub fn serial_receive(&mut self, bytes: &[u8], now: u64) {
        let before = self.deadline;
        self.catch_up(now);
        self.bus.get_mut::<Serial>(self.known.serial).receive(bytes);
        if self.look_at(self.known.serial) {
            self.carry_lines();
        }
        self.refresh();
        self.catch_up(now);
        self.announce(before);
    }

    /// What the guest sent over COM1 since the last call.
    pub fn take_serial_output(&mut self) -> Vec<u8> {
        self.bus.get_mut::<Serial>(self.known.serial).take_output()
    }

    /// What the guest wrote to the debug consoles since the last call, and how many bytes of it came before
    /// any was sent over COM1.
    pub fn take_debugcon_output(&mut self) -> (Vec<u8>, usize) {
        self.bus
            .get_mut::<Misc>(self.known.misc)
            .take_debugcon_output()
    }

    /// Whether a line that was written to the debug consoles waits to be taken.
    pub fn has_debugcon_line(&self) -> bool {
        self.bus.get::<Misc>(self.known.misc).has_line()
    }

    // --- State --------------------------------------------------------------------------------

    /// The complete state, component by component.
    #[must_use]
    pub fn save(&self) -> Vec<(String, Vec<u8>)> {
        let mut parts: Vec<_> = (0..self.bus.count())
            .map(|number| self.bus.device(number))
            .map(|device| (device.name().into_owned(), save_to_bytes(device)))
            .collect();
        let wires = save_to_bytes(&self.bus.interrupts.wires);
        parts.push((WIRES.to_string(), wires));
        parts
    }

    /// Replaces the complete state. Every component must be there, and no other.
    pub fn load(&mut self, parts: &[(String, Vec<u8>)]) -> Result<(), LoadError> {
        let names: Vec<_> = (0..self.bus.count())
            .map(|number| self.bus.device(number).name())
            .collect();
        if let Some((name, _)) = parts
            .iter()
            .find(|(name, _)| name != WIRES && !names.iter().any(|known| known == name))
        {
            return Err(LoadError::UnknownComponent(name.clone()));
        }
        let find = |name: &str| {
            let part = parts.iter().find(|(part, _)| part == name);
            part.map(|(_, bytes)| bytes.as_slice())
                .ok_or_else(|| LoadError::MissingComponent(name.to_string()))
        };
        for (number, name) in names.iter().enumerate() {
            load_from_bytes(self.bus.device_mut(number), find(name)?)?;
        }
        load_from_bytes(&mut self.bus.interrupts.wires, find(WIRES)?)?;
        self.bus.remap();
        self.look_at_all();
        self.refresh();
        self.out.signals.clear();
        Ok(())
    }
}

#[cfg(test)]
#[path = "board_tests.rs"]
mod tests;
