//! Control and debug registers, RFLAGS and the other privileged instructions that touch registers
//! only (SDM vol. 3A, chapters 2 and 17.2; vol. 2 for each instruction).
//!
//! Values that a 32-bit instruction writes come zero-extended. PCIDs are not offered.

use super::cpuid::{CpuidTable, Feature};
use super::effects::{self, Effects};
use super::exception::{Exception, DR6_BD};
use super::interrupt::iopl;
use super::paging::{is_canonical, MAXPHYADDR};
use super::segment::{check_umip, require_ring0};
use super::state::{Activity, CpuState, Cr0, Cr4, Efer, RFlags};

const CR0_DEFINED: u64 = 0xe005_003f;

/// MOV from CR0, CR2, CR3 or CR4 (CR8 is the local APIC's; the caller checks [`require_ring0`]).
pub fn read_cr(cpu: &CpuState, number: usize) -> Result<u64, Exception> {
    let value = match number {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        _ => return Err(Exception::ud()),
    };
    require_ring0(cpu)?;
    Ok(value)
}

/// MOV to CR0, CR2, CR3 or CR4 (CR8: see [`check_cr8`]).
pub fn write_cr(
    cpu: &mut CpuState,
    model: &CpuidTable,
    number: usize,
    value: u64,
) -> Result<Effects, Exception> {
    if !matches!(number, 0 | 2 | 3 | 4) {
        return Err(Exception::ud());
    }
    require_ring0(cpu)?;
    match number {
        0 => write_cr0(cpu, value),
        2 => {
            cpu.cr2 = value;
            Ok(Effects::empty())
        }
        3 => write_cr3(cpu, value),
        _ => write_cr4(cpu, model, value),
    }
}

fn write_cr0(cpu: &mut CpuState, value: u64) -> Result<Effects, Exception> {
    if value >> 32 != 0 {
        return Err(Exception::gp(0));
    }
    let new = Cr0::from_bits_truncate(value & CR0_DEFINED) | Cr0::ET;
    let old = Cr0::from_bits_truncate(cpu.cr0);
    if (new.contains(Cr0::PG) && !new.contains(Cr0::PE))
        || (new.contains(Cr0::NW) && !new.contains(Cr0::CD))
    {
        return Err(Exception::gp(0));
    }
    let enables = new.contains(Cr0::PG) && !old.contains(Cr0::PG);
    let disables = old.contains(Cr0::PG) && !new.contains(Cr0::PG);
    let lme = cpu.efer & Efer::LME.bits() != 0;
    if enables && lme {
        let tss16 = cpu.tr.present() && cpu.tr.kind() & 8 == 0;
        if cpu.cr4 & Cr4::PAE.bits() == 0 || cpu.seg[super::state::sreg::CS].long() || tss16 {
            return Err(Exception::gp(0));
        }
    }
    if disables && cpu.code64() {
        return Err(Exception::gp(0));
    }
    cpu.cr0 = new.bits();
    if enables && lme {
        cpu.efer |= Efer::LMA.bits();
    } else if disables {
        cpu.efer &= !Efer::LMA.bits();
    }
    let changed = old ^ new;
    let mut result = Effects::empty();
    if !changed.is_empty() {
        result |= Effects::MODE_CHANGED;
    }
    let kept = cpu.semantics.write_protection_keeps_translations();
    let flushing = Cr0::PG | Cr0::PE | if kept { Cr0::empty() } else { Cr0::WP };
    if changed.intersects(flushing) {
        result |= Effects::FLUSH_TLB;
    } else if changed.contains(Cr0::WP) && new.contains(Cr0::WP) {
        result |= Effects::FLUSH_UNPROTECTED;
    }
    if changed.intersects(Cr0::TS | Cr0::EM | Cr0::MP) {
        result |= Effects::FPU_CHANGED;
    }
    Ok(result)
}

fn write_cr3(cpu: &mut CpuState, value: u64) -> Result<Effects, Exception> {
    if cpu.long_mode() && value >> MAXPHYADDR != 0 {
        return Err(Exception::gp(0));
    }
    cpu.cr3 = value;
    Ok(Effects::FLUSH_TLB_NONGLOBAL)
}

fn write_cr4(cpu: &mut CpuState, model: &CpuidTable, value: u64) -> Result<Effects, Exception> {
    if value & !model.cr4_mask != 0 {
        return Err(Exception::gp(0));
    }
    if cpu.long_mode() && value & Cr4::PAE.bits() == 0 {
        return Err(Exception::gp(0));
    }
    let changed = Cr4::from_bits_truncate(cpu.cr4 ^ value);
    cpu.cr4 = value;
    let mut result = Effects::empty();
    if !changed.is_empty() {
        result |= Effects::MODE_CHANGED;
    }
    if changed.intersects(Cr4::PGE | Cr4::PSE | Cr4::PAE | Cr4::SMEP | Cr4::SMAP) {
        result |= Effects::FLUSH_TLB;
    }
    if changed.intersects(Cr4::OSFXSR | Cr4::OSXSAVE | Cr4::OSXMMEXCPT) {
        result |= Effects::FPU_CHANGED;
    }
    Ok(result)
}

/// MOV to CR8: checks the value, which the caller then hands to the local APIC.
pub fn check_cr8(cpu: &CpuState, value: u64) -> Result<Effects, Exception> {
    require_ring0(cpu)?;
    if value >> 4 != 0 {
        return Err(Exception::gp(0));
    }
    Ok(Effects::TASK_PRIORITY | Effects::INTERRUPTS_ENABLED)
}

/// CLTS.
pub fn clts(cpu: &mut CpuState) -> Result<Effects, Exception> {
    require_ring0(cpu)?;
    write_cr0(cpu, cpu.cr0 & !Cr0::TS.bits())
}

/// LMSW: PE, MP, EM and TS; PE can be set but not cleared.
pub fn lmsw(cpu: &mut CpuState, value: u16) -> Result<Effects, Exception> {
    require_ring0(cpu)?;
    let value = u64::from(value) & 0xf;
    write_cr0(cpu, (cpu.cr0 & !0xe) | value)
}

/// SMSW: CR0, of which the caller stores the operand's width.
pub fn smsw(cpu: &CpuState) -> Result<u64, Exception> {
    check_umip(cpu)?;
    Ok(cpu.cr0)
}

/// XGETBV with index `ecx`.
pub fn xgetbv(cpu: &CpuState, model: &CpuidTable, ecx: u32) -> Result<u64, Exception> {
    if cpu.cr4 & Cr4::OSXSAVE.bits() == 0 {
        return Err(Exception::ud());
    }
    match ecx {
        0 => Ok(cpu.xcr0),
        1 if model.has(Feature::XGETBV_ECX1) => Ok(super::fpu::in_use(cpu) & cpu.xcr0),
        _ => Err(Exception::gp(0)),
    }
}

/// XSETBV with index `ecx`.
pub fn xsetbv(
    cpu: &mut CpuState,
    model: &CpuidTable,
    ecx: u32,
    value: u64,
) -> Result<Effects, Exception> {
    if cpu.cr4 & Cr4::OSXSAVE.bits() == 0 {
        return Err(Exception::ud());
    }
    require_ring0(cpu)?;
    let avx_without_sse = value & 6 == 4;
    if ecx != 0 || value & 1 == 0 || value & !model.xcr0_mask != 0 || avx_without_sse {
        return Err(Exception::gp(0));
    }
    let changed = cpu.xcr0 != value;
    cpu.xcr0 = value;
    Ok(if changed {
        Effects::FPU_CHANGED | Effects::MODE_CHANGED
    } else {
        Effects::empty()
    })
}

/// DR6 bits that read as one, besides those that events set.
pub const DR6_FIXED: u64 = 0xffff_0ff0;
/// DR7 bit that reads as one.
pub const DR7_FIXED: u64 = 0x400;
const DR7_GD: u64 = 1 << 13;
const DR7_WRITABLE: u64 = 0xffff_23ff;

/// Checks of a MOV from or to a debug register; gives the index with the aliases DR4, DR5 resolved.
fn check_dr(cpu: &CpuState, number: usize) -> Result<usize, Exception> {
    let alias = matches!(number, 4 | 5);
    if number > 7 || (alias && cpu.cr4 & Cr4::DE.bits() != 0) {
        return Err(Exception::ud());
    }
    require_ring0(cpu)?;
    if cpu.dr[7] & DR7_GD != 0 {
        return Err(Exception::db(DR6_BD));
    }
    Ok(if alias { number + 2 } else { number })
}

/// MOV from a debug register.
pub fn read_dr(cpu: &CpuState, number: usize) -> Result<u64, Exception> {
    Ok(cpu.dr[check_dr(cpu, number)?])
}

/// MOV to a debug register.
pub fn write_dr(cpu: &mut CpuState, number: usize, value: u64) -> Result<Effects, Exception> {
    let index = check_dr(cpu, number)?;
    match index {
        6 | 7 if value >> 32 != 0 => return Err(Exception::gp(0)),
        6 => cpu.dr[6] = (value & 0xe00f) | DR6_FIXED,
        7 => cpu.dr[7] = (value & DR7_WRITABLE) | DR7_FIXED,
        _ => cpu.dr[index] = value,
    }
    Ok(if index == 6 {
        Effects::empty()
    } else {
        Effects::BREAKPOINTS_CHANGED
    })
}

/// The image that PUSHF, PUSHFD and PUSHFQ push; the caller cuts it to the operand size.
pub fn pushf(cpu: &CpuState) -> Result<u64, Exception> {
    if cpu.v8086() && iopl(cpu) < 3 {
        return Err(Exception::gp(0));
    }
    Ok(cpu.rflags & !(RFlags::RF | RFlags::VM).bits())
}

/// POPF, POPFD and POPFQ with the popped value and the operand size in bytes. The caller moves RSP.
pub fn popf(cpu: &mut CpuState, value: u64, size: usize) -> Result<Effects, Exception> {
    if cpu.v8086() && iopl(cpu) < 3 {
        return Err(Exception::gp(0));
    }
    let mut mask = super::state::STATUS_FLAGS | (RFlags::TF | RFlags::DF | RFlags::NT).bits();
    if cpu.cpl <= iopl(cpu) {
        mask |= RFlags::IF.bits();
    }
    if cpu.cpl == 0 {
        mask |= RFlags::IOPL.bits();
    }
    let mut cleared = RFlags::RF.bits();
    if size != 2 {
        mask |= (RFlags::AC | RFlags::ID).bits();
        if !cpu.v8086() {
            cleared |= (RFlags::VIF | RFlags::VIP).bits();
        }
    }
    let old = cpu.rflags;
    cpu.rflags = (old & !mask & !cleared) | (value & mask) | RFlags::FIXED.bits();
    Ok(effects::of_flags(old, cpu.rflags))
}

/// #GP(0) where CLI, STI and I/O are not allowed by IOPL alone.
fn require_iopl(cpu: &CpuState) -> Result<(), Exception> {
    if cpu.protected() && cpu.cpl > iopl(cpu) {
        return Err(Exception::gp(0));
    }
    Ok(())
}

/// CLI.
pub fn cli(cpu: &mut CpuState) -> Result<Effects, Exception> {
    require_iopl(cpu)?;
    cpu.rflags &= !RFlags::IF.bits();
    Ok(Effects::empty())
}

/// STI. Interrupts stay off for one more instruction if they were off.
pub fn sti(cpu: &mut CpuState) -> Result<Effects, Exception> {
    require_iopl(cpu)?;
    if cpu.rflags & RFlags::IF.bits() == 0 {
        cpu.rflags |= RFlags::IF.bits();
        cpu.shadow = 1;
    }
    Ok(Effects::INTERRUPTS_ENABLED)
}

/// CLAC (`allow` false) and STAC, which exist with the feature, whether or not CR4.SMAP is set.
pub fn set_alignment_check(
    cpu: &mut CpuState,
    model: &CpuidTable,
    allow: bool,
) -> Result<Effects, Exception> {
    if !model.has(Feature::SMAP) || cpu.cpl != 0 {
        return Err(Exception::ud());
    }
    let old = cpu.rflags;
    let ac = RFlags::AC.bits();
    cpu.rflags = if allow { old | ac } else { old & !ac };
    Ok(effects::of_flags(old, cpu.rflags))
}

/// HLT: the caller moves RIP on.
pub fn hlt(cpu: &mut CpuState) -> Result<Effects, Exception> {
    require_ring0(cpu)?;
    cpu.activity = Activity::Halted;
    Ok(Effects::empty())
}

/// The privilege check of INVLPG, INVD and WBINVD. What they invalidate is the caller's.
pub fn check_invalidate(cpu: &CpuState) -> Result<(), Exception> {
    require_ring0(cpu)
}

/// The check of RDTSC and RDTSCP.
pub fn check_rdtsc(cpu: &CpuState) -> Result<(), Exception> {
    if cpu.cr4 & Cr4::TSD.bits() != 0 && cpu.cpl != 0 {
        return Err(Exception::gp(0));
    }
    Ok(())
}

/// RDPMC: the models have no performance counters, so every index is out of range.
pub fn rdpmc() -> Result<u64, Exception> {
    Err(Exception::gp(0))
}

/// The check of RDFSBASE, RDGSBASE, WRFSBASE and WRGSBASE; `value` is what a write writes.
pub fn check_fsgsbase(cpu: &CpuState, value: Option<u64>) -> Result<(), Exception> {
    if !cpu.code64() || cpu.cr4 & Cr4::FSGSBASE.bits() == 0 {
        return Err(Exception::ud());
    }
    match value {
        Some(base) if !is_canonical(base) => Err(Exception::gp(0)),
        _ => Ok(()),
    }
}
