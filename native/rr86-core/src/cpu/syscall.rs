//! Fast system calls: SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS (SDM vol. 3A, section 5.8.7 and
//! 5.8.8; vol. 2B for each), as Intel processors have them.

use super::effects::{self, Effects, ModeSnapshot};
use super::exception::Exception;
use super::paging::is_canonical;
use super::segment::require_ring0;
use super::state::{gpr, sreg, CpuState, Efer, RFlags, Segment};

/// Flat code at `dpl`; 64-bit or 32-bit.
const fn code(selector: u16, dpl: u16, long: bool) -> Segment {
    let width = if long { Segment::L } else { Segment::DB };
    let attr = 0xb | Segment::S | (dpl << 5) | Segment::P | Segment::G | width;
    Segment {
        base: 0,
        limit: u32::MAX,
        selector,
        attr,
    }
}

/// A flat stack at `dpl`.
const fn stack(selector: u16, dpl: u16) -> Segment {
    let attr = 3 | Segment::S | (dpl << 5) | Segment::P | Segment::G | Segment::DB;
    Segment {
        base: 0,
        limit: u32::MAX,
        selector,
        attr,
    }
}

/// #UD where SYSCALL and SYSRET do not exist: outside of 64-bit mode and without EFER.SCE.
fn require_syscall(cpu: &CpuState) -> Result<(), Exception> {
    if !cpu.code64() || cpu.efer & Efer::SCE.bits() == 0 {
        return Err(Exception::ud());
    }
    Ok(())
}

/// SYSCALL; `next_rip` is the address after it.
pub fn syscall(cpu: &mut CpuState, next_rip: u64) -> Result<Effects, Exception> {
    require_syscall(cpu)?;
    let before = ModeSnapshot::of(cpu);
    cpu.gpr[gpr::RCX] = next_rip;
    cpu.gpr[11] = cpu.rflags;
    cpu.rip = cpu.msr.lstar;
    // RF is clear in the handler whatever IA32_FMASK says: the next instruction clears it.
    let cleared = cpu.msr.sfmask | RFlags::RF.bits();
    cpu.rflags = (cpu.rflags & !cleared) | RFlags::FIXED.bits();
    let selector = (cpu.msr.star >> 32) as u16;
    cpu.seg[sreg::CS] = code(selector & !3, 0, true);
    cpu.seg[sreg::SS] = stack(selector.wrapping_add(8), 0);
    cpu.cpl = 0;
    Ok(effects::of_transfer(&before, cpu))
}

/// SYSRET with operands of `size` bytes: 8 returns to 64-bit mode, 4 to compatibility mode.
///
/// A non-canonical RCX raises #GP(0) while CPL is still 0, as on Intel processors.
pub fn sysret(cpu: &mut CpuState, size: usize) -> Result<Effects, Exception> {
    require_syscall(cpu)?;
    require_ring0(cpu)?;
    let long = size == 8;
    let rcx = cpu.gpr[gpr::RCX];
    if long && !is_canonical(rcx) {
        return Err(Exception::gp(0));
    }
    let before = ModeSnapshot::of(cpu);
    cpu.rip = if long { rcx } else { rcx & 0xffff_ffff };
    cpu.rflags = (cpu.gpr[11] & 0x003c_7fd7) | RFlags::FIXED.bits();
    let selector = (cpu.msr.star >> 48) as u16;
    let offset = if long { 16 } else { 0 };
    cpu.seg[sreg::CS] = code(selector.wrapping_add(offset) | 3, 3, long);
    cpu.seg[sreg::SS] = stack(selector.wrapping_add(8) | 3, 3);
    cpu.cpl = 3;
    Ok(effects::of_transfer(&before, cpu))
}

/// SYSENTER.
pub fn sysenter(cpu: &mut CpuState) -> Result<Effects, Exception> {
    if !cpu.protected() || cpu.msr.sysenter_cs & 0xfffc == 0 {
        return Err(Exception::gp(0));
    }
    let before = ModeSnapshot::of(cpu);
    cpu.rflags &= !(RFlags::VM | RFlags::IF | RFlags::RF).bits();
    let long = cpu.long_mode();
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    cpu.gpr[gpr::RSP] = cpu.msr.sysenter_esp & mask;
    cpu.rip = cpu.msr.sysenter_eip & mask;
    let selector = cpu.msr.sysenter_cs as u16 & !3;
    cpu.seg[sreg::CS] = code(selector, 0, long);
    cpu.seg[sreg::SS] = stack(selector.wrapping_add(8), 0);
    cpu.cpl = 0;
    Ok(effects::of_transfer(&before, cpu))
}

/// SYSEXIT with operands of `size` bytes: 8 returns to 64-bit mode.
pub fn sysexit(cpu: &mut CpuState, size: usize) -> Result<Effects, Exception> {
    if !cpu.protected() || cpu.cpl != 0 || cpu.msr.sysenter_cs & 0xfffc == 0 {
        return Err(Exception::gp(0));
    }
    let long = size == 8;
    let (rcx, rdx) = (cpu.gpr[gpr::RCX], cpu.gpr[gpr::RDX]);
    if long && (!is_canonical(rcx) || !is_canonical(rdx)) {
        return Err(Exception::gp(0));
    }
    let before = ModeSnapshot::of(cpu);
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    cpu.gpr[gpr::RSP] = rcx & mask;
    cpu.rip = rdx & mask;
    let selector = (cpu.msr.sysenter_cs as u16).wrapping_add(if long { 32 } else { 16 });
    cpu.seg[sreg::CS] = code(selector | 3, 3, long);
    cpu.seg[sreg::SS] = stack(selector.wrapping_add(8) | 3, 3);
    cpu.cpl = 3;
    Ok(effects::of_transfer(&before, cpu))
}

/// SWAPGS.
pub fn swapgs(cpu: &mut CpuState) -> Result<Effects, Exception> {
    if !cpu.code64() {
        return Err(Exception::ud());
    }
    require_ring0(cpu)?;
    std::mem::swap(&mut cpu.seg[sreg::GS].base, &mut cpu.msr.kernel_gs_base);
    Ok(Effects::empty())
}

#[cfg(test)]
mod tests {
    use super::super::state::Cr0;
    use super::*;

    fn kernel64() -> CpuState {
        let mut cpu = CpuState::reset(0);
        cpu.cr0 |= (Cr0::PE | Cr0::PG).bits();
        cpu.efer = (Efer::SCE | Efer::LME | Efer::LMA).bits();
        cpu.seg[sreg::CS] = code(0x10, 0, true);
        cpu.msr.star = 0x0023_0010_0000_0000;
        cpu.msr.lstar = 0xffff_ffff_8100_0000;
        cpu.msr.sfmask = 0x4_7700;
        cpu
    }

    #[test]
    fn sysret_and_syscall_are_inverse() {
        let mut cpu = kernel64();
        cpu.gpr[gpr::RCX] = 0x40_1000;
        cpu.gpr[11] = 0x1_0202;
        assert!(sysret(&mut cpu, 8).unwrap().contains(Effects::MODE_CHANGED));
        assert_eq!((cpu.cpl, cpu.rip, cpu.rflags), (3, 0x40_1000, 0x202));
        assert_eq!(
            (cpu.seg[sreg::CS].selector, cpu.seg[sreg::SS].selector),
            (0x33, 0x2b)
        );
        syscall(&mut cpu, 0x40_1002).unwrap();
        assert_eq!(
            (cpu.cpl, cpu.rip, cpu.rflags),
            (0, 0xffff_ffff_8100_0000, 2)
        );
        assert_eq!((cpu.gpr[gpr::RCX], cpu.gpr[11]), (0x40_1002, 0x202));
        assert_eq!(
            (cpu.seg[sreg::CS].selector, cpu.seg[sreg::SS].selector),
            (0x10, 0x18)
        );
    }

    #[test]
    fn sysret_to_a_noncanonical_address_faults_in_ring_0() {
        let mut cpu = kernel64();
        cpu.gpr[gpr::RCX] = 1 << 47;
        let before = cpu.clone();
        assert_eq!(sysret(&mut cpu, 8), Err(Exception::gp(0)));
        assert_eq!(cpu, before);
    }

    #[test]
    fn sysenter_needs_a_selector_and_sysexit_ring_0() {
        let mut cpu = kernel64();
        assert_eq!(sysenter(&mut cpu), Err(Exception::gp(0)));
        cpu.msr.sysenter_cs = 0x10;
        cpu.msr.sysenter_esp = 0xffff_8000_0000_1000;
        sysenter(&mut cpu).unwrap();
        assert_eq!(cpu.gpr[gpr::RSP], 0xffff_8000_0000_1000);
        (cpu.gpr[gpr::RCX], cpu.gpr[gpr::RDX]) = (0x5000, 0x6000);
        sysexit(&mut cpu, 4).unwrap();
        assert_eq!((cpu.gpr[gpr::RSP], cpu.rip, cpu.cpl), (0x5000, 0x6000, 3));
        assert_eq!(
            (cpu.seg[sreg::CS].selector, cpu.seg[sreg::SS].selector),
            (0x23, 0x2b)
        );
        assert!(!cpu.code64());
        assert_eq!(sysexit(&mut cpu, 4), Err(Exception::gp(0)));
    }

    #[test]
    fn swapgs_exchanges_the_bases() {
        let mut cpu = kernel64();
        cpu.seg[sreg::GS].base = 1;
        cpu.msr.kernel_gs_base = 2;
        swapgs(&mut cpu).unwrap();
        assert_eq!((cpu.seg[sreg::GS].base, cpu.msr.kernel_gs_base), (2, 1));
        cpu.cpl = 3;
        assert_eq!(swapgs(&mut cpu), Err(Exception::gp(0)));
    }
}
