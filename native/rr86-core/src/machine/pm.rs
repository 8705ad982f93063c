//! ICH9 ACPI power management block (128 ports from PMBASE, SCI on GSI 9) and SMI ports 0xb2/0xb3.
//!
//! | offset | register (ACPI 6.4 §4.8, ICH9 datasheet §13.8) |
//! |---|---|
//! | 0x00, 0x02 | PM1a status (write ones to clear) and enable |
//! | 0x04 | PM1a control: SCI_EN, SLP_TYP, SLP_EN |
//! | 0x08 | PM timer, 3.579545 MHz, 32 bits, read-only |
//! | 0x20–0x27, 0x28–0x2f | GPE0 status (write ones to clear) and enable |
//! | 0x30, 0x34 | SMI enable and status |
//!
//! Entering S5 (SLP_EN with SLP_TYP 0, QEMU's value, or 7, the chip's) asks for power-off; other sleep
//! states are not offered and do nothing. There is no SMM, so port 0xb2 only switches ACPI mode on and
//! off. All registers may be accessed with any width.
//!
//! Interface: [`Pm::read`], [`Pm::write`] with an offset from PMBASE, [`Pm::smi_read`],
//! [`Pm::smi_write`] with offset 0 (port 0xb2) or 1 (0xb3), [`Pm::irq`] (SCI), [`Pm::take_power_off`],
//! [`Pm::next_deadline`], [`Pm::advance`], [`Pm::press_power_button`], [`Pm::raise_gpe`].

use super::device::{Access, Device, Lines, LoadError, Outbox, Reader, State, Trial, Writer};
use super::range::Range;
use super::signal::Signal;
use std::borrow::Cow;

/// Ports of the block.
pub const PM_SIZE: u16 = 0x80;
/// The block as a region. Where it lies is a register of the LPC bridge, which decodes it.
pub const PM_BLOCK: u8 = 0;
const SMI_PORTS: u8 = 1;
/// Value for port 0xb2 that turns ACPI mode on (the FADT's ACPI_ENABLE).
pub const ACPI_ENABLE: u8 = 0x02;
/// Value for port 0xb2 that turns ACPI mode off (the FADT's ACPI_DISABLE).
pub const ACPI_DISABLE: u8 = 0x03;

const PM1_STATUS: u16 = 0x00;
const PM1_ENABLE: u16 = 0x02;
const PM1_CONTROL: u16 = 0x04;
const PM_TIMER: u16 = 0x08;
const GPE0_STATUS: u16 = 0x20;
const GPE0_ENABLE: u16 = 0x28;
const SMI_ENABLE: u16 = 0x30;
const SMI_STATUS: u16 = 0x34;

const PM1_TIMER: u16 = 1 << 0;
const PM1_POWER_BUTTON: u16 = 1 << 8;
/// Timer, global lock, power button, sleep button, RTC.
const PM1_EVENTS: u16 = 0x0721;

const CONTROL_SCI_ENABLE: u16 = 1 << 0;
const CONTROL_BUS_MASTER_RELOAD: u16 = 1 << 1;
const CONTROL_SLEEP_TYPE: u16 = 7 << 10;
const CONTROL_SLEEP_ENABLE: u16 = 1 << 13;
const SLEEP_TYPES_S5: [u16; 2] = [0, 7];

const PM_TIMER_HZ: u128 = 3_579_545;
const NS_PER_SECOND: u128 = 1_000_000_000;
/// The timer's carry status is set whenever bit 31 changes.
const TIMER_CARRY: u128 = 1 << 31;

/// The power management block.
#[derive(Clone)]
pub struct Pm {
    /// Latched PM1 status, without the timer's carry since `carry_since`.
    status: u16,
    enable: u16,
    control: u16,
    /// From when on a carry of the timer counts.
    carry_since: u64,
    gpe_status: [u8; 8],
    gpe_enable: [u8; 8],
    smi_enable: u32,
    smi_status: u32,
    /// Ports 0xb2 and 0xb3.
    apm: [u8; 2],
    power_off: bool,
}

impl Default for Pm {
    fn default() -> Self {
        Self::new()
    }
}

impl Pm {
    /// The block as firmware leaves it: ACPI mode, all events off.
    #[must_use]
    pub fn new() -> Self {
        Self {
            status: 0,
            enable: 0,
            control: CONTROL_SCI_ENABLE,
            carry_since: 0,
            gpe_status: [0; 8],
            gpe_enable: [0; 8],
            smi_enable: 0,
            smi_status: 0,
            apm: [0; 2],
            power_off: false,
        }
    }

    /// Reads `size` bytes at `offset` from PMBASE (0–0x7f). Reserved registers read zero.
    pub fn read(&self, offset: u16, size: usize, now: u64) -> u32 {
        let mut bytes = [0; 4];
        for (at, byte) in (0..).zip(bytes.iter_mut().take(size)) {
            *byte = self.read_byte(offset.wrapping_add(at), now);
        }
        u32::from_le_bytes(bytes)
    }

    /// Writes `size` bytes at `offset` from PMBASE (0–0x7f).
    pub fn write(&mut self, offset: u16, size: usize, value: u32, now: u64) {
        for (at, byte) in (0..).zip(value.to_le_bytes().into_iter().take(size)) {
            self.write_byte(offset.wrapping_add(at), byte, now);
        }
    }

    /// Reads port 0xb2 (`offset` 0) or 0xb3 (1).
    pub fn smi_read(&mut self, offset: u16, _now: u64) -> u8 {
        self.apm.get(usize::from(offset)).copied().unwrap_or(0xff)
    }

    /// Writes port 0xb2 (`offset` 0) or 0xb3 (1).
    pub fn smi_write(&mut self, offset: u16, value: u8, _now: u64) {
        if let Some(port) = self.apm.get_mut(usize::from(offset)) {
            *port = value;
        }
        match (offset, value) {
            (0, ACPI_ENABLE) => self.control |= CONTROL_SCI_ENABLE,
            (0, ACPI_DISABLE) => self.control &= !CONTROL_SCI_ENABLE,
            _ => {}
        }
    }

    /// Level of the SCI (GSI 9).
    #[must_use]
    pub fn irq(&self) -> bool {
        let gpe = self
            .gpe_status
            .iter()
            .zip(&self.gpe_enable)
            .any(|(status, enable)| status & enable != 0);
        self.control & CONTROL_SCI_ENABLE != 0
            && (gpe || self.status & self.enable & PM1_EVENTS != 0)
    }

    /// True once after the guest entered S5.
    pub fn take_power_off(&mut self) -> bool {
        std::mem::take(&mut self.power_off)
    }

    /// Someone pressed the power button.
    pub fn press_power_button(&mut self) {
        self.status |= PM1_POWER_BUTTON;
    }

    /// A device raises general-purpose event `gpe` (0–63).
    pub fn raise_gpe(&mut self, gpe: usize) {
        if let Some(byte) = self.gpe_status.get_mut(gpe / 8) {
            *byte |= 1 << (gpe % 8);
        }
    }

    /// Time of the next carry of the PM timer, if it is enabled and not yet noted.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        if self.enable & PM1_TIMER == 0 || self.status & PM1_TIMER != 0 {
            return None;
        }
        let ticks = (ticks(self.carry_since) / TIMER_CARRY + 1) * TIMER_CARRY;
        u64::try_from((ticks * NS_PER_SECOND).div_ceil(PM_TIMER_HZ)).ok()
    }

    /// Notes the carry of the timer if it is due at or before `now`.
    pub fn advance(&mut self, now: u64) {
        if self.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.status |= PM1_TIMER;
        }
    }

    fn carried(&self, now: u64) -> bool {
        ticks(now) / TIMER_CARRY > ticks(self.carry_since) / TIMER_CARRY
    }

    fn status_at(&self, now: u64) -> u16 {
        let carry = if self.carried(now) { PM1_TIMER } else { 0 };
        self.status | carry
    }

    fn read_byte(&self, offset: u16, now: u64) -> u8 {
        let high = |value: u16| value.to_le_bytes()[usize::from(offset & 1)];
        let dword = |value: u32| value.to_le_bytes()[usize::from(offset & 3)];
        match offset & !1 {
            PM1_STATUS => high(self.status_at(now)),
            PM1_ENABLE => high(self.enable),
            PM1_CONTROL => high(self.control),
            _ => match offset & !3 {
                PM_TIMER => dword(ticks(now) as u32),
                SMI_ENABLE => dword(self.smi_enable),
                SMI_STATUS => dword(self.smi_status),
                _ => match offset & !7 {
                    GPE0_STATUS => self.gpe_status[usize::from(offset & 7)],
                    GPE0_ENABLE => self.gpe_enable[usize::from(offset & 7)],
                    _ => 0,
                },
            },
        }
    }

    fn write_byte(&mut self, offset: u16, value: u8, now: u64) {
        let shift = 8 * u32::from(offset & 1);
        let bits = u16::from(value) << shift;
        let merge = |old: u16| old & !(0xff << shift) | bits;
        match offset & !1 {
            PM1_STATUS => {
                self.status = self.status_at(now) & !bits;
                self.carry_since = now;
            }
            PM1_ENABLE => {
                // An event that happened before it was enabled still counts.
                self.status = self.status_at(now);
                self.carry_since = now;
                self.enable = merge(self.enable) & PM1_EVENTS;
            }
            PM1_CONTROL => {
                let written = merge(self.control);
                self.control =
                    written & (CONTROL_SCI_ENABLE | CONTROL_BUS_MASTER_RELOAD | CONTROL_SLEEP_TYPE);
                let sleep_type = (written & CONTROL_SLEEP_TYPE) >> 10;
                if bits & CONTROL_SLEEP_ENABLE != 0 && SLEEP_TYPES_S5.contains(&sleep_type) {
                    self.power_off = true;
                }
            }
            _ => {
                let shift = 8 * u32::from(offset & 3);
                let dword = u32::from(value) << shift;
                match (offset & !3, offset & !7) {
                    (SMI_ENABLE, _) => {
                        self.smi_enable = self.smi_enable & !(0xff << shift) | dword;
                    }
                    (SMI_STATUS, _) => self.smi_status &= !dword,
                    (_, GPE0_STATUS) => self.gpe_status[usize::from(offset & 7)] &= !value,
                    (_, GPE0_ENABLE) => self.gpe_enable[usize::from(offset & 7)] = value,
                    _ => {}
                }
            }
        }
    }
}

/// Count of the PM timer since time zero, not yet cut to 32 bits.
fn ticks(now: u64) -> u128 {
    u128::from(now) * PM_TIMER_HZ / NS_PER_SECOND
}

impl State for Pm {
    fn save(&self, w: &mut Writer) {
        w.u16(self.status);
        w.u16(self.enable);
        w.u16(self.control);
        w.u64(self.carry_since);
        for byte in self.gpe_status.iter().chain(&self.gpe_enable) {
            w.u8(*byte);
        }
        w.u32(self.smi_enable);
        w.u32(self.smi_status);
        w.u8(self.apm[0]);
        w.u8(self.apm[1]);
        w.bool(self.power_off);
    }

    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        self.status = r.u16()?;
        self.enable = r.u16()?;
        self.control = r.u16()?;
        self.carry_since = r.u64()?;
        for byte in self.gpe_status.iter_mut().chain(&mut self.gpe_enable) {
            *byte = r.u8()?;
        }
        self.smi_enable = r.u32()?;
        self.smi_status = r.u32()?;
        self.apm = [r.u8()?, r.u8()?];
        self.power_off = r.bool()?;
        Ok(())
    }
}

impl Device for Pm {
    fn name(&self) -> Cow<'static, str> {
        "pm".into()
    }

    fn reset(&mut self) {
        *self = Self::new();
    }

    fn ranges(&self) -> Vec<Range> {
        vec![Range::isa(0xb2, 2, SMI_PORTS)]
    }

    fn read(&mut self, at: Access, _out: &mut Outbox) -> u64 {
        match at.region {
            PM_BLOCK => Pm::read(self, at.offset as u16, at.size, at.now).into(),
            _ => self.smi_read(at.offset as u16, at.now).into(),
        }
    }

    fn write(&mut self, at: Access, value: u64, out: &mut Outbox) {
        match at.region {
            PM_BLOCK => Pm::write(self, at.offset as u16, at.size, value as u32, at.now),
            _ => self.smi_write(at.offset as u16, value as u8, at.now),
        }
        if self.take_power_off() {
            out.signals.push(Signal::PowerOff);
        }
    }

    fn lines(&self) -> Lines {
        Lines::isa(9, self.irq())
    }

    fn next_deadline(&self) -> Option<u64> {
        Pm::next_deadline(self)
    }

    fn advance(&mut self, _deadline: u64, now: u64, _out: &mut Outbox) {
        Pm::advance(self, now);
    }

    fn trial(&mut self) -> Option<&mut dyn Trial> {
        Some(self)
    }
}

impl Trial for Pm {
    fn copy(&self) -> Box<dyn Device> {
        Box::new(self.clone())
    }

    fn deadlines(&self) -> Vec<Option<u64>> {
        vec![Pm::next_deadline(self)]
    }

    fn fire(&mut self, _timer: usize, at: u64) {
        Pm::advance(self, at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn the_timer_counts_3_579_545_hz_in_32_bits() {
        let mut pm = Pm::new();
        assert_eq!(pm.read(PM_TIMER, 4, SECOND), 3_579_545);
        assert_eq!(pm.read(PM_TIMER + 1, 1, SECOND), 3_579_545 >> 8 & 0xff);
        let wrapped = ticks(2000 * SECOND) as u32;
        assert_eq!(pm.read(PM_TIMER, 4, 2000 * SECOND), wrapped);
        pm.write(PM_TIMER, 4, 0, SECOND);
        assert_eq!(pm.read(PM_TIMER, 4, SECOND), 3_579_545);
    }

    #[test]
    fn a_timer_carry_raises_the_sci_until_its_status_is_cleared() {
        let mut pm = Pm::new();
        pm.write(PM1_ENABLE, 2, u32::from(PM1_TIMER), 0);
        let deadline = pm.next_deadline().unwrap_or(0);
        assert_eq!(pm.read(PM_TIMER, 4, deadline), 1 << 31);
        assert_eq!(pm.read(PM_TIMER, 4, deadline - 1), (1 << 31) - 1);
        pm.advance(deadline - 1);
        assert!(!pm.irq());
        pm.advance(deadline);
        assert!(pm.irq());
        assert_eq!(pm.read(PM1_STATUS, 2, deadline), 1);
        pm.write(PM1_STATUS, 2, 1, deadline);
        assert!(!pm.irq());
        assert!(pm.next_deadline().is_some_and(|next| next > deadline));
    }

    #[test]
    fn a_carry_is_seen_without_being_enabled_and_then_interrupts_when_enabled() {
        let mut pm = Pm::new();
        assert_eq!(pm.read(PM1_STATUS, 2, 700 * SECOND), 1);
        assert!(!pm.irq());
        pm.write(PM1_ENABLE, 2, 1, 700 * SECOND);
        assert!(pm.irq());
    }

    #[test]
    fn linux_powers_off_through_pm1_control() {
        let mut pm = Pm::new();
        assert_eq!(pm.read(PM1_CONTROL, 2, 0), 1);
        // First the sleep type, then the same with the enable bit.
        pm.write(PM1_CONTROL, 2, 0x0001, 0);
        assert!(!pm.take_power_off());
        pm.write(PM1_CONTROL, 2, 0x2001, 0);
        assert!(pm.take_power_off());
        assert!(!pm.take_power_off());
        assert_eq!(pm.read(PM1_CONTROL, 2, 0), 1);
        pm.write(PM1_CONTROL, 2, 0x2401, 0);
        assert!(!pm.take_power_off());
        pm.write(PM1_CONTROL, 4, 0x3c01, 0);
        assert!(pm.take_power_off());
    }

    #[test]
    fn acpi_mode_follows_the_smi_command_port() {
        let mut pm = Pm::new();
        pm.smi_write(0, ACPI_DISABLE, 0);
        assert_eq!(pm.read(PM1_CONTROL, 2, 0), 0);
        pm.smi_write(0, ACPI_ENABLE, 0);
        assert_eq!(pm.read(PM1_CONTROL, 2, 0), 1);
        assert_eq!(pm.smi_read(0, 0), ACPI_ENABLE);
    }

    #[test]
    fn power_button_and_gpe_interrupt_when_enabled() {
        let mut pm = Pm::new();
        pm.press_power_button();
        assert!(!pm.irq());
        pm.write(PM1_ENABLE, 2, u32::from(PM1_POWER_BUTTON), 0);
        assert!(pm.irq());
        pm.write(PM1_STATUS + 1, 1, 1, 0);
        assert!(!pm.irq());
        pm.write(GPE0_ENABLE + 1, 1, 0x02, 0);
        pm.raise_gpe(9);
        assert!(pm.irq());
        pm.write(GPE0_STATUS, 4, 0x0200, 0);
        assert!(!pm.irq());
        pm.raise_gpe(64);
    }
}
