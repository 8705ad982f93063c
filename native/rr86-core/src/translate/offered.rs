//! What the machine's CPU model lets an encoding do.
//!
//! A processor without a feature raises #UD for the feature's instructions, ignores the prefix by which some of
//! them differ from an older instruction, and takes hint NOPs for what they are (SDM vol. 2, the #UD rows of each
//! instruction). So what an encoding does is decided by the model's CPUID table before it is translated. The
//! host is asked for nothing that the model does not offer, and for nothing that is not listed here.

use iced_x86::{
    Code, CpuidFeature as F, Decoder, DecoderOptions, EncodingKind, Instruction, OpCodeTableKind,
};

use super::mode::Mode;
use crate::cpu::cpuid::{CpuidTable, Feature};
use crate::cpu::semantics::Semantics;

const WORDS: usize = 4;

/// What every processor with long mode has, whatever its CPUID says.
const ALWAYS: &[F] = &[
    F::INTEL8086,
    F::INTEL8086_ONLY,
    F::INTEL186,
    F::INTEL286,
    F::INTEL286_ONLY,
    F::INTEL386,
    F::INTEL386_ONLY,
    F::INTEL486,
    F::X64,
    F::CPUID,
    F::RDPMC,
    F::MULTIBYTENOP,
    F::PAUSE,
    F::PREFETCHW,
];

/// Feature bits with the instructions that translated code or a helper can carry out for each. Features that
/// are not listed are never offered, whatever the model says.
const FEATURES: &[(Feature, &[F])] = &[
    (Feature::FPU, &[F::FPU, F::FPU287, F::FPU387]),
    (Feature::TSC, &[F::TSC]),
    (Feature::MSR, &[F::MSR]),
    (Feature::CX8, &[F::CX8]),
    (Feature::SEP, &[F::SEP]),
    (Feature::CMOV, &[F::CMOV]),
    (Feature::CLFLUSH, &[F::CLFSH]),
    (Feature::MMX, &[F::MMX]),
    (Feature::FXSR, &[F::FXSR]),
    (Feature::SSE, &[F::SSE]),
    (Feature::SSE2, &[F::SSE2]),
    (Feature::SSE3, &[F::SSE3]),
    (Feature::PCLMULQDQ, &[F::PCLMULQDQ]),
    (Feature::SSSE3, &[F::SSSE3]),
    (Feature::CMPXCHG16B, &[F::CMPXCHG16B]),
    (Feature::SSE4_1, &[F::SSE4_1]),
    (Feature::SSE4_2, &[F::SSE4_2]),
    (Feature::POPCNT, &[F::POPCNT]),
    (Feature::AES, &[F::AES]),
    (Feature::XSAVE, &[F::XSAVE]),
    (Feature::XSAVEOPT, &[F::XSAVEOPT]),
    (Feature::FSGSBASE, &[F::FSGSBASE]),
    (Feature::SMAP, &[F::SMAP]),
    (Feature::SYSCALL, &[F::SYSCALL]),
    (Feature::RDTSCP, &[F::RDTSCP]),
];

/// What the first version of the semantics offered on every model.
const FIRST: &[F] = &[
    F::MSR,
    F::TSC,
    F::RDTSCP,
    F::CMOV,
    F::FPU,
    F::FPU287,
    F::FPU387,
    F::MMX,
    F::SSE,
    F::SSE2,
    F::SSE3,
    F::SSSE3,
    F::SSE4_1,
    F::SSE4_2,
    F::POPCNT,
    F::CX8,
    F::CMPXCHG16B,
    F::FXSR,
    F::XSAVE,
    F::XSAVEOPT,
    F::SMAP,
    F::SEP,
    F::SYSCALL,
    F::CLFSH,
    F::FSGSBASE,
];

/// What the instructions of a machine may be. Fixed for a run: block shapes follow from it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offered {
    /// A bit for each of iced's features.
    features: [u64; WORDS],
    /// How the decoder takes prefixes that the model's processor ignores.
    options: u32,
    semantics: Semantics,
}

impl Offered {
    /// What a model offers. A table without leaf 1 belongs to a machine without a model, which may do whatever
    /// can be translated.
    pub fn of(model: &CpuidTable, semantics: Semantics) -> Self {
        let mut offered = Self {
            features: [0; WORDS],
            // No model has LZCNT or TZCNT, so that their encodings are BSR and BSF; nor WBNOINVD, which is WBINVD.
            options: DecoderOptions::NO_MPFX_0FBC
                | DecoderOptions::NO_MPFX_0FBD
                | DecoderOptions::NO_WBNOINVD,
            semantics,
        };
        ALWAYS.iter().for_each(|&f| offered.add(f));
        if !semantics.model_decides_encodings() {
            FIRST.iter().for_each(|&f| offered.add(f));
            offered.options &= !DecoderOptions::NO_WBNOINVD;
            return offered;
        }
        let without_model = model.find(1, 0).is_none();
        for (feature, instructions) in FEATURES {
            if without_model || model.has(*feature) {
                instructions.iter().for_each(|&f| offered.add(f));
            }
        }
        if !without_model && !model.has(Feature::LAHF64) {
            offered.options |= DecoderOptions::NO_LAHF_SAHF_64;
        }
        offered
    }

    fn add(&mut self, feature: F) {
        self.features[feature as usize / 64] |= 1 << (feature as usize % 64);
    }

    /// Whether the model's processor knows an instruction.
    pub fn knows(&self, insn: &Instruction) -> bool {
        insn.cpuid_features()
            .iter()
            .all(|&f| self.features[f as usize / 64] >> (f as usize % 64) & 1 != 0)
    }

    /// Whether an encoding is one of the hint NOPs, 0F 0D and 0F 18 to 0F 1F: whatever later processors do
    /// there, one that does not know it does nothing (SDM vol. 2B, "NOP", and appendix A).
    pub fn is_hint(&self, insn: &Instruction) -> bool {
        if !self.semantics.model_decides_encodings() {
            return matches!(
                insn.code(),
                Code::Endbr32 | Code::Endbr64 | Code::Rdsspd_r32 | Code::Rdsspq_r64
            );
        }
        let op = insn.code().op_code();
        op.encoding() == EncodingKind::Legacy
            && op.table() == OpCodeTableKind::T0F
            && op.op_code_len() == 1
            && matches!(op.op_code(), 0x0d | 0x18..=0x1f)
    }

    /// The rules that the run's instructions follow.
    pub fn semantics(&self) -> Semantics {
        self.semantics
    }

    /// Decodes as the model's processor does.
    pub fn decoder<'a>(&self, mode: Mode, bytes: &'a [u8], rip: u64) -> Decoder<'a> {
        Decoder::with_ip(mode.bits(), bytes, rip, self.options)
    }
}

impl Default for Offered {
    /// Everything that can be translated.
    fn default() -> Self {
        Self::of(&CpuidTable::new([]), Semantics::CURRENT)
    }
}
