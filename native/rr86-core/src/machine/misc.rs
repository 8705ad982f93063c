//! Small ports: debug exit, debug consoles, POST codes, reset control.
use super::device::{LoadError, Reader, State, Writer};

/// What a write to one of the small ports asks of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MiscEvent {
    /// isa-debug-exit: end the run with this status.
    DebugExit(u32),
    /// Reset the machine.
    Reset,
}

/// The small ports.
#[derive(Default)]
pub struct Misc {
    post: u8,
    output: Vec<u8>,
}

impl Misc {
    /// The ports after power-on.
    pub fn new() -> Self {
        Self::default()
    }
    /// Whether an access of `size` bytes at `port` is this device's. 0xcf9 only with one byte.
    pub fn claims(_port: u16, _size: usize) -> bool {
        false
    }
    /// Reads `size` bytes at absolute `port`; ports not claimed read ones.
    pub fn read(&mut self, _port: u16, _size: usize, _now: u64) -> u32 {
        u32::MAX
    }
    /// Writes `size` bytes at absolute `port`; ports not claimed ignore it.
    pub fn write(&mut self, _port: u16, _size: usize, value: u32, _now: u64) -> Option<MiscEvent> {
        self.post = value as u8;
        None
    }
    /// Takes what the guest has written to the debug consoles since the last call.
    pub fn take_debugcon_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }
}

impl State for Misc {
    fn save(&self, w: &mut Writer) {
        w.u8(self.post);
    }
    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        self.post = r.u8()?;
        Ok(())
    }
}
