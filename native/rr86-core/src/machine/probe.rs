//! A PCI device for tests: it has all that a function can have, and does what the guest tells it.
//!
//! | register (BAR 0, 8 bytes each) | write | read |
//! |---|---|---|
//! | 0x00 | the interrupt pin's level | that |
//! | 0x08 | an event of this MSI-X vector | 0 |
//! | 0x10 | the event of this vector is dealt with | 0 |
//! | 0x18 | so many nanoseconds until an event of vector 0 | when that is |
//! | 0x20 | reads 8 bytes at this address, writes them inverted behind it, event of vector 1 | the bytes read |
//!
//! BAR 1 is a scratch register in I/O ports, BAR 2 has the MSI-X table, BAR 4 is a scratch register in 64-bit memory.

use std::borrow::Cow;

use super::device::{Access, LoadError, Outbox, Reader, State, Writer};
use super::dma::DmaAccess;
use super::pci_config::{BarKind, ConfigSpace};
use super::pci_function::{Card, Function, PciDevice};

pub const VENDOR: u16 = 0x1234;
pub const DEVICE: u16 = 0x11e8;
pub const VECTORS: usize = 3;

#[derive(Default)]
pub struct Probe {
    level: bool,
    scratch: [u64; 2],
    alarm: Option<u64>,
    /// Where to read, and whether that is done.
    transfer: Option<u64>,
    fetched: bool,
    bytes: u64,
}

/// The device at slot `device` of the root bus, with its interrupt on INTA.
pub fn probe(device: u8) -> PciDevice<Probe> {
    let mut config = ConfigSpace::new(device, 0, VENDOR, DEVICE, 0x00_ff00, 1);
    config.set_interrupt_pin(1);
    let fits = config.add_bar(0, BarKind::Memory32, 0x100)
        && config.add_bar(1, BarKind::Io, 8)
        && config.add_bar(4, BarKind::Memory64, 0x1000);
    assert!(fits);
    let card = Card::with_msix(config, 2, VECTORS).expect("there is room");
    PciDevice::new(card, Probe::default())
}

impl Function for Probe {
    fn name(&self) -> Cow<'static, str> {
        "probe".into()
    }

    fn reset(&mut self) {
        *self = Self::default();
    }

    fn read(&mut self, _card: &mut Card, at: Access, _out: &mut Outbox) -> u64 {
        let value = match (at.region, at.offset & !7) {
            (0, 0x00) => self.level.into(),
            (0, 0x18) => self.alarm.unwrap_or(0),
            (0, 0x20) => self.bytes,
            (0, _) => 0,
            (1, _) => self.scratch[0],
            _ => self.scratch[1],
        };
        (value >> (8 * (at.offset & 7))) & (u64::MAX >> (64 - 8 * at.size))
    }

    fn write(&mut self, card: &mut Card, at: Access, value: u64, out: &mut Outbox) {
        match (at.region, at.offset) {
            (0, 0x00) => {
                self.level = value & 1 != 0;
                card.set_intx(self.level);
            }
            (0, 0x08) => card.notify(value as usize, out),
            (0, 0x10) => card.withdraw(value as usize),
            (0, 0x18) => self.alarm = at.now.checked_add(value.max(1)),
            (0, 0x20) => {
                self.transfer = Some(value);
                self.fetched = false;
            }
            (0, _) => {}
            (1, _) => self.scratch[0] = value,
            _ => self.scratch[1] = value,
        }
    }

    fn next_deadline(&self) -> Option<u64> {
        self.alarm
    }

    fn advance(&mut self, card: &mut Card, _deadline: u64, _now: u64, out: &mut Outbox) {
        self.alarm = None;
        card.notify(0, out);
    }

    fn dma_access(&self) -> Option<DmaAccess> {
        let paddr = self.transfer?;
        Some(match self.fetched {
            false => DmaAccess::Read { paddr, length: 8 },
            true => DmaAccess::Write {
                paddr: paddr.wrapping_add(8),
                data: (!self.bytes).to_le_bytes().into(),
            },
        })
    }

    fn dma_done(&mut self, card: &mut Card, bytes: Option<&[u8]>, _now: u64, out: &mut Outbox) {
        match bytes {
            Some(bytes) if !self.fetched => {
                let bytes = bytes.try_into().expect("the device asked for 8");
                self.bytes = u64::from_le_bytes(bytes);
                self.fetched = true;
            }
            _ => {
                self.transfer = None;
                card.notify(1, out);
            }
        }
    }
}

impl State for Probe {
    fn save(&self, w: &mut Writer) {
        w.bool(self.level);
        w.u64(self.scratch[0]);
        w.u64(self.scratch[1]);
        w.option_u64(self.alarm);
        w.option_u64(self.transfer);
        w.bool(self.fetched);
        w.u64(self.bytes);
    }

    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        self.level = r.bool()?;
        self.scratch = [r.u64()?, r.u64()?];
        self.alarm = r.option_u64()?;
        self.transfer = r.option_u64()?;
        self.fetched = r.bool()?;
        self.bytes = r.u64()?;
        Ok(())
    }
}
