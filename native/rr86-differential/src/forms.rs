//! Which instruction forms the CPU model offers to 64-bit user code, and why the others are left out.

use std::fmt;
use std::str::FromStr;

use iced_x86::{Code, CpuidFeature, EncodingKind, Mnemonic, OpCodeOperandKind};

/// Group of forms, selectable on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    Integer,
    /// Branches, calls, returns, loops.
    Control,
    /// String instructions, with and without REP.
    String,
    X87,
    Mmx,
    Sse,
    /// FXSAVE and FXRSTOR.
    State,
}

impl Family {
    pub const ALL: [Self; 7] = [
        Self::Integer,
        Self::Control,
        Self::String,
        Self::X87,
        Self::Mmx,
        Self::Sse,
        Self::State,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Integer => "integer",
            Self::Control => "control",
            Self::String => "string",
            Self::X87 => "x87",
            Self::Mmx => "mmx",
            Self::Sse => "sse",
            Self::State => "state",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Family {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|family| family.name() == text)
            .ok_or_else(|| {
                let names: Vec<_> = Self::ALL.iter().map(|family| family.name()).collect();
                format!("no family '{text}'; there are {}", names.join(", "))
            })
    }
}

/// What the CPU model offers beyond the baseline (everything up to SSE4.2, AES, PCLMULQDQ, CX16, POPCNT).
#[derive(Clone, Copy, Debug, Default)]
pub struct Model {
    pub movbe: bool,
}

/// The forms of a model.
#[derive(Clone, Debug)]
pub struct Forms {
    pub offered: Vec<(Code, Family)>,
    /// Forms whose CPUID feature the model has but that are left out, with the reason.
    pub excluded: Vec<(Code, &'static str)>,
}

impl Forms {
    /// Sorts every form that iced knows.
    pub fn of(model: Model) -> Self {
        let mut forms = Self {
            offered: Vec::new(),
            excluded: Vec::new(),
        };
        for code in Code::values() {
            let op = code.op_code();
            if code == Code::INVALID
                || !op.is_instruction()
                || op.encoding() != EncodingKind::Legacy
                || !op.mode64()
                || !code
                    .cpuid_features()
                    .iter()
                    .all(|&feature| has(model, feature))
            {
                continue;
            }
            match reason_to_exclude(code) {
                Some(reason) => forms.excluded.push((code, reason)),
                None => forms.offered.push((code, family(code))),
            }
        }
        forms
    }
}

fn has(model: Model, feature: CpuidFeature) -> bool {
    use CpuidFeature::*;
    match feature {
        MOVBE => model.movbe,
        INTEL8086 | INTEL186 | INTEL286 | INTEL386 | INTEL486 | X64 | CMOV | CMPXCHG16B | CX8
        | CPUID | FPU | FPU287 | FPU387 | MMX | SSE | SSE2 | SSE3 | SSSE3 | SSE4_1 | SSE4_2
        | FXSR | POPCNT | AES | PCLMULQDQ | MULTIBYTENOP | PAUSE | CLFSH | PREFETCHW | MSR
        | TSC | SYSCALL | SEP | RDTSCP | FSGSBASE | SMAP => true,
        _ => false,
    }
}

fn reason_to_exclude(code: Code) -> Option<&'static str> {
    use Mnemonic::*;
    use OpCodeOperandKind as K;
    let op = code.op_code();
    if op.is_input_output() {
        return Some("port I/O");
    }
    match code.mnemonic() {
        Syscall | Sysret | Sysretq | Sysenter | Sysexit | Sysexitq | Int | Int1 | Iret | Iretd
        | Iretq => return Some("enters or leaves the kernel"),
        Cpuid | Rdtsc | Rdtscp | Rdpmc => return Some("answered by the CPU model or by time"),
        Sgdt | Sidt | Sldt | Str | Smsw | Verr | Verw | Lar | Lsl => {
            return Some("descriptor tables (system)")
        }
        Rdfsbase | Rdgsbase | Wrfsbase | Wrgsbase => {
            return Some("segment bases belong to the harness")
        }
        Cli | Sti | Hlt => return Some("privileged"),
        Stac | Clac => return Some("privileged"),
        Lss | Lfs | Lgs => return Some("loads a segment register (system)"),
        Ud0 => return Some("length differs between makers"),
        _ => {}
    }
    if op.is_privileged() || op.must_be_cpl0() || !op.cpl3() {
        return Some("privileged");
    }
    if op.is_reserved_nop() {
        return Some("reserved NOP");
    }
    if op.fwait() {
        return Some("WAIT with another instruction: both are covered by themselves");
    }
    if !op.intel_decoder64() || !op.amd_decoder64() {
        return Some("differs between makers in 64-bit mode");
    }
    for kind in op.op_kinds() {
        match kind {
            K::seg_reg | K::es | K::cs | K::ss | K::ds | K::fs | K::gs => {
                return Some("reads or loads a segment register (system)")
            }
            K::cr_reg | K::dr_reg | K::tr_reg => return Some("privileged"),
            K::farbr2_2 | K::farbr4_2 => return Some("far control transfer"),
            _ => {}
        }
    }
    let text = format!("{code:?}");
    if text.starts_with("Retf")
        || text.contains("_m1616")
        || text.contains("_m1632")
        || text.contains("_m1664")
    {
        return Some("far control transfer");
    }
    None
}

fn family(code: Code) -> Family {
    use CpuidFeature::*;
    let features = code.cpuid_features();
    let any = |list: &[CpuidFeature]| features.iter().any(|feature| list.contains(feature));
    let op = code.op_code();
    if any(&[FXSR]) {
        Family::State
    } else if any(&[FPU, FPU287, FPU387]) {
        Family::X87
    } else if op.op_kinds().iter().any(|kind| {
        use OpCodeOperandKind as K;
        matches!(kind, K::mm_reg | K::mm_rm | K::mm_or_mem)
    }) || code.mnemonic() == Mnemonic::Emms
    {
        Family::Mmx
    } else if any(&[SSE, SSE2, SSE3, SSSE3, SSE4_1, SSE4_2, AES, PCLMULQDQ]) {
        Family::Sse
    } else if is_string(code) {
        Family::String
    } else if is_control(code) {
        Family::Control
    } else {
        Family::Integer
    }
}

/// MOVS, CMPS, SCAS, LODS, STOS.
pub fn is_string(code: Code) -> bool {
    use OpCodeOperandKind as K;
    code.op_code()
        .op_kinds()
        .iter()
        .any(|kind| matches!(kind, K::es_rDI | K::seg_rSI))
}

/// Near control transfers.
pub fn is_control(code: Code) -> bool {
    use iced_x86::FlowControl as F;
    matches!(
        code.flow_control(),
        F::UnconditionalBranch
            | F::IndirectBranch
            | F::ConditionalBranch
            | F::Return
            | F::Call
            | F::IndirectCall
    )
}
