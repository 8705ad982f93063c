//! What copied instructions do to the status flags, defined or not, and which flags they want to find.

use iced_x86::{Instruction, Mnemonic, OpKind, RflagsBits};

/// The six status flags.
pub(in crate::translate) const STATUS: u32 = RflagsBits::OF
    | RflagsBits::SF
    | RflagsBits::ZF
    | RflagsBits::AF
    | RflagsBits::CF
    | RflagsBits::PF;

/// Shifts and rotates that leave flags as they are when the count is 0.
fn count_in_cl(insn: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        insn.mnemonic(),
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
    ) && insn.op_kind(insn.op_count() - 1) == OpKind::Register
}

/// A shift by an immediate whose masked value is 0.
fn shifts_by_nothing(insn: &Instruction) -> bool {
    use Mnemonic as M;
    let last = insn.op_count().wrapping_sub(1);
    matches!(
        insn.mnemonic(),
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
    ) && insn.op_kind(last) == OpKind::Immediate8
        && insn.immediate8() & 0x1f == 0
}

/// Instructions whose undefined flags the host derives from the operands alone, so that stale host
/// flags cannot leak through them.
fn leaves_flags_by_result(insn: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        insn.mnemonic(),
        M::And | M::Or | M::Xor | M::Test | M::Shl | M::Sal | M::Shr | M::Sar | M::Shld | M::Shrd
    )
}

/// Status flags that the host may change, defined or not. RCL and RCR by a whole number of turns leave
/// CF alone but compute OF, which the instruction tables do not tell.
pub(in crate::translate) fn modified_flags(insn: &Instruction) -> u32 {
    let full_turns =
        matches!(insn.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr) && !shifts_by_nothing(insn);
    let turned = if full_turns {
        RflagsBits::CF | RflagsBits::OF
    } else {
        0
    };
    insn.rflags_modified() & STATUS | turned
}

/// Whether an instruction wants the guest's flags in the host's: it reads some, keeps some, or leaves some
/// undefined, which then depend on what was there.
pub(in crate::translate) fn needs_flags(op: &Instruction) -> bool {
    let modified = modified_flags(op);
    op.rflags_read() & STATUS != 0
        || (modified != 0 && modified != STATUS)
        || (op.rflags_undefined() & STATUS != 0 && !leaves_flags_by_result(op))
        || count_in_cl(op)
        || shifts_by_nothing(op)
        || matches!(op.mnemonic(), Mnemonic::Div | Mnemonic::Idiv)
}
