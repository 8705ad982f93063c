//! The status flags as generated code saves them in AX (LAHF, SETO).

use super::vcpu::Vcpu;
use crate::cpu::state::STATUS_FLAGS;

/// RFLAGS status bits from the saved form in AX.
#[inline]
pub fn flags_from_ax(ax: u64) -> u64 {
    (ax >> 8 & 0xd5) | (ax & 1) << 11
}

/// The saved form of RFLAGS' status bits.
#[inline]
pub fn flags_to_ax(rflags: u64) -> u64 {
    (rflags & 0xd5 | 2) << 8 | (rflags >> 11 & 1)
}

/// Makes `cpu.rflags` complete.
#[inline]
pub fn sync_flags(vcpu: &mut Vcpu) {
    let status = flags_from_ax(vcpu.run.flags_ax);
    vcpu.cpu.rflags = vcpu.cpu.rflags & !STATUS_FLAGS | status;
}
