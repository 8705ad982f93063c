//! Looking a rip up in the jump cache, as blocks and stubs do.

use crate::translate::encode::asm::{cc, Asm, Reg, W32, W64};
use crate::translate::layout::{at, JUMP_HASH, JUMP_SHIFT, T0, T1};

/// Asks the jump cache for the rip in a register: T0 becomes the index of its entry, T1 the entry's key. Returns
/// the jump that is taken where there is none.
pub(in crate::translate) fn ask_jump_cache(a: &mut Asm, target: Reg) -> usize {
    // What `jump_index` computes.
    a.rr(&[0x69], W32, T0, target); // imul r10d, target, imm32
    a.u32(JUMP_HASH);
    a.raw(&[0x41, 0xc1, 0xea, JUMP_SHIFT as u8]); // shr r10d, imm8
    a.mov_rr(W64, T1, target);
    a.gs(&[0x33], W64, T1, at::JUMP_KEY);
    a.gs_scaled(&[0x3b], W64, T1, T0, at::JUMP);
    a.jcc(cc::NE)
}
