//! The Q35 board: all devices, their wires, and the one door through which vCPUs reach them.
//!
//! After every access the board samples the devices' interrupt outputs and carries changes to the
//! 8259 pair and the I/O APIC, and from there to the local APICs. What vCPUs have to do about it is
//! collected as [`Signal`]s. Before an access all timers due by then are fired, so that what an
//! access sees depends on its time alone.

#[path = "idle.rs"]
mod idle;

use super::device::{load_from_bytes, save_to_bytes, LoadError, Reader, State, Writer};
use super::fw_cfg::FwCfg;
use super::fw_cfg_dma::Access;
use super::hpet::{self, Hpet, Route};
use super::i8042::I8042;
use super::ioapic::{self, IoApic};
use super::lapic::{Action, Lapic};
use super::lapic_bus::{self, Message};
use super::misc::Misc;
use super::pci::Pci;
use super::pic::Pic;
use super::pit::Pit;
use super::pm::Pm;
use super::rtc::Rtc;
use super::serial::Serial;
use crate::contents::Contents;
use crate::cpu::semantics::Semantics;

/// What a board is made of.
#[derive(Debug, Clone)]
pub struct BoardConfig {
    /// Number of processors; APIC IDs count from 0, which is the bootstrap processor.
    pub vcpus: usize,
    /// RAM in bytes, as CMOS and fw_cfg tell it.
    pub memory: u64,
    /// Unix seconds (UTC) that the RTC shows at virtual time 0.
    pub start_time: i64,
    pub semantics: Semantics,
    /// Further fw_cfg items by key.
    pub fw_cfg: Vec<(u16, Contents)>,
    /// fw_cfg files by name.
    pub fw_cfg_files: Vec<(String, Vec<u8>)>,
}

/// What the board asks of vCPUs or of the machine as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// INIT: reset this vCPU and let it wait for a start-up IPI.
    Init(usize),
    /// Start-up IPI: real-mode code at page number × 4096.
    Sipi(usize, u8),
    /// Non-maskable interrupt.
    Nmi(usize),
    /// A maskable interrupt became deliverable: leave HLT.
    Interrupt(usize),
    /// The guest entered S5.
    PowerOff,
    /// The guest asked for a reset; [`Board::reset`] has not been called yet.
    Reset,
    /// isa-debug-exit with the exit status.
    DebugExit(u32),
    /// An access moved the earliest deadline: ask [`Board::next_deadline`] again.
    DeadlineChanged,
}

/// The board.
pub struct Board {
    config: BoardConfig,
    pub(super) lapics: Vec<Lapic>,
    pub(super) ioapic: IoApic,
    pub(super) pic: Pic,
    pub(super) pit: Pit,
    pub(super) hpet: Hpet,
    pub(super) rtc: Rtc,
    pub(super) serial: Serial,
    pub(super) i8042: I8042,
    pub(super) pm: Pm,
    pub(super) pci: Pci,
    pub(super) fw_cfg: FwCfg,
    pub(super) misc: Misc,
    wires: Wires,
    /// Cached: whether each vCPU has a deliverable maskable interrupt.
    pending: Vec<bool>,
    /// Cached: the earliest deadline of all timers.
    deadline: Option<u64>,
    pub(super) signals: Vec<Signal>,
    /// Interrupt messages on their way; empty between calls.
    messages: Vec<Message>,
}

/// Levels as they were last carried to the interrupt controllers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Wires {
    isa: u16,
    pins: u32,
    /// PCI interrupt lines A to H.
    pirqs: u8,
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

/// I/O APIC pin of an ISA line. Line 0 is wired to pin 2; the cascade line 2 has no pin.
fn pin_of_isa(line: u8) -> Option<u8> {
    match line {
        0 => Some(2),
        2 => None,
        line => Some(line),
    }
}

/// The timers, in the order in which those that are due at the same time fire.
#[derive(Clone, Copy)]
enum Timer {
    Pit,
    Hpet,
    Rtc,
    Pm,
    Lapic(usize),
}

impl Board {
    /// A board as firmware would leave it for a direct boot.
    #[must_use]
    pub fn new(config: &BoardConfig) -> Self {
        let vcpus = config.vcpus.max(1);
        let mut board = Self {
            lapics: (0..vcpus as u32).map(Lapic::new).collect(),
            ioapic: IoApic::new(),
            pic: Pic::new(),
            pit: Pit::new(),
            hpet: Hpet::new(),
            rtc: Rtc::new(config.start_time, config.memory),
            serial: Serial::new(),
            i8042: I8042::new(),
            pm: Pm::new(),
            pci: Pci::new(),
            fw_cfg: FwCfg::new(vcpus, config.memory, &config.fw_cfg, &config.fw_cfg_files),
            misc: Misc::new(),
            wires: Wires::default(),
            pending: vec![false; vcpus],
            deadline: None,
            signals: Vec::new(),
            messages: Vec::new(),
            config: config.clone(),
        };
        board.carry_lines();
        board.refresh();
        board.signals.clear();
        board
    }

    /// Resets all devices. Virtual time goes on, and so does the RTC; console bytes that are on
    /// their way to or from the host stay.
    pub fn reset(&mut self) {
        let fresh = Self::new(&self.config);
        self.serial.reset();
        self.misc.reset();
        self.fw_cfg.reset();
        self.lapics = fresh.lapics;
        self.ioapic = fresh.ioapic;
        self.pic = fresh.pic;
        self.pit = fresh.pit;
        self.hpet = fresh.hpet;
        self.rtc = fresh.rtc;
        self.i8042 = fresh.i8042;
        self.pm = fresh.pm;
        self.pci = fresh.pci;
        self.wires = fresh.wires;
        self.pending = fresh.pending;
        self.carry_lines();
        self.refresh();
        self.signals.clear();
    }

    // --- Accesses -----------------------------------------------------------------------------

    /// Reads a port. `size` is 1, 2 or 4; what no device answers reads as ones.
    pub fn io_read(&mut self, _vcpu: usize, port: u16, size: usize, now: u64) -> u32 {
        let before = self.deadline;
        self.catch_up(now);
        let value = self.port_read(port, size, now);
        self.settle(before, now);
        value
    }

    /// Writes a port. `size` is 1, 2 or 4.
    pub fn io_write(&mut self, _vcpu: usize, port: u16, size: usize, value: u32, now: u64) {
        let before = self.deadline;
        self.catch_up(now);
        self.port_write(port, size, value, now);
        self.settle(before, now);
    }

    /// Reads physical memory that is not RAM. `size` is 1, 2, 4 or 8; what no device answers reads
    /// as ones.
    pub fn mmio_read(&mut self, vcpu: usize, paddr: u64, size: usize, now: u64) -> u64 {
        let before = self.deadline;
        self.catch_up(now);
        if let Some(offset) = self.lapic_offset(vcpu, paddr) {
            let value = self.lapics[vcpu].mmio_read(offset, size, now);
            self.settle_lapics(before, now);
            return value;
        }
        let value = self.memory_read(paddr, size, now);
        self.settle(before, now);
        value
    }

    /// Writes physical memory that is not RAM. `size` is 1, 2, 4 or 8.
    pub fn mmio_write(&mut self, vcpu: usize, paddr: u64, size: usize, value: u64, now: u64) {
        let before = self.deadline;
        self.catch_up(now);
        if let Some(offset) = self.lapic_offset(vcpu, paddr) {
            let action = self.lapics[vcpu].mmio_write(offset, size, value, now);
            self.act(action);
            self.settle_lapics(before, now);
            return;
        }
        self.memory_write(paddr, size, value, now);
        self.settle(before, now);
    }

    fn lapic_offset(&self, vcpu: usize, paddr: u64) -> Option<u64> {
        let page = self.lapics[vcpu].mmio_page()?;
        (paddr & !0xfff == page).then_some(paddr & 0xfff)
    }

    fn memory_read(&mut self, paddr: u64, size: usize, now: u64) -> u64 {
        if let Some(offset) = within(paddr, size, ioapic::BASE, 0x1000) {
            let value = u64::from(self.ioapic.read(offset & !3)) >> (8 * (offset & 3));
            return truncate(value, size);
        }
        if let Some(offset) = within(paddr, size, hpet::BASE, hpet::SIZE) {
            return self.hpet.read(offset, size, now);
        }
        if let Some((base, length)) = self.pci.mmconfig_range() {
            if let Some(offset) = within(paddr, size, base, length) {
                return self.pci.mmconfig_read(offset, size, now);
            }
        }
        if let Some((base, length)) = self.pci.rcba_range() {
            if let Some(offset) = within(paddr, size, base, length) {
                return self.pci.rcba_read(offset, size, now);
            }
        }
        truncate(u64::MAX, size)
    }

    fn memory_write(&mut self, paddr: u64, size: usize, value: u64, now: u64) {
        if let Some(offset) = within(paddr, size, ioapic::BASE, 0x1000) {
            if size >= 4 || offset != 0x10 {
                let value = truncate(value, size) as u32;
                self.ioapic.write(offset, value, &mut self.messages);
            }
            return;
        }
        if let Some(offset) = within(paddr, size, hpet::BASE, hpet::SIZE) {
            self.hpet.write(offset, size, value, now);
            return;
        }
        if let Some((base, length)) = self.pci.mmconfig_range() {
            if let Some(offset) = within(paddr, size, base, length) {
                self.pci.mmconfig_write(offset, size, value, now);
                return;
            }
        }
        if let Some((base, length)) = self.pci.rcba_range() {
            if let Some(offset) = within(paddr, size, base, length) {
                self.pci.rcba_write(offset, size, value, now);
            }
        }
    }

    /// Reads IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register. The only failure is #GP(0).
    #[allow(clippy::result_unit_err)]
    pub fn apic_msr_read(&mut self, vcpu: usize, msr: u32, now: u64) -> Result<u64, ()> {
        let before = self.deadline;
        self.catch_up(now);
        let value = self.lapics[vcpu].read_msr(msr, now).map_err(|_| ());
        self.announce(before);
        value
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
        let result = self.lapics[vcpu].write_msr(msr, value, now);
        if let Ok(action) = result {
            self.act(action);
        }
        self.settle_lapics(before, now);
        result.map(|_| ()).map_err(|_| ())
    }

    /// CR8 of a vCPU.
    #[must_use]
    pub fn cr8(&self, vcpu: usize) -> u8 {
        self.lapics[vcpu].cr8()
    }

    /// Writes CR8. The caller has checked that the upper bits are zero.
    pub fn set_cr8(&mut self, vcpu: usize, value: u8) {
        self.lapics[vcpu].set_cr8(value);
        self.refresh();
    }

    // --- Interrupts ---------------------------------------------------------------------------

    /// Whether a maskable interrupt would be delivered if IF were set.
    #[must_use]
    pub fn pending_interrupt(&self, vcpu: usize) -> bool {
        self.pending[vcpu]
    }

    /// The INTA cycle: takes the vector to deliver. The local APIC goes before the 8259 pair.
    /// Timers due by now have to be fired before, by [`Board::advance`].
    pub fn acknowledge_interrupt(&mut self, vcpu: usize) -> Option<u8> {
        let vector = match self.lapics[vcpu].acknowledge() {
            Some(vector) => Some(vector),
            None if self.pic.irq() && self.lapics[vcpu].accepts_extint() => {
                // The pair drops its output for a moment, so that the next request is an edge again.
                let vector = self.pic.acknowledge();
                self.set_lint0(false);
                self.set_lint0(self.pic.irq());
                Some(vector)
            }
            None => None,
        };
        self.refresh();
        vector
    }

    /// Sets the level of a PCI interrupt line (0 = A to 7 = H), which the bridge routes.
    pub fn set_pci_line(&mut self, pirq: usize, level: bool, now: u64) {
        let bit = 1u8 << (pirq & 7);
        if level {
            self.wires.pirqs |= bit;
        } else {
            self.wires.pirqs &= !bit;
        }
        let before = self.deadline;
        self.settle(before, now);
    }

    /// A message-signalled interrupt: a device's write to the window at 0xfee00000.
    pub fn send_msi(&mut self, address: u64, data: u32, now: u64) {
        self.messages.extend(lapic_bus::msi(address, data));
        let before = self.deadline;
        self.settle_lapics(before, now);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::None => {}
            Action::Eoi(vector) => self.ioapic.end_of_interrupt(vector, &mut self.messages),
            Action::Ipi(message) => self.messages.push(message),
        }
    }

    fn set_lint0(&mut self, level: bool) {
        for (vcpu, lapic) in self.lapics.iter_mut().enumerate() {
            if lapic.set_lint0(level) {
                self.signals.push(Signal::Nmi(vcpu));
            }
        }
    }

    fn isa_levels(&self) -> u16 {
        let legacy = self.hpet.legacy();
        let mut levels = 0;
        for (line, level) in [
            (0, self.pit.irq() && !legacy),
            (1, self.i8042.keyboard_irq()),
            (4, self.serial.irq()),
            (8, self.rtc.irq() && !legacy),
            (9, self.pm.irq()),
            (12, self.i8042.mouse_irq()),
        ] {
            levels |= u16::from(level) << line;
        }
        levels
    }

    /// Samples all outputs and carries them to the interrupt controllers.
    fn carry_lines(&mut self) {
        let mut isa = self.isa_levels();
        let mut pins = 0u32;
        for line in 0..16 {
            if let Some(pin) = pin_of_isa(line).filter(|_| isa >> line & 1 != 0) {
                pins |= 1 << pin;
            }
        }
        for pirq in 0..8 {
            if self.wires.pirqs >> pirq & 1 != 0 {
                let (line, pin) = self.pci.pirq_route(pirq);
                isa |= line.map_or(0, |line| 1 << (line & 15));
                pins |= 1 << (pin & 31);
            }
        }
        for timer in 0..hpet::TIMERS {
            if self.hpet.level(timer) {
                match self.hpet.route(timer) {
                    Route::Isa(line) => {
                        isa |= 1 << line;
                        pins |= pin_of_isa(line).map_or(0, |pin| 1 << pin);
                    }
                    Route::Pin(pin) => pins |= 1 << pin,
                }
            }
        }
        self.set_levels(isa, pins);
        let pulses = self.hpet.take_pulses();
        if pulses != 0 {
            self.pulse(pulses, isa, pins);
        }
        self.set_lint0(self.pic.irq());
    }

    /// Carries short pulses of edge-triggered comparators on top of the standing levels.
    fn pulse(&mut self, timers: u8, isa: u16, pins: u32) {
        for timer in (0..hpet::TIMERS).filter(|timer| timers >> timer & 1 != 0) {
            let (isa_bit, pin_bit) = match self.hpet.route(timer) {
                Route::Isa(line) => (1 << line, pin_of_isa(line).map_or(0, |pin| 1 << pin)),
                Route::Pin(pin) => (0, 1 << pin),
            };
            self.set_levels(isa | isa_bit, pins | pin_bit);
            self.set_levels(isa, pins);
        }
    }

    fn set_levels(&mut self, isa: u16, pins: u32) {
        let changed = isa ^ self.wires.isa;
        for line in (0..16u8).filter(|line| changed >> line & 1 != 0) {
            self.pic.set_irq(line, isa >> line & 1 != 0);
        }
        let changed = pins ^ self.wires.pins;
        for pin in (0..ioapic::PINS).filter(|pin| changed >> pin & 1 != 0) {
            self.ioapic
                .set_irq(pin, pins >> pin & 1 != 0, &mut self.messages);
        }
        self.wires.isa = isa;
        self.wires.pins = pins;
    }

    /// Delivers messages and brings the cached answers up to date.
    fn refresh(&mut self) {
        for message in self.messages.drain(..) {
            lapic_bus::deliver(&mut self.lapics, &message, &mut self.signals);
        }
        let extint = self.pic.irq();
        for (vcpu, lapic) in self.lapics.iter().enumerate() {
            let pending = lapic.pending() || extint && lapic.accepts_extint();
            if pending && !self.pending[vcpu] {
                self.signals.push(Signal::Interrupt(vcpu));
            }
            self.pending[vcpu] = pending;
        }
        self.deadline = self.earliest().map(|(at, _)| at);
    }

    /// After an access to any device.
    fn settle(&mut self, before: Option<u64>, now: u64) {
        self.carry_lines();
        self.settle_lapics(before, now);
    }

    /// After an access that concerns local APICs only.
    fn settle_lapics(&mut self, before: Option<u64>, now: u64) {
        self.refresh();
        // The access may have armed a timer for a time that has already come.
        self.catch_up(now);
        self.announce(before);
    }

    fn announce(&mut self, before: Option<u64>) {
        if self.deadline != before {
            self.signals.push(Signal::DeadlineChanged);
        }
    }

    // --- Time ---------------------------------------------------------------------------------

    fn earliest(&self) -> Option<(u64, Timer)> {
        let mut best: Option<(u64, Timer)> = None;
        let mut consider = |deadline: Option<u64>, timer: Timer| {
            if let Some(at) = deadline {
                if best.is_none_or(|(earliest, _)| at < earliest) {
                    best = Some((at, timer));
                }
            }
        };
        consider(self.pit.next_deadline(), Timer::Pit);
        consider(self.hpet.next_deadline(), Timer::Hpet);
        consider(self.rtc.next_deadline(), Timer::Rtc);
        consider(self.pm.next_deadline(), Timer::Pm);
        for (vcpu, lapic) in self.lapics.iter().enumerate() {
            consider(lapic.next_deadline(), Timer::Lapic(vcpu));
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
            let Some((at, timer)) = self.earliest() else {
                break;
            };
            match timer {
                // Each change of the PIT's output counts; the others hold their interrupt until it
                // is served, so that several of them at once are the same as one.
                Timer::Pit => self.pit.advance(at),
                Timer::Hpet => self.hpet.advance(now),
                Timer::Rtc => self.rtc.advance(now),
                Timer::Pm => self.pm.advance(now),
                Timer::Lapic(vcpu) => self.lapics[vcpu].advance(now),
            }
            if !matches!(timer, Timer::Lapic(_)) {
                self.carry_lines();
            }
            self.refresh();
        }
    }

    // --- Signals and consoles -----------------------------------------------------------------

    /// Whether [`Board::take_signals`] or [`Board::dma_access`] has something to give.
    #[must_use]
    pub fn has_signals(&self) -> bool {
        !self.signals.is_empty() || self.fw_cfg.dma.busy()
    }

    /// What the calls since the last time ask of vCPUs and machine, in order.
    pub fn take_signals(&mut self) -> Vec<Signal> {
        std::mem::take(&mut self.signals)
    }

    /// What the calls since the last [`Board::take_signals`] ask for, without taking it.
    #[must_use]
    pub fn signals(&self) -> &[Signal] {
        &self.signals
    }

    /// Replaces what is asked for; each concerns a vCPU that exists.
    pub fn set_signals(&mut self, signals: Vec<Signal>) {
        self.signals = signals;
    }

    /// The access to guest memory that a device needs next. Tell its outcome with
    /// [`Board::dma_done`], and ask again until there is none.
    #[must_use]
    pub fn dma_access(&self) -> Option<Access> {
        self.fw_cfg.dma_access()
    }

    /// The access that [`Board::dma_access`] gave has been made: the bytes read (none for a write),
    /// or `None` where there is no RAM.
    pub fn dma_done(&mut self, bytes: Option<&[u8]>) {
        self.fw_cfg.dma_done(bytes);
    }

    /// Bytes that arrive at COM1 from outside.
    pub fn serial_receive(&mut self, bytes: &[u8], now: u64) {
        let before = self.deadline;
        self.catch_up(now);
        self.serial.receive(bytes);
        self.settle(before, now);
    }

    /// What the guest sent over COM1 since the last call.
    pub fn take_serial_output(&mut self) -> Vec<u8> {
        self.serial.take_output()
    }

    /// What the guest wrote to the debug consoles since the last call, and how many bytes of it came before
    /// any was sent over COM1.
    pub fn take_debugcon_output(&mut self) -> (Vec<u8>, usize) {
        self.misc.take_debugcon_output()
    }

    /// Whether a line that was written to the debug consoles waits to be taken.
    pub fn has_debugcon_line(&self) -> bool {
        self.misc.has_line()
    }

    // --- State --------------------------------------------------------------------------------

    /// All components by name, in a fixed order.
    fn components(&mut self) -> Vec<(String, &mut dyn State)> {
        let mut all: Vec<(String, &mut dyn State)> = Vec::new();
        for (vcpu, lapic) in self.lapics.iter_mut().enumerate() {
            all.push((format!("lapic{vcpu}"), lapic));
        }
        let devices: [(&str, &mut dyn State); 12] = [
            ("ioapic", &mut self.ioapic),
            ("pic", &mut self.pic),
            ("pit", &mut self.pit),
            ("hpet", &mut self.hpet),
            ("rtc", &mut self.rtc),
            ("serial", &mut self.serial),
            ("i8042", &mut self.i8042),
            ("pm", &mut self.pm),
            ("pci", &mut self.pci),
            ("fw_cfg", &mut self.fw_cfg),
            ("misc", &mut self.misc),
            ("wires", &mut self.wires),
        ];
        all.extend(devices.map(|(name, device)| (name.to_string(), device)));
        all
    }

    /// The complete state, component by component.
    #[must_use]
    pub fn save(&self) -> Vec<(String, Vec<u8>)> {
        let lapics = self.lapics.iter().enumerate();
        let mut parts: Vec<_> = lapics
            .map(|(vcpu, lapic)| (format!("lapic{vcpu}"), save_to_bytes(lapic)))
            .collect();
        let devices: [(&str, &dyn State); 12] = [
            ("ioapic", &self.ioapic),
            ("pic", &self.pic),
            ("pit", &self.pit),
            ("hpet", &self.hpet),
            ("rtc", &self.rtc),
            ("serial", &self.serial),
            ("i8042", &self.i8042),
            ("pm", &self.pm),
            ("pci", &self.pci),
            ("fw_cfg", &self.fw_cfg),
            ("misc", &self.misc),
            ("wires", &self.wires),
        ];
        parts.extend(devices.map(|(name, device)| (name.to_string(), save_to_bytes(device))));
        parts
    }

    /// Replaces the complete state. Every component must be there, and no other.
    pub fn load(&mut self, parts: &[(String, Vec<u8>)]) -> Result<(), LoadError> {
        let mut components = self.components();
        for (name, _) in parts {
            if !components.iter().any(|(known, _)| known == name) {
                return Err(LoadError::UnknownComponent(name.clone()));
            }
        }
        for (name, component) in &mut components {
            let Some((_, bytes)) = parts.iter().find(|(part, _)| part == name) else {
                return Err(LoadError::MissingComponent(name.clone()));
            };
            load_from_bytes(*component, bytes)?;
        }
        self.refresh();
        self.signals.clear();
        Ok(())
    }
}

/// The offset of an access that lies wholly in a range.
fn within(paddr: u64, size: usize, base: u64, length: u64) -> Option<u64> {
    let offset = paddr.checked_sub(base)?;
    (offset.checked_add(size as u64)? <= length).then_some(offset)
}

fn truncate(value: u64, size: usize) -> u64 {
    if size >= 8 {
        value
    } else {
        value & ((1 << (8 * size)) - 1)
    }
}

#[cfg(test)]
#[path = "board_tests.rs"]
mod tests;
