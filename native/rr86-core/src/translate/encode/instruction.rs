//! Encoding of the instructions that code mostly consists of, as iced's encoder does it: the same bytes in a
//! fraction of the time. The others go through iced.

use iced_x86::{Code, Instruction, OpKind, Register};

use crate::translate::encode::asm::{Asm, Reg, Width, W32, W64};

/// Where the operands of an opcode are.
#[derive(Clone, Copy)]
enum Form {
    /// The first operand is a register, the second a register or memory; and the other way round.
    Load(u8),
    Store(u8),
    /// The same as `Load` with 0x0f before the opcode.
    Extend(u8),
    /// A register or memory, with this extension of the opcode, and an immediate of 8 or 32 bits.
    Byte(u8, u8),
    Long(u8, u8),
}

fn form(code: Code) -> Option<(Form, Width)> {
    use Code as C;
    use Form::{Byte, Extend, Load, Long, Store};
    let (form, narrow) = match code {
        C::Add_r32_rm32 | C::Add_r64_rm64 => (Load(0x03), C::Add_r32_rm32),
        C::Add_rm32_r32 | C::Add_rm64_r64 => (Store(0x01), C::Add_rm32_r32),
        C::Add_rm32_imm8 | C::Add_rm64_imm8 => (Byte(0x83, 0), C::Add_rm32_imm8),
        C::Add_rm32_imm32 | C::Add_rm64_imm32 => (Long(0x81, 0), C::Add_rm32_imm32),
        C::Or_r32_rm32 | C::Or_r64_rm64 => (Load(0x0b), C::Or_r32_rm32),
        C::Or_rm32_r32 | C::Or_rm64_r64 => (Store(0x09), C::Or_rm32_r32),
        C::Or_rm32_imm8 | C::Or_rm64_imm8 => (Byte(0x83, 1), C::Or_rm32_imm8),
        C::Or_rm32_imm32 | C::Or_rm64_imm32 => (Long(0x81, 1), C::Or_rm32_imm32),
        C::Adc_r32_rm32 | C::Adc_r64_rm64 => (Load(0x13), C::Adc_r32_rm32),
        C::Adc_rm32_r32 | C::Adc_rm64_r64 => (Store(0x11), C::Adc_rm32_r32),
        C::Adc_rm32_imm8 | C::Adc_rm64_imm8 => (Byte(0x83, 2), C::Adc_rm32_imm8),
        C::Adc_rm32_imm32 | C::Adc_rm64_imm32 => (Long(0x81, 2), C::Adc_rm32_imm32),
        C::Sbb_r32_rm32 | C::Sbb_r64_rm64 => (Load(0x1b), C::Sbb_r32_rm32),
        C::Sbb_rm32_r32 | C::Sbb_rm64_r64 => (Store(0x19), C::Sbb_rm32_r32),
        C::Sbb_rm32_imm8 | C::Sbb_rm64_imm8 => (Byte(0x83, 3), C::Sbb_rm32_imm8),
        C::Sbb_rm32_imm32 | C::Sbb_rm64_imm32 => (Long(0x81, 3), C::Sbb_rm32_imm32),
        C::And_r32_rm32 | C::And_r64_rm64 => (Load(0x23), C::And_r32_rm32),
        C::And_rm32_r32 | C::And_rm64_r64 => (Store(0x21), C::And_rm32_r32),
        C::And_rm32_imm8 | C::And_rm64_imm8 => (Byte(0x83, 4), C::And_rm32_imm8),
        C::And_rm32_imm32 | C::And_rm64_imm32 => (Long(0x81, 4), C::And_rm32_imm32),
        C::Sub_r32_rm32 | C::Sub_r64_rm64 => (Load(0x2b), C::Sub_r32_rm32),
        C::Sub_rm32_r32 | C::Sub_rm64_r64 => (Store(0x29), C::Sub_rm32_r32),
        C::Sub_rm32_imm8 | C::Sub_rm64_imm8 => (Byte(0x83, 5), C::Sub_rm32_imm8),
        C::Sub_rm32_imm32 | C::Sub_rm64_imm32 => (Long(0x81, 5), C::Sub_rm32_imm32),
        C::Xor_r32_rm32 | C::Xor_r64_rm64 => (Load(0x33), C::Xor_r32_rm32),
        C::Xor_rm32_r32 | C::Xor_rm64_r64 => (Store(0x31), C::Xor_rm32_r32),
        C::Xor_rm32_imm8 | C::Xor_rm64_imm8 => (Byte(0x83, 6), C::Xor_rm32_imm8),
        C::Xor_rm32_imm32 | C::Xor_rm64_imm32 => (Long(0x81, 6), C::Xor_rm32_imm32),
        C::Cmp_r32_rm32 | C::Cmp_r64_rm64 => (Load(0x3b), C::Cmp_r32_rm32),
        C::Cmp_rm32_r32 | C::Cmp_rm64_r64 => (Store(0x39), C::Cmp_rm32_r32),
        C::Cmp_rm32_imm8 | C::Cmp_rm64_imm8 => (Byte(0x83, 7), C::Cmp_rm32_imm8),
        C::Cmp_rm32_imm32 | C::Cmp_rm64_imm32 => (Long(0x81, 7), C::Cmp_rm32_imm32),
        C::Mov_r32_rm32 | C::Mov_r64_rm64 => (Load(0x8b), C::Mov_r32_rm32),
        C::Mov_rm32_r32 | C::Mov_rm64_r64 => (Store(0x89), C::Mov_rm32_r32),
        C::Mov_rm32_imm32 | C::Mov_rm64_imm32 => (Long(0xc7, 0), C::Mov_rm32_imm32),
        C::Test_rm32_r32 | C::Test_rm64_r64 => (Store(0x85), C::Test_rm32_r32),
        C::Test_rm32_imm32 | C::Test_rm64_imm32 => (Long(0xf7, 0), C::Test_rm32_imm32),
        C::Shl_rm32_imm8 | C::Shl_rm64_imm8 => (Byte(0xc1, 4), C::Shl_rm32_imm8),
        C::Shr_rm32_imm8 | C::Shr_rm64_imm8 => (Byte(0xc1, 5), C::Shr_rm32_imm8),
        C::Sar_rm32_imm8 | C::Sar_rm64_imm8 => (Byte(0xc1, 7), C::Sar_rm32_imm8),
        C::Movzx_r32_rm16 | C::Movzx_r64_rm16 => (Extend(0xb7), C::Movzx_r32_rm16),
        C::Movsxd_r64_rm32 => (Load(0x63), C::INVALID),
        _ => return None,
    };
    Some((form, if code == narrow { W32 } else { W64 }))
}

/// Where a register or memory operand is.
enum Place {
    Register(Reg),
    Memory(Reg, Option<(Reg, u8)>, i32),
}

fn register(operand: Register) -> Reg {
    Reg(operand.number() as u8)
}

/// Appends an instruction if it is one of the common ones. Memory is addressed by a base and a displacement, or
/// by two registers.
pub(in crate::translate) fn common(a: &mut Asm, op: &Instruction) -> bool {
    let Some((form, width)) = form(op.code()) else {
        return false;
    };
    if op.has_rep_prefix() || op.has_repne_prefix() {
        return false;
    }
    let place = |operand: u32| match op.op_kind(operand) {
        OpKind::Register => Some(Place::Register(register(op.op_register(operand)))),
        OpKind::Memory if op.memory_index() == Register::None => {
            let displacement = op.memory_displacement64() as i32;
            // With a displacement of nothing there are two ways.
            let plain = (displacement != 0) == (op.memory_displ_size() != 0);
            plain.then(|| Place::Memory(register(op.memory_base()), None, displacement))
        }
        OpKind::Memory if op.memory_index_scale() == 1 && op.memory_displacement64() == 0 => {
            let index = Some((register(op.memory_index()), 1));
            Some(Place::Memory(register(op.memory_base()), index, 0))
        }
        _ => None,
    };
    let (opcode, field, place) = match form {
        Form::Load(opcode) | Form::Extend(opcode) => {
            (opcode, register(op.op0_register()), place(1))
        }
        Form::Store(opcode) => (opcode, register(op.op1_register()), place(0)),
        Form::Byte(opcode, extension) | Form::Long(opcode, extension) => {
            (opcode, Reg(extension), place(0))
        }
    };
    let opcode = match form {
        Form::Extend(_) => &[0x0f, opcode][..],
        _ => &[opcode][..],
    };
    match place {
        Some(Place::Register(other)) => a.rr(opcode, width, field, other),
        Some(Place::Memory(base, index, displacement)) => {
            a.mem(opcode, width, field, Some(base), index, displacement);
        }
        None => return false,
    }
    match form {
        Form::Byte(..) => a.u8(op.immediate(1) as u8),
        Form::Long(..) => a.u32(op.immediate(1) as u32),
        _ => {}
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::Encoder;

    const BASES: [Register; 2] = [Register::R10, Register::RSP];

    /// Forms of an instruction with every register and several places in memory.
    fn forms(code: Code) -> Vec<Instruction> {
        let mut all = Vec::new();
        let kinds: Vec<_> = (0..2).map(|i| code.op_code().op_kind(i)).collect();
        for n in 0..64u32 {
            let mut op = Instruction::default();
            op.set_code(code);
            let mut memory = false;
            for (i, kind) in kinds.iter().enumerate() {
                use iced_x86::OpCodeOperandKind as K;
                let i = i as u32;
                let first = match kind {
                    K::r32_reg | K::r32_or_mem => Register::EAX,
                    K::r64_reg | K::r64_or_mem => Register::RAX,
                    K::r16_or_mem => Register::AX,
                    K::imm8 | K::imm8sex32 | K::imm8sex64 | K::imm32 | K::imm32sex64 => {
                        let values = [1, -1, 0x7f, 0x1234_5678];
                        let value = values[(n % 4) as usize];
                        let byte = !matches!(kind, K::imm32 | K::imm32sex64);
                        let value = if byte { i32::from(value as i8) } else { value };
                        op.set_op_kind(i, iced_kind(*kind));
                        op.set_immediate_i32(
                            i,
                            if *kind == K::imm8 {
                                value & 0x7f
                            } else {
                                value
                            },
                        );
                        continue;
                    }
                    other => panic!("{code:?} has an operand of the kind {other:?}"),
                };
                let may = matches!(kind, K::r32_or_mem | K::r64_or_mem | K::r16_or_mem);
                if may && n >= 32 {
                    memory = true;
                    op.set_op_kind(i, OpKind::Memory);
                } else {
                    op.set_op_kind(i, OpKind::Register);
                    op.set_op_register(i, first + (n + 5 * i) % 16);
                }
            }
            if memory {
                let displacement = [0, 8, -8, 0x200][(n / 2 % 4) as usize];
                let base = BASES[(n % 2) as usize];
                if base == Register::RSP && displacement == 0 {
                    continue;
                }
                op.set_memory_base(base);
                op.set_memory_displacement64(displacement as u64);
                op.set_memory_displ_size(u32::from(displacement != 0));
            }
            all.push(op);
        }
        all
    }

    fn iced_kind(kind: iced_x86::OpCodeOperandKind) -> OpKind {
        use iced_x86::OpCodeOperandKind as K;
        match kind {
            K::imm8 => OpKind::Immediate8,
            K::imm8sex32 => OpKind::Immediate8to32,
            K::imm8sex64 => OpKind::Immediate8to64,
            K::imm32 => OpKind::Immediate32,
            _ => OpKind::Immediate32to64,
        }
    }

    #[test]
    fn common_instructions_get_the_bytes_that_iced_gives_them() {
        let mut tried = 0;
        for code in Code::values().filter(|&code| form(code).is_some()) {
            for op in forms(code) {
                let mut encoder = Encoder::new(64);
                encoder.encode(&op, 0).unwrap();
                let mut asm = Asm::default();
                assert!(common(&mut asm, &op), "{op:?}");
                assert_eq!(asm.bytes, encoder.take_buffer(), "{op:?}");
                tried += 1;
            }
        }
        assert!(tried > 3000, "{tried}");
    }
}
