//! The I/O APIC (Intel 82093AA datasheet; ICH9 datasheet 13.5): 24 pins, version 0x20, which adds
//! the EOI register.

use super::device::{Access, Device, LoadError, Outbox, Reader, State, Writer};
use super::message::{Delivery, Destination, Message};
use super::range::Range;
use std::borrow::Cow;

/// Physical address of the registers.
pub const BASE: u64 = 0xfec0_0000;
/// Number of interrupt inputs.
pub const PINS: usize = 24;

const VERSION: u32 = ((PINS as u32 - 1) << 16) | 0x20;
const ENTRY_REMOTE_IRR: u64 = 1 << 14;
const ENTRY_LEVEL: u64 = 1 << 15;
const ENTRY_MASKED: u64 = 1 << 16;
/// Vector, delivery and destination mode, polarity, trigger mode, mask and destination.
const ENTRY_WRITABLE: u64 = 0xff00_0000_0001_afff;
/// Delivery status (bit 12) is never busy: delivery is immediate.
const ENTRY_DELIVERY_STATUS: u64 = 1 << 12;

/// The I/O APIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoApic {
    id: u8,
    select: u8,
    lines: u32,
    entries: [u64; PINS],
}

impl Default for IoApic {
    fn default() -> Self {
        Self::new()
    }
}

impl IoApic {
    /// All entries masked.
    #[must_use]
    pub fn new() -> Self {
        Self {
            id: 0,
            select: 0,
            lines: 0,
            entries: [ENTRY_MASKED; PINS],
        }
    }

    /// Sets the level of a pin. Messages that this causes are added to `out`. Edges on a masked pin
    /// are lost, as the datasheet demands.
    pub fn set_irq(&mut self, pin: usize, level: bool, out: &mut Vec<Message>) {
        if pin >= PINS {
            return;
        }
        let bit = 1 << pin;
        let rising = level && self.lines & bit == 0;
        if level {
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
        if self.entries[pin] & ENTRY_LEVEL != 0 {
            self.service_level(pin, out);
        } else if rising && self.entries[pin] & ENTRY_MASKED == 0 {
            self.send(pin, out);
        }
    }

    /// Sends for a level-triggered pin that is asserted, unmasked and not yet being served.
    fn service_level(&mut self, pin: usize, out: &mut Vec<Message>) {
        let entry = self.entries[pin];
        let quiet = entry & (ENTRY_MASKED | ENTRY_REMOTE_IRR) != 0;
        if entry & ENTRY_LEVEL != 0 && !quiet && self.lines >> pin & 1 != 0 {
            self.entries[pin] |= ENTRY_REMOTE_IRR;
            self.send(pin, out);
        }
    }

    fn send(&self, pin: usize, out: &mut Vec<Message>) {
        let entry = self.entries[pin];
        if let Some(delivery) = Delivery::from_bits((entry >> 8) as u32 & 7) {
            out.push(Message {
                destination: Destination::from_byte((entry >> 56) as u8, entry & 0x800 != 0),
                delivery,
                vector: entry as u8,
                level_triggered: entry & ENTRY_LEVEL != 0,
                except: None,
            });
        }
    }

    /// A local APIC (or the EOI register) is done with a level-triggered vector. A pin that is still
    /// asserted sends again.
    pub fn end_of_interrupt(&mut self, vector: u8, out: &mut Vec<Message>) {
        for pin in 0..PINS {
            let entry = self.entries[pin];
            let served = entry & ENTRY_REMOTE_IRR != 0 && entry & ENTRY_LEVEL != 0;
            if served && entry as u8 == vector {
                self.entries[pin] &= !ENTRY_REMOTE_IRR;
                self.service_level(pin, out);
            }
        }
    }

    /// Reads the 32-bit register at an offset from [`BASE`].
    #[must_use]
    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            0x00 => u32::from(self.select),
            0x10 => match self.select {
                0x00 | 0x02 => u32::from(self.id) << 24,
                0x01 => VERSION,
                0x10..=0x3f => {
                    let entry = self.entries[usize::from(self.select - 0x10) >> 1];
                    (entry >> (32 * (self.select & 1))) as u32
                }
                _ => 0,
            },
            _ => 0,
        }
    }

    /// Writes the 32-bit register at an offset from [`BASE`].
    pub fn write(&mut self, offset: u64, value: u32, out: &mut Vec<Message>) {
        match offset {
            0x00 => self.select = value as u8,
            0x10 => match self.select {
                0x00 => self.id = (value >> 24) as u8 & 0x0f,
                0x10..=0x3f => self.write_entry(value, out),
                _ => {}
            },
            0x40 => self.end_of_interrupt(value as u8, out),
            _ => {}
        }
    }

    fn write_entry(&mut self, value: u32, out: &mut Vec<Message>) {
        let pin = usize::from(self.select - 0x10) >> 1;
        let old = self.entries[pin];
        let value = u64::from(value);
        let new = if self.select & 1 != 0 {
            value << 32 | old & 0xffff_ffff
        } else {
            old >> 32 << 32 | value
        };
        let mut entry = new & ENTRY_WRITABLE & !ENTRY_DELIVERY_STATUS | old & ENTRY_REMOTE_IRR;
        if entry & ENTRY_LEVEL == 0 {
            // Switching to edge mode is how drivers of older chips clear a stuck Remote IRR.
            entry &= !ENTRY_REMOTE_IRR;
        }
        self.entries[pin] = entry;
        self.service_level(pin, out);
    }
}

impl State for IoApic {
    fn save(&self, w: &mut Writer) {
        w.u8(self.id);
        w.u8(self.select);
        w.u32(self.lines);
        for entry in self.entries {
            w.u64(entry);
        }
    }

    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        self.id = r.u8()? & 0x0f;
        self.select = r.u8()?;
        self.lines = r.u32()? & ((1 << PINS) - 1);
        for entry in &mut self.entries {
            *entry = r.u64()? & (ENTRY_WRITABLE | ENTRY_REMOTE_IRR);
        }
        Ok(())
    }
}

impl Device for IoApic {
    fn name(&self) -> Cow<'static, str> {
        "ioapic".into()
    }

    fn reset(&mut self) {
        *self = Self::new();
    }

    fn ranges(&self) -> Vec<Range> {
        vec![Range::memory(BASE, 0x1000, 0).quiet()]
    }

    fn read(&mut self, at: Access, _out: &mut Outbox) -> u64 {
        let register = u64::from(IoApic::read(self, at.offset & !3));
        let bits = 8 * at.size.min(4) as u32;
        register >> (8 * (at.offset & 3)) & (u64::MAX >> (64 - bits))
    }

    fn write(&mut self, at: Access, value: u64, out: &mut Outbox) {
        // Parts of the data register cannot be written.
        if at.size >= 4 || at.offset != 0x10 {
            let bits = 8 * at.size.min(4) as u32;
            let value = value as u32 & (u32::MAX >> (32 - bits));
            IoApic::write(self, at.offset, value, &mut out.messages);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_entry(apic: &mut IoApic, pin: u32, entry: u64) -> Vec<Message> {
        let mut out = Vec::new();
        apic.write(0, 0x11 + 2 * pin, &mut out);
        apic.write(0x10, (entry >> 32) as u32, &mut out);
        apic.write(0, 0x10 + 2 * pin, &mut out);
        apic.write(0x10, entry as u32, &mut out);
        out
    }

    #[test]
    fn version_tells_24_pins_and_an_eoi_register() {
        let mut apic = IoApic::new();
        apic.write(0, 1, &mut Vec::new());
        assert_eq!(apic.read(0x10), 0x0017_0020);
    }

    #[test]
    fn an_edge_sends_once_and_masked_edges_are_lost() {
        let mut apic = IoApic::new();
        let mut out = Vec::new();
        apic.set_irq(2, true, &mut out);
        apic.set_irq(2, false, &mut out);
        assert!(out.is_empty());
        assert!(write_entry(&mut apic, 2, 0x0300_0000_0000_0830).is_empty());
        apic.set_irq(2, true, &mut out);
        apic.set_irq(2, true, &mut out);
        assert_eq!(out.len(), 1);
        assert_eq!(out[0].destination, Destination::Logical(3));
        assert_eq!(out[0].vector, 0x30);
        assert!(!out[0].level_triggered);
    }

    #[test]
    fn a_level_waits_for_the_eoi_and_then_sends_again() {
        let mut apic = IoApic::new();
        let mut out = Vec::new();
        apic.set_irq(9, true, &mut out);
        assert_eq!(write_entry(&mut apic, 9, 0x8029).len(), 1);
        apic.set_irq(9, true, &mut out);
        assert!(out.is_empty());
        assert_ne!(apic.read(0x10) & ENTRY_REMOTE_IRR as u32, 0);
        apic.write(0x40, 0x29, &mut out);
        assert_eq!(out.len(), 1);
        apic.set_irq(9, false, &mut out);
        apic.end_of_interrupt(0x29, &mut out);
        assert_eq!(out.len(), 1);
        assert_eq!(apic.read(0x10) & ENTRY_REMOTE_IRR as u32, 0);
    }

    #[test]
    fn edge_mode_clears_remote_irr() {
        let mut apic = IoApic::new();
        let mut out = Vec::new();
        write_entry(&mut apic, 9, 0x8029);
        apic.set_irq(9, true, &mut out);
        write_entry(&mut apic, 9, 0x1_0029);
        assert_eq!(apic.read(0x10), 0x1_0029);
    }
}
