//! What an encoding is to do on the model `westmere`, told apart from how rr86 finds it out: by the SDM's list of
//! what raises #UD.

use iced_x86::{
    CpuidFeature as F, Decoder, DecoderOptions, EncodingKind, Formatter, Instruction,
    IntelFormatter, Mnemonic as M, OpCodeTableKind, OpKind, Register,
};

use super::{hex, Mode};

/// What is known of an encoding in a mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It raises #UD.
    Undefined,
    /// It executes or raises something else.
    Defined,
    /// Either, because the order of several faults is the processor's own.
    Open,
}

/// Decodes as a processor does that has neither LZCNT nor TZCNT nor WBNOINVD.
pub fn decode(bytes: &[u8], mode: Mode) -> Instruction {
    let options =
        DecoderOptions::NO_MPFX_0FBC | DecoderOptions::NO_MPFX_0FBD | DecoderOptions::NO_WBNOINVD;
    Decoder::with_ip(mode.bits(), bytes, 0, options).decode()
}

/// Length of the encoding; all of the bytes where there is none.
pub fn length(bytes: &[u8], mode: Mode) -> usize {
    let insn = decode(bytes, mode);
    if insn.is_invalid() {
        bytes.len()
    } else {
        insn.len()
    }
}

/// Bytes and text of an encoding.
pub fn describe(bytes: &[u8], mode: Mode) -> String {
    let insn = decode(bytes, mode);
    let mut text = String::new();
    IntelFormatter::new().format(&insn, &mut text);
    let shown = if insn.is_invalid() { 8 } else { insn.len() };
    format!("{} ({text})", hex(&bytes[..shown]))
}

fn offered(feature: F) -> bool {
    matches!(
        feature,
        F::INTEL8086
            | F::INTEL8086_ONLY
            | F::INTEL186
            | F::INTEL286
            | F::INTEL286_ONLY
            | F::INTEL386
            | F::INTEL386_ONLY
            | F::INTEL486
            | F::X64
            | F::FPU
            | F::FPU287
            | F::FPU387
            | F::CPUID
            | F::MSR
            | F::TSC
            | F::RDTSCP
            | F::RDPMC
            | F::CMOV
            | F::CX8
            | F::CMPXCHG16B
            | F::MMX
            | F::SSE
            | F::SSE2
            | F::SSE3
            | F::SSSE3
            | F::SSE4_1
            | F::SSE4_2
            | F::POPCNT
            | F::AES
            | F::PCLMULQDQ
            | F::FXSR
            | F::XSAVE
            | F::XSAVEOPT
            | F::SMAP
            | F::SEP
            | F::SYSCALL
            | F::MULTIBYTENOP
            | F::PAUSE
            | F::PREFETCHW
            | F::CLFSH
            | F::FSGSBASE
    )
}

/// 0F 0D and 0F 18 to 0F 1F, which do nothing on a processor that knows no better.
pub fn is_hint(insn: &Instruction) -> bool {
    let op = insn.code().op_code();
    // Of ENDBR, the ModRM byte belongs to the opcode.
    let whole = op.op_code();
    let first = if whole > 0xff { whole >> 8 } else { whole };
    op.encoding() == EncodingKind::Legacy
        && op.table() == OpCodeTableKind::T0F
        && matches!(first, 0x0d | 0x18..=0x1f)
}

/// Whether the model has the instruction at all.
pub fn is_offered(insn: &Instruction) -> bool {
    !insn.is_invalid() && (is_hint(insn) || insn.cpuid_features().iter().all(|&f| offered(f)))
}

/// What the SDM says of an encoding.
pub fn expected(bytes: &[u8], mode: Mode) -> Expected {
    let insn = decode(bytes, mode);
    if !is_offered(&insn) {
        return Expected::Undefined;
    }
    if is_hint(&insn) {
        return Expected::Defined;
    }
    let undefined = match insn.mnemonic() {
        M::Ud0 | M::Ud1 | M::Ud2 => true,
        // SDM vol. 2, "Real-Address Mode Exceptions" of each.
        M::Arpl | M::Lar | M::Lsl | M::Verr | M::Verw | M::Lldt | M::Sldt | M::Ltr | M::Str => {
            matches!(mode, Mode::Real | Mode::Virtual8086)
        }
        M::Stac | M::Clac => mode.user(),
        M::Swapgs | M::Syscall | M::Sysret | M::Sysretq => mode.bits() != 64,
        M::Rsm => true,
        M::Mov => match bad_register(&insn) {
            // Which comes first, the register or the privilege, is not written down.
            true if mode.user() => return Expected::Open,
            bad => bad,
        },
        _ => false,
    };
    if undefined {
        Expected::Undefined
    } else {
        Expected::Defined
    }
}

/// MOV of a control or debug register that does not exist (CR4.DE is clear).
fn bad_register(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|n| {
        let register = insn.op_register(n);
        let exists = matches!(
            register,
            Register::CR0 | Register::CR2 | Register::CR3 | Register::CR4 | Register::CR8
        );
        insn.op_kind(n) == OpKind::Register
            && (register.is_cr() && !exists || register.is_dr() && register.number() > 7)
    })
}
