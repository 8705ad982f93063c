//! What the machine's CPU model lets an encoding do.
//!
//! A processor without a feature raises #UD for the feature's instructions, ignores the prefix by which some of
//! them differ from an older instruction, and takes hint NOPs for what they are (SDM vol. 2, the #UD rows of each
//! instruction). So what an encoding does is decided by the model's CPUID table before it is translated. The
//! host is asked for nothing that the model does not offer, and for nothing that is not listed here.

use iced_x86::{
    Code, CpuidFeature as F, Decoder, DecoderOptions, EncodingKind, Instruction, OpCodeTableKind,
};

use crate::cpu::cpuid::{CpuidTable, Feature};
use crate::cpu::semantics::Semantics;
use crate::translate::mode::Mode;

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
        // Of ENDBR, the ModRM byte belongs to the opcode.
        let first = op.op_code() >> (8 * (op.op_code_len().max(1) - 1));
        op.encoding() == EncodingKind::Legacy
            && op.table() == OpCodeTableKind::T0F
            && matches!(first, 0x0d | 0x18..=0x1f)
    }

    /// Whether these bytes are #UD by their opcode, so that it does not matter how long they would be: VEX, EVEX and
    /// XOP prefixes are none here, but LDS, LES, BOUND and POP with operands that these do not have.
    pub fn is_undefined_at_once(&self, mode: Mode, bytes: &[u8]) -> bool {
        let is_prefix = |byte: &&u8| {
            matches!(
                **byte,
                0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3
            ) || mode.code64() && **byte & 0xf0 == 0x40
        };
        let at = bytes.iter().take_while(is_prefix).count();
        let (Some(opcode), Some(modrm)) = (bytes.get(at), bytes.get(at + 1)) else {
            return false;
        };
        self.semantics.model_decides_encodings()
            && match opcode {
                0x62 | 0xc4 | 0xc5 => mode.code64() || modrm >= &0xc0,
                0x8f => modrm & 0x38 != 0,
                _ => false,
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::cpuid::CpuidRow;
    use crate::cpu::exception::{vector, Exception};
    use crate::cpu::state::{CpuState, Cr0, Cr4};
    use crate::translate::decode::classify::shape::single;
    use crate::translate::decode::classify::{classify, Class};
    use iced_x86::Mnemonic;

    const UD: Class = Class::Raise(Exception::ud());
    /// FPU, TSC, MSR, CX8, SEP, CMOV, CLFLUSH, MMX, FXSR, SSE and SSE2.
    const BASIC: u32 = 0x0788_8931;
    /// SSE3, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, POPCNT and XSAVE.
    const MORE: u32 = 0x0498_2201;
    const AES: u32 = 1 << 25 | 1 << 1;

    /// A model with these bits in leaf 1, ECX.
    fn offered(ecx: u32, semantics: Semantics) -> Offered {
        let row = |leaf, ecx, edx| CpuidRow {
            leaf,
            subleaf: None,
            eax: 0,
            ebx: 0,
            ecx,
            edx,
        };
        let rows = [row(1, ecx, BASIC), row(0x8000_0001, 0, 1 << 29)];
        Offered::of(&CpuidTable::new(rows), semantics)
    }

    fn westmere() -> Offered {
        offered(MORE | AES, Semantics::CURRENT)
    }

    /// 64-bit code in ring 0 with everything on.
    fn cpu() -> CpuState {
        let mut cpu = CpuState::reset(0);
        cpu.efer = 0x500;
        cpu.cr0 = (Cr0::PE | Cr0::PG | Cr0::NE).bits();
        cpu.cr4 = (Cr4::PAE | Cr4::OSFXSR).bits();
        cpu.seg[crate::cpu::state::sreg::CS].attr = 0xa09b;
        cpu
    }

    fn mode() -> Mode {
        Mode::of(&cpu())
    }

    fn class(bytes: &[u8], mode: Mode, offered: &Offered) -> Class {
        classify(&single(bytes, 0, mode, offered), mode, offered)
    }

    #[test]
    fn what_the_model_lacks_is_undefined_before_the_host_sees_it() {
        let lacking: [&[u8]; 16] = [
            &[0x0f, 0x38, 0xf6, 0x00],             // wrssd
            &[0x66, 0x0f, 0x38, 0xf5, 0x00],       // wrussd
            &[0xf3, 0x0f, 0x01, 0x28],             // rstorssp
            &[0xf3, 0x0f, 0x01, 0xea],             // saveprevssp
            &[0xf3, 0x0f, 0x01, 0xe8],             // setssbsy
            &[0xf3, 0x0f, 0xae, 0x30],             // clrssbsy
            &[0xf3, 0x0f, 0xae, 0xe8],             // incsspd
            &[0x66, 0x0f, 0xae, 0x38],             // clflushopt
            &[0x66, 0x0f, 0xae, 0x30],             // clwb
            &[0x0f, 0xc7, 0xf0],                   // rdrand
            &[0xf3, 0x0f, 0xc7, 0xf8],             // rdpid
            &[0x0f, 0x38, 0xf0, 0x00],             // movbe
            &[0xc5, 0xf8, 0x58, 0xc0],             // vaddps
            &[0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc0], // vaddps zmm
            &[0x0f, 0x01, 0xd9],                   // vmmcall
            &[0x0f, 0x38, 0xc8, 0xc0],             // sha1nexte
        ];
        for bytes in lacking {
            assert_eq!(class(bytes, mode(), &westmere()), UD, "{bytes:x?}");
            let without_model = Offered::default();
            assert_eq!(class(bytes, mode(), &without_model), UD, "{bytes:x?}");
        }
    }

    #[test]
    fn aes_follows_its_bit() {
        let bytes = [0x66, 0x0f, 0x38, 0xdc, 0xc1];
        assert_eq!(class(&bytes, mode(), &westmere()), Class::CopyFpu);
        assert_eq!(class(&bytes, mode(), &Offered::default()), Class::CopyFpu);
        assert_eq!(
            class(&bytes, mode(), &offered(MORE, Semantics::CURRENT)),
            UD
        );
        assert_eq!(
            class(&bytes, mode(), &offered(MORE | AES, Semantics::FIRST)),
            UD
        );
    }

    #[test]
    fn hints_do_nothing_whatever_they_mean_elsewhere() {
        let hints: [&[u8]; 8] = [
            &[0xf3, 0x0f, 0x1e, 0xfa],       // endbr64
            &[0xf3, 0x48, 0x0f, 0x1e, 0xc8], // rdsspq
            &[0x0f, 0x1c, 0x00],             // cldemote
            &[0x0f, 0x0d, 0x10],             // prefetchwt1
            &[0x0f, 0x0d, 0x08],             // prefetchw
            &[0x66, 0x0f, 0x1a, 0xc1],       // bndmov
            &[0x0f, 0x18, 0x20],
            &[0x0f, 0x1f, 0xff],
        ];
        for bytes in hints {
            assert_eq!(class(bytes, mode(), &westmere()), Class::Nop, "{bytes:x?}");
        }
    }

    #[test]
    fn a_prefix_that_the_processor_does_not_know_is_ignored() {
        let older: [(&[u8], Mnemonic); 3] = [
            (&[0xf3, 0x0f, 0xbc, 0xc1], Mnemonic::Bsf),
            (&[0xf3, 0x0f, 0xbd, 0xc1], Mnemonic::Bsr),
            (&[0xf3, 0x0f, 0x09], Mnemonic::Wbinvd),
        ];
        for (bytes, mnemonic) in older {
            let insn = single(bytes, 0, mode(), &westmere());
            assert_eq!(insn.mnemonic(), mnemonic);
        }
    }

    #[test]
    fn traces_of_the_first_semantics_keep_what_they_had() {
        let first = offered(0, Semantics::FIRST);
        for bytes in [
            &[0x0f, 0x1c, 0x00][..],
            &[0xf3, 0x0f, 0x09],
            &[0x0f, 0x0d, 0x10],
        ] {
            assert_eq!(class(bytes, mode(), &first), UD, "{bytes:x?}");
        }
        for bytes in [&[0xf3, 0x0f, 0x1e, 0xfa][..], &[0xf3, 0x0f, 0x1e, 0xc8]] {
            assert_eq!(class(bytes, mode(), &first), Class::Nop, "{bytes:x?}");
        }
        // Whatever the bits of the model were.
        let popcnt = [0xf3, 0x0f, 0xb8, 0xc1];
        assert_eq!(class(&popcnt, mode(), &first), Class::Copy);
        assert_eq!(class(&popcnt, mode(), &offered(0, Semantics::CURRENT)), UD);
    }

    #[test]
    fn only_instructions_with_fpu_registers_ask_for_the_fpu() {
        let mut state = cpu();
        state.cr0 |= Cr0::EM.bits();
        let mode = Mode::of(&state);
        let nm = Class::Raise(Exception::new(vector::NM));
        let crc32 = [0xf2, 0x0f, 0x38, 0xf0, 0xc1];
        let movnti = [0x0f, 0xc3, 0x01];
        let paddb = [0x0f, 0xfc, 0xc1];
        let fadd = [0xd8, 0xc1];
        for (bytes, now, before) in [
            (&crc32[..], Class::Copy, UD),
            (&movnti, Class::Copy, UD),
            (&paddb, UD, nm),
            (&fadd, nm, nm),
        ] {
            assert_eq!(class(bytes, mode, &westmere()), now, "{bytes:x?}");
            let first = offered(MORE, Semantics::FIRST);
            assert_eq!(class(bytes, mode, &first), before, "{bytes:x?}");
        }
    }

    #[test]
    fn a_long_encoding_of_another_processor_is_undefined_and_not_too_long() {
        use crate::translate::decode::classify::shape::too_long;
        // XOP BEXTR with SIB byte, displacement and immediate, and two prefixes: 16 bytes.
        let mut bytes = [0u8; 16];
        bytes[..7].copy_from_slice(&[0xf2, 0xf3, 0x8f, 0xea, 0x78, 0x10, 0xa4]);
        let insn = single(&bytes, 0, mode(), &westmere());
        assert!(!too_long(&insn, &bytes, mode(), &westmere()));
        // add dword ptr [rax + rax + 0], 0 with 6 more prefixes than there is room for.
        let mut bytes = [0u8; 18];
        bytes[..9].copy_from_slice(&[0x26, 0x26, 0x26, 0x26, 0x26, 0x26, 0x81, 0x84, 0]);
        let insn = single(&bytes, 0, mode(), &westmere());
        assert!(too_long(&insn, &bytes, mode(), &westmere()));
    }

    #[test]
    fn every_feature_has_a_bit() {
        assert!(F::values().count() <= 64 * WORDS);
    }
}
