//! The local APIC (Intel SDM volume 3, chapter 11): registers, priorities, the local vector table
//! and the timer. Its MSR face is in `lapic_msr`, its face as a
//! device in `lapic_device`, messages between APICs in `message`.
//!
//! The timer is kept as the moment at which it fires next, from which the current count is computed.
//! Its input clock and the TSC both tick once per nanosecond.

use super::device::{LoadError, Outbox, Reader, State, Writer};
use super::message::{Delivery, Destination, Message};

/// Input clock of the timer before its divider, in Hz: one tick per nanosecond of virtual time.
pub const TIMER_FREQUENCY: u64 = 1_000_000_000;

/// Physical address of the registers after reset.
pub const DEFAULT_BASE: u64 = 0xfee0_0000;

/// IA32_APIC_BASE: this is the bootstrap processor.
pub const BASE_BSP: u64 = 1 << 8;
/// IA32_APIC_BASE: x2APIC mode.
pub const BASE_EXTD: u64 = 1 << 10;
/// IA32_APIC_BASE: the APIC is enabled.
pub const BASE_ENABLE: u64 = 1 << 11;

/// Version 0x14 with six LVT entries and without suppression of EOI broadcasts.
const VERSION: u32 = 0x0005_0014;
const SVR_ENABLE: u32 = 1 << 8;
const LVT_MASKED: u32 = 1 << 16;

pub(super) const REG_ID: u32 = 0x02;
pub(super) const REG_VERSION: u32 = 0x03;
pub(super) const REG_TPR: u32 = 0x08;
pub(super) const REG_APR: u32 = 0x09;
pub(super) const REG_PPR: u32 = 0x0a;
pub(super) const REG_EOI: u32 = 0x0b;
pub(super) const REG_RRD: u32 = 0x0c;
pub(super) const REG_LDR: u32 = 0x0d;
pub(super) const REG_DFR: u32 = 0x0e;
pub(super) const REG_SVR: u32 = 0x0f;
pub(super) const REG_ESR: u32 = 0x28;
pub(super) const REG_ICR_LOW: u32 = 0x30;
pub(super) const REG_ICR_HIGH: u32 = 0x31;
pub(super) const REG_LVT_TIMER: u32 = 0x32;
pub(super) const REG_LVT_ERROR: u32 = 0x37;
pub(super) const REG_TIMER_INITIAL: u32 = 0x38;
pub(super) const REG_TIMER_CURRENT: u32 = 0x39;
pub(super) const REG_TIMER_DIVIDE: u32 = 0x3e;
pub(super) const REG_SELF_IPI: u32 = 0x3f;

/// Indexes into the local vector table, in the order of the registers.
const LVT_TIMER: usize = 0;
const LVT_LINT0: usize = 3;
const LVT_LINT1: usize = 4;
const LVT_ERROR: usize = 5;
/// Writable bits of each LVT entry.
const LVT_WRITABLE: [u32; 6] = [
    0x0007_00ff,
    0x0001_07ff,
    0x0001_07ff,
    0x0001_a7ff,
    0x0001_a7ff,
    0x0001_00ff,
];

const ESR_SEND_ILLEGAL: u32 = 1 << 5;
const ESR_RECEIVE_ILLEGAL: u32 = 1 << 6;
const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

/// What a register write asks of the rest of the board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// Tell the I/O APIC that a level-triggered vector is done.
    Eoi(u8),
    /// Send an interprocessor interrupt.
    Ipi(Message),
}

impl Action {
    /// Asks for it.
    pub(super) fn send(self, out: &mut Outbox) {
        match self {
            Self::None => {}
            Self::Eoi(vector) => out.served = Some(vector),
            Self::Ipi(message) => {
                out.messages.push(message);
                if out.ipis.is_some() {
                    out.sent.push(message);
                }
            }
        }
    }
}

/// A 256-bit vector register (IRR, ISR or TMR).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Vectors([u64; 4]);

impl Vectors {
    fn set(&mut self, vector: u8) {
        self.0[usize::from(vector >> 6)] |= 1 << (vector & 63);
    }

    fn clear(&mut self, vector: u8) {
        self.0[usize::from(vector >> 6)] &= !(1 << (vector & 63));
    }

    fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 6)] >> (vector & 63) & 1 != 0
    }

    fn highest(&self) -> Option<u8> {
        (0..4)
            .rev()
            .find(|&word| self.0[word] != 0)
            .map(|word| (word as u32 * 64 + 63 - self.0[word].leading_zeros()) as u8)
    }

    /// One of the eight 32-bit registers.
    fn register(&self, index: u32) -> u32 {
        (self.0[(index >> 1 & 3) as usize] >> (32 * (index & 1))) as u32
    }
}

impl State for Vectors {
    fn save(&self, w: &mut Writer) {
        for word in self.0 {
            w.u64(word);
        }
    }

    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        for word in &mut self.0 {
            *word = r.u64()?;
        }
        Ok(())
    }
}

/// One local APIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lapic {
    pub(super) id: u32,
    pub(super) base: u64,
    tpr: u8,
    ldr: u32,
    dfr: u32,
    svr: u32,
    irr: Vectors,
    isr: Vectors,
    tmr: Vectors,
    esr_latched: u32,
    esr_pending: u32,
    icr: u64,
    lvt: [u32; 6],
    timer_initial: u32,
    timer_divide: u32,
    /// When the timer fires next, in nanoseconds (which in TSC-deadline mode is the deadline).
    fire_at: Option<u64>,
    lint0: bool,
    /// Cached: a vector in IRR beats the processor priority.
    deliverable: bool,
}

impl Lapic {
    /// An APIC after reset. The bootstrap processor's is as firmware leaves it: enabled, with the
    /// 8259 pair on LINT0 (virtual wire) and NMI on LINT1.
    #[must_use]
    pub fn new(id: u32) -> Self {
        let mut lapic = Self {
            id,
            base: DEFAULT_BASE | BASE_ENABLE,
            tpr: 0,
            ldr: 0,
            dfr: 0,
            svr: 0,
            irr: Vectors::default(),
            isr: Vectors::default(),
            tmr: Vectors::default(),
            esr_latched: 0,
            esr_pending: 0,
            icr: 0,
            lvt: [0; 6],
            timer_initial: 0,
            timer_divide: 0,
            fire_at: None,
            lint0: false,
            deliverable: false,
        };
        lapic.reset_registers();
        if id == 0 {
            lapic.base |= BASE_BSP;
            lapic.svr |= SVR_ENABLE;
            lapic.lvt[LVT_LINT0] = 0x700;
            lapic.lvt[LVT_LINT1] = 0x400;
        }
        lapic
    }

    /// The state after INIT (SDM 11.4.7.3): everything but the identity and IA32_APIC_BASE.
    pub fn reset_registers(&mut self) {
        self.tpr = 0;
        self.dfr = 0xffff_ffff;
        self.ldr = if self.x2apic() {
            x2apic_ldr(self.id)
        } else {
            0
        };
        self.svr = 0xff;
        self.irr = Vectors::default();
        self.isr = Vectors::default();
        self.tmr = Vectors::default();
        self.esr_latched = 0;
        self.esr_pending = 0;
        self.icr = 0;
        self.lvt = [LVT_MASKED; 6];
        self.timer_initial = 0;
        self.timer_divide = 0;
        self.fire_at = None;
        self.deliverable = false;
    }

    /// Enabled in IA32_APIC_BASE.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.base & BASE_ENABLE != 0
    }

    /// In x2APIC mode: registers are MSRs, not memory.
    #[must_use]
    pub fn x2apic(&self) -> bool {
        self.base & BASE_EXTD != 0
    }

    /// Physical address of the register page while the registers are in memory.
    #[must_use]
    pub fn mmio_page(&self) -> Option<u64> {
        (self.enabled() && !self.x2apic()).then_some(self.base & !0xfff)
    }

    pub(super) fn software_enabled(&self) -> bool {
        self.enabled() && self.svr & SVR_ENABLE != 0
    }

    pub(super) fn enter_x2apic(&mut self) {
        self.ldr = x2apic_ldr(self.id);
        self.icr = 0;
    }

    // --- Priorities ---------------------------------------------------------------------------

    fn ppr(&self) -> u8 {
        let in_service = self.isr.highest().unwrap_or(0) & 0xf0;
        if self.tpr & 0xf0 >= in_service {
            self.tpr
        } else {
            in_service
        }
    }

    /// The priority that lowest-priority arbitration compares.
    #[must_use]
    pub fn arbitration_priority(&self) -> u8 {
        self.ppr()
    }

    fn refresh(&mut self) {
        self.deliverable = self.software_enabled()
            && self
                .irr
                .highest()
                .is_some_and(|vector| vector & 0xf0 > self.ppr() & 0xf0);
    }

    /// A vector beats the processor priority and waits for IF.
    #[must_use]
    pub fn pending(&self) -> bool {
        self.deliverable
    }

    /// Moves the highest pending vector into service.
    pub fn acknowledge(&mut self) -> Option<u8> {
        if !self.deliverable {
            return None;
        }
        let vector = self.irr.highest()?;
        self.irr.clear(vector);
        self.isr.set(vector);
        self.refresh();
        Some(vector)
    }

    /// CR8: bits 7..4 of the task priority.
    #[must_use]
    pub fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// Writes CR8 (the lower four bits count).
    pub fn set_cr8(&mut self, value: u8) {
        self.tpr = (value & 0x0f) << 4;
        self.refresh();
    }

    // --- Incoming interrupts ------------------------------------------------------------------

    /// Whether a message with this destination concerns this APIC (SDM 11.6.2).
    #[must_use]
    pub fn matches(&self, destination: Destination) -> bool {
        if !self.enabled() {
            return false;
        }
        match destination {
            Destination::Physical(id) => id == u32::MAX || id == self.id,
            Destination::Logical(u32::MAX) => true,
            Destination::Logical(mda) if self.x2apic() => {
                mda >> 16 == self.ldr >> 16 && mda & self.ldr & 0xffff != 0
            }
            Destination::Logical(mda) => {
                let ldr = self.ldr >> 24;
                if mda > 0xff {
                    false
                } else if self.dfr >> 28 == 0xf {
                    mda & ldr != 0
                } else {
                    (mda >> 4 == 0xf || mda >> 4 == ldr >> 4) && mda & ldr & 0x0f != 0
                }
            }
        }
    }

    /// Accepts a fixed interrupt.
    pub fn accept(&mut self, vector: u8, level_triggered: bool) {
        if !self.software_enabled() {
            return;
        }
        if vector < 16 {
            self.error(ESR_RECEIVE_ILLEGAL);
            return;
        }
        self.irr.set(vector);
        if level_triggered {
            self.tmr.set(vector);
        } else {
            self.tmr.clear(vector);
        }
        self.refresh();
    }

    fn error(&mut self, bit: u32) {
        self.esr_pending |= bit;
        let entry = self.lvt[LVT_ERROR];
        let vector = entry as u8;
        if entry & LVT_MASKED == 0 && vector >= 16 && self.software_enabled() {
            self.irr.set(vector);
            self.tmr.clear(vector);
            self.refresh();
        }
    }

    /// Sets the level of the LINT0 input, to which the 8259 pair is wired. True means that the entry
    /// turns the edge into an NMI; a fixed entry's interrupt is accepted here.
    pub fn set_lint0(&mut self, level: bool) -> bool {
        let rising = level && !self.lint0;
        self.lint0 = level;
        let entry = self.lvt[LVT_LINT0];
        if !rising || !self.enabled() || entry & LVT_MASKED != 0 {
            return false;
        }
        match entry >> 8 & 7 {
            0 => {
                self.accept(entry as u8, false);
                false
            }
            mode => mode == 4,
        }
    }

    /// Whether the 8259 pair may interrupt this processor directly: LINT0 is ExtINT, or the APIC is
    /// off and the pin is the bootstrap processor's INTR.
    #[must_use]
    pub fn accepts_extint(&self) -> bool {
        if self.enabled() {
            let entry = self.lvt[LVT_LINT0];
            entry & LVT_MASKED == 0 && entry >> 8 & 7 == 7
        } else {
            self.base & BASE_BSP != 0
        }
    }

    // --- Timer --------------------------------------------------------------------------------

    fn divide_shift(&self) -> u32 {
        let code = (self.timer_divide & 3) | (self.timer_divide >> 1 & 4);
        (code + 1) & 7
    }

    fn timer_mode(&self) -> u32 {
        self.lvt[LVT_TIMER] >> 17 & 3
    }

    pub(super) fn deadline_mode(&self) -> bool {
        self.timer_mode() == 2
    }

    fn timer_period(&self) -> u64 {
        u64::from(self.timer_initial) << self.divide_shift()
    }

    fn start_timer(&mut self, now: u64) {
        self.fire_at = match self.timer_period() {
            0 => None,
            period => Some(now.saturating_add(period)),
        };
    }

    fn current_count(&self, now: u64) -> u32 {
        match self.fire_at {
            Some(fire_at) if !self.deadline_mode() => {
                let left = fire_at.saturating_sub(now);
                let divided = left >> self.divide_shift();
                let rounded = divided + u64::from(left != divided << self.divide_shift());
                u32::try_from(rounded).unwrap_or(u32::MAX)
            }
            _ => 0,
        }
    }

    /// The TSC deadline; 0 while the timer is disarmed or in another mode.
    #[must_use]
    pub fn tsc_deadline(&self) -> u64 {
        match self.fire_at {
            Some(deadline) if self.deadline_mode() => deadline,
            _ => 0,
        }
    }

    /// Arms the timer for a TSC value; 0 disarms. Ignored outside TSC-deadline mode.
    pub fn set_tsc_deadline(&mut self, deadline: u64) {
        if self.deadline_mode() {
            self.fire_at = (deadline != 0).then_some(deadline);
        }
    }

    /// When the timer fires next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.fire_at
    }

    /// Whether this is the other one but for when its timer fires.
    pub(super) fn differs_only_in_time(&self, other: &Self) -> bool {
        let fire_at = other.fire_at;
        *other
            == Self {
                fire_at,
                ..self.clone()
            }
    }

    /// Fires the timer if it is due. Periods that passed in one go give one interrupt, as they would
    /// if each had found the vector still pending.
    pub fn advance(&mut self, now: u64) {
        let Some(fire_at) = self.fire_at else { return };
        if fire_at > now {
            return;
        }
        let period = self.timer_period();
        self.fire_at = if self.timer_mode() == 1 && period != 0 {
            let missed = (now - fire_at) / period;
            fire_at.checked_add((missed + 1).saturating_mul(period))
        } else {
            None
        };
        let entry = self.lvt[LVT_TIMER];
        if entry & LVT_MASKED == 0 {
            self.accept(entry as u8, false);
        }
    }

    fn write_lvt(&mut self, index: usize, value: u32) {
        let mut value = value & LVT_WRITABLE[index];
        if self.svr & SVR_ENABLE == 0 {
            value |= LVT_MASKED;
        }
        if index == LVT_TIMER {
            let was_deadline = self.deadline_mode();
            self.lvt[index] = value;
            if self.deadline_mode() != was_deadline {
                self.fire_at = None;
            }
        } else {
            self.lvt[index] = value;
        }
    }

    // --- Registers ----------------------------------------------------------------------------

    /// Reads a register by its number (offset / 16, or MSR - 0x800). `None`: no such register.
    pub(super) fn read_register(&self, register: u32, now: u64) -> Option<u32> {
        Some(match register {
            REG_ID if self.x2apic() => self.id,
            REG_ID => self.id << 24,
            REG_VERSION => VERSION,
            REG_TPR => u32::from(self.tpr),
            REG_APR | REG_PPR => u32::from(self.ppr()),
            REG_EOI | REG_RRD => 0,
            REG_LDR => self.ldr,
            REG_DFR => self.dfr,
            REG_SVR => self.svr,
            0x10..=0x17 => self.isr.register(register - 0x10),
            0x18..=0x1f => self.tmr.register(register - 0x18),
            0x20..=0x27 => self.irr.register(register - 0x20),
            REG_ESR => self.esr_latched,
            REG_ICR_LOW => self.icr as u32,
            REG_ICR_HIGH => (self.icr >> 32) as u32,
            REG_LVT_TIMER..=REG_LVT_ERROR => self.lvt[(register - REG_LVT_TIMER) as usize],
            REG_TIMER_INITIAL => self.timer_initial,
            REG_TIMER_CURRENT => self.current_count(now),
            REG_TIMER_DIVIDE => self.timer_divide,
            _ => return None,
        })
    }

    /// Writes a register by its number. `None`: no such register, or it cannot be written.
    pub(super) fn write_register(&mut self, register: u32, value: u32, now: u64) -> Option<Action> {
        match register {
            REG_TPR => {
                self.tpr = value as u8;
                self.refresh();
            }
            REG_EOI => return Some(self.end_of_interrupt()),
            REG_LDR if !self.x2apic() => self.ldr = value & 0xff00_0000,
            REG_DFR if !self.x2apic() => self.dfr = value | 0x0fff_ffff,
            REG_SVR => {
                self.svr = value & 0x3ff;
                if self.svr & SVR_ENABLE == 0 {
                    for entry in &mut self.lvt {
                        *entry |= LVT_MASKED;
                    }
                }
                self.refresh();
            }
            REG_ESR => {
                self.esr_latched = self.esr_pending;
                self.esr_pending = 0;
            }
            REG_ICR_LOW => {
                // Delivery is immediate, so the delivery status (bit 12) always reads as idle.
                self.icr = self.icr >> 32 << 32 | u64::from(value & 0x000c_cfff);
                return Some(self.send());
            }
            REG_ICR_HIGH if !self.x2apic() => {
                self.icr = u64::from(value & 0xff00_0000) << 32 | self.icr & 0xffff_ffff;
            }
            REG_LVT_TIMER..=REG_LVT_ERROR => {
                self.write_lvt((register - REG_LVT_TIMER) as usize, value);
            }
            REG_TIMER_INITIAL => {
                // In TSC-deadline mode the count is ignored (SDM 11.5.4.1).
                if !self.deadline_mode() {
                    self.timer_initial = value;
                    self.start_timer(now);
                }
            }
            REG_TIMER_DIVIDE => {
                let current = u64::from(self.current_count(now));
                self.timer_divide = value & 0x0b;
                if self.fire_at.is_some() && !self.deadline_mode() {
                    self.fire_at = now.checked_add(current << self.divide_shift());
                }
            }
            REG_SELF_IPI if self.x2apic() => {
                self.accept_own(value as u8);
            }
            _ => return None,
        }
        Some(Action::None)
    }

    fn accept_own(&mut self, vector: u8) {
        if vector < 16 {
            self.error(ESR_SEND_ILLEGAL);
        } else {
            self.accept(vector, false);
        }
    }

    fn end_of_interrupt(&mut self) -> Action {
        let Some(vector) = self.isr.highest() else {
            return Action::None;
        };
        self.isr.clear(vector);
        self.refresh();
        if self.tmr.contains(vector) {
            Action::Eoi(vector)
        } else {
            Action::None
        }
    }

    /// Stores all 64 bits of the ICR and sends (x2APIC).
    pub(super) fn write_icr(&mut self, value: u64) -> Action {
        self.icr = value & 0xffff_ffff_000c_cfff;
        self.send()
    }

    pub(super) fn read_icr(&self) -> u64 {
        self.icr
    }

    /// The vector of the timer's interrupt.
    pub(super) fn timer_vector(&self) -> u8 {
        self.lvt[LVT_TIMER] as u8
    }

    fn send(&mut self) -> Action {
        let low = self.icr as u32;
        let vector = low as u8;
        let Some(delivery) = Delivery::from_bits(low >> 8 & 7) else {
            return Action::None;
        };
        if matches!(delivery, Delivery::Fixed | Delivery::LowestPriority) && vector < 16 {
            self.error(ESR_SEND_ILLEGAL);
            return Action::None;
        }
        if delivery == Delivery::Init && low & 0xc000 == 0x8000 {
            // INIT level de-assert only synchronises arbitration on old processors.
            return Action::None;
        }
        let raw = (self.icr >> 32) as u32;
        let destination = if self.x2apic() {
            Destination::new(raw, low & 0x800 != 0)
        } else {
            Destination::from_byte((raw >> 24) as u8, low & 0x800 != 0)
        };
        let (destination, except) = match low >> 18 & 3 {
            1 => {
                if delivery == Delivery::Fixed {
                    self.accept(vector, false);
                }
                return Action::None;
            }
            2 => (Destination::Physical(u32::MAX), None),
            3 => (Destination::Physical(u32::MAX), Some(self.id)),
            _ => (destination, None),
        };
        Action::Ipi(Message {
            destination,
            delivery,
            vector,
            level_triggered: false,
            except,
        })
    }

    // --- Memory-mapped face -------------------------------------------------------------------

    /// Reads `size` bytes at an offset into the register page. Only the first four of every sixteen
    /// bytes are registers; the rest reads as zero.
    pub fn mmio_read(&mut self, offset: u64, size: usize, now: u64) -> u64 {
        let register = (offset >> 4 & 0xff) as u32;
        let byte = offset & 0xf;
        if byte >= 4 {
            return 0;
        }
        match self.read_register(register, now) {
            Some(value) => {
                let value = u64::from(value) >> (8 * byte);
                if size >= 8 {
                    value
                } else {
                    value & ((1 << (8 * size)) - 1)
                }
            }
            None => {
                self.error(ESR_ILLEGAL_REGISTER);
                0
            }
        }
    }

    /// Writes `size` bytes at an offset into the register page. Registers take whole aligned words;
    /// other writes have no effect (the SDM leaves them undefined).
    pub fn mmio_write(&mut self, offset: u64, size: usize, value: u64, now: u64) -> Action {
        if offset & 0xf != 0 || size < 4 {
            return Action::None;
        }
        let register = (offset >> 4 & 0xff) as u32;
        match self.write_register(register, value as u32, now) {
            Some(action) => action,
            None => {
                // Read-only registers ignore writes; only addresses without a register are errors.
                if self.read_register(register, now).is_none() {
                    self.error(ESR_ILLEGAL_REGISTER);
                }
                Action::None
            }
        }
    }
}

/// The logical identifier that x2APIC mode derives from the APIC ID (SDM 11.12.10.2).
fn x2apic_ldr(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 0xf)
}

impl State for Lapic {
    fn save(&self, w: &mut Writer) {
        w.u64(self.base);
        w.u8(self.tpr);
        for value in [self.ldr, self.dfr, self.svr] {
            w.u32(value);
        }
        for vectors in [&self.irr, &self.isr, &self.tmr] {
            vectors.save(w);
        }
        w.u32(self.esr_latched);
        w.u32(self.esr_pending);
        w.u64(self.icr);
        for entry in self.lvt {
            w.u32(entry);
        }
        w.u32(self.timer_initial);
        w.u32(self.timer_divide);
        w.option_u64(self.fire_at);
        w.bool(self.lint0);
    }

    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        self.base = r.u64()?;
        self.tpr = r.u8()?;
        self.ldr = r.u32()?;
        self.dfr = r.u32()?;
        self.svr = r.u32()?;
        self.irr.load(r)?;
        self.isr.load(r)?;
        self.tmr.load(r)?;
        self.esr_latched = r.u32()?;
        self.esr_pending = r.u32()?;
        self.icr = r.u64()?;
        for entry in &mut self.lvt {
            *entry = r.u32()?;
        }
        self.timer_initial = r.u32()?;
        self.timer_divide = r.u32()? & 0x0b;
        self.fire_at = r.option_u64()?;
        self.lint0 = r.bool()?;
        self.refresh();
        Ok(())
    }
}

#[cfg(test)]
#[path = "lapic_tests.rs"]
mod tests;
