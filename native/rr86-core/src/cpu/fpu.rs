//! Saving and restoring x87, SSE and AVX state (SDM vol. 1, chapters 8, 10 and 13).

use super::state::CpuState;

/// XINUSE: the components that are not in their initial configuration. SSE counts its XMM
/// registers only, not MXCSR.
pub fn in_use(cpu: &CpuState) -> u64 {
    let area = &cpu.fpu.0;
    let zero = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
    let x87_initial = area[0..2] == 0x37fu16.to_le_bytes()
        && zero(&area[2..24])
        && (0..8).all(|n| zero(&area[32 + 16 * n..42 + 16 * n]));
    let mut mask = 0;
    if !x87_initial {
        mask |= 1;
    }
    if !zero(&area[160..416]) {
        mask |= 2;
    }
    if !zero(&area[576..832]) {
        mask |= 4;
    }
    mask
}
