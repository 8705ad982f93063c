//! CPUID: a table that the CPU model gives, and the few bits of it that follow the vCPU's state.
//!
//! The table is the guest's whole idea of its processor. What MSRs and control registers offer is
//! derived from it too, so that they can never disagree with what the guest was told.

use super::state::MISC_ENABLE_LIMIT_CPUID;
use super::state::{CpuState, Cr4, Efer};

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidRow {
    pub leaf: u32,
    /// `None`: the leaf ignores ECX.
    pub subleaf: Option<u32>,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

impl CpuidRow {
    const fn empty(leaf: u32, subleaf: u32) -> Self {
        Self {
            leaf,
            subleaf: Some(subleaf),
            eax: 0,
            ebx: 0,
            ecx: 0,
            edx: 0,
        }
    }
}

/// The CPU model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuidTable {
    /// Sorted by leaf and subleaf.
    rows: Vec<CpuidRow>,
    /// CR4 bits that may be set.
    pub cr4_mask: u64,
    /// EFER bits that may be set.
    pub efer_mask: u64,
    /// XCR0 bits that may be set.
    pub xcr0_mask: u64,
    /// Values of model-specific registers after reset, as far as the model states them.
    msrs: Vec<(u32, u64)>,
}

/// Register of a CPUID result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// A feature bit: (leaf, subleaf, register, bit), SDM vol. 2A, "CPUID".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature(u32, u32, Register, u32);

/// The features that decide what instructions do.
impl Feature {
    pub const FPU: Self = Self(1, 0, Register::Edx, 0);
    pub const DE: Self = Self(1, 0, Register::Edx, 2);
    pub const PSE: Self = Self(1, 0, Register::Edx, 3);
    pub const TSC: Self = Self(1, 0, Register::Edx, 4);
    pub const MSR: Self = Self(1, 0, Register::Edx, 5);
    pub const PAE: Self = Self(1, 0, Register::Edx, 6);
    pub const MCE: Self = Self(1, 0, Register::Edx, 7);
    pub const CX8: Self = Self(1, 0, Register::Edx, 8);
    pub const SEP: Self = Self(1, 0, Register::Edx, 11);
    pub const MTRR: Self = Self(1, 0, Register::Edx, 12);
    pub const PGE: Self = Self(1, 0, Register::Edx, 13);
    pub const MCA: Self = Self(1, 0, Register::Edx, 14);
    pub const CMOV: Self = Self(1, 0, Register::Edx, 15);
    pub const PAT: Self = Self(1, 0, Register::Edx, 16);
    pub const CLFLUSH: Self = Self(1, 0, Register::Edx, 19);
    pub const MMX: Self = Self(1, 0, Register::Edx, 23);
    pub const FXSR: Self = Self(1, 0, Register::Edx, 24);
    pub const SSE: Self = Self(1, 0, Register::Edx, 25);
    pub const SSE2: Self = Self(1, 0, Register::Edx, 26);
    pub const SSE3: Self = Self(1, 0, Register::Ecx, 0);
    pub const PCLMULQDQ: Self = Self(1, 0, Register::Ecx, 1);
    pub const SSSE3: Self = Self(1, 0, Register::Ecx, 9);
    pub const CMPXCHG16B: Self = Self(1, 0, Register::Ecx, 13);
    pub const SSE4_1: Self = Self(1, 0, Register::Ecx, 19);
    pub const SSE4_2: Self = Self(1, 0, Register::Ecx, 20);
    pub const POPCNT: Self = Self(1, 0, Register::Ecx, 23);
    pub const AES: Self = Self(1, 0, Register::Ecx, 25);
    pub const XSAVE: Self = Self(1, 0, Register::Ecx, 26);
    pub const FSGSBASE: Self = Self(7, 0, Register::Ebx, 0);
    pub const TSC_ADJUST: Self = Self(7, 0, Register::Ebx, 1);
    pub const BHI_CTRL: Self = Self(7, 2, Register::Edx, 4);
    pub const SMEP: Self = Self(7, 0, Register::Ebx, 7);
    pub const SMAP: Self = Self(7, 0, Register::Ebx, 20);
    pub const UMIP: Self = Self(7, 0, Register::Ecx, 2);
    pub const SPEC_CTRL: Self = Self(7, 0, Register::Edx, 26);
    pub const STIBP: Self = Self(7, 0, Register::Edx, 27);
    pub const FLUSH_L1D: Self = Self(7, 0, Register::Edx, 28);
    pub const ARCH_CAPABILITIES: Self = Self(7, 0, Register::Edx, 29);
    pub const SSBD: Self = Self(7, 0, Register::Edx, 31);
    pub const XSAVEOPT: Self = Self(0xd, 1, Register::Eax, 0);
    pub const XGETBV_ECX1: Self = Self(0xd, 1, Register::Eax, 2);
    pub const XSAVES: Self = Self(0xd, 1, Register::Eax, 3);
    pub const LAHF64: Self = Self(0x8000_0001, 0, Register::Ecx, 0);
    pub const SYSCALL: Self = Self(0x8000_0001, 0, Register::Edx, 11);
    pub const NX: Self = Self(0x8000_0001, 0, Register::Edx, 20);
    pub const PAGE_1GB: Self = Self(0x8000_0001, 0, Register::Edx, 26);
    pub const RDTSCP: Self = Self(0x8000_0001, 0, Register::Edx, 27);
    pub const LONG_MODE: Self = Self(0x8000_0001, 0, Register::Edx, 29);
}

/// CR4 bits with the feature that offers each.
const CR4_FEATURES: &[(Cr4, Feature)] = &[
    (Cr4::TSD, Feature::TSC),
    (Cr4::DE, Feature::DE),
    (Cr4::PSE, Feature::PSE),
    (Cr4::PAE, Feature::PAE),
    (Cr4::MCE, Feature::MCE),
    (Cr4::PGE, Feature::PGE),
    (Cr4::OSFXSR, Feature::FXSR),
    (Cr4::OSXMMEXCPT, Feature::SSE),
    (Cr4::UMIP, Feature::UMIP),
    (Cr4::FSGSBASE, Feature::FSGSBASE),
    (Cr4::OSXSAVE, Feature::XSAVE),
    (Cr4::SMEP, Feature::SMEP),
    (Cr4::SMAP, Feature::SMAP),
];

/// x87, SSE and AVX: the components that the XSAVE area of a vCPU has room for.
const XCR0_POSSIBLE: u64 = 7;

impl CpuidTable {
    /// States values of model-specific registers.
    pub fn set_msrs(&mut self, msrs: Vec<(u32, u64)>) {
        self.msrs = msrs;
    }

    /// What the model states for a model-specific register.
    pub fn msr(&self, index: u32) -> Option<u64> {
        self.msrs
            .iter()
            .find(|(i, _)| *i == index)
            .map(|&(_, value)| value)
    }

    /// A table of these rows, in any order. Of two rows for the same leaf and subleaf the first
    /// counts.
    pub fn new(rows: impl IntoIterator<Item = CpuidRow>) -> Self {
        let mut rows: Vec<_> = rows.into_iter().collect();
        rows.sort_by_key(|row| (row.leaf, row.subleaf));
        let mut table = Self {
            rows,
            cr4_mask: Cr4::PCE.bits(),
            efer_mask: 0,
            xcr0_mask: 0,
            msrs: Vec::new(),
        };
        for (bit, feature) in CR4_FEATURES {
            if table.has(*feature) {
                table.cr4_mask |= bit.bits();
            }
        }
        if table.has(Feature::SYSCALL) {
            table.efer_mask |= Efer::SCE.bits();
        }
        if table.has(Feature::NX) {
            table.efer_mask |= Efer::NXE.bits();
        }
        if table.has(Feature::LONG_MODE) {
            table.efer_mask |= (Efer::LME | Efer::LMA).bits();
        }
        if let Some(row) = table.find(0xd, 0) {
            table.xcr0_mask = u64::from(row.eax) & XCR0_POSSIBLE;
        }
        table
    }

    /// The row for a leaf and subleaf, if the model has it.
    pub fn find(&self, leaf: u32, subleaf: u32) -> Option<&CpuidRow> {
        let start = self.rows.partition_point(|row| row.leaf < leaf);
        self.rows[start..]
            .iter()
            .take_while(|row| row.leaf == leaf)
            .find(|row| row.subleaf.is_none_or(|s| s == subleaf))
    }

    /// Whether the model has the feature.
    pub fn has(&self, Feature(leaf, subleaf, register, bit): Feature) -> bool {
        let Some(row) = self.find(leaf, subleaf) else {
            return false;
        };
        let value = match register {
            Register::Eax => row.eax,
            Register::Ebx => row.ebx,
            Register::Ecx => row.ecx,
            Register::Edx => row.edx,
        };
        value & (1 << bit) != 0
    }

    /// Base frequency in units of 100 MHz (CPUID 16H), as MSRs give it; 0 if the model does not
    /// say.
    pub fn bus_ratio(&self) -> u64 {
        self.find(0x16, 0)
            .map_or(0, |row| u64::from(row.eax & 0xffff) / 100)
    }

    /// The row that CPUID answers with: beyond the last leaf of a range, Intel processors answer
    /// with the last basic leaf; a leaf within its range that the model lacks is zero.
    fn lookup(&self, leaf: u32, subleaf: u32) -> CpuidRow {
        let range = leaf & 0xf000_0000;
        let base = if matches!(range, 0x4000_0000 | 0x8000_0000) {
            range
        } else {
            0
        };
        let highest = |base: u32| self.find(base, 0).map_or(0, |row| row.eax);
        let inside = leaf >= base && leaf <= highest(base);
        let leaf = if inside { leaf } else { highest(0) };
        match self.find(leaf, subleaf) {
            Some(row) => *row,
            None => {
                let mut row = CpuidRow::empty(leaf, subleaf);
                // Invalid levels of the topology leaves still echo the level.
                if matches!(leaf, 0xb | 0x1f) {
                    row.ecx = subleaf & 0xff;
                }
                row
            }
        }
    }

    /// CPUID: (eax, ebx, ecx, edx). `apic_enabled` is bit 11 of IA32_APIC_BASE.
    pub fn query(
        &self,
        cpu: &CpuState,
        leaf: u32,
        subleaf: u32,
        apic_enabled: bool,
    ) -> (u32, u32, u32, u32) {
        let limited = cpu.msr.misc_enable & MISC_ENABLE_LIMIT_CPUID != 0;
        // Basic leaves that are out of range read as the highest one.
        let leaf = match leaf {
            3..0x8000_0000 if limited => LIMITED_LEAF,
            leaf => leaf,
        };
        let mut row = self.lookup(leaf, subleaf);
        match row.leaf {
            0 if limited => row.eax = row.eax.min(LIMITED_LEAF),
            1 => {
                row.ebx = (row.ebx & 0x00ff_ffff) | (u32::from(cpu.id) << 24);
                row.ecx &= !(1 << 27);
                if cpu.cr4 & Cr4::OSXSAVE.bits() != 0 {
                    row.ecx |= 1 << 27;
                }
                if !apic_enabled {
                    row.edx &= !(1 << 9);
                }
            }
            0xb | 0x1f => row.edx = u32::from(cpu.id),
            0xd if subleaf == 0 && row.eax != 0 => row.ebx = xsave_size(cpu.xcr0),
            // Size of the compacted format, which for these components is the same.
            0xd if subleaf == 1 && row.eax & 0b1010 != 0 => {
                row.ebx = xsave_size(cpu.xcr0 | cpu.msr.xss);
            }
            // SYSCALL exists in 64-bit mode only, and Intel processors say so.
            0x8000_0001 if !cpu.code64() => row.edx &= !(1 << 11),
            _ => {}
        }
        (row.eax, row.ebx, row.ecx, row.edx)
    }
}

/// The highest basic leaf under the limit of IA32_MISC_ENABLE.
const LIMITED_LEAF: u32 = 2;

/// Size in bytes of an XSAVE area with the components of `xcr0`.
pub const fn xsave_size(xcr0: u64) -> u32 {
    if xcr0 & 4 != 0 {
        832
    } else {
        576
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(leaf: u32, subleaf: Option<u32>, r: [u32; 4]) -> CpuidRow {
        CpuidRow {
            leaf,
            subleaf,
            eax: r[0],
            ebx: r[1],
            ecx: r[2],
            edx: r[3],
        }
    }

    fn table() -> CpuidTable {
        CpuidTable::new([
            row(0x8000_0000, None, [0x8000_0008, 0, 0, 0]),
            row(0x8000_0001, None, [0, 0, 0, 1 << 11 | 1 << 20 | 1 << 29]),
            row(0, None, [0x16, 1, 2, 3]),
            row(1, None, [0x663, 0x0800, 1 << 26, 1 << 9 | 1 << 6]),
            row(4, Some(0), [0x121, 5, 6, 7]),
            row(0xb, Some(0), [0, 1, 0x100, 0]),
            row(0xd, Some(0), [7, 0, 832, 0]),
            row(0x16, None, [2000, 2000, 100, 0]),
        ])
    }

    #[test]
    fn leaves_beyond_the_range_answer_with_the_last_basic_leaf() {
        let cpu = CpuState::reset(0);
        let last = (2000, 2000, 100, 0);
        assert_eq!(table().query(&cpu, 0x17, 0, true), last);
        assert_eq!(table().query(&cpu, 0x4000_0000, 0, true), last);
        assert_eq!(table().query(&cpu, 0x8000_0009, 0, true), last);
        assert_eq!(table().query(&cpu, 0x8000_0002, 0, true), (0, 0, 0, 0));
        assert_eq!(table().query(&cpu, 4, 1, true), (0, 0, 0, 0));
    }

    #[test]
    fn the_limit_of_misc_enable_hides_leaves_above_the_second() {
        let mut cpu = CpuState::reset(0);
        let whole = table().query(&cpu, 0, 0, true);
        assert!(whole.0 > 2);
        cpu.msr.misc_enable |= MISC_ENABLE_LIMIT_CPUID;
        assert_eq!(table().query(&cpu, 0, 0, true).0, 2);
        let second = table().query(&cpu, 2, 0, true);
        assert_eq!(table().query(&cpu, 0xb, 0, true), second);
        assert_eq!(table().query(&cpu, 1, 0, true).0, 0x663);
    }

    #[test]
    fn apic_id_and_enabled_bits_follow_the_state() {
        let mut cpu = CpuState::reset(3);
        assert_eq!(
            table().query(&cpu, 1, 0, false),
            (0x663, 0x0300_0800, 1 << 26, 1 << 6)
        );
        cpu.cr4 |= Cr4::OSXSAVE.bits();
        let (_, _, ecx, edx) = table().query(&cpu, 1, 0, true);
        assert_eq!((ecx, edx), (3 << 26, 1 << 9 | 1 << 6));
        assert_eq!(table().query(&cpu, 0xb, 0, true).3, 3);
        assert_eq!(table().query(&cpu, 0xb, 2, true), (0, 0, 2, 3));
        assert_eq!(table().query(&cpu, 0xd, 0, true).1, 576);
        cpu.xcr0 = 7;
        assert_eq!(table().query(&cpu, 0xd, 0, true).1, 832);
    }

    #[test]
    fn masks_follow_the_features() {
        let table = table();
        assert_eq!(table.efer_mask, 0xd01);
        assert_eq!(table.xcr0_mask, 7);
        assert_eq!(table.cr4_mask, (Cr4::PCE | Cr4::PAE | Cr4::OSXSAVE).bits());
    }
}
