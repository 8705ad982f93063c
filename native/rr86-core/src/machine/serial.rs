//! 16550A UART (COM1 at 0x3f8, IRQ 4).
use super::device::{LoadError, Reader, State, Writer};

/// The serial port.
#[derive(Default)]
pub struct Serial {
    scratch: u8,
    output: Vec<u8>,
}

impl Serial {
    /// A UART after power-on.
    pub fn new() -> Self {
        Self::default()
    }
    /// Reads register `offset` (0–7).
    pub fn read(&mut self, _offset: u16, _now: u64) -> u8 {
        self.scratch
    }
    /// Writes register `offset` (0–7).
    pub fn write(&mut self, _offset: u16, value: u8, _now: u64) {
        self.scratch = value;
    }
    /// Level of IRQ 4.
    pub fn irq(&self) -> bool {
        false
    }
    /// Queues bytes from the outside world for the guest.
    pub fn receive(&mut self, _bytes: &[u8]) {}
    /// Takes the bytes that the guest has sent since the last call.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }
}

impl State for Serial {
    fn save(&self, w: &mut Writer) {
        w.u8(self.scratch);
    }
    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        self.scratch = r.u8()?;
        Ok(())
    }
}
