//! QEMU's firmware configuration device (ports 0x510/0x511), without DMA.
use super::device::{LoadError, Reader, State, Writer};

/// The fw_cfg device.
pub struct FwCfg {
    selector: u16,
}

impl FwCfg {
    /// The items that describe the board, `items` by key, and `files` by name.
    pub fn new(
        _vcpus: usize,
        _memory: u64,
        _items: &[(u16, Vec<u8>)],
        _files: &[(String, Vec<u8>)],
    ) -> Self {
        Self { selector: 0 }
    }
    /// Reads port 0x510 + `offset` (0 or 1). Not to be split into bytes by the caller.
    pub fn read(&mut self, _offset: u16, _size: usize, _now: u64) -> u32 {
        0
    }
    /// Writes port 0x510 + `offset` (0 or 1). Not to be split into bytes by the caller.
    pub fn write(&mut self, _offset: u16, _size: usize, value: u32, _now: u64) {
        self.selector = value as u16;
    }
    /// Back to the state after power-on.
    pub fn reset(&mut self) {
        self.selector = 0;
    }
}

impl State for FwCfg {
    fn save(&self, w: &mut Writer) {
        w.u16(self.selector);
    }
    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        self.selector = r.u16()?;
        Ok(())
    }
}
