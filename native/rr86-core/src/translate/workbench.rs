//! What is kept from one translation to the next: the memory of buffers, and what has been found out about the
//! instructions of a block.
//!
//! A boot translates a hundred thousand blocks of five instructions each, so a handful of allocations for
//! each would cost as much as writing its code. And iced derives how an instruction uses its operands anew
//! each time, while an emitter wants to know it several times over.

use iced_x86::{Encoder, Instruction, InstructionInfoFactory, InstructionInfoOptions, OpAccess};

use super::cache::Block;
use super::classify::{shape, Class};
use super::code::{Relocation, Slot, Trap};
use super::emit::{Fixup, Stream};
use super::mode::Mode;
use super::offered::Offered;
use super::runs::{Second, Use};

/// What a thread needs to translate blocks.
pub struct Workbench {
    offered: Offered,
    pub(super) info: InstructionInfoFactory,
    pub(super) encoder: Encoder,
    /// Host code to put in front of the instruction at this rip; for tests.
    pub(super) planted: Option<(u64, Box<[u8]>)>,
    /// Where the code of each instruction of the last block begins.
    pub(super) starts: Vec<u32>,
    pub(super) hot: Vec<u8>,
    pub(super) cold: Vec<u8>,
    pub(super) fixups: Vec<Fixup>,
    pub(super) notes: Vec<(Stream, usize)>,
    pub(super) slots: Vec<Slot>,
    pub(super) traps: Vec<Trap>,
    pub(super) seconds: Vec<Second>,
    /// Offsets of a run's accesses, and what of it is written.
    pub(super) offsets: Vec<Option<i64>>,
    pub(super) written: Vec<(i64, i64)>,
    /// Those of code that has been appended to the buffer.
    pub(super) bytes: Vec<u8>,
    pub(super) relocations: Vec<Relocation>,
    /// By the number of the instruction in the block.
    facts: Vec<Facts>,
    decoded: Decoded,
}

/// The block that was decoded last: mostly one whose bytes have been fetched, and whose code is made next.
#[derive(Default)]
pub(super) struct Decoded {
    pub insns: Vec<(Instruction, Class)>,
    /// What they follow from.
    bytes: Vec<u8>,
    rip: u64,
    mode: Mode,
    whole: bool,
}

impl Decoded {
    /// An empty one, with the memory of this one.
    pub fn emptied(mut self) -> Self {
        self.insns.clear();
        self
    }
}

/// What has been found out about an instruction.
#[derive(Clone, Copy, Default)]
struct Facts {
    operands: Option<[OpAccess; 5]>,
    /// Bits of the general-purpose registers that it changes, or parts of them.
    changes: Option<u16>,
    used: Option<Result<Option<Use>, ()>>,
}

impl Default for Workbench {
    /// One for machines without a CPU model.
    fn default() -> Self {
        Self::new(Offered::default())
    }
}

impl Workbench {
    /// One for machines that offer this.
    pub fn new(offered: Offered) -> Self {
        Self {
            offered,
            info: InstructionInfoFactory::new(),
            encoder: Encoder::new(64),
            planted: None,
            starts: Vec::new(),
            hot: Vec::new(),
            cold: Vec::new(),
            fixups: Vec::new(),
            notes: Vec::new(),
            slots: Vec::new(),
            traps: Vec::new(),
            seconds: Vec::new(),
            offsets: Vec::new(),
            written: Vec::new(),
            bytes: Vec::new(),
            relocations: Vec::new(),
            facts: Vec::new(),
            decoded: Decoded::default(),
        }
    }

    /// Forgets what is known about the instructions of the block before.
    pub(super) fn begin(&mut self, instructions: usize) {
        self.facts.clear();
        self.facts.resize(instructions, Facts::default());
        self.starts.clear();
    }

    /// Offset of the code of each instruction of the block that was translated last.
    pub(super) fn starts(&self) -> &[u32] {
        &self.starts
    }

    /// Takes what was decoded last; whoever takes it gives something back.
    pub(super) fn take_decoded(&mut self) -> Decoded {
        std::mem::take(&mut self.decoded)
    }

    /// Keeps instructions that were just decoded from these bytes.
    pub(super) fn keep_decoded(
        &mut self,
        decoded: Decoded,
        bytes: &[u8],
        rip: u64,
        mode: Mode,
        whole: bool,
    ) {
        self.decoded = Decoded {
            rip,
            mode,
            whole,
            ..decoded
        };
        self.decoded.bytes.clear();
        self.decoded.bytes.extend_from_slice(bytes);
    }

    /// Takes the instructions of a block, decoded anew if need be.
    pub(super) fn decode(&mut self, block: &Block) -> Decoded {
        let decoded = self.take_decoded();
        let whole = block.second.is_some();
        let count = usize::from(block.count);
        if decoded.rip == block.rip
            && decoded.mode == block.mode
            && decoded.whole == whole
            && decoded.insns.len() == count
            && decoded.bytes[..] == block.bytes[..]
        {
            return decoded;
        }
        let (rip, mode) = (block.rip, block.mode);
        let mut decoded = decoded.emptied();
        let again = shape::cut_into(
            &mut decoded.insns,
            &block.bytes,
            rip,
            mode,
            &self.offered,
            count,
            whole,
        );
        assert!(again, "a block's own bytes make the block again");
        self.keep_decoded(decoded, &block.bytes, rip, mode, whole);
        self.take_decoded()
    }

    /// Gives back what was taken.
    pub(super) fn give_decoded(&mut self, decoded: Decoded) {
        self.decoded = decoded;
    }

    /// What `Emitter::use_of` has said of the instruction with this number.
    pub(super) fn used(&mut self, index: usize) -> &mut Option<Result<Option<Use>, ()>> {
        &mut self.facts[index].used
    }

    /// How the instruction with this number uses its operands, in its general form.
    pub(super) fn operands(&mut self, index: usize, general: &Instruction) -> [OpAccess; 5] {
        if let Some(known) = self.facts[index].operands {
            return known;
        }
        let options =
            InstructionInfoOptions::NO_REGISTER_USAGE | InstructionInfoOptions::NO_MEMORY_USAGE;
        let info = self.info.info_options(general, options);
        let operands = std::array::from_fn(|i| {
            if i < general.op_count() as usize {
                info.op_access(i as u32)
            } else {
                OpAccess::None
            }
        });
        self.facts[index].operands = Some(operands);
        operands
    }

    /// Bits of the general-purpose registers that the instruction with this number changes.
    pub(super) fn changes(&mut self, index: usize, insn: &Instruction) -> u16 {
        if let Some(known) = self.facts[index].changes {
            return known;
        }
        let options = InstructionInfoOptions::NO_MEMORY_USAGE;
        let mut changes = 0;
        for used in self.info.info_options(insn, options).used_registers() {
            let full = used.register().full_register();
            if full.is_gpr() && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead) {
                changes |= 1 << full.number();
            }
        }
        self.facts[index].changes = Some(changes);
        changes
    }
}
