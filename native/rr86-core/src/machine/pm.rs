//! ICH9 ACPI power management block (ports from PMBASE, SCI on GSI 9) and SMI ports 0xb2/0xb3.
use super::device::{LoadError, Reader, State, Writer};

/// The power management block.
#[derive(Default)]
pub struct Pm {
    control: u8,
}

impl Pm {
    /// The block as firmware leaves it: ACPI mode, all events off.
    pub fn new() -> Self {
        Self::default()
    }
    /// Reads `size` bytes at `offset` from PMBASE (0–0x7f).
    pub fn read(&mut self, _offset: u16, _size: usize, _now: u64) -> u32 {
        0
    }
    /// Writes `size` bytes at `offset` from PMBASE (0–0x7f).
    pub fn write(&mut self, _offset: u16, _size: usize, value: u32, _now: u64) {
        self.control = value as u8;
    }
    /// Reads port 0xb2 (`offset` 0) or 0xb3 (1).
    pub fn smi_read(&mut self, _offset: u16, _now: u64) -> u8 {
        0
    }
    /// Writes port 0xb2 (`offset` 0) or 0xb3 (1).
    pub fn smi_write(&mut self, _offset: u16, _value: u8, _now: u64) {}
    /// Level of the SCI (GSI 9).
    pub fn irq(&self) -> bool {
        false
    }
    /// True once after the guest entered S5.
    pub fn take_power_off(&mut self) -> bool {
        false
    }
    /// Time of the next PM timer overflow that could raise the SCI.
    pub fn next_deadline(&self) -> Option<u64> {
        None
    }
    /// Latches the overflows due at or before `now`.
    pub fn advance(&mut self, _now: u64) {}
}

impl State for Pm {
    fn save(&self, w: &mut Writer) {
        w.u8(self.control);
    }
    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        self.control = r.u8()?;
        Ok(())
    }
}
