//! What is on a Q35 board: one line for each device.

use super::device::Device;
use super::fw_cfg::FwCfg;
use super::hpet::Hpet;
use super::i8042::I8042;
use super::misc::Misc;
use super::pci::Pci;
use super::pit::Pit;
use super::pm::Pm;
use super::rtc::Rtc;
use super::serial::Serial;
use crate::contents::Contents;
use crate::cpu::semantics::Semantics;

/// What a board is made of.
#[derive(Debug, Clone)]
pub struct BoardConfig {
    /// Number of processors; APIC IDs count from 0, which is the bootstrap processor.
    pub vcpus: usize,
    /// RAM in bytes, as CMOS and fw_cfg tell it.
    pub memory: u64,
    /// Unix seconds (UTC) that the RTC shows at virtual time 0.
    pub start_time: i64,
    pub semantics: Semantics,
    /// Further fw_cfg items by key.
    pub fw_cfg: Vec<(u16, Contents)>,
    /// fw_cfg files by name.
    pub fw_cfg_files: Vec<(String, Vec<u8>)>,
}

/// The devices behind the interrupt controllers. Their order is that of components in digests and checkpoints, and that
/// in which timers that are due at the same time fire.
///
/// | device | ports | memory | interrupt |
/// |---|---|---|---|
/// | `Pit` | 0x40–0x43, 0x61 | | 0 |
/// | `Hpet` | | 0xfed00000 | any, also 0 and 8 |
/// | `Rtc` | 0x70, 0x71 | | 8 |
/// | `Serial` | 0x3f8–0x3ff | | 4 |
/// | `I8042` | 0x60, 0x64 | | 1, 12 |
/// | `Pm` | 0xb2, 0xb3, 128 from PMBASE | | 9 |
/// | `Pci` | 0xcf8–0xcff | from PCIEXBAR and RCBA | |
/// | `FwCfg` | 0x510, 0x511, 0x514–0x51b | | |
/// | `Misc` | 0x80, 0x92, 0xe9, 0xf4, 0x402, 0xcf9 | | |
#[must_use]
pub fn devices(config: &BoardConfig) -> Vec<Box<dyn Device>> {
    let (memory, files) = (config.memory, &config.fw_cfg_files);
    vec![
        Box::new(Pit::new()),
        Box::new(Hpet::new()),
        Box::new(Rtc::new(config.start_time, memory)),
        Box::new(Serial::new()),
        Box::new(I8042::new()),
        Box::new(Pm::new()),
        Box::new(Pci::new()),
        Box::new(FwCfg::new(
            config.vcpus.max(1),
            memory,
            &config.fw_cfg,
            files,
        )),
        Box::new(Misc::new()),
    ]
}
