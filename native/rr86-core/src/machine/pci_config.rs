//! One PCI function: its 256 bytes of configuration space (PCI Local Bus 3.0, chapter 6).
//!
//! Which bits the guest may write, and which it clears by writing ones, are masks beside the bytes; so
//! base address registers size themselves (the address bits below the size are read-only zeros) and a
//! device only has to look at its bytes to know what the guest set.

use super::device::{LoadError, Reader, State, Writer};

/// Bytes of conventional configuration space.
pub const CONFIG_SIZE: usize = 256;

/// Vendor ID (16 bits).
pub const VENDOR_ID: usize = 0x00;
/// Device ID (16 bits).
pub const DEVICE_ID: usize = 0x02;
/// Command register (16 bits).
pub const COMMAND: usize = 0x04;
/// Status register (16 bits).
pub const STATUS: usize = 0x06;
/// Revision (low byte) and class code (three bytes above).
pub const CLASS_REVISION: usize = 0x08;
/// Header type (8 bits).
pub const HEADER_TYPE: usize = 0x0e;
/// First base address register (six of 32 bits).
pub const BAR0: usize = 0x10;
/// Subsystem vendor and device IDs (16 bits each).
pub const SUBSYSTEM: usize = 0x2c;
/// Offset of the first capability (8 bits).
pub const CAPABILITY_POINTER: usize = 0x34;
/// Interrupt line, a note of the firmware's (8 bits).
pub const INTERRUPT_LINE: usize = 0x3c;
/// Interrupt pin: 0 none, 1 INTA … 4 INTD (8 bits).
pub const INTERRUPT_PIN: usize = 0x3d;

/// Command: respond to I/O accesses.
pub const COMMAND_IO: u16 = 1 << 0;
/// Command: respond to memory accesses.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: may use DMA and send MSIs.
pub const COMMAND_MASTER: u16 = 1 << 2;
/// Command: INTx is off.
pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;
const COMMAND_PARITY: u16 = 1 << 6;
const COMMAND_SERR: u16 = 1 << 8;

const STATUS_INTERRUPT: u8 = 1 << 3;
const STATUS_CAPABILITIES: u8 = 1 << 4;
/// Error bits of the upper status byte, cleared by writing ones.
const STATUS_ERRORS: u8 = 0xf9;
const HEADER_MULTI_FUNCTION: u8 = 0x80;
/// Capabilities start behind the header.
const FIRST_CAPABILITY: usize = 0x40;

const BAR_IO: u32 = 1;
const BAR_64: u32 = 1 << 2;
const BAR_PREFETCHABLE: u32 = 1 << 3;

/// QEMU's subsystem IDs for its own boards.
const SUBSYSTEM_IDS: u32 = 0x1100_1af4;

/// What a base address register asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Prefetchable memory anywhere; takes the next register, too.
    Memory64,
}

#[derive(Debug, Clone, Copy)]
struct Bar {
    kind: BarKind,
    size: u64,
}

/// A function's configuration space.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    devfn: u8,
    config: [u8; CONFIG_SIZE],
    writable: [u8; CONFIG_SIZE],
    write_one_to_clear: [u8; CONFIG_SIZE],
    bars: [Option<Bar>; 6],
    next_capability: usize,
}

impl ConfigSpace {
    /// A function at `device` (0–31) and `function` (0–7), with a 24-bit class code (base class on top).
    #[must_use]
    pub fn new(device: u8, function: u8, vendor: u16, id: u16, class: u32, revision: u8) -> Self {
        let mut this = Self {
            devfn: (device & 0x1f) << 3 | function & 7,
            config: [0; CONFIG_SIZE],
            writable: [0; CONFIG_SIZE],
            write_one_to_clear: [0; CONFIG_SIZE],
            bars: [None; 6],
            next_capability: FIRST_CAPABILITY,
        };
        this.set_u32(VENDOR_ID, u32::from(vendor) | u32::from(id) << 16);
        this.set_u32(CLASS_REVISION, class << 8 | u32::from(revision));
        this.set_u32(SUBSYSTEM, SUBSYSTEM_IDS);
        let command = COMMAND_IO
            | COMMAND_MEMORY
            | COMMAND_MASTER
            | COMMAND_PARITY
            | COMMAND_SERR
            | COMMAND_INTX_DISABLE;
        this.allow_writes(COMMAND, &command.to_le_bytes());
        this.write_one_to_clear[STATUS + 1] = STATUS_ERRORS;
        // Cache line size: kept, without effect.
        this.writable[0x0c] = 0xff;
        this.writable[INTERRUPT_LINE] = 0xff;
        this
    }

    /// Device number × 8 + function number.
    #[must_use]
    pub fn devfn(&self) -> u8 {
        self.devfn
    }

    /// Marks the device as one with several functions.
    pub fn set_multi_function(&mut self) {
        self.config[HEADER_TYPE] |= HEADER_MULTI_FUNCTION;
    }

    /// Uses an interrupt pin: 1 INTA … 4 INTD.
    pub fn set_interrupt_pin(&mut self, pin: u8) {
        self.config[INTERRUPT_PIN] = pin;
    }

    /// Shows in the status register whether the function asserts its INTx.
    pub fn set_interrupt_status(&mut self, asserted: bool) {
        self.config[STATUS] &= !STATUS_INTERRUPT;
        if asserted {
            self.config[STATUS] |= STATUS_INTERRUPT;
        }
    }

    /// Sets which bits at `offset` the guest may change.
    pub fn allow_writes(&mut self, offset: usize, mask: &[u8]) {
        for (writable, mask) in self.writable.iter_mut().skip(offset).zip(mask) {
            *writable = *mask;
        }
    }

    /// Adds base address register `index` (0–5) of `size` bytes, rounded up to a power of two. A
    /// 64-bit one takes `index` + 1, too. Returns false where it does not fit.
    pub fn add_bar(&mut self, index: usize, kind: BarKind, size: u64) -> bool {
        let minimum = if kind == BarKind::Io { 4 } else { 16 };
        let last = if kind == BarKind::Memory64 {
            index + 1
        } else {
            index
        };
        let Some(size) = size.max(minimum).checked_next_power_of_two() else {
            return false;
        };
        let limit = match kind {
            BarKind::Io => 1 << 16,
            BarKind::Memory32 => 1 << 31,
            BarKind::Memory64 => 1 << 62,
        };
        if last > 5 || size > limit {
            return false;
        }
        let address_bits = !(size - 1);
        let offset = BAR0 + 4 * index;
        let flags = match kind {
            BarKind::Io => BAR_IO,
            BarKind::Memory32 => 0,
            BarKind::Memory64 => {
                self.allow_writes(offset + 4, &((address_bits >> 32) as u32).to_le_bytes());
                BAR_64 | BAR_PREFETCHABLE
            }
        };
        self.allow_writes(offset, &(address_bits as u32).to_le_bytes());
        self.set_u32(offset, flags);
        self.bars[index] = Some(Bar { kind, size });
        true
    }

    /// Where base address register `index` answers now: kind, address and size; `None` while the
    /// command register has its decoding off.
    #[must_use]
    pub fn bar(&self, index: usize) -> Option<(BarKind, u64, u64)> {
        let bar = (*self.bars.get(index)?)?;
        let offset = BAR0 + 4 * index;
        let low = u64::from(self.u32(offset));
        let (enable, address) = match bar.kind {
            BarKind::Io => (COMMAND_IO, low & 0xfffc),
            BarKind::Memory32 => (COMMAND_MEMORY, low & !0xf),
            BarKind::Memory64 => {
                let high = u64::from(self.u32(offset + 4));
                (COMMAND_MEMORY, high << 32 | low & !0xf)
            }
        };
        (self.u16(COMMAND) & enable != 0).then_some((bar.kind, address, bar.size))
    }

    /// Adds a capability with `id` whose body, behind the two header bytes, is `body`. Returns its
    /// offset, or `None` when the room is used up.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> Option<usize> {
        let offset = self.next_capability;
        let end = offset.checked_add(2)?.checked_add(body.len())?;
        if end > CONFIG_SIZE {
            return None;
        }
        self.config[offset] = id;
        self.config[offset + 1] = self.config[CAPABILITY_POINTER];
        self.config[offset + 2..end].copy_from_slice(body);
        self.config[CAPABILITY_POINTER] = offset as u8;
        self.config[STATUS] |= STATUS_CAPABILITIES;
        self.next_capability = end.next_multiple_of(4);
        Some(offset)
    }

    /// Whether it may use DMA and send messages.
    #[must_use]
    pub fn may_master(&self) -> bool {
        self.u16(COMMAND) & COMMAND_MASTER != 0
    }

    /// Reads a byte as the guest does; ones behind the end of conventional configuration space.
    #[must_use]
    pub fn read(&self, offset: usize) -> u8 {
        self.config.get(offset).copied().unwrap_or(0xff)
    }

    /// Writes a byte as the guest does.
    pub fn write(&mut self, offset: usize, value: u8) {
        if offset < CONFIG_SIZE {
            let writable = self.writable[offset];
            let kept = self.config[offset] & !(self.write_one_to_clear[offset] & value);
            self.config[offset] = kept & !writable | value & writable;
        }
    }

    /// 8 bits at `offset`, which must lie in configuration space (ones elsewhere).
    #[must_use]
    pub fn u8(&self, offset: usize) -> u8 {
        self.read(offset)
    }

    /// 16 bits at `offset`.
    #[must_use]
    pub fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.read(offset), self.read(offset + 1)])
    }

    /// 32 bits at `offset`.
    #[must_use]
    pub fn u32(&self, offset: usize) -> u32 {
        u32::from(self.u16(offset)) | u32::from(self.u16(offset + 2)) << 16
    }

    /// Sets bytes at `offset` as the device itself does, whatever the masks say.
    pub fn set(&mut self, offset: usize, bytes: &[u8]) {
        for (to, from) in self.config.iter_mut().skip(offset).zip(bytes) {
            *to = *from;
        }
    }

    /// Sets 32 bits at `offset` as the device itself does.
    pub fn set_u32(&mut self, offset: usize, value: u32) {
        self.set(offset, &value.to_le_bytes());
    }
}

impl State for ConfigSpace {
    fn save(&self, w: &mut Writer) {
        w.u8(self.devfn);
        for byte in self.config {
            w.u8(byte);
        }
    }

    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        let devfn = r.u8()?;
        if devfn != self.devfn {
            return Err(LoadError::BadValue {
                field: "PCI device and function number",
                value: u64::from(devfn),
            });
        }
        for byte in &mut self.config {
            *byte = r.u8()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_u32(f: &mut ConfigSpace, offset: usize, value: u32) {
        for (at, byte) in (offset..).zip(value.to_le_bytes()) {
            f.write(at, byte);
        }
    }

    fn function() -> ConfigSpace {
        ConfigSpace::new(3, 0, 0x1af4, 0x1001, 0x01_0000, 0)
    }

    #[test]
    fn a_memory_bar_tells_its_size_and_decodes_when_enabled() {
        let mut f = function();
        assert!(f.add_bar(1, BarKind::Memory32, 0x1000));
        write_u32(&mut f, BAR0 + 4, u32::MAX);
        assert_eq!(f.u32(BAR0 + 4), 0xffff_f000);
        write_u32(&mut f, BAR0 + 4, 0xfebf_1234);
        assert_eq!(f.bar(1), None);
        write_u32(&mut f, COMMAND, u32::from(COMMAND_MEMORY));
        assert_eq!(f.bar(1), Some((BarKind::Memory32, 0xfebf_1000, 0x1000)));
    }

    #[test]
    fn a_64_bit_bar_takes_two_registers() {
        let mut f = function();
        assert!(f.add_bar(4, BarKind::Memory64, 0x4000));
        write_u32(&mut f, BAR0 + 16, u32::MAX);
        write_u32(&mut f, BAR0 + 20, u32::MAX);
        assert_eq!(f.u32(BAR0 + 16), 0xffff_c00c);
        assert_eq!(f.u32(BAR0 + 20), u32::MAX);
        assert!(!f.add_bar(5, BarKind::Memory64, 0x4000));
        assert!(!f.add_bar(0, BarKind::Io, 1 << 20));
    }

    #[test]
    fn an_absent_bar_reads_zero_after_sizing() {
        let mut f = function();
        write_u32(&mut f, BAR0, u32::MAX);
        assert_eq!(f.u32(BAR0), 0);
    }

    #[test]
    fn capabilities_form_a_list_until_the_room_is_used_up() {
        let mut f = function();
        assert_eq!(f.add_capability(0x11, &[0; 10]), Some(0x40));
        assert_eq!(f.add_capability(0x09, &[0; 14]), Some(0x4c));
        assert_eq!(f.u8(CAPABILITY_POINTER), 0x4c);
        assert_eq!(f.u8(0x4d), 0x40);
        assert_eq!(f.u8(0x41), 0);
        assert_ne!(f.u16(STATUS) & u16::from(STATUS_CAPABILITIES), 0);
        assert_eq!(f.add_capability(0x09, &[0; 256]), None);
    }

    #[test]
    fn identity_is_read_only() {
        let mut f = function();
        write_u32(&mut f, VENDOR_ID, 0);
        assert_eq!(f.u32(VENDOR_ID), 0x1001_1af4);
    }
}
