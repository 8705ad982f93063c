//! 8042 keyboard controller with nothing plugged in (ports 0x60 and 0x64).
use super::device::{LoadError, Reader, State, Writer};

/// The keyboard controller.
#[derive(Default)]
pub struct I8042 {
    status: u8,
}

impl I8042 {
    /// A controller after power-on.
    pub fn new() -> Self {
        Self::default()
    }
    /// Reads port 0x60 (`offset` 0) or 0x64 (4).
    pub fn read(&mut self, _offset: u16, _now: u64) -> u8 {
        self.status
    }
    /// Writes port 0x60 (`offset` 0) or 0x64 (4).
    pub fn write(&mut self, _offset: u16, value: u8, _now: u64) {
        self.status = value;
    }
    /// Level of IRQ 1 (keyboard).
    pub fn keyboard_irq(&self) -> bool {
        false
    }
    /// Level of IRQ 12 (mouse).
    pub fn mouse_irq(&self) -> bool {
        false
    }
    /// True once after the guest pulsed the reset line.
    pub fn take_reset(&mut self) -> bool {
        false
    }
}

impl State for I8042 {
    fn save(&self, w: &mut Writer) {
        w.u8(self.status);
    }
    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        self.status = r.u8()?;
        Ok(())
    }
}
