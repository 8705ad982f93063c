//! Who reads and writes memory.

use super::cache::BlockId;
use super::protocol::Source;
use crate::memory::pages::DEVICE;

/// Who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agent {
    Vcpu(u8),
    /// DMA or a loader.
    Device,
}

impl Agent {
    /// Number in hand-offs.
    pub fn number(self) -> u8 {
        match self {
            Self::Vcpu(v) => v,
            Self::Device => DEVICE,
        }
    }
}

/// Who writes, and how.
#[derive(Clone, Copy, Debug)]
pub struct Writer {
    pub agent: Agent,
    pub source: Source,
    /// Linear address of the first byte, where there is one.
    pub linear: Option<u64>,
    /// The block that is running.
    pub running: Option<BlockId>,
}
