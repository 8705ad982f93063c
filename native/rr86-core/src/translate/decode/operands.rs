//! What instructions are made of, as far as copying them goes: their operands' sizes, uses and places, and forms
//! that mean the same.

use iced_x86::{Code, Instruction, Mnemonic, OpAccess, OpKind, Register};

use crate::cpu::state::sreg;
use crate::translate::encode::asm::Reg;
use crate::translate::layout::HOST;
use crate::translate::site::AccessKind;

/// Encoding number of a general-purpose register of any size.
pub fn number(register: Register) -> usize {
    register.full_register().number()
}

/// The register `host` with the size of `like`, low byte for bytes.
pub(in crate::translate) fn sized(host: Reg, size: usize) -> Register {
    let n = u32::from(host.0);
    match size {
        1 if n < 4 => Register::AL + n,
        1 => Register::SPL + (n - 4),
        2 => Register::AX + n,
        4 => Register::EAX + n,
        _ => Register::RAX + n,
    }
}

pub(in crate::translate) fn is_high_byte(r: Register) -> bool {
    matches!(r, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// Index into `CpuState::seg` of the segment that a memory operand goes through.
pub fn segment_index(segment: Register) -> usize {
    match segment {
        Register::ES => sreg::ES,
        Register::CS => sreg::CS,
        Register::SS => sreg::SS,
        Register::FS => sreg::FS,
        Register::GS => sreg::GS,
        _ => sreg::DS,
    }
}

/// Instructions that use RAX without naming it in an encodable operand.
pub(in crate::translate) fn implicit_rax(insn: &Instruction) -> bool {
    use Mnemonic as M;
    match insn.mnemonic() {
        M::Mul
        | M::Div
        | M::Idiv
        | M::Cwd
        | M::Cdq
        | M::Cqo
        | M::Cmpxchg
        | M::Cmpxchg8b
        | M::Cmpxchg16b
        | M::Pcmpestri
        | M::Pcmpestri64
        | M::Pcmpestrm
        | M::Pcmpestrm64 => true,
        M::Imul => insn.op_count() == 1,
        M::Fnstsw | M::Fstsw => insn.op0_kind() == OpKind::Register,
        _ => false,
    }
}

/// The same instruction in a form whose operands can be any register.
pub(in crate::translate) fn general_form(insn: &Instruction) -> Instruction {
    use Code as C;
    let code = match insn.code() {
        C::Add_AL_imm8 => C::Add_rm8_imm8,
        C::Add_AX_imm16 => C::Add_rm16_imm16,
        C::Add_EAX_imm32 => C::Add_rm32_imm32,
        C::Add_RAX_imm32 => C::Add_rm64_imm32,
        C::Or_AL_imm8 => C::Or_rm8_imm8,
        C::Or_AX_imm16 => C::Or_rm16_imm16,
        C::Or_EAX_imm32 => C::Or_rm32_imm32,
        C::Or_RAX_imm32 => C::Or_rm64_imm32,
        C::Adc_AL_imm8 => C::Adc_rm8_imm8,
        C::Adc_AX_imm16 => C::Adc_rm16_imm16,
        C::Adc_EAX_imm32 => C::Adc_rm32_imm32,
        C::Adc_RAX_imm32 => C::Adc_rm64_imm32,
        C::Sbb_AL_imm8 => C::Sbb_rm8_imm8,
        C::Sbb_AX_imm16 => C::Sbb_rm16_imm16,
        C::Sbb_EAX_imm32 => C::Sbb_rm32_imm32,
        C::Sbb_RAX_imm32 => C::Sbb_rm64_imm32,
        C::And_AL_imm8 => C::And_rm8_imm8,
        C::And_AX_imm16 => C::And_rm16_imm16,
        C::And_EAX_imm32 => C::And_rm32_imm32,
        C::And_RAX_imm32 => C::And_rm64_imm32,
        C::Sub_AL_imm8 => C::Sub_rm8_imm8,
        C::Sub_AX_imm16 => C::Sub_rm16_imm16,
        C::Sub_EAX_imm32 => C::Sub_rm32_imm32,
        C::Sub_RAX_imm32 => C::Sub_rm64_imm32,
        C::Xor_AL_imm8 => C::Xor_rm8_imm8,
        C::Xor_AX_imm16 => C::Xor_rm16_imm16,
        C::Xor_EAX_imm32 => C::Xor_rm32_imm32,
        C::Xor_RAX_imm32 => C::Xor_rm64_imm32,
        C::Cmp_AL_imm8 => C::Cmp_rm8_imm8,
        C::Cmp_AX_imm16 => C::Cmp_rm16_imm16,
        C::Cmp_EAX_imm32 => C::Cmp_rm32_imm32,
        C::Cmp_RAX_imm32 => C::Cmp_rm64_imm32,
        C::Test_AL_imm8 => C::Test_rm8_imm8,
        C::Test_AX_imm16 => C::Test_rm16_imm16,
        C::Test_EAX_imm32 => C::Test_rm32_imm32,
        C::Test_RAX_imm32 => C::Test_rm64_imm32,
        C::Xchg_r16_AX => C::Xchg_rm16_r16,
        C::Xchg_r32_EAX => C::Xchg_rm32_r32,
        C::Xchg_r64_RAX => C::Xchg_rm64_r64,
        C::Mov_AL_moffs8 => C::Mov_r8_rm8,
        C::Mov_AX_moffs16 => C::Mov_r16_rm16,
        C::Mov_EAX_moffs32 => C::Mov_r32_rm32,
        C::Mov_RAX_moffs64 => C::Mov_r64_rm64,
        C::Mov_moffs8_AL => C::Mov_rm8_r8,
        C::Mov_moffs16_AX => C::Mov_rm16_r16,
        C::Mov_moffs32_EAX => C::Mov_rm32_r32,
        C::Mov_moffs64_RAX => C::Mov_rm64_r64,
        C::Inc_r16 => C::Inc_rm16,
        C::Inc_r32 => C::Inc_rm32,
        C::Dec_r16 => C::Dec_rm16,
        C::Dec_r32 => C::Dec_rm32,
        C::Add_rm8_imm8_82 => C::Add_rm8_imm8,
        C::Or_rm8_imm8_82 => C::Or_rm8_imm8,
        C::Adc_rm8_imm8_82 => C::Adc_rm8_imm8,
        C::Sbb_rm8_imm8_82 => C::Sbb_rm8_imm8,
        C::And_rm8_imm8_82 => C::And_rm8_imm8,
        C::Sub_rm8_imm8_82 => C::Sub_rm8_imm8,
        C::Xor_rm8_imm8_82 => C::Xor_rm8_imm8,
        C::Cmp_rm8_imm8_82 => C::Cmp_rm8_imm8,
        C::Cbw => C::Movsx_r16_rm8,
        C::Cwde => C::Movsx_r32_rm16,
        C::Cdqe => C::Movsxd_r64_rm32,
        other => other,
    };
    let mut general = *insn;
    general.set_code(code);
    let sign_extension = match code {
        C::Movsx_r16_rm8 if insn.code() == C::Cbw => Some((Register::AX, Register::AL)),
        C::Movsx_r32_rm16 if insn.code() == C::Cwde => Some((Register::EAX, Register::AX)),
        C::Movsxd_r64_rm32 if insn.code() == C::Cdqe => Some((Register::RAX, Register::EAX)),
        _ => None,
    };
    if let Some((to, from)) = sign_extension {
        general.set_op0_kind(OpKind::Register);
        general.set_op0_register(to);
        general.set_op1_kind(OpKind::Register);
        general.set_op1_register(from);
    }
    general
}

/// Bytes of memory that the host may touch. MOVSXD with a 16-bit operand size reads two bytes on Intel
/// and four on AMD; four are checked everywhere.
pub(in crate::translate) fn memory_bytes(op: &Instruction) -> usize {
    match op.code() {
        Code::Movsxd_r16_rm16 => 4,
        _ => op.memory_size().size().max(1),
    }
}

pub(in crate::translate) fn may_trap(insn: &Instruction, fpu: bool) -> bool {
    fpu || matches!(
        insn.mnemonic(),
        Mnemonic::Div | Mnemonic::Idiv | Mnemonic::Cmpxchg16b
    )
}

/// SSE instructions that move data and can raise nothing once their operand is there.
pub(in crate::translate) fn only_moves(insn: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        insn.mnemonic(),
        M::Movups
            | M::Movupd
            | M::Movdqu
            | M::Lddqu
            | M::Movss
            | M::Movsd
            | M::Movlps
            | M::Movhps
            | M::Movlpd
            | M::Movhpd
            | M::Movd
            | M::Movq
    ) && !crate::translate::decode::classify::waits(insn)
}

/// Instructions for which an operand that is a register may as well be a word of the vCPU.
pub(in crate::translate) fn takes_words(op: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        op.mnemonic(),
        M::Mov
            | M::Add
            | M::Adc
            | M::Sub
            | M::Sbb
            | M::And
            | M::Or
            | M::Xor
            | M::Cmp
            | M::Test
            | M::Inc
            | M::Dec
            | M::Neg
            | M::Not
            | M::Imul
            | M::Movzx
            | M::Movsx
            | M::Movsxd
            | M::Shl
            | M::Shr
            | M::Sar
            | M::Cmova
            | M::Cmovae
            | M::Cmovb
            | M::Cmovbe
            | M::Cmove
            | M::Cmovg
            | M::Cmovge
            | M::Cmovl
            | M::Cmovle
            | M::Cmovne
            | M::Cmovno
            | M::Cmovnp
            | M::Cmovns
            | M::Cmovo
            | M::Cmovp
            | M::Cmovs
    )
}

/// The form of an instruction on two registers in which the second one is what could be memory. Compilers use
/// the other one.
pub(in crate::translate) fn source_first(code: Code) -> Code {
    use Code as C;
    match code {
        C::Add_rm16_r16 => C::Add_r16_rm16,
        C::Add_rm32_r32 => C::Add_r32_rm32,
        C::Add_rm64_r64 => C::Add_r64_rm64,
        C::Or_rm16_r16 => C::Or_r16_rm16,
        C::Or_rm32_r32 => C::Or_r32_rm32,
        C::Or_rm64_r64 => C::Or_r64_rm64,
        C::Adc_rm16_r16 => C::Adc_r16_rm16,
        C::Adc_rm32_r32 => C::Adc_r32_rm32,
        C::Adc_rm64_r64 => C::Adc_r64_rm64,
        C::Sbb_rm16_r16 => C::Sbb_r16_rm16,
        C::Sbb_rm32_r32 => C::Sbb_r32_rm32,
        C::Sbb_rm64_r64 => C::Sbb_r64_rm64,
        C::And_rm16_r16 => C::And_r16_rm16,
        C::And_rm32_r32 => C::And_r32_rm32,
        C::And_rm64_r64 => C::And_r64_rm64,
        C::Sub_rm16_r16 => C::Sub_r16_rm16,
        C::Sub_rm32_r32 => C::Sub_r32_rm32,
        C::Sub_rm64_r64 => C::Sub_r64_rm64,
        C::Xor_rm16_r16 => C::Xor_r16_rm16,
        C::Xor_rm32_r32 => C::Xor_r32_rm32,
        C::Xor_rm64_r64 => C::Xor_r64_rm64,
        C::Cmp_rm16_r16 => C::Cmp_r16_rm16,
        C::Cmp_rm32_r32 => C::Cmp_r32_rm32,
        C::Cmp_rm64_r64 => C::Cmp_r64_rm64,
        C::Mov_rm16_r16 => C::Mov_r16_rm16,
        C::Mov_rm32_r32 => C::Mov_r32_rm32,
        C::Mov_rm64_r64 => C::Mov_r64_rm64,
        other => other,
    }
}

/// How an instruction uses memory.
pub(in crate::translate) enum MemoryUse {
    None,
    /// In a way of its own.
    Special,
    Plain {
        size: usize,
        kind: AccessKind,
    },
}

/// What the access through a memory operand has to be allowed.
pub(in crate::translate) fn kind_of(op: &Instruction, access: OpAccess) -> AccessKind {
    let kind = match access {
        OpAccess::Write | OpAccess::CondWrite => AccessKind::Write,
        OpAccess::ReadWrite | OpAccess::ReadCondWrite => AccessKind::Modify,
        _ => AccessKind::Read,
    };
    // A conditional store must not store what it did not write, and neither must an x87 store
    // that an unmasked exception suppresses.
    let suppressed = kind == AccessKind::Write && crate::translate::decode::classify::is_x87(op);
    if suppressed || access == OpAccess::CondWrite {
        AccessKind::Modify
    } else {
        kind
    }
}

/// Whether a register of an address lives in a host register, or is not there.
pub(in crate::translate) fn in_host(register: Register) -> bool {
    register == Register::None || HOST[number(register)].is_some()
}

/// Bytes in the addresses that `insn`'s memory operand is computed with.
pub fn address_size(insn: &Instruction) -> usize {
    let base = insn.memory_base();
    let index = insn.memory_index();
    if base == Register::RIP {
        8
    } else if base == Register::EIP {
        4
    } else if base != Register::None {
        base.size()
    } else if index != Register::None && index.is_gpr() {
        index.size()
    } else {
        // A displacement alone: the decoder gives it the size of the address.
        match insn.memory_displ_size() {
            2 => 2,
            8 => 8,
            _ => 4,
        }
    }
}

pub(in crate::translate) fn is_bit_test(insn: &Instruction) -> bool {
    matches!(
        insn.mnemonic(),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    )
}

/// Bytes that a stack instruction moves.
pub(in crate::translate) fn operand_size(insn: &Instruction) -> usize {
    insn.stack_pointer_increment().unsigned_abs() as usize
}
