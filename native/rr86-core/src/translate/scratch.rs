//! What is kept from one translation to the next: the memory of buffers, and what has been found out about the
//! instructions of a block.
//!
//! A boot translates a hundred thousand blocks of five instructions each, so a handful of allocations for
//! each would cost as much as writing its code. And iced derives how an instruction uses its operands anew
//! each time, while an emitter wants to know it several times over.

use iced_x86::{Encoder, Instruction, InstructionInfoFactory, InstructionInfoOptions, OpAccess};

use crate::translate::code::{Relocation, Slot, Trap};
use crate::translate::decode::classify::{shape, Class};
use crate::translate::decode::offered::Offered;
use crate::translate::lower::streams::{Fixup, Stream};
use crate::translate::mode::Mode;
use crate::translate::plan::{SlowCopy, Use};

/// What a block is made from.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    pub bytes: &'a [u8],
    pub rip: u64,
    pub mode: Mode,
    /// Its last instruction may reach into another page.
    pub whole: bool,
    /// Instructions.
    pub count: usize,
}

/// What a thread needs to translate blocks.
pub struct Scratch {
    offered: Offered,
    pub(in crate::translate) info: InstructionInfoFactory,
    pub(in crate::translate) encoder: Encoder,
    /// Host code to put in front of the instruction at this rip; for tests.
    pub planted: Option<(u64, Box<[u8]>)>,
    /// Where the code of each instruction of the last block begins.
    pub(in crate::translate) starts: Vec<u32>,
    pub(in crate::translate) hot: Vec<u8>,
    pub(in crate::translate) cold: Vec<u8>,
    pub(in crate::translate) fixups: Vec<Fixup>,
    pub(in crate::translate) notes: Vec<(Stream, usize)>,
    pub(in crate::translate) slots: Vec<Slot>,
    pub(in crate::translate) traps: Vec<Trap>,
    pub(in crate::translate) slow_copies: Vec<SlowCopy>,
    /// Offsets of a run's accesses, and what of it is written.
    pub(in crate::translate) offsets: Vec<Option<i64>>,
    pub(in crate::translate) written: Vec<(i64, i64)>,
    /// Those of code that has been appended to the buffer.
    pub bytes: Vec<u8>,
    pub relocations: Vec<Relocation>,
    /// By the number of the instruction in the block.
    facts: Vec<Facts>,
    decoded: Decoded,
}

/// The block that was decoded last: mostly one whose bytes have been fetched, and whose code is made next.
#[derive(Default)]
pub struct Decoded {
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

impl Default for Scratch {
    /// One for machines without a CPU model.
    fn default() -> Self {
        Self::new(Offered::default())
    }
}

impl Scratch {
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
            slow_copies: Vec::new(),
            offsets: Vec::new(),
            written: Vec::new(),
            bytes: Vec::new(),
            relocations: Vec::new(),
            facts: Vec::new(),
            decoded: Decoded::default(),
        }
    }

    /// Forgets what is known about the instructions of the block before.
    pub(in crate::translate) fn begin(&mut self, instructions: usize) {
        self.facts.clear();
        self.facts.resize(instructions, Facts::default());
        self.starts.clear();
    }

    /// Offset of the code of each instruction of the block that was translated last.
    pub fn starts(&self) -> &[u32] {
        &self.starts
    }

    /// Takes what was decoded last; whoever takes it gives something back.
    pub fn take_decoded(&mut self) -> Decoded {
        std::mem::take(&mut self.decoded)
    }

    /// Keeps instructions that were just decoded from these bytes.
    pub fn keep_decoded(
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
    pub fn decode(&mut self, source: &Source<'_>) -> Decoded {
        let &Source {
            bytes,
            rip,
            mode,
            whole,
            count,
        } = source;
        let decoded = self.take_decoded();
        if decoded.rip == rip
            && decoded.mode == mode
            && decoded.whole == whole
            && decoded.insns.len() == count
            && decoded.bytes[..] == *bytes
        {
            return decoded;
        }
        let mut decoded = decoded.emptied();
        let again = shape::cut_into(
            &mut decoded.insns,
            bytes,
            rip,
            mode,
            &self.offered,
            count,
            whole,
        );
        assert!(again, "a block's own bytes make the block again");
        self.keep_decoded(decoded, bytes, rip, mode, whole);
        self.take_decoded()
    }

    /// Gives back what was taken.
    pub fn give_decoded(&mut self, decoded: Decoded) {
        self.decoded = decoded;
    }

    /// What `Emitter::use_of` has said of the instruction with this number.
    pub(in crate::translate) fn used(
        &mut self,
        index: usize,
    ) -> &mut Option<Result<Option<Use>, ()>> {
        &mut self.facts[index].used
    }

    /// How the instruction with this number uses its operands, in its general form.
    pub(in crate::translate) fn operands(
        &mut self,
        index: usize,
        general: &Instruction,
    ) -> [OpAccess; 5] {
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
    pub(in crate::translate) fn changes(&mut self, index: usize, insn: &Instruction) -> u16 {
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
