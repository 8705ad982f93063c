//! Which device answers at which port.
//!
//! Some devices are wider than a byte and take an access whole. All others sit on the byte-wide ISA
//! bus, where the bridge splits a wide access into bytes at rising addresses.

use super::board::{Board, Signal};
use super::misc::{Misc, MiscEvent};

/// Number of ports of the ACPI PM block.
const PM_PORTS: u16 = 0x80;

/// A device that takes wide accesses, with the offset into its ports.
enum Wide {
    Misc,
    Pm(u16),
    Pci(u16),
    FwCfg(u16),
}

impl Board {
    fn wide_port(&self, port: u16, size: usize) -> Option<Wide> {
        if Misc::claims(port, size) {
            return Some(Wide::Misc);
        }
        if let Some(base) = self.pci.pm_base() {
            let offset = port.wrapping_sub(base);
            if offset < PM_PORTS && usize::from(offset) + size <= usize::from(PM_PORTS) {
                return Some(Wide::Pm(offset));
            }
        }
        match port {
            0xcf8..=0xcff if usize::from(port - 0xcf8) + size <= 8 => Some(Wide::Pci(port - 0xcf8)),
            0x510 | 0x511 | 0x514..=0x51b => Some(Wide::FwCfg(port - 0x510)),
            _ => None,
        }
    }

    pub(super) fn port_read(&mut self, port: u16, size: usize, now: u64) -> u32 {
        match self.wide_port(port, size) {
            Some(Wide::Misc) => self.misc.read(port, size, now),
            Some(Wide::Pm(offset)) => self.pm.read(offset, size, now),
            Some(Wide::Pci(offset)) => self.pci.io_read(offset, size, now),
            Some(Wide::FwCfg(offset)) => self.fw_cfg.read(offset, size, now),
            None if size <= 1 => u32::from(self.byte_read(port, now)),
            None => (0..size.min(4)).fold(0, |value, index| {
                let byte = self.port_read(port.wrapping_add(index as u16), 1, now) & 0xff;
                value | byte << (8 * index)
            }),
        }
    }

    pub(super) fn port_write(&mut self, port: u16, size: usize, value: u32, now: u64) {
        match self.wide_port(port, size) {
            Some(Wide::Misc) => {
                match self.misc.write(port, size, value, now) {
                    Some(MiscEvent::DebugExit(status)) => {
                        self.signals.push(Signal::DebugExit(status));
                    }
                    Some(MiscEvent::Reset) => self.signals.push(Signal::Reset),
                    None => {}
                }
                if !self.serial.used() {
                    self.misc.note_alone();
                }
            }
            Some(Wide::Pm(offset)) => {
                self.pm.write(offset, size, value, now);
                if self.pm.take_power_off() {
                    self.signals.push(Signal::PowerOff);
                }
            }
            Some(Wide::Pci(offset)) => self.pci.io_write(offset, size, value, now),
            Some(Wide::FwCfg(offset)) => self.fw_cfg.write(offset, size, value, now),
            None if size <= 1 => self.byte_write(port, value as u8, now),
            None => {
                for index in 0..size.min(4) {
                    let byte = value >> (8 * index) & 0xff;
                    self.port_write(port.wrapping_add(index as u16), 1, byte, now);
                }
            }
        }
    }

    fn byte_read(&mut self, port: u16, now: u64) -> u8 {
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => self.pic.read(port),
            0x40..=0x43 | 0x61 => self.pit.read(port, now),
            0x60 | 0x64 => self.i8042.read(port - 0x60, now),
            0x70 | 0x71 => self.rtc.read(port - 0x70, now),
            0xb2 | 0xb3 => self.pm.smi_read(port - 0xb2, now),
            0x3f8..=0x3ff => self.serial.read(port - 0x3f8, now),
            _ => 0xff,
        }
    }

    fn byte_write(&mut self, port: u16, value: u8, now: u64) {
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => self.pic.write(port, value),
            0x40..=0x43 | 0x61 => self.pit.write(port, value, now),
            0x60 | 0x64 => {
                self.i8042.write(port - 0x60, value, now);
                if self.i8042.take_reset() {
                    self.signals.push(Signal::Reset);
                }
            }
            0x70 | 0x71 => self.rtc.write(port - 0x70, value, now),
            0xb2 | 0xb3 => self.pm.smi_write(port - 0xb2, value, now),
            0x3f8..=0x3ff => self.serial.write(port - 0x3f8, value, now),
            _ => {}
        }
    }
}
