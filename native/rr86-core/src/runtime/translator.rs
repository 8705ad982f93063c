//! How blocks are made: what the guest's model offers, limits and shortcuts, and the memory that translation reuses.

use super::ahead::Ahead;
use super::protocol::Protocol;
use crate::cpu::cpuid::CpuidTable;
use crate::cpu::exception::Exception;
use crate::cpu::semantics::Semantics;
use crate::translate::decode::offered::Offered;
use crate::translate::scratch::Scratch;
use crate::translate::shortcuts::Shortcuts;
use iced_x86::Instruction;

/// Samples that make a block hot.
const HOT: u8 = 8;

/// Limits of the block cache, part of the machine's configuration.
#[derive(Clone, Copy, Debug)]
pub struct BlockLimits {
    /// Most instructions in a block, 1 to 64.
    pub instructions: usize,
    /// Most blocks before everything is flushed.
    pub capacity: usize,
    pub protocol: Protocol,
}

/// What all translations of a machine have in common.
pub struct Translator {
    pub model: CpuidTable,
    /// What an encoding may do, as the model and the semantics have it.
    pub(in crate::runtime) offered: Offered,
    pub(in crate::runtime) limits: BlockLimits,
    pub(in crate::runtime) shortcuts: Shortcuts,
    /// Samples that make a block hot.
    pub(in crate::runtime) hot: u8,
    pub(in crate::runtime) scratch: Scratch,
    /// Instructions that helpers have decoded.
    pub(in crate::runtime) decoded: DecodedCache,
    /// Who translates blocks before they are needed.
    pub(in crate::runtime) ahead: Option<Ahead>,
}

impl Translator {
    pub(in crate::runtime) fn new(model: CpuidTable, limits: BlockLimits) -> Self {
        let offered = Offered::of(&model, Semantics::CURRENT);
        Self {
            model,
            offered,
            limits,
            shortcuts: Shortcuts::default(),
            hot: HOT,
            scratch: Scratch::new(offered),
            decoded: DecodedCache::new(),
            ahead: None,
        }
    }

    /// Follows another version of the semantics.
    pub(in crate::runtime) fn set_semantics(&mut self, semantics: Semantics) {
        self.offered = Offered::of(&self.model, semantics);
        self.scratch = Scratch::new(self.offered);
    }
}

/// Instructions that helpers have executed, so that they need not be decoded each time.
pub struct DecodedCache(pub(in crate::runtime) Vec<Decoded>);

#[derive(Clone, Copy)]
pub struct Decoded {
    /// Serial number of the block and offset in it.
    pub(in crate::runtime) place: (u64, u16),
    pub(in crate::runtime) insn: Instruction,
    /// What it raises by its mere form, in its block's mode.
    pub(in crate::runtime) refused: Option<Exception>,
}

pub(in crate::runtime) const DECODED: usize = 1 << 10;

impl DecodedCache {
    pub(in crate::runtime) fn new() -> Self {
        let nothing = Decoded {
            place: (u64::MAX, 0),
            insn: Instruction::default(),
            refused: None,
        };
        Self(vec![nothing; DECODED])
    }
}
