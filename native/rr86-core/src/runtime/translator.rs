//! How blocks are made: what the guest's model offers, limits and shortcuts, and the memory that translation reuses.

use super::ahead::{Ahead, Settings, Translation};
use super::cache::Block;
use super::protocol::Protocol;
use crate::cpu::cpuid::CpuidTable;
use crate::cpu::exception::Exception;
use crate::cpu::semantics::Semantics;
use crate::translate::block;
use crate::translate::code::Code;
use crate::translate::decode::classify::{classify, shape, Class};
use crate::translate::decode::offered::Offered;
use crate::translate::lower::emitter::Request;
use crate::translate::lower::stubs::Stubs;
use crate::translate::mode::Mode;
use crate::translate::scratch::{Decoded, Scratch};
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
pub(in crate::runtime) struct Translator {
    model: CpuidTable,
    /// What an encoding may do, as the model and the semantics have it.
    offered: Offered,
    limits: BlockLimits,
    shortcuts: Shortcuts,
    /// Samples that make a block hot.
    hot: u8,
    scratch: Scratch,
    /// Instructions that helpers have decoded.
    decoded: DecodedCache,
    /// Who translates blocks before they are needed.
    ahead: Option<Ahead>,
}

impl Translator {
    pub fn new(model: CpuidTable, limits: BlockLimits) -> Self {
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

    // ---- settings --------------------------------------------------------------------------------

    /// Follows another version of the semantics.
    pub fn set_semantics(&mut self, semantics: Semantics) {
        self.offered = Offered::of(&self.model, semantics);
        self.scratch = Scratch::new(self.offered);
    }

    /// The guest's CPU model.
    #[inline]
    pub fn model(&self) -> &CpuidTable {
        &self.model
    }

    /// What an encoding may do, as the model and the semantics have it.
    #[inline]
    pub fn offered(&self) -> &Offered {
        &self.offered
    }

    /// Most instructions in a block.
    #[inline]
    pub fn longest(&self) -> usize {
        self.limits.instructions
    }

    /// Most blocks before everything is flushed.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.limits.capacity
    }

    pub fn set_shortcuts(&mut self, shortcuts: Shortcuts) {
        self.shortcuts = shortcuts;
    }

    #[inline]
    pub fn shortcuts(&self) -> Shortcuts {
        self.shortcuts
    }

    pub fn set_hot(&mut self, samples: u8) {
        self.hot = samples;
    }

    /// Whether so many samples make a block hot.
    #[inline]
    pub fn is_hot(&self, samples: u8) -> bool {
        samples >= self.hot
    }

    // ---- decoding --------------------------------------------------------------------------------

    /// The instruction at an offset of a block.
    #[inline]
    pub fn instruction_in(&self, block: &Block, offset: usize) -> Instruction {
        let rip = block.rip.wrapping_add(offset as u64);
        shape::single(&block.bytes[offset..], rip, block.mode, &self.offered)
    }

    /// Number of the instruction after the one at this offset of a block.
    pub fn index_after(&self, block: &Block, offset: usize) -> usize {
        let (mut at, mut index) = (0, 0);
        while at <= offset {
            at += self.instruction_in(block, at).len().max(1);
            index += 1;
        }
        index
    }

    /// The instruction at an offset of a block, for a helper, and what it raises by its mere form.
    #[inline]
    pub fn for_helper(&mut self, block: &Block, offset: u16) -> (Instruction, Option<Exception>) {
        let place = (block.serial, offset);
        let index = block.serial.wrapping_mul(31).wrapping_add(offset.into()) as usize % DECODED;
        let known = &mut self.decoded.0[index];
        if known.place != place {
            let bytes = &block.bytes[usize::from(offset)..];
            let rip = block.rip.wrapping_add(u64::from(offset));
            let insn = shape::single(bytes, rip, block.mode, &self.offered);
            let refused = match classify(&insn, block.mode, &self.offered) {
                _ if shape::too_long(&insn, bytes, block.mode, &self.offered) => {
                    Some(Exception::gp(0))
                }
                Class::Raise(exception) => Some(exception),
                _ => None,
            };
            *known = DecodedOne {
                place,
                insn,
                refused,
            };
        }
        (known.insn, known.refused)
    }

    /// Forgets the instructions of helpers: serial numbers may name other blocks now.
    pub fn forget_decoded(&mut self) {
        self.decoded = DecodedCache::new();
    }

    /// Cuts the block at rip out of these bytes: its instructions, and whether the block ends within the bytes.
    #[inline]
    pub fn cut(&mut self, bytes: &[u8], rip: u64, mode: Mode) -> (Decoded, bool) {
        let mut decoded = self.scratch.take_decoded().emptied();
        let limit = self.limits.instructions;
        let offered = &self.offered;
        let inside = shape::cut_into(&mut decoded.insns, bytes, rip, mode, offered, limit, false);
        (decoded, inside)
    }

    /// Cuts the block out of bytes of two pages: the one instruction that lies in both.
    pub fn cut_crossing(&mut self, decoded: &mut Decoded, bytes: &[u8], rip: u64, mode: Mode) {
        decoded.insns.clear();
        let offered = &self.offered;
        let whole = shape::cut_into(&mut decoded.insns, bytes, rip, mode, offered, 1, true);
        assert!(whole, "fifteen bytes hold an instruction");
    }

    /// Keeps what `cut` found, because code for it is probably made next.
    #[inline]
    pub fn keep_cut(&mut self, decoded: Decoded, bytes: &[u8], rip: u64, mode: Mode, whole: bool) {
        self.scratch.keep_decoded(decoded, bytes, rip, mode, whole);
    }

    /// Forgets what `cut` found.
    #[inline]
    pub fn drop_cut(&mut self, decoded: Decoded) {
        self.scratch.give_decoded(decoded.emptied());
    }

    // ---- code ------------------------------------------------------------------------------------

    /// The instructions of a block; given back by `give_back`.
    #[inline]
    pub fn instructions(&mut self, block: &Block) -> Decoded {
        self.scratch.decode(&block.source())
    }

    #[inline]
    pub fn give_back(&mut self, decoded: Decoded) {
        self.scratch.give_decoded(decoded);
    }

    /// Host code for what is asked.
    #[inline]
    pub fn translate(&mut self, request: Request<'_>, stubs: Stubs) -> Code {
        block::translate(request, stubs, &mut self.scratch)
    }

    /// Number of the instruction whose code, of that made last, is at this offset.
    pub fn instruction_at(&self, offset: usize) -> Option<usize> {
        let starts = self.scratch.starts();
        starts
            .partition_point(|&start| start as usize <= offset)
            .checked_sub(1)
    }

    /// Uses the memory of code that has been placed again.
    #[inline]
    pub fn recycle(&mut self, code: Code) {
        self.scratch.bytes = code.bytes;
        self.scratch.relocations = code.relocations;
    }

    /// Puts host code in front of the copy of the guest instruction at `rip` from now on.
    pub fn plant(&mut self, rip: u64, code: &[u8]) {
        self.scratch.planted = Some((rip, code.into()));
    }

    // ---- code made ahead -------------------------------------------------------------------------

    /// What a thread that translates ahead needs to know.
    pub fn settings(&self, stubs: Stubs, tracking: bool) -> Settings {
        Settings {
            stubs,
            tracking,
            shortcuts: self.shortcuts,
            offered: self.offered,
            limit: self.limits.instructions,
        }
    }

    /// Translates ahead by this thread from now on; ends an earlier one.
    pub fn set_ahead(&mut self, ahead: Option<Ahead>) {
        if let Some(old) = std::mem::replace(&mut self.ahead, ahead) {
            old.stop();
        }
    }

    /// The translation of the block with this serial number, if it was made ahead.
    #[inline]
    pub fn look_ahead(&mut self, serial: u64) -> Option<&Translation> {
        self.ahead.as_mut()?.look(serial)
    }

    /// Takes the translation of a block, if it was made ahead with what is the case now.
    #[inline]
    pub fn take_ahead(&mut self, block: &Block, tracking: bool) -> Option<Box<Translation>> {
        let ahead = self.ahead.as_mut()?;
        let suits = ahead.suits(tracking, self.shortcuts, self.offered);
        suits.then(|| ahead.take(block))?
    }

    /// Gives back a translation whose code has been placed; so much of the code buffer is in use.
    #[inline]
    pub fn give_back_ahead(&self, made: Box<Translation>, used: usize) {
        if let Some(ahead) = &self.ahead {
            ahead.give_back(made, used);
        }
    }
}

/// Instructions that helpers have executed, so that they need not be decoded each time.
struct DecodedCache(Vec<DecodedOne>);

#[derive(Clone, Copy)]
struct DecodedOne {
    /// Serial number of the block and offset in it.
    place: (u64, u16),
    insn: Instruction,
    /// What it raises by its mere form, in its block's mode.
    refused: Option<Exception>,
}

const DECODED: usize = 1 << 10;

impl DecodedCache {
    fn new() -> Self {
        let nothing = DecodedOne {
            place: (u64::MAX, 0),
            insn: Instruction::default(),
            refused: None,
        };
        Self(vec![nothing; DECODED])
    }
}
