//! MSI-X: interrupts as messages, chosen by a table in a function's memory (PCI Local Bus 3.0, 6.8.2 and 6.8.3).
//!
//! Table and pending bits share a base address register of their own, the table in its lower half. While a vector is
//! masked, alone or with all others, its event sets the pending bit; the message goes out when the mask goes away. The
//! same holds while the function may not write to memory, so that no interrupt is lost where a driver switches bus
//! mastering on last. While MSI-X is off the function must use its interrupt pin, and nothing becomes pending.

use super::device::{LoadError, Outbox, Reader, State, Writer};
use super::message;
use super::pci_config::{BarKind, ConfigSpace};

/// Most vectors that a table can have.
pub const MOST_VECTORS: usize = 2048;

const CAPABILITY: u8 = 0x11;
/// The message control register, from the capability's offset.
const CONTROL: usize = 2;
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK_ALL: u16 = 1 << 14;

const ENTRY_SIZE: usize = 16;
/// Which bits of an entry the guest can change: address (of a double word), data, mask.
const ENTRY_WRITABLE: [u8; ENTRY_SIZE] = [
    0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0, 0, 0,
];
const ENTRY_CONTROL: usize = 12;

/// The table, the pending bits, and the capability's place in configuration space.
#[derive(Debug, Clone)]
pub struct Msix {
    bar: usize,
    capability: usize,
    table: Vec<[u8; ENTRY_SIZE]>,
    pending: Vec<bool>,
}

impl Msix {
    /// A table with `vectors` entries, all masked, in base address register `bar`. `None` where it does not fit.
    #[must_use]
    pub fn new(config: &mut ConfigSpace, bar: usize, vectors: usize) -> Option<Self> {
        if !(1..=MOST_VECTORS).contains(&vectors) {
            return None;
        }
        let half = Self::half(vectors);
        let indicator = bar as u32;
        let mut body = (vectors as u16 - 1).to_le_bytes().to_vec();
        body.extend(indicator.to_le_bytes());
        body.extend((half as u32 | indicator).to_le_bytes());
        if !config.add_bar(bar, BarKind::Memory32, 2 * half as u64) {
            return None;
        }
        let capability = config.add_capability(CAPABILITY, &body)?;
        let control = CONTROL_ENABLE | CONTROL_MASK_ALL;
        config.allow_writes(capability + CONTROL, &control.to_le_bytes());
        let mut msix = Self {
            bar,
            capability,
            table: vec![[0; ENTRY_SIZE]; vectors],
            pending: vec![false; vectors],
        };
        msix.reset();
        Some(msix)
    }

    /// All vectors masked, none pending.
    pub fn reset(&mut self) {
        let mut entry = [0; ENTRY_SIZE];
        entry[ENTRY_CONTROL] = 1;
        self.table.fill(entry);
        self.pending.fill(false);
    }

    /// Bytes of the table's half of the register's range.
    fn half(vectors: usize) -> usize {
        (vectors * ENTRY_SIZE).next_power_of_two().max(0x800)
    }

    /// The base address register that holds the table.
    #[must_use]
    pub fn bar(&self) -> usize {
        self.bar
    }

    fn control(&self, config: &ConfigSpace) -> u16 {
        config.u16(self.capability + CONTROL)
    }

    /// Whether the driver has switched MSI-X on, so that the interrupt pin is not used.
    #[must_use]
    pub fn enabled(&self, config: &ConfigSpace) -> bool {
        self.control(config) & CONTROL_ENABLE != 0
    }

    fn may_send(&self, config: &ConfigSpace, vector: usize) -> bool {
        let control = self.control(config);
        control & CONTROL_ENABLE != 0
            && control & CONTROL_MASK_ALL == 0
            && config.may_master()
            && self.table[vector][ENTRY_CONTROL] & 1 == 0
    }

    /// An event of a vector. One that the table does not have is ignored, as is every event while MSI-X is off.
    pub fn notify(&mut self, config: &ConfigSpace, vector: usize, out: &mut Outbox) {
        if vector < self.table.len() && self.enabled(config) {
            self.pending[vector] = true;
            self.send_pending(config, out);
        }
    }

    /// The event of a vector is dealt with: nothing is pending any more.
    pub fn withdraw(&mut self, vector: usize) {
        if let Some(pending) = self.pending.get_mut(vector) {
            *pending = false;
        }
    }

    /// Sends what is pending and may be sent now: after a change of a mask, or of configuration space.
    pub fn send_pending(&mut self, config: &ConfigSpace, out: &mut Outbox) {
        for vector in 0..self.table.len() {
            if self.pending[vector] && self.may_send(config, vector) {
                self.pending[vector] = false;
                self.send(vector, out);
            }
        }
    }

    /// Makes the write that the entry describes. Only interrupt messages go anywhere: a driver that has them
    /// written to RAM would be a strange one.
    fn send(&self, vector: usize, out: &mut Outbox) {
        let word = |at: usize| {
            let bytes = self.table[vector][at..at + 4].iter();
            bytes
                .rev()
                .fold(0, |word: u64, &byte| word << 8 | u64::from(byte))
        };
        let address = word(4) << 32 | word(0);
        if address >> 20 == 0xfee {
            out.messages.extend(message::msi(address, word(8) as u32));
        }
    }

    /// Reads from the register's range.
    #[must_use]
    pub fn read(&self, offset: u64, size: usize) -> u64 {
        (0..size.min(8)).rev().fold(0, |value, index| {
            value << 8 | u64::from(self.byte(offset as usize + index))
        })
    }

    fn byte(&self, offset: usize) -> u8 {
        let half = Self::half(self.table.len());
        if offset < half {
            let entry = self.table.get(offset / ENTRY_SIZE);
            return entry.map_or(0, |entry| entry[offset % ENTRY_SIZE]);
        }
        let first = (offset - half) * 8;
        let bits = self.pending.iter().skip(first).take(8).enumerate();
        bits.fold(0, |byte, (bit, &pending)| byte | u8::from(pending) << bit)
    }

    /// Writes to the register's range. Pending bits are read-only.
    pub fn write(
        &mut self,
        config: &ConfigSpace,
        offset: u64,
        size: usize,
        value: u64,
        out: &mut Outbox,
    ) {
        for (index, byte) in value.to_le_bytes().into_iter().enumerate().take(size) {
            let at = offset as usize + index;
            if let Some(entry) = self.table.get_mut(at / ENTRY_SIZE) {
                entry[at % ENTRY_SIZE] = byte & ENTRY_WRITABLE[at % ENTRY_SIZE];
            }
        }
        self.send_pending(config, out);
    }
}

impl State for Msix {
    fn save(&self, w: &mut Writer) {
        for (entry, &pending) in self.table.iter().zip(&self.pending) {
            for &byte in entry {
                w.u8(byte);
            }
            w.bool(pending);
        }
    }

    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        for (entry, pending) in self.table.iter_mut().zip(&mut self.pending) {
            for (byte, writable) in entry.iter_mut().zip(ENTRY_WRITABLE) {
                *byte = r.u8()? & writable;
            }
            *pending = r.bool()?;
        }
        Ok(())
    }
}
