//! The architectural state of one vCPU.
//!
//! Translated code addresses this structure directly (through the GS base), so it is `repr(C)` and
//! its offsets are taken with `offset_of!`. It holds guest state only: no pointers, no caches, and
//! therefore its bytes can be digested and saved as they are, field by field.

use bitflags::bitflags;

use super::exception::DR6_BS;
use super::semantics::Semantics;

/// Index of a general-purpose register in [`CpuState::gpr`], in instruction-encoding order.
pub mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
}

/// Index of a segment register in [`CpuState::seg`], in instruction-encoding order.
pub mod sreg {
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
}

/// Bits of [`CpuState::shadow`].
pub mod shadow {
    /// Interrupts wait.
    pub const INTERRUPTS: u8 = 1 << 0;
    /// Debug exceptions wait as well (SDM vol. 3A, section 6.8.3).
    pub const DEBUG: u8 = 1 << 1;
    /// Which ones wait: the breakpoints B0 to B3 of DR6, and BS.
    pub const BREAKPOINTS: u32 = 2;
    pub const STEP: u8 = 1 << 6;
}

bitflags! {
    /// RFLAGS (SDM vol. 1, section 3.4.3). Bit 1 reads as one.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RFlags: u64 {
        const CF = 1 << 0;
        const FIXED = 1 << 1;
        const PF = 1 << 2;
        const AF = 1 << 4;
        const ZF = 1 << 6;
        const SF = 1 << 7;
        const TF = 1 << 8;
        const IF = 1 << 9;
        const DF = 1 << 10;
        const OF = 1 << 11;
        const IOPL = 3 << 12;
        const NT = 1 << 14;
        const RF = 1 << 16;
        const VM = 1 << 17;
        const AC = 1 << 18;
        const VIF = 1 << 19;
        const VIP = 1 << 20;
        const ID = 1 << 21;
    }
}

/// The six status flags, the only ones that arithmetic touches.
pub const STATUS_FLAGS: u64 = 0x8d5;

bitflags! {
    /// CR0 (SDM vol. 3A, section 2.5).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Cr0: u64 {
        const PE = 1 << 0;
        const MP = 1 << 1;
        const EM = 1 << 2;
        const TS = 1 << 3;
        const ET = 1 << 4;
        const NE = 1 << 5;
        const WP = 1 << 16;
        const AM = 1 << 18;
        const NW = 1 << 29;
        const CD = 1 << 30;
        const PG = 1 << 31;
    }
}

bitflags! {
    /// CR4 (SDM vol. 3A, section 2.5).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Cr4: u64 {
        const VME = 1 << 0;
        const PVI = 1 << 1;
        const TSD = 1 << 2;
        const DE = 1 << 3;
        const PSE = 1 << 4;
        const PAE = 1 << 5;
        const MCE = 1 << 6;
        const PGE = 1 << 7;
        const PCE = 1 << 8;
        const OSFXSR = 1 << 9;
        const OSXMMEXCPT = 1 << 10;
        const UMIP = 1 << 11;
        const FSGSBASE = 1 << 16;
        const PCIDE = 1 << 17;
        const OSXSAVE = 1 << 18;
        const SMEP = 1 << 20;
        const SMAP = 1 << 21;
    }
}

bitflags! {
    /// IA32_EFER (SDM vol. 4, MSR C0000080H).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Efer: u64 {
        const SCE = 1 << 0;
        const LME = 1 << 8;
        const LMA = 1 << 10;
        const NXE = 1 << 11;
    }
}

/// A segment register with its hidden part (SDM vol. 3A, section 3.4.3).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    pub base: u64,
    /// Limit in bytes, already scaled by the granularity bit.
    pub limit: u32,
    pub selector: u16,
    /// Descriptor bits 40–55 as they stand in memory, with the limit nibble cleared:
    /// type 0–3, S 4, DPL 5–6, P 7, AVL 12, L 13, D/B 14, G 15.
    /// An unusable (null) segment has `P` clear.
    pub attr: u16,
}

impl Segment {
    pub const TYPE_MASK: u16 = 0xf;
    pub const S: u16 = 1 << 4;
    pub const P: u16 = 1 << 7;
    pub const L: u16 = 1 << 13;
    pub const DB: u16 = 1 << 14;
    pub const G: u16 = 1 << 15;

    pub const fn dpl(&self) -> u8 {
        ((self.attr >> 5) & 3) as u8
    }
    pub const fn kind(&self) -> u16 {
        self.attr & Self::TYPE_MASK
    }
    pub const fn present(&self) -> bool {
        self.attr & Self::P != 0
    }
    pub const fn is_code(&self) -> bool {
        self.attr & (Self::S | 8) == Self::S | 8
    }
    pub const fn long(&self) -> bool {
        self.attr & Self::L != 0
    }
    pub const fn big(&self) -> bool {
        self.attr & Self::DB != 0
    }
}

/// GDTR or IDTR.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableRegister {
    pub base: u64,
    pub limit: u16,
    pub _pad: [u16; 3],
}

/// IA32_MISC_ENABLE: CPUID has no basic leaves above 2.
pub const MISC_ENABLE_LIMIT_CPUID: u64 = 1 << 22;

/// Model-specific registers that are plain storage for the core (APIC ones live in the LAPIC).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Msrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub pat: u64,
    pub tsc_aux: u64,
    /// IA32_TSC_ADJUST; TSC = virtual time in ticks + this.
    pub tsc_adjust: u64,
    pub misc_enable: u64,
    pub spec_ctrl: u64,
    pub mtrr_def_type: u64,
    pub mtrr_fixed: [u64; 11],
    pub mtrr_phys: [u64; 16],
    pub xss: u64,
    pub mcg_status: u64,
    pub mcg_ctl: u64,
    pub feature_control: u64,
    pub bios_sign_id: u64,
    pub debugctl: u64,
}

/// What a vCPU is doing when it is not running instructions.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Running, or ready to run.
    Active = 0,
    /// HLT: woken by an interrupt, NMI, INIT or reset.
    Halted = 1,
    /// After INIT, or an application processor after reset: woken by a SIPI only.
    WaitForSipi = 2,
    /// Triple fault: woken by INIT or reset.
    Shutdown = 3,
}

/// Size of the XSAVE area kept per vCPU: legacy region, header, AVX state.
pub const XSAVE_SIZE: usize = 832;

/// x87, SSE and AVX state in the standard (non-compacted) XSAVE layout (SDM vol. 1, section 13.4).
/// Translated code restores and saves it with FXSAVE64-format offsets.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XsaveArea(pub [u8; XSAVE_SIZE]);

impl Default for XsaveArea {
    /// Power-on values: FCW = 0x37f (as after FNINIT), MXCSR = 0x1f80.
    fn default() -> Self {
        let mut bytes = [0; XSAVE_SIZE];
        bytes[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
        bytes[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        bytes[28..32].copy_from_slice(&0xffffu32.to_le_bytes());
        Self(bytes)
    }
}

/// The architectural state of one vCPU.
#[repr(C, align(64))]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuState {
    pub gpr: [u64; 16],
    pub rip: u64,
    /// Complete RFLAGS whenever no translated code is running.
    pub rflags: u64,
    pub seg: [Segment; 6],
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: TableRegister,
    pub idtr: TableRegister,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub xcr0: u64,
    /// DR0–DR3, (DR4, DR5 unused), DR6, DR7.
    pub dr: [u64; 8],
    pub msr: Msrs,
    pub fpu: XsaveArea,
    pub cpl: u8,
    /// Interrupt shadow after STI, MOV SS and POP SS: not 0 until the next instruction has retired. Bits as in
    /// [`shadow`].
    pub shadow: u8,
    pub activity: Activity,
    pub nmi_pending: u8,
    /// NMIs are blocked until the next IRET.
    pub nmi_blocked: u8,
    /// APIC id, also the vCPU's index.
    pub id: u8,
    /// What this vCPU's instructions do where versions differ; part of the configuration, not of the state.
    pub semantics: Semantics,
    pub _pad: [u8; 57],
}

impl CpuState {
    pub const fn long_mode(&self) -> bool {
        self.efer & Efer::LMA.bits() != 0
    }
    /// 64-bit mode: long mode and a code segment with L set.
    pub const fn code64(&self) -> bool {
        self.long_mode() && self.seg[sreg::CS].long()
    }
    pub const fn protected(&self) -> bool {
        self.cr0 & Cr0::PE.bits() != 0
    }
    pub const fn paging(&self) -> bool {
        self.cr0 & Cr0::PG.bits() != 0
    }
    /// Shadow after MOV SS and POP SS.
    pub fn shadow_stack_load(&mut self) {
        let debug = self.semantics.stack_loads_hold_debug_exceptions();
        self.shadow = shadow::INTERRUPTS | if debug { shadow::DEBUG } else { 0 };
    }
    /// Whether a debug exception has to wait until after the next instruction.
    pub const fn holds_debug(&self) -> bool {
        self.shadow & shadow::DEBUG != 0
    }
    /// Holds a debug exception back, of which these are the bits for DR6.
    pub const fn hold_debug(&mut self, dr6: u64) {
        self.shadow |= ((dr6 & 0xf) << shadow::BREAKPOINTS) as u8;
        if dr6 & DR6_BS != 0 {
            self.shadow |= shadow::STEP;
        }
    }
    /// Bits for DR6 of the debug exceptions that wait.
    pub const fn held_debug(&self) -> u64 {
        let hits = (self.shadow >> shadow::BREAKPOINTS & 0xf) as u64;
        if self.shadow & shadow::STEP != 0 {
            hits | DR6_BS
        } else {
            hits
        }
    }
    /// Virtual-8086 mode.
    pub const fn v8086(&self) -> bool {
        self.rflags & RFlags::VM.bits() != 0
    }
}
