//! Operands of generated instructions: registers, immediates and every addressing form.

use iced_x86::{
    Instruction, InstructionInfoFactory, OpAccess, OpCodeOperandKind as K, OpKind, Register,
};

use crate::case::layout;
use crate::generate::Sequence;

/// The general-purpose register of `size` bytes with an encoding number (low byte for size 1).
pub(crate) fn gpr(size: usize, number: usize) -> Register {
    let full = [
        Register::RAX,
        Register::RCX,
        Register::RDX,
        Register::RBX,
        Register::RSP,
        Register::RBP,
        Register::RSI,
        Register::RDI,
        Register::R8,
        Register::R9,
        Register::R10,
        Register::R11,
        Register::R12,
        Register::R13,
        Register::R14,
        Register::R15,
    ][number & 15];
    let byte = [
        Register::AL,
        Register::CL,
        Register::DL,
        Register::BL,
        Register::SPL,
        Register::BPL,
        Register::SIL,
        Register::DIL,
        Register::R8L,
        Register::R9L,
        Register::R10L,
        Register::R11L,
        Register::R12L,
        Register::R13L,
        Register::R14L,
        Register::R15L,
    ][number & 15];
    match size {
        1 => byte,
        2 => Register::AX + (full as u32 - Register::RAX as u32),
        4 => full.full_register32(),
        _ => full,
    }
}

/// The encoding number of the general-purpose register that `register` is a part of.
pub(crate) fn gpr_number(register: Register) -> Option<usize> {
    register.is_gpr().then(|| register.full_register().number())
}

/// How the instruction accesses operand `index`, whatever stands there.
pub(crate) fn memory_access(
    info: &mut InstructionInfoFactory,
    instruction: &Instruction,
    index: u32,
) -> OpAccess {
    let mut probe = *instruction;
    probe.set_op_kind(index, OpKind::Memory);
    probe.set_memory_base(Register::RAX);
    info.info(&probe).op_access(index)
}

impl Sequence<'_> {
    /// A register number for an operand; destinations rarely hit address registers.
    fn register_number(&mut self) -> usize {
        loop {
            let number = self.rng.below(16) as usize;
            if self.spared & 1 << number == 0 || self.rng.chance(8) {
                return number;
            }
        }
    }

    /// Fills in a register, immediate or implicit operand. False for a kind that has no place here.
    pub(crate) fn operand(&mut self, instruction: &mut Instruction, index: u32, kind: K) -> bool {
        let number = self.register_number();
        let register = match kind {
            K::r8_or_mem | K::r8_reg | K::r8_opcode => {
                if self.rng.chance(25) {
                    self.rng
                        .pick(&[Register::AH, Register::CH, Register::DH, Register::BH])
                } else {
                    gpr(1, number)
                }
            }
            K::r16_or_mem | K::r16_reg | K::r16_rm | K::r16_opcode | K::r16_reg_mem => {
                gpr(2, number)
            }
            K::r32_or_mem | K::r32_reg | K::r32_rm | K::r32_opcode | K::r32_reg_mem => {
                gpr(4, number)
            }
            K::r64_or_mem | K::r64_reg | K::r64_rm | K::r64_opcode | K::r64_reg_mem => {
                gpr(8, number)
            }
            K::mm_or_mem | K::mm_reg | K::mm_rm => Register::MM0 + (number as u32 & 7),
            K::xmm_or_mem | K::xmm_reg | K::xmm_rm => Register::XMM0 + self.rng.below(16) as u32,
            K::al => Register::AL,
            K::cl => Register::CL,
            K::ax => Register::AX,
            K::dx => Register::DX,
            K::eax => Register::EAX,
            K::rax => Register::RAX,
            K::st0 => Register::ST0,
            K::sti_opcode => Register::ST0 + (number as u32 & 7),
            _ => return self.immediate(instruction, index, kind),
        };
        instruction.set_op_kind(index, OpKind::Register);
        instruction.set_op_register(index, register);
        true
    }

    fn immediate(&mut self, instruction: &mut Instruction, index: u32, kind: K) -> bool {
        let value = self.rng.operand();
        match kind {
            K::imm8 => {
                // ENTER has a second immediate: the nesting level.
                if index == 1 && instruction.op0_kind() == OpKind::Immediate16 {
                    instruction.set_op_kind(index, OpKind::Immediate8_2nd);
                    instruction.set_immediate8_2nd(self.rng.below(8) as u8);
                } else {
                    instruction.set_op_kind(index, OpKind::Immediate8);
                    instruction.set_immediate8(value as u8);
                }
            }
            K::imm8_const_1 => {
                instruction.set_op_kind(index, OpKind::Immediate8);
                instruction.set_immediate8(1);
            }
            K::imm8sex16 => {
                instruction.set_op_kind(index, OpKind::Immediate8to16);
                instruction.set_immediate8to16(i16::from(value as i8));
            }
            K::imm8sex32 => {
                instruction.set_op_kind(index, OpKind::Immediate8to32);
                instruction.set_immediate8to32(i32::from(value as i8));
            }
            K::imm8sex64 => {
                instruction.set_op_kind(index, OpKind::Immediate8to64);
                instruction.set_immediate8to64(i64::from(value as i8));
            }
            K::imm16 => {
                let enter = instruction.is_stack_instruction();
                let value = if enter {
                    value as u16 & 0xff
                } else {
                    value as u16
                };
                instruction.set_op_kind(index, OpKind::Immediate16);
                instruction.set_immediate16(value);
            }
            K::imm32 => {
                instruction.set_op_kind(index, OpKind::Immediate32);
                instruction.set_immediate32(value as u32);
            }
            K::imm32sex64 => {
                instruction.set_op_kind(index, OpKind::Immediate32to64);
                instruction.set_immediate32to64(i64::from(value as i32));
            }
            K::imm64 => {
                instruction.set_op_kind(index, OpKind::Immediate64);
                instruction.set_immediate64(value);
            }
            K::seg_rBX_al => instruction.set_op_kind(index, OpKind::Memory),
            K::seg_rDI => instruction.set_op_kind(index, OpKind::MemorySegRDI),
            _ => return false,
        }
        if kind == K::seg_rBX_al {
            instruction.set_memory_base(Register::RBX);
            instruction.set_memory_index(Register::AL);
        }
        true
    }

    /// An address for an operand of `size` bytes: mostly good; with faults, sometimes read-only,
    /// missing, or across the edge of either.
    pub(crate) fn data_address(&mut self, size: u64, write: bool, aligned: bool) -> u64 {
        let rng = &mut *self.rng;
        let page = layout::PAGE as u64;
        if self.faults && rng.chance(15) {
            let edge = rng.pick(&[0, 2, 3, 4, 7]) * page;
            let near = edge
                .wrapping_add(rng.below(2 * size + 1))
                .wrapping_sub(size);
            return layout::ARENA.wrapping_add(near);
        }
        let (start, length) = match rng.below(if write { 3 } else { 4 }) {
            0 | 1 => (0, 2 * page),
            2 => (4 * page, 3 * page),
            _ => (0, 3 * page),
        };
        let room = length - size;
        let offset = match rng.below(4) {
            0 if !aligned => rng.below(room),
            1 if !aligned && size > 1 => {
                // Across a cache line, and every so often a page.
                let line = if rng.chance(30) {
                    page
                } else {
                    64 * (1 + rng.below(length / 64 - 1))
                };
                line.saturating_sub(1 + rng.below(size - 1)).min(room)
            }
            _ => {
                let step = size.next_power_of_two().min(64);
                rng.below(room / step) * step
            }
        };
        layout::ARENA + start + offset
    }

    /// Fills in a memory operand whose effective address is a good place for it.
    // One match over the shapes of a memory operand; it is long because they are many.
    pub(crate) fn memory(
        &mut self,
        instruction: &mut Instruction,
        index: u32,
        kind: K,
        write: bool,
        bit_string: bool,
    ) {
        let size = (instruction.memory_size().size() as u64).clamp(1, 512);
        let aligned = (size >= 16 && self.rng.chance(if self.faults { 85 } else { 100 }))
            && instruction.code().op_code().op_count() > 0;
        let mut target = self.data_address(size, write, aligned);
        if bit_string {
            target = layout::ARENA + 0x800 + self.rng.below(0x800);
        }
        instruction.set_op_kind(index, OpKind::Memory);
        // A segment base shifts the address that the registers have to give.
        if self.rng.chance(12) {
            let fs = self.rng.chance(50);
            instruction.set_segment_prefix(if fs { Register::FS } else { Register::GS });
            target = target.wrapping_sub(if fs {
                self.entry.fs_base
            } else {
                self.entry.gs_base
            });
        }
        if kind == K::mem_offs {
            instruction.set_memory_displ_size(8);
            instruction.set_memory_displacement64(target);
            return;
        }
        let narrow = self.rng.chance(12) && target >> 32 == 0;
        let (size, mask, wide) = if narrow {
            (4, 0xffff_ffff, 4)
        } else {
            (8, u64::MAX, 8)
        };
        let form = self.rng.below(10);
        // A displacement alone is sign-extended; RIP-relative ones reach 2 GiB either way.
        let alone = form == 0 && i32::try_from(target as i64).is_ok();
        let relative = matches!(form, 1 | 2) && target >> 31 == 0;
        if alone || relative {
            if relative {
                let rip = if narrow { Register::EIP } else { Register::RIP };
                instruction.set_memory_base(rip);
            }
            instruction.set_memory_displ_size(wide);
            instruction.set_memory_displacement64(target);
            return;
        }
        let base = self.address_register();
        let with_index = self.rng.chance(45);
        let displacement = match self.rng.below(4) {
            0 => 0,
            1 | 2 => (self.rng.u64() as i8) as i64 as u64,
            _ => (self.rng.u64() as i32) as i64 as u64,
        };
        let scale = self.rng.pick(&[1u64, 2, 4, 8]);
        let mut sum = displacement;
        let mut with_base = true;
        if with_index {
            let number = loop {
                let number = self.address_register();
                if number != 4 {
                    break number;
                }
            };
            if number == base || self.rng.chance(10) {
                // index*scale + disp32 without a base.
                with_base = false;
                let value = target.wrapping_sub(displacement) & mask;
                if value % scale != 0 {
                    sum = sum.wrapping_add(value % scale);
                    if i32::try_from(sum as i64).is_err() {
                        sum = value % scale;
                    }
                }
                let rest = target.wrapping_sub(sum) & mask;
                self.set(number, self.garbage(rest / scale, narrow));
                if rest % scale != 0 {
                    with_base = true;
                    self.set(number, 0);
                }
            }
            if with_base {
                if number == base {
                    instruction.set_memory_base(gpr(size, base));
                    let value = target.wrapping_sub(sum) & mask;
                    self.set(base, self.garbage(value, narrow));
                    self.displacement(instruction, sum, narrow);
                    return;
                }
                let value = match self.known[number] {
                    Some(value) => value,
                    None => self.rng.operand(),
                };
                self.set(number, value);
                let scaled = value.wrapping_mul(scale);
                let value = target.wrapping_sub(sum).wrapping_sub(scaled) & mask;
                self.set(base, self.garbage(value, narrow));
            }
            instruction.set_memory_index(gpr(size, number));
            instruction.set_memory_index_scale(scale as u32);
        } else {
            let value = target.wrapping_sub(sum) & mask;
            self.set(base, self.garbage(value, narrow));
        }
        if with_base {
            instruction.set_memory_base(gpr(size, base));
        }
        self.displacement(instruction, sum, narrow);
        if !with_base {
            instruction.set_memory_displ_size(wide);
        }
    }

    /// With 32-bit addresses the upper half of the register must not matter.
    fn garbage(&self, value: u64, narrow: bool) -> u64 {
        if narrow {
            value | self.entry.gpr[0] << 32
        } else {
            value
        }
    }

    fn displacement(&mut self, instruction: &mut Instruction, value: u64, narrow: bool) {
        let value = if narrow { value & 0xffff_ffff } else { value };
        instruction.set_memory_displacement64(value);
        let signed = if narrow {
            i64::from(value as i32)
        } else {
            value as i64
        };
        let size = if value == 0 && self.rng.chance(60) {
            0
        } else if i8::try_from(signed).is_ok() && self.rng.chance(80) {
            1
        } else if narrow {
            4
        } else {
            8
        };
        instruction.set_memory_displ_size(size);
    }

    /// A register to form an address with.
    fn address_register(&mut self) -> usize {
        loop {
            let number = self.rng.below(16) as usize;
            // rsp carries the stack; moving it costs later pushes their room.
            if number != 4 || self.rng.chance(15) {
                return number;
            }
        }
    }
}
