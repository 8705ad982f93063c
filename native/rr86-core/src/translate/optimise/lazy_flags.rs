//! Flags that are not looked at any more, in superblocks.
//!
//! A check of an address destroys the host's flags. Mostly the next instruction that counts or compares
//! overwrites them before anything reads them, so that saving them first would be in vain, were it not that the
//! access may fault. There, off the path, they can be made again: an addition is taken back and repeated, a
//! comparison made once more, as long as the registers that they came from are still what they were.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::translate::decode::classify::Class;
use crate::translate::decode::flags::{modified_flags, needs_flags, STATUS};
use crate::translate::decode::operands::{general_form, implicit_rax, number};
use crate::translate::encode::asm::{Asm, W32, W64};
use crate::translate::layout::HOST;
use crate::translate::lower::emitter::Emitter;
use crate::translate::path::{FlagSource, Source};

impl FlagSource {
    /// `None` for an instruction whose flags cannot be made again.
    fn of(insn: &Instruction) -> Option<Self> {
        use Mnemonic as M;
        let op = general_form(insn);
        if op.op_count() != 2 || op.op0_kind() != OpKind::Register || !op.op0_register().is_gpr() {
            return None;
        }
        let width = match op.op0_register().size() {
            4 => W32,
            8 => W64,
            _ => return None,
        };
        let guest = number(op.op0_register());
        let target = HOST[guest]?;
        let mut registers = 1 << guest;
        let source = match op.op1_kind() {
            OpKind::Register => {
                let guest = number(op.op1_register());
                registers |= 1 << guest;
                Source::Register(HOST[guest]?)
            }
            OpKind::Immediate8to32 | OpKind::Immediate8to64 => {
                Source::Immediate(op.immediate8() as i8 as i32)
            }
            OpKind::Immediate32 | OpKind::Immediate32to64 => {
                Source::Immediate(op.immediate32() as i32)
            }
            _ => return None,
        };
        let own = matches!(source, Source::Register(source) if source == target);
        let mnemonic = op.mnemonic();
        let possible = match mnemonic {
            M::Add | M::Sub => !own,
            M::Test => matches!(source, Source::Register(_)),
            M::Cmp | M::And | M::Or | M::Xor => true,
            _ => false,
        };
        possible.then_some(Self {
            mnemonic,
            width,
            target,
            source,
            registers,
        })
    }
}

/// Whether an instruction overwrites all status flags, whatever they were.
fn overwrites(insn: &Instruction) -> bool {
    let op = general_form(insn);
    modified_flags(&op) == STATUS && !needs_flags(&op)
}

impl Emitter<'_> {
    /// Keeps track of what the flags come from, behind an instruction of a superblock.
    pub(in crate::translate) fn note_flag_source(&mut self, insn: &Instruction, class: Class) {
        let copied = matches!(class, Class::Copy | Class::CopyFpu);
        let changes = self.scratch.changes(self.index, insn);
        let Some(path) = &mut self.path else { return };
        if copied && overwrites(insn) {
            path.deferred = None;
            path.flag_source = FlagSource::of(insn);
        } else if copied && modified_flags(&general_form(insn)) != 0
            || path.flag_source.is_some_and(|s| s.registers & changes != 0)
        {
            path.flag_source = None;
        }
    }

    /// Whether flags that are in the host alone need not be saved before the current instruction's check.
    pub(in crate::translate) fn defer_flags(&mut self) -> bool {
        let Some(flag_source) = self.path.as_ref().and_then(|path| path.flag_source) else {
            return false;
        };
        let insns = self.request.insns;
        for (index, (insn, class)) in insns.iter().enumerate().skip(self.index) {
            match class {
                Class::Copy | Class::CopyFpu => {
                    let op = general_form(insn);
                    if implicit_rax(&op) {
                        return false;
                    }
                    if overwrites(insn) {
                        if let Some(path) = &mut self.path {
                            path.deferred = Some(flag_source);
                        }
                        return true;
                    }
                    if modified_flags(&op) != 0 || needs_flags(&op) {
                        return false;
                    }
                }
                Class::Nop | Class::Lea | Class::Push | Class::Pop | Class::Leave => {}
                Class::Call | Class::Jump => {}
                _ => return false,
            }
            if self.scratch.changes(index, insn) & flag_source.registers != 0 {
                return false;
            }
        }
        false
    }

    /// Makes lost flags again, into AX, off the path.
    pub(in crate::translate) fn recompute_flags(&mut self, flag_source: &FlagSource) {
        use Mnemonic as M;
        let &FlagSource {
            mnemonic,
            width,
            target,
            source,
            ..
        } = flag_source;
        let a = &mut self.cold;
        // By the numbers of the 0x81 group.
        let alu = |a: &mut Asm, number: u8| match source {
            Source::Register(source) => a.rr(&[number << 3 | 3], width, target, source),
            Source::Immediate(value) => a.alu_imm(number, width, target, value),
        };
        match (mnemonic, source) {
            (M::Add, _) => {
                alu(a, 5);
                alu(a, 0);
            }
            (M::Sub, _) => {
                alu(a, 0);
                alu(a, 5);
            }
            (M::Cmp, _) => alu(a, 7),
            (M::Test, Source::Register(source)) => a.rr(&[0x85], width, source, target),
            // The flags of these follow from the result.
            _ => a.rr(&[0x85], width, target, target),
        }
        self.cold.save_flags();
    }
}
