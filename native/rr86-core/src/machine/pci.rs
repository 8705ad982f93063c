//! PCI configuration space of the Q35 root bus: ports 0xcf8/0xcfc and MMCONFIG.
use super::device::{LoadError, Reader, State, Writer};

/// The root bus with its functions.
#[derive(Default)]
pub struct Pci {
    address: u32,
}

impl Pci {
    /// The Q35 board's own functions, as firmware leaves them.
    pub fn new() -> Self {
        Self::default()
    }
    /// Reads port 0xcf8 + `offset` (0–7), `size` 1, 2 or 4.
    pub fn io_read(&mut self, _offset: u16, _size: usize, _now: u64) -> u32 {
        self.address
    }
    /// Writes port 0xcf8 + `offset` (0–7), `size` 1, 2 or 4.
    pub fn io_write(&mut self, _offset: u16, _size: usize, value: u32, _now: u64) {
        self.address = value;
    }
    /// Physical range (base, length) of MMCONFIG, if enabled.
    pub fn mmconfig_range(&self) -> Option<(u64, u64)> {
        None
    }
    /// Reads `size` bytes at `offset` into the MMCONFIG range.
    pub fn mmconfig_read(&mut self, _offset: u64, _size: usize, _now: u64) -> u64 {
        u64::MAX
    }
    /// Writes `size` bytes at `offset` into the MMCONFIG range.
    pub fn mmconfig_write(&mut self, _offset: u64, _size: usize, _value: u64, _now: u64) {}
    /// Physical range (base, length) of the chipset configuration registers (RCBA), if enabled.
    pub fn rcba_range(&self) -> Option<(u64, u64)> {
        None
    }
    /// Reads `size` bytes at `offset` into the RCBA range.
    pub fn rcba_read(&mut self, _offset: u64, _size: usize, _now: u64) -> u64 {
        0
    }
    /// Writes `size` bytes at `offset` into the RCBA range.
    pub fn rcba_write(&mut self, _offset: u64, _size: usize, _value: u64, _now: u64) {}
    /// I/O base of the ACPI PM block (128 ports), if enabled.
    pub fn pm_base(&self) -> Option<u16> {
        None
    }
    /// Where PIRQ `pirq` (0 = A … 7 = H) goes: (ISA IRQ for the 8259, if routed; IOAPIC pin).
    pub fn pirq_route(&self, pirq: usize) -> (Option<u8>, u8) {
        (None, 16 + (pirq & 7) as u8)
    }
}

impl State for Pci {
    fn save(&self, w: &mut Writer) {
        w.u32(self.address);
    }
    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        self.address = r.u32()?;
        Ok(())
    }
}
