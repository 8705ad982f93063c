//! MC146818 real-time clock and CMOS memory (ports 0x70/0x71, IRQ 8).
use super::device::{LoadError, Reader, State, Writer};

/// The real-time clock with its CMOS memory.
pub struct Rtc {
    index: u8,
}

impl Rtc {
    /// A clock that shows `start_time` (Unix seconds, UTC) at virtual time zero; `memory` bytes of RAM.
    pub fn new(_start_time: i64, _memory: u64) -> Self {
        Self { index: 0 }
    }
    /// Reads port 0x70 (`offset` 0) or 0x71 (1).
    pub fn read(&mut self, _offset: u16, _now: u64) -> u8 {
        0xff
    }
    /// Writes port 0x70 (`offset` 0) or 0x71 (1).
    pub fn write(&mut self, _offset: u16, value: u8, _now: u64) {
        self.index = value;
    }
    /// Level of IRQ 8.
    pub fn irq(&self) -> bool {
        false
    }
    /// Time of the next alarm, update-ended or periodic event that could raise the line.
    pub fn next_deadline(&self) -> Option<u64> {
        None
    }
    /// Fires the events due at or before `now`.
    pub fn advance(&mut self, _now: u64) {}
}

impl State for Rtc {
    fn save(&self, w: &mut Writer) {
        w.u8(self.index);
    }
    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        self.index = r.u8()?;
        Ok(())
    }
}
