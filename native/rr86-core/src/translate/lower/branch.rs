//! Conditional branches: Jcc, and LOOP and JRCXZ, which need no flags of the host's to be free.

use iced_x86::{Instruction, Mnemonic};

use crate::translate::lower::emitter::Emitter;

impl Emitter<'_> {
    pub(in crate::translate) fn branch(&mut self, insn: &Instruction) {
        self.flags_to_ax();
        self.flags_to_host();
        // iced numbers conditions as the opcodes do, from 1.
        let at = self.hot.jcc(insn.condition_code() as u8 - 1);
        self.slot(at, insn.near_branch_target());
        self.fall_through = self.hot.len();
        self.jump_to(insn.next_ip());
    }

    /// LOOP, LOOPE, LOOPNE, JECXZ and JRCXZ: the instruction itself, around two long jumps.
    pub(in crate::translate) fn count_branch(&mut self, insn: &Instruction) {
        use iced_x86::Code as C;
        self.flags_to_ax();
        if matches!(insn.mnemonic(), Mnemonic::Loope | Mnemonic::Loopne) {
            self.flags_to_host();
        }
        let opcode = match insn.mnemonic() {
            Mnemonic::Loopne => 0xe0,
            Mnemonic::Loope => 0xe1,
            Mnemonic::Loop => 0xe2,
            _ => 0xe3,
        };
        let wide = matches!(
            insn.code(),
            C::Jrcxz_rel8_16
                | C::Jrcxz_rel8_64
                | C::Loop_rel8_16_RCX
                | C::Loop_rel8_64_RCX
                | C::Loope_rel8_16_RCX
                | C::Loope_rel8_64_RCX
                | C::Loopne_rel8_16_RCX
                | C::Loopne_rel8_64_RCX
        );
        if !wide {
            self.hot.u8(0x67);
        }
        self.hot.raw(&[opcode, 5]);
        let fall = self.hot.jmp();
        let taken = self.hot.jmp();
        self.slot(fall, insn.next_ip());
        self.slot(taken, insn.near_branch_target());
    }
}
