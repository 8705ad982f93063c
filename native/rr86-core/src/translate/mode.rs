//! What a block depends on besides its bytes and its address.

use crate::cpu::state::{sreg, CpuState, Cr0, Cr4, RFlags, Segment};
use crate::translate::layout::MmuIndex;

/// The execution mode of a block, as bits. Two blocks made from the same bytes at the same address in
/// the same mode are the same block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mode(pub u32);

impl Mode {
    const CODE32: u32 = 1;
    const CODE64: u32 = 2;
    const STACK32: u32 = 1 << 2;
    const USER: u32 = 1 << 3;
    const FLAT: u32 = 1 << 4;
    const CODE_FLAT: u32 = 1 << 5;
    const NO_FPU: u32 = 1 << 6;
    const SSE: u32 = 1 << 7;
    const AC: u32 = 1 << 8;
    const EM: u32 = 1 << 10;
    const RING0: u32 = 1 << 11;
    const NO_TSC: u32 = 1 << 12;
    /// The block is one instruction: in an interrupt shadow, single-stepped by the guest, or under
    /// the guest's own hardware breakpoints.
    pub const ONE: u32 = 1 << 9;

    /// The mode that `cpu` is in.
    pub fn of(cpu: &CpuState) -> Self {
        let mut bits = 0;
        let cs = &cpu.seg[sreg::CS];
        if cpu.long_mode() && cs.long() {
            bits |= Self::CODE64 | Self::FLAT | Self::CODE_FLAT;
        } else {
            if cs.big() {
                bits |= Self::CODE32;
            }
            if cpu.seg[sreg::SS].big() {
                bits |= Self::STACK32;
            }
            if cs.base == 0 && cs.limit == u32::MAX {
                bits |= Self::CODE_FLAT;
            }
            let flat = |s: &Segment| {
                s.base == 0 && s.limit == u32::MAX && s.present() && s.attr & 0xe == 2
            };
            if cpu.protected()
                && !cpu.v8086()
                && flat(&cpu.seg[sreg::DS])
                && flat(&cpu.seg[sreg::ES])
                && flat(&cpu.seg[sreg::SS])
            {
                bits |= Self::FLAT;
            }
        }
        if cpu.cpl == 3 {
            bits |= Self::USER;
        } else if cpu.cr4 & Cr4::SMAP.bits() != 0 && cpu.rflags & RFlags::AC.bits() != 0 {
            bits |= Self::AC;
        }
        if cpu.cpl == 0 && !cpu.v8086() {
            bits |= Self::RING0;
        } else if cpu.cr4 & Cr4::TSD.bits() != 0 {
            bits |= Self::NO_TSC;
        }
        if cpu.cr0 & (Cr0::TS | Cr0::EM).bits() != 0 {
            bits |= Self::NO_FPU;
        }
        if cpu.cr0 & Cr0::EM.bits() != 0 {
            bits |= Self::EM;
        }
        if cpu.cr4 & Cr4::OSFXSR.bits() != 0 {
            bits |= Self::SSE;
        }
        if cpu.shadow != 0 || cpu.rflags & RFlags::TF.bits() != 0 || cpu.dr[7] & 0xff != 0 {
            bits |= Self::ONE;
        }
        Self(bits)
    }

    /// Whether some vCPU could be in this mode.
    pub fn is_possible(self) -> bool {
        let of_64 = Self::FLAT | Self::CODE_FLAT;
        self.0 >> 13 == 0
            && (!self.code64() || self.0 & (of_64 | Self::CODE32 | Self::STACK32) == of_64)
            && !(self.user() && self.0 & (Self::RING0 | Self::AC) != 0)
    }

    /// Code size: 16, 32 or 64.
    pub fn bits(self) -> u32 {
        if self.0 & Self::CODE64 != 0 {
            64
        } else if self.0 & Self::CODE32 != 0 {
            32
        } else {
            16
        }
    }
    pub fn code64(self) -> bool {
        self.0 & Self::CODE64 != 0
    }
    /// Bytes of the stack pointer in use: 2, 4 or 8.
    pub fn stack_size(self) -> usize {
        if self.code64() {
            8
        } else if self.0 & Self::STACK32 != 0 {
            4
        } else {
            2
        }
    }
    pub fn user(self) -> bool {
        self.0 & Self::USER != 0
    }
    pub fn ring0(self) -> bool {
        self.0 & Self::RING0 != 0
    }
    /// RDTSC is allowed.
    pub fn tsc(self) -> bool {
        self.0 & Self::NO_TSC == 0
    }
    /// DS, ES and SS span all of memory from 0, so that offsets are linear addresses.
    pub fn flat(self) -> bool {
        self.0 & Self::FLAT != 0
    }
    /// The same for CS.
    pub fn code_flat(self) -> bool {
        self.0 & Self::CODE_FLAT != 0
    }
    /// CR0.TS or CR0.EM: x87 and SSE instructions raise.
    pub fn fpu_off(self) -> bool {
        self.0 & Self::NO_FPU != 0
    }
    pub fn emulated_fpu(self) -> bool {
        self.0 & Self::EM != 0
    }
    pub fn sse(self) -> bool {
        self.0 & Self::SSE != 0
    }
    pub fn one(self) -> bool {
        self.0 & Self::ONE != 0
    }
    pub fn mmu(self) -> MmuIndex {
        if self.user() {
            MmuIndex::User
        } else if self.0 & Self::AC != 0 {
            MmuIndex::SupervisorAc
        } else {
            MmuIndex::Supervisor
        }
    }
    /// The mode after EFLAGS.AC has changed while CR4.SMAP is on.
    pub fn with_ac(self, on: bool) -> Self {
        Self(if on {
            self.0 | Self::AC
        } else {
            self.0 & !Self::AC
        })
    }

    /// The same as `Mode::of(cpu).mmu()`.
    pub fn mmu_of(cpu: &CpuState) -> MmuIndex {
        if cpu.cpl == 3 {
            MmuIndex::User
        } else if cpu.cr4 & Cr4::SMAP.bits() != 0 && cpu.rflags & RFlags::AC.bits() != 0 {
            MmuIndex::SupervisorAc
        } else {
            MmuIndex::Supervisor
        }
    }

    /// What is mixed into the top bits of a pc to make a jump-cache key. Canonical addresses have
    /// equal top bits, so keys of different modes or addresses never meet.
    pub fn key(self) -> u64 {
        u64::from(self.0 & 0x1fff) << 48
    }
}
