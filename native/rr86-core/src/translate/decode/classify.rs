//! Which way an instruction is translated.
//!
//! Almost everything is copied. What touches memory in a way of its own, changes control flow or
//! needs privileges goes elsewhere; what the CPU model does not offer raises #UD even where the host
//! could run it, so that a guest behaves the same on every host.

use iced_x86::{Code, CpuidFeature, Instruction, Mnemonic, OpKind};

use crate::cpu::exception::{vector, Exception};
use crate::translate::decode::offered::Offered;
use crate::translate::mode::Mode;

/// How an instruction is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// No effect that a guest can see.
    Nop,
    /// Re-encoded with rewritten operands.
    Copy,
    /// Copied, and it needs the guest's FPU state in the host's FPU.
    CopyFpu,
    Lea,
    Push,
    Pop,
    Leave,
    /// CLD, STD.
    Direction,
    /// Direct jumps and branches.
    Jump,
    Branch,
    /// LOOP, JCXZ and their kin.
    CountBranch,
    Call,
    IndirectJump,
    IndirectCall,
    Return,
    /// A Rust helper; the block goes on.
    Helper,
    /// A Rust helper that ends the block.
    HelperEnd,
    /// Raises an exception and nothing else.
    Raise(Exception),
}

impl Class {
    /// Whether no instruction of the same block can follow.
    pub fn ends_block(self) -> bool {
        !matches!(
            self,
            Self::Nop
                | Self::Copy
                | Self::CopyFpu
                | Self::Lea
                | Self::Push
                | Self::Pop
                | Self::Leave
                | Self::Direction
                | Self::Helper
        )
    }
}

fn uses_fpu(insn: &Instruction) -> Option<bool> {
    use CpuidFeature as F;
    let mut fpu = None;
    for f in insn.cpuid_features() {
        match f {
            F::FPU | F::FPU287 | F::FPU387 | F::MMX => fpu = Some(fpu.unwrap_or(false)),
            F::SSE | F::SSE2 | F::SSE3 | F::SSSE3 | F::SSE4_1 | F::SSE4_2 => fpu = Some(true),
            F::AES | F::PCLMULQDQ => fpu = Some(true),
            _ => {}
        }
    }
    fpu
}

/// Whether an instruction has an ordinary memory operand.
pub fn has_memory(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory)
}

/// Instructions that raise #GP(0) for an operand that is not aligned to its size, before anything is
/// known of its page: those with 16 bytes, but for the few that are there to load and store unaligned
/// operands (SDM vol. 1, table 15-6).
pub fn needs_alignment(insn: &Instruction) -> bool {
    use Mnemonic as M;
    has_memory(insn)
        && insn.memory_size().size() == 16
        && !matches!(
            insn.mnemonic(),
            M::Movups
                | M::Movupd
                | M::Movdqu
                | M::Lddqu
                | M::Pcmpistri
                | M::Pcmpistrm
                | M::Pcmpestri
                | M::Pcmpestri64
                | M::Pcmpestrm
                | M::Pcmpestrm64
        )
}

/// Instructions that report an x87 exception that is pending (SDM vol. 1, section 8.3.12).
pub fn waits(insn: &Instruction) -> bool {
    use Mnemonic as M;
    let mmx_register = (0..insn.op_count())
        .any(|i| insn.op_kind(i) == OpKind::Register && insn.op_register(i).is_mm());
    mmx_register
        || is_x87(insn)
            && !matches!(
                insn.mnemonic(),
                M::Fnstcw | M::Fnstsw | M::Fnstenv | M::Fnsave | M::Fnclex | M::Fninit
            )
}

/// Whether an instruction is one of the x87 unit's.
pub fn is_x87(insn: &Instruction) -> bool {
    use CpuidFeature as F;
    insn.cpuid_features()
        .iter()
        .any(|f| matches!(f, F::FPU | F::FPU287 | F::FPU387))
}

/// Whether a string instruction is repeated.
pub fn repeated(insn: &Instruction) -> bool {
    insn.has_rep_prefix() || insn.has_repne_prefix()
}

/// Classifies `insn` as it stands in `mode` on a processor that offers this.
/// One match over all mnemonics, so that each is in one place; it is long because they are many.
pub fn classify(insn: &Instruction, mode: Mode, offered: &Offered) -> Class {
    use Mnemonic as M;
    if insn.is_invalid() {
        return Class::Raise(Exception::ud());
    }
    if !offered.knows(insn) {
        return if offered.is_hint(insn) {
            Class::Nop
        } else {
            Class::Raise(Exception::ud())
        };
    }
    match insn.mnemonic() {
        M::Nop | M::Reservednop => Class::Nop,
        M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 => Class::Nop,
        M::Prefetch | M::Prefetchw | M::Prefetchwt1 => Class::Nop,
        M::Lfence | M::Mfence | M::Sfence => Class::Nop,
        M::Wait if mode.fpu_off() => Class::Helper,
        M::Wait => Class::CopyFpu,
        M::Ud0 | M::Ud1 | M::Ud2 => Class::Raise(Exception::ud()),
        M::Lea => Class::Lea,
        M::Push => match insn.code() {
            Code::Pushw_ES | Code::Pushd_ES | Code::Pushw_CS | Code::Pushd_CS => Class::Helper,
            Code::Pushw_SS | Code::Pushd_SS | Code::Pushw_DS | Code::Pushd_DS => Class::Helper,
            Code::Pushw_FS | Code::Pushd_FS | Code::Pushq_FS => Class::Helper,
            Code::Pushw_GS | Code::Pushd_GS | Code::Pushq_GS => Class::Helper,
            _ => Class::Push,
        },
        M::Pop => {
            if insn.op0_kind() == OpKind::Register && insn.op0_register().is_segment_register() {
                Class::HelperEnd
            } else {
                Class::Pop
            }
        }
        M::Leave => Class::Leave,
        M::Cld | M::Std => Class::Direction,
        M::Jmp if insn.is_jmp_short_or_near() => Class::Jump,
        M::Jmp if insn.is_jmp_near_indirect() => Class::IndirectJump,
        M::Call if insn.is_call_near() => Class::Call,
        M::Call if insn.is_call_near_indirect() => Class::IndirectCall,
        M::Jmp | M::Call | M::Retf => Class::HelperEnd,
        M::Ret => Class::Return,
        M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz | M::Jrcxz => {
            if count_is_16bit(insn) {
                Class::HelperEnd
            } else {
                Class::CountBranch
            }
        }
        _ if insn.is_jcc_short_or_near() => Class::Branch,
        M::Movsb
        | M::Movsw
        | M::Movsq
        | M::Stosb
        | M::Stosw
        | M::Stosd
        | M::Stosq
        | M::Lodsb
        | M::Lodsw
        | M::Lodsd
        | M::Lodsq
        | M::Scasb
        | M::Scasw
        | M::Scasd
        | M::Scasq
        | M::Cmpsb
        | M::Cmpsw
        | M::Cmpsq => string(insn),
        M::Movsd | M::Cmpsd if insn.is_string_instruction() => string(insn),
        M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd => Class::HelperEnd,
        M::Clflush
        | M::Cpuid
        | M::Rdtsc
        | M::Rdtscp
        | M::Rdmsr
        | M::Rdpmc
        | M::Cli
        | M::Sti
        | M::Pushf
        | M::Pushfd
        | M::Pushfq
        | M::Sgdt
        | M::Sidt
        | M::Sldt
        | M::Str
        | M::Smsw
        | M::Lgdt
        | M::Lidt
        | M::Lar
        | M::Lsl
        | M::Verr
        | M::Verw
        | M::Arpl
        | M::Swapgs
        | M::Rdfsbase
        | M::Rdgsbase
        | M::Wrfsbase
        | M::Wrgsbase
        | M::Xgetbv
        | M::Lahf
        | M::Sahf
        | M::Xlatb
        | M::Aaa
        | M::Aas
        | M::Aad
        | M::Aam
        | M::Daa
        | M::Das
        | M::Salc
        | M::Bound
        | M::Enter
        | M::Pusha
        | M::Pushad
        | M::Popa
        | M::Popad
        | M::Wbinvd
        | M::Invd => Class::Helper,
        M::Fxsave
        | M::Fxsave64
        | M::Fxrstor
        | M::Fxrstor64
        | M::Xsave
        | M::Xsave64
        | M::Xsaveopt
        | M::Xsaveopt64
        | M::Xrstor
        | M::Xrstor64 => Class::Helper,
        M::Fnsave
        | M::Fsave
        | M::Frstor
        | M::Fnstenv
        | M::Fstenv
        | M::Fldenv
        | M::Ldmxcsr
        | M::Maskmovq
        | M::Maskmovdqu => fpu_checked(insn, mode, offered, Class::Helper),
        M::Mov if touches_system_register(insn) => {
            if insn.op0_register().is_segment_register()
                || insn.op0_register().is_cr()
                || insn.op0_register().is_dr()
            {
                Class::HelperEnd
            } else {
                Class::Helper
            }
        }
        M::Wrmsr
        | M::Lmsw
        | M::Clts
        | M::Invlpg
        | M::Lldt
        | M::Ltr
        | M::Lds
        | M::Les
        | M::Lss
        | M::Lfs
        | M::Lgs
        | M::Popf
        | M::Popfd
        | M::Popfq
        | M::Iret
        | M::Iretd
        | M::Iretq
        | M::Int
        | M::Into
        | M::Int1
        | M::Int3
        | M::Syscall
        | M::Sysret
        | M::Sysretq
        | M::Sysenter
        | M::Sysexit
        | M::Sysexitq
        | M::Hlt
        | M::Pause
        | M::In
        | M::Out
        | M::Stac
        | M::Clac
        | M::Xsetbv => Class::HelperEnd,
        M::Rsm | M::Vmcall | M::Vmmcall => Class::Raise(Exception::ud()),
        M::Crc32 | M::Movnti if offered.semantics().fpu_is_asked_where_it_is_used() => Class::Copy,
        _ if is_plain(insn) => match uses_fpu(insn) {
            Some(_) => fpu_checked(insn, mode, offered, Class::CopyFpu),
            None => Class::Copy,
        },
        _ => Class::Raise(Exception::ud()),
    }
}

fn string(insn: &Instruction) -> Class {
    if repeated(insn) {
        Class::HelperEnd
    } else {
        Class::Helper
    }
}

/// #UD or #NM where CR0 and CR4 forbid the instruction (SDM vol. 3A, sections 2.5 and 13.1).
fn fpu_checked(insn: &Instruction, mode: Mode, offered: &Offered, class: Class) -> Class {
    let sse = uses_fpu(insn) == Some(true);
    let mmx = !sse && !is_x87(insn) && offered.semantics().fpu_is_asked_where_it_is_used();
    if sse && !mode.sse() || (sse || mmx) && mode.emulated_fpu() {
        Class::Raise(Exception::ud())
    } else if mode.fpu_off() {
        Class::Raise(Exception::new(vector::NM))
    } else {
        class
    }
}

fn touches_system_register(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|i| {
        insn.op_kind(i) == OpKind::Register && {
            let r = insn.op_register(i);
            r.is_segment_register() || r.is_cr() || r.is_dr() || r.is_tr()
        }
    })
}

fn count_is_16bit(insn: &Instruction) -> bool {
    use Code as C;
    matches!(
        insn.code(),
        C::Jcxz_rel8_16
            | C::Jcxz_rel8_32
            | C::Loop_rel8_16_CX
            | C::Loop_rel8_32_CX
            | C::Loope_rel8_16_CX
            | C::Loope_rel8_32_CX
            | C::Loopne_rel8_16_CX
            | C::Loopne_rel8_32_CX
    )
}

/// All operands are registers, immediates or one ordinary memory operand.
fn is_plain(insn: &Instruction) -> bool {
    !insn.is_privileged()
        && (0..insn.op_count()).all(|i| {
            matches!(
                insn.op_kind(i),
                OpKind::Register
                    | OpKind::Memory
                    | OpKind::Immediate8
                    | OpKind::Immediate8_2nd
                    | OpKind::Immediate16
                    | OpKind::Immediate32
                    | OpKind::Immediate64
                    | OpKind::Immediate8to16
                    | OpKind::Immediate8to32
                    | OpKind::Immediate8to64
                    | OpKind::Immediate32to64
            )
        })
}

/// The bytes of code that a block may be made of, decoded.
pub mod shape {
    use super::{classify, Class};
    use crate::translate::decode::offered::Offered;
    use crate::translate::mode::Mode;
    use iced_x86::{DecoderError, Instruction, Mnemonic};

    /// What decoding came to.
    pub enum Shape {
        /// A block of these instructions.
        Block(Vec<(Instruction, Class)>),
        /// The first instruction goes on in the next page: try again with more bytes.
        Crosses,
    }

    /// The one instruction at the start of `bytes`, which has been decoded before.
    pub fn single(bytes: &[u8], rip: u64, mode: Mode, offered: &Offered) -> Instruction {
        offered.decoder(mode, bytes, rip).decode()
    }

    /// Whether an invalid instruction is so because it has more than 15 bytes: #GP rather than #UD (SDM
    /// vol. 3A, section 6.15). One byte less of a long one, which begins with prefixes, still goes on.
    pub fn too_long(insn: &Instruction, bytes: &[u8], mode: Mode, offered: &Offered) -> bool {
        if !insn.is_invalid() || insn.len() != 15 || bytes.len() < 15 {
            return false;
        }
        if offered.is_undefined_at_once(mode, bytes) {
            return false;
        }
        let mut decoder = offered.decoder(mode, &bytes[1..15], 0);
        let _ = decoder.decode();
        decoder.last_error() == DecoderError::NoMoreBytes
    }

    /// Cuts a block from `bytes`, which start at `rip` and reach to the end of the page, or (when
    /// `whole`) far enough for one instruction that crosses. A pure function of its arguments.
    pub fn cut(
        bytes: &[u8],
        rip: u64,
        mode: Mode,
        offered: &Offered,
        limit: usize,
        whole: bool,
    ) -> Shape {
        let mut block = Vec::new();
        if cut_into(&mut block, bytes, rip, mode, offered, limit, whole) {
            Shape::Block(block)
        } else {
            Shape::Crosses
        }
    }

    /// The same, into an empty vector. False when the first instruction crosses.
    pub fn cut_into(
        block: &mut Vec<(Instruction, Class)>,
        bytes: &[u8],
        rip: u64,
        mode: Mode,
        offered: &Offered,
        limit: usize,
        whole: bool,
    ) -> bool {
        let limit = if mode.one() || whole { 1 } else { limit };
        let mut decoder = offered.decoder(mode, bytes, rip);
        while block.len() < limit && decoder.can_decode() {
            let insn = decoder.decode();
            if insn.is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes && !whole {
                break;
            }
            let class = classify(&insn, mode, offered);
            block.push((insn, class));
            // An interrupt may be taken after the instruction that follows STI, so that one is the
            // block's last.
            let after_sti = block.len() > 1 && block[block.len() - 2].0.mnemonic() == Mnemonic::Sti;
            if class.ends_block() || after_sti {
                break;
            }
        }
        !block.is_empty()
    }
}
