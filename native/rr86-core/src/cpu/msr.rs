//! RDMSR and WRMSR (SDM vol. 4) for an Intel-like processor.
//!
//! Every MSR is known by number or raises #GP(0), as Linux expects of registers it probes for. The
//! local APIC's (`is_apic_msr`) are not here: they belong to the board. Which optional ones exist
//! follows CPUID.

use super::cpuid::{CpuidTable, Feature};
use super::effects::{self, Effects};
use super::exception::Exception;
use super::paging::{is_canonical, MAXPHYADDR};
use super::segment::require_ring0;
use super::state::MISC_ENABLE_LIMIT_CPUID;
use super::state::{sreg, CpuState, Efer};

/// MSR numbers.
pub mod index {
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const APIC_BASE: u32 = 0x1b;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const SPEC_CTRL: u32 = 0x48;
    pub const PRED_CMD: u32 = 0x49;
    pub const BIOS_UPDATE_TRIGGER: u32 = 0x79;
    pub const BIOS_SIGN_ID: u32 = 0x8b;
    pub const PLATFORM_INFO: u32 = 0xce;
    pub const MTRR_CAP: u32 = 0xfe;
    pub const ARCH_CAPABILITIES: u32 = 0x10a;
    pub const FLUSH_CMD: u32 = 0x10b;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17a;
    pub const PERF_STATUS: u32 = 0x198;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const DEBUGCTL: u32 = 0x1d9;
    pub const MTRR_PHYS_FIRST: u32 = 0x200;
    pub const MTRR_PHYS_LAST: u32 = 0x20f;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEF_TYPE: u32 = 0x2ff;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const XSS: u32 = 0xda0;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const FMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
}

/// Fixed-range MTRRs, in the order of `Msrs::mtrr_fixed`.
const MTRR_FIXED: [u32; 11] = [
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
];

/// IA32_MTRRCAP: eight variable ranges, fixed ranges, write-combining.
const MTRR_CAP_VALUE: u64 = 0x508;

/// IA32_ARCH_CAPABILITIES of the models, which spares guests the mitigations for bugs a translator
/// does not have: RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO,
/// SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO.
pub const ARCH_CAPABILITIES_VALUE: u64 = 1 << 0
    | 1 << 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 20
    | 1 << 24
    | 1 << 26
    | 1 << 27;

/// Microcode revision 1, in the upper half as IA32_BIOS_SIGN_ID has it.
pub const BIOS_SIGN_ID_VALUE: u64 = 1 << 32;

/// IA32_MISC_ENABLE at power-on: fast strings; branch trace storage and PEBS unavailable.
pub const MISC_ENABLE_RESET: u64 = 1 << 0 | 1 << 11 | 1 << 12;
/// Bits of IA32_MISC_ENABLE that software may change: fast strings, thermal control, SpeedStep, limit of CPUID,
/// xTPR messages off, turbo off.
const MISC_ENABLE_WRITABLE: u64 =
    1 << 0 | 1 << 3 | 1 << 16 | MISC_ENABLE_LIMIT_CPUID | 1 << 23 | 1 << 38;
/// Bits of IA32_MISC_ENABLE that writes leave alone: performance monitoring, and the absence of BTS and PEBS;
/// MONITOR, which the models do not have, and XD off, which they do not offer.
const MISC_ENABLE_READ_ONLY: u64 = 1 << 7 | 1 << 11 | 1 << 12 | 1 << 18 | 1 << 34;
/// The same in version 1 of the semantics.
const MISC_ENABLE_WRITABLE_1: u64 = 1 << 0 | 1 << 3 | 1 << 16;
const MISC_ENABLE_READ_ONLY_1: u64 = 1 << 7 | 1 << 11 | 1 << 12;

/// Whether the MSR belongs to the local APIC: IA32_APIC_BASE, TSC deadline and the x2APIC range.
pub const fn is_apic_msr(msr: u32) -> bool {
    matches!(msr, index::APIC_BASE | index::TSC_DEADLINE | 0x800..=0x8ff)
}

/// RDMSR. `tsc` is virtual time in TSC ticks, without IA32_TSC_ADJUST.
pub fn rdmsr(cpu: &CpuState, model: &CpuidTable, msr: u32, tsc: u64) -> Result<u64, Exception> {
    require_ring0(cpu)?;
    read(cpu, model, msr, tsc).ok_or(Exception::gp(0))
}

fn read(cpu: &CpuState, model: &CpuidTable, msr: u32, tsc: u64) -> Option<u64> {
    let m = &cpu.msr;
    let when = |feature: Feature, value: u64| model.has(feature).then_some(value);
    match msr {
        index::TSC => Some(tsc.wrapping_add(m.tsc_adjust)),
        index::PLATFORM_ID => Some(0),
        index::FEATURE_CONTROL => Some(m.feature_control),
        index::TSC_ADJUST => when(Feature::TSC_ADJUST, m.tsc_adjust),
        index::SPEC_CTRL if spec_ctrl_mask(model) != 0 => Some(m.spec_ctrl),
        index::BIOS_SIGN_ID => Some(m.bios_sign_id),
        index::PLATFORM_INFO => Some(model.bus_ratio() << 8),
        index::MTRR_CAP => when(Feature::MTRR, MTRR_CAP_VALUE),
        index::ARCH_CAPABILITIES => when(
            Feature::ARCH_CAPABILITIES,
            model.msr(msr).unwrap_or(ARCH_CAPABILITIES_VALUE),
        ),
        index::SYSENTER_CS => when(Feature::SEP, m.sysenter_cs),
        index::SYSENTER_ESP => when(Feature::SEP, m.sysenter_esp),
        index::SYSENTER_EIP => when(Feature::SEP, m.sysenter_eip),
        // No reporting banks.
        index::MCG_CAP => when(Feature::MCA, 0),
        index::MCG_STATUS => when(Feature::MCA, m.mcg_status),
        index::PERF_STATUS => Some(model.bus_ratio() << 8),
        index::MISC_ENABLE => Some(m.misc_enable),
        index::DEBUGCTL => Some(m.debugctl),
        index::MTRR_PHYS_FIRST..=index::MTRR_PHYS_LAST => when(
            Feature::MTRR,
            m.mtrr_phys[(msr - index::MTRR_PHYS_FIRST) as usize],
        ),
        index::PAT => when(Feature::PAT, m.pat),
        index::MTRR_DEF_TYPE => when(Feature::MTRR, m.mtrr_def_type),
        index::XSS => when(Feature::XSAVES, m.xss),
        index::EFER if model.efer_mask != 0 => Some(cpu.efer),
        index::STAR => when(Feature::LONG_MODE, m.star),
        index::LSTAR => when(Feature::LONG_MODE, m.lstar),
        index::CSTAR => when(Feature::LONG_MODE, m.cstar),
        index::FMASK => when(Feature::LONG_MODE, m.sfmask),
        index::FS_BASE => when(Feature::LONG_MODE, cpu.seg[sreg::FS].base),
        index::GS_BASE => when(Feature::LONG_MODE, cpu.seg[sreg::GS].base),
        index::KERNEL_GS_BASE => when(Feature::LONG_MODE, m.kernel_gs_base),
        index::TSC_AUX => when(Feature::RDTSCP, m.tsc_aux),
        _ => {
            let fixed = MTRR_FIXED.iter().position(|&n| n == msr)?;
            when(Feature::MTRR, m.mtrr_fixed[fixed])
        }
    }
}

/// Bits of IA32_SPEC_CTRL that the model has.
fn spec_ctrl_mask(model: &CpuidTable) -> u64 {
    let mut mask = 0;
    if model.has(Feature::SPEC_CTRL) {
        mask |= 1 << 0;
    }
    if model.has(Feature::STIBP) {
        mask |= 1 << 1;
    }
    if model.has(Feature::SSBD) {
        mask |= 1 << 2;
    }
    if model.has(Feature::BHI_CTRL) {
        mask |= 1 << 10;
    }
    mask
}

/// Memory types of MTRRs (SDM vol. 3A, table 11-8).
const fn is_mtrr_type(value: u64) -> bool {
    matches!(value, 0 | 1 | 4 | 5 | 6)
}

/// Whether all eight bytes are valid memory types.
fn are_types(value: u64, valid: fn(u64) -> bool) -> bool {
    value
        .to_le_bytes()
        .iter()
        .all(|&byte| valid(u64::from(byte)))
}

/// PAT has UC- (7) besides the types of MTRRs.
const fn is_pat_type(value: u64) -> bool {
    is_mtrr_type(value) || value == 7
}

/// WRMSR. `tsc` as for [`rdmsr`].
pub fn wrmsr(
    cpu: &mut CpuState,
    model: &CpuidTable,
    msr: u32,
    value: u64,
    tsc: u64,
) -> Result<Effects, Exception> {
    require_ring0(cpu)?;
    // An MSR that cannot be read is not there, the command registers excepted.
    let command = matches!(
        msr,
        index::PRED_CMD | index::FLUSH_CMD | index::BIOS_UPDATE_TRIGGER
    );
    if !command && read(cpu, model, msr, tsc).is_none() {
        return Err(Exception::gp(0));
    }
    write(cpu, model, msr, value, tsc).ok_or(Exception::gp(0))
}

/// Stores `value` if it is valid.
fn store(slot: &mut u64, value: u64, valid: bool) -> Option<Effects> {
    valid.then(|| {
        *slot = value;
        Effects::empty()
    })
}

fn write(
    cpu: &mut CpuState,
    model: &CpuidTable,
    msr: u32,
    value: u64,
    tsc: u64,
) -> Option<Effects> {
    let m = &mut cpu.msr;
    let low_half = value >> 32 == 0;
    let canonical = is_canonical(value);
    match msr {
        index::TSC => store(&mut m.tsc_adjust, value.wrapping_sub(tsc), true),
        index::FEATURE_CONTROL => {
            let locked = m.feature_control & 1 != 0;
            store(&mut m.feature_control, value, !locked && value & !1 == 0)
        }
        index::TSC_ADJUST => store(&mut m.tsc_adjust, value, true),
        index::SPEC_CTRL => store(&mut m.spec_ctrl, value, value & !spec_ctrl_mask(model) == 0),
        index::PRED_CMD => (model.has(Feature::SPEC_CTRL) && value & !1 == 0).then(Effects::empty),
        index::FLUSH_CMD => (model.has(Feature::FLUSH_L1D) && value & !1 == 0).then(Effects::empty),
        // Microcode updates are accepted and change nothing; clearing the signature neither.
        index::BIOS_UPDATE_TRIGGER | index::BIOS_SIGN_ID => Some(Effects::empty()),
        index::SYSENTER_CS => store(&mut m.sysenter_cs, value & 0xffff_ffff, true),
        index::SYSENTER_ESP => store(&mut m.sysenter_esp, value, canonical),
        index::SYSENTER_EIP => store(&mut m.sysenter_eip, value, canonical),
        index::MCG_STATUS => store(&mut m.mcg_status, value, value & !7 == 0),
        index::MISC_ENABLE => {
            let (writable, read_only) = if cpu.semantics.misc_enable_is_whole() {
                (MISC_ENABLE_WRITABLE, MISC_ENABLE_READ_ONLY)
            } else {
                (MISC_ENABLE_WRITABLE_1, MISC_ENABLE_READ_ONLY_1)
            };
            let new = m.misc_enable & !writable | value & writable;
            let valid = value & !(writable | read_only) == 0;
            store(&mut m.misc_enable, new, valid)
        }
        index::DEBUGCTL => store(&mut m.debugctl, value, value & !3 == 0),
        index::MTRR_PHYS_FIRST..=index::MTRR_PHYS_LAST => {
            let number = (msr - index::MTRR_PHYS_FIRST) as usize;
            let valid = value >> MAXPHYADDR == 0
                && if number % 2 == 0 {
                    value & 0xf00 == 0 && is_mtrr_type(value & 0xff)
                } else {
                    value & 0x7ff == 0
                };
            store(&mut m.mtrr_phys[number], value, valid)
        }
        index::PAT => store(&mut m.pat, value, are_types(value, is_pat_type)),
        index::MTRR_DEF_TYPE => {
            let valid = value & !0xcff == 0 && is_mtrr_type(value & 0xff);
            store(&mut m.mtrr_def_type, value, valid)
        }
        index::XSS => store(&mut m.xss, value, value == 0),
        index::EFER => write_efer(cpu, model, value),
        index::STAR => store(&mut m.star, value, true),
        index::LSTAR => store(&mut m.lstar, value, canonical),
        index::CSTAR => store(&mut m.cstar, value, canonical),
        index::FMASK => store(&mut m.sfmask, value, low_half),
        index::FS_BASE if canonical => Some(set_base(cpu, sreg::FS, value)),
        index::GS_BASE if canonical => Some(set_base(cpu, sreg::GS, value)),
        index::KERNEL_GS_BASE => store(&mut m.kernel_gs_base, value, canonical),
        index::TSC_AUX => store(&mut m.tsc_aux, value, low_half),
        _ => {
            let fixed = MTRR_FIXED.iter().position(|&n| n == msr)?;
            store(
                &mut m.mtrr_fixed[fixed],
                value,
                are_types(value, is_mtrr_type),
            )
        }
    }
}

/// Sets the base of FS or GS, which outside of 64-bit mode may have been flat until now.
fn set_base(cpu: &mut CpuState, reg: usize, base: u64) -> Effects {
    let old = cpu.seg[reg];
    cpu.seg[reg].base = base;
    effects::of_segment(cpu, reg, &old)
}

fn write_efer(cpu: &mut CpuState, model: &CpuidTable, value: u64) -> Option<Effects> {
    if value & !model.efer_mask != 0 {
        return None;
    }
    // LMA is read-only: CR0.PG with LME makes it.
    let lma = Efer::LMA.bits();
    let new = (value & !lma) | (cpu.efer & lma);
    let changed = Efer::from_bits_truncate(new ^ cpu.efer);
    if changed.contains(Efer::LME) && cpu.paging() {
        return None;
    }
    cpu.efer = new;
    let mut effects = Effects::empty();
    if !changed.is_empty() {
        effects |= Effects::MODE_CHANGED;
    }
    if changed.contains(Efer::NXE) {
        effects |= Effects::FLUSH_TLB;
    }
    Some(effects)
}

#[cfg(test)]
mod tests {
    use super::super::cpuid::CpuidRow;
    use super::super::semantics::Semantics;
    use super::super::state::Cr0;
    use super::*;

    fn model() -> CpuidTable {
        let row = |leaf, ebx, edx| CpuidRow {
            leaf,
            subleaf: None,
            eax: 7,
            ebx,
            ecx: 0,
            edx,
        };
        CpuidTable::new([
            row(1, 0, u32::MAX),
            row(7, 2, 1 << 26 | 1 << 29),
            row(0x8000_0001, 0, u32::MAX),
        ])
    }

    #[test]
    fn msrs_of_absent_features_and_unknown_ones_fault() {
        let mut cpu = CpuState::reset(0);
        let empty = CpuidTable::new([]);
        for msr in [0x10a, 0x48, 0xfe, 0x277, 0xc000_0080, 0xc000_0103, 0x3b] {
            assert!(rdmsr(&cpu, &model(), msr, 0).is_ok(), "{msr:#x}");
            assert_eq!(
                rdmsr(&cpu, &empty, msr, 0),
                Err(Exception::gp(0)),
                "{msr:#x}"
            );
        }
        for msr in [0xc001_0015, 0x140, 0xc1, 0x186] {
            assert_eq!(rdmsr(&cpu, &model(), msr, 0), Err(Exception::gp(0)));
            assert_eq!(wrmsr(&mut cpu, &model(), msr, 0, 0), Err(Exception::gp(0)));
        }
        cpu.cpl = 3;
        assert_eq!(rdmsr(&cpu, &model(), 0x10, 0), Err(Exception::gp(0)));
    }

    #[test]
    fn writing_the_tsc_moves_tsc_adjust() {
        let mut cpu = CpuState::reset(0);
        wrmsr(&mut cpu, &model(), index::TSC, 50, 1000).unwrap();
        assert_eq!(rdmsr(&cpu, &model(), index::TSC, 1010), Ok(60));
        assert_eq!(
            rdmsr(&cpu, &model(), index::TSC_ADJUST, 0),
            Ok(50u64.wrapping_sub(1000))
        );
    }

    #[test]
    fn reserved_bits_fault_and_change_nothing() {
        let mut cpu = CpuState::reset(0);
        let before = cpu.clone();
        for (msr, value) in [
            (index::EFER, 1 << 1),
            (index::PAT, 2),
            (index::LSTAR, 1 << 47),
            (index::MTRR_PHYS_FIRST, 2),
            (index::MTRR_PHYS_FIRST + 1, 1),
            (0x250, 0x0300),
            (index::MTRR_DEF_TYPE, 1 << 12),
            (index::TSC_AUX, 1 << 32),
            (index::GS_BASE, 1 << 63),
            (index::MTRR_CAP, 0x508),
            (index::ARCH_CAPABILITIES, 0),
        ] {
            let result = wrmsr(&mut cpu, &model(), msr, value, 0);
            assert_eq!(result, Err(Exception::gp(0)), "{msr:#x}");
        }
        assert_eq!(cpu, before);
    }

    #[test]
    fn misc_enable_has_the_bits_of_a_processor_and_keeps_them() {
        let mut cpu = CpuState::reset(0);
        cpu.msr.misc_enable = MISC_ENABLE_RESET;
        let switches = 1 << 3 | 1 << 16 | 1 << 22 | 1 << 23 | 1 << 38;
        let fixed = 1 << 7 | 1 << 18 | 1 << 34;
        let write = |cpu: &mut CpuState, value| {
            wrmsr(cpu, &model(), index::MISC_ENABLE, value, 0)?;
            rdmsr(cpu, &model(), index::MISC_ENABLE, 0)
        };
        let all = MISC_ENABLE_RESET | switches;
        assert_eq!(write(&mut cpu, all | fixed), Ok(all));
        assert_eq!(write(&mut cpu, 0), Ok(1 << 11 | 1 << 12));
        assert_eq!(write(&mut cpu, 2), Err(Exception::gp(0)));
        cpu.semantics = Semantics::FIRST;
        assert_eq!(write(&mut cpu, 1 << 22), Err(Exception::gp(0)));
        assert_eq!(write(&mut cpu, 1 << 16), Ok(1 << 16 | 1 << 11 | 1 << 12));
    }

    #[test]
    fn lme_cannot_change_under_paging_and_lma_cannot_be_written() {
        let mut cpu = CpuState::reset(0);
        wrmsr(&mut cpu, &model(), index::EFER, 0xd00, 0).unwrap();
        assert_eq!(cpu.efer, 0x900);
        cpu.cr0 |= Cr0::PG.bits();
        assert!(wrmsr(&mut cpu, &model(), index::EFER, 0x800, 0).is_err());
        let effects = wrmsr(&mut cpu, &model(), index::EFER, 0x100, 0).unwrap();
        assert!(effects.contains(Effects::FLUSH_TLB | Effects::MODE_CHANGED));
    }
}
