//! What CPU makers do differently, mostly where an instruction faults. rr86 does as AMD's processors do, on every
//! host; on another maker's, the host is no judge of these.

use std::arch::x86_64::__cpuid;

use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use rr86_core::translate::decode::classify::is_x87;

use crate::case::{Case, Outcome};
use crate::compare::{decode, fpu_counts};

/// ES, in the low byte of the x87 status word.
const ERROR_SUMMARY: u8 = 1 << 7;

/// Whether the host is of the maker that rr86 follows.
pub fn host_is_followed() -> bool {
    let leaf = __cpuid(0);
    let name = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
    name.concat() == b"AuthenticAMD"
}

/// What a faulting instruction leaves behind that is its maker's:
///
/// - a repeated string instruction: the upper halves of registers of 32-bit addresses, and flags;
/// - MASKMOVQ and MASKMOVDQU: the address that is reported;
/// - MMX instructions: whether the top of the x87 stack is 0 already;
/// - a near call to an address that is not canonical: whether the return address has been written.
fn leaves_what_its_maker_wants(insn: &Instruction) -> bool {
    let mmx = (0..insn.op_count())
        .any(|i| insn.op_kind(i) == OpKind::Register && insn.op_register(i).is_mm());
    let repeated = insn.has_rep_prefix() || insn.has_repne_prefix();
    mmx || insn.is_string_instruction() && repeated
        || insn.is_call_near_indirect()
        || matches!(insn.mnemonic(), Mnemonic::Maskmovq | Mnemonic::Maskmovdqu)
}

/// Whether all that differs are the upper halves of what a repeated string instruction of 32-bit addresses leaves
/// alone when it has nothing to do.
fn differs_in_upper_halves(insns: &[Instruction], expected: &Outcome, got: &Outcome) -> bool {
    let short = |insn: &Instruction| {
        (0..insn.op_count())
            .any(|i| matches!(insn.op_kind(i), OpKind::MemorySegESI | OpKind::MemoryESEDI))
    };
    let repeated = |insn: &Instruction| insn.has_rep_prefix() || insn.has_repne_prefix();
    let mut cut = [expected.clone(), got.clone()];
    for outcome in &mut cut {
        for register in [1, 6, 7] {
            outcome.gpr[register] &= u64::from(u32::MAX);
        }
        for (offset, byte) in outcome.fxsave.iter_mut().enumerate() {
            *byte *= u8::from(fpu_counts(offset));
        }
    }
    insns.iter().any(|insn| short(insn) && repeated(insn)) && cut[0] == cut[1]
}

/// Whether the outcomes of a case may differ because of the host's maker, and not by a mistake.
pub fn may_differ(case: &Case, expected: &Outcome, got: &Outcome) -> bool {
    if host_is_followed() {
        return false;
    }
    let insns = decode(case);
    if differs_in_upper_halves(&insns, expected, got) {
        return true;
    }
    let faulting = got
        .fault
        .and(insns.iter().find(|insn| insn.ip() == got.rip));
    let Some(insn) = faulting else {
        return false;
    };
    // Of an operand of two bytes, AMD's read four; and their x87 stores look for the page even where an
    // exception that is not masked (FSW.ES) keeps them from storing.
    let suppressed = expected.fxsave[2] & ERROR_SUMMARY != 0;
    let stores = insn.op0_kind() == OpKind::Memory && is_x87(insn);
    if insn.code() == Code::Movsxd_r16_rm16 || stores && suppressed && expected.rip != got.rip {
        return true;
    }
    let same_place = expected.rip == got.rip;
    let vectors = [expected, got].map(|outcome| outcome.fault.map(|fault| fault.vector));
    same_place && vectors[0] == vectors[1] && leaves_what_its_maker_wants(insn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    fn decoded(bytes: &[u8]) -> Instruction {
        Decoder::new(64, bytes, DecoderOptions::NONE).decode()
    }

    #[test]
    fn only_what_makers_differ_in_is_excused() {
        let excused: [&[u8]; 4] = [
            &[0xf3, 0xa4],             // rep movsb
            &[0xff, 0xd3],             // call rbx
            &[0x41, 0x0f, 0x7f, 0x19], // movq [r9], mm3
            &[0x66, 0x0f, 0xf7, 0xc1], // maskmovdqu xmm0, xmm1
        ];
        for bytes in excused {
            assert!(leaves_what_its_maker_wants(&decoded(bytes)), "{bytes:?}");
        }
        let judged: [&[u8]; 4] = [
            &[0xa4],                   // movsb
            &[0x48, 0x8b, 0x03],       // mov rax, [rbx]
            &[0xff, 0xe3],             // jmp rbx
            &[0x66, 0x0f, 0x6f, 0x03], // movdqa xmm0, [rbx]
        ];
        for bytes in judged {
            assert!(!leaves_what_its_maker_wants(&decoded(bytes)), "{bytes:?}");
        }
    }
}
