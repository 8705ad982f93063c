//! Operands of instructions that are not copied.

use iced_x86::{Instruction, OpKind, Register};

use super::{Context, Result};
use crate::cpu::memory::Privilege;
use crate::cpu::state::{sreg, CpuState};
use crate::runtime::slow::linear_address;
use crate::translate::site::AccessKind;

/// Value of a register of any size, zero-extended.
pub fn register(cpu: &CpuState, register: Register) -> u64 {
    if let Some(n) = segment_number(register) {
        return u64::from(cpu.seg[n].selector);
    }
    let value = cpu.gpr[register.full_register().number()];
    match register {
        Register::AH | Register::CH | Register::DH | Register::BH => value >> 8 & 0xff,
        _ => truncate(value, register.size()),
    }
}

/// Sets a register of any size with the merging rules of its size.
pub fn set_register(cpu: &mut CpuState, register: Register, value: u64) {
    let slot = &mut cpu.gpr[register.full_register().number()];
    *slot = match register {
        Register::AH | Register::CH | Register::DH | Register::BH => {
            *slot & !0xff00 | (value & 0xff) << 8
        }
        _ => match register.size() {
            1 => *slot & !0xff | value & 0xff,
            2 => *slot & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        },
    };
}

/// The low `size` bytes of a value.
pub const fn truncate(value: u64, size: usize) -> u64 {
    match size {
        1 => value & 0xff,
        2 => value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}

/// Index of a segment register in `CpuState::seg`.
pub fn segment_number(register: Register) -> Option<usize> {
    register.is_segment_register().then(|| register.number())
}

/// Offset of an instruction's memory operand, before segmentation.
pub fn offset(cpu: &CpuState, insn: &Instruction) -> u64 {
    if insn.is_ip_rel_memory_operand() {
        return insn.ip_rel_memory_address();
    }
    let part = |r: Register| {
        if r == Register::None {
            0
        } else {
            register(cpu, r)
        }
    };
    let sum = part(insn.memory_base())
        .wrapping_add(part(insn.memory_index()).wrapping_mul(u64::from(insn.memory_index_scale())))
        .wrapping_add(insn.memory_displacement64());
    truncate(sum, crate::translate::decode::operands::address_size(insn))
}

impl Context<'_> {
    /// Linear address of the memory operand, checked against its segment.
    pub fn address(&self, size: usize, kind: AccessKind) -> Result<u64> {
        let segment = segment_number(self.insn.memory_segment()).unwrap_or(sreg::DS);
        linear_address(self.cpu, segment, offset(self.cpu, self.insn), size, kind)
    }

    /// The operand's value: register, memory or immediate.
    pub fn read_operand(&mut self, operand: u32, size: usize) -> Result<u64> {
        match self.insn.op_kind(operand) {
            OpKind::Register => Ok(register(self.cpu, self.insn.op_register(operand))),
            OpKind::Memory => {
                let at = self.address(size, AccessKind::Read)?;
                self.load(at, size)
            }
            _ => Ok(self.insn.immediate(operand)),
        }
    }

    /// Stores a value into a register or memory operand.
    pub fn write_operand(&mut self, operand: u32, size: usize, value: u64) -> Result {
        if self.insn.op_kind(operand) == OpKind::Register {
            set_register(self.cpu, self.insn.op_register(operand), value);
            return Ok(());
        }
        let at = self.address(size, AccessKind::Write)?;
        self.save(at, size, value)
    }

    /// Reads linear memory as the running code.
    pub fn load(&mut self, linear: u64, size: usize) -> Result<u64> {
        use crate::cpu::memory::LinearMemory;
        self.with_memory(|cpu, mem| mem.read(cpu, linear, size, Privilege::Current))
    }

    /// Writes linear memory as the running code.
    pub fn save(&mut self, linear: u64, size: usize, value: u64) -> Result {
        use crate::cpu::memory::LinearMemory;
        self.with_memory(|cpu, mem| mem.write(cpu, linear, size, value, Privilege::Current))
    }

    /// Sets RFLAGS bits by mask.
    pub fn set_flags(&mut self, mask: u64, value: u64) {
        let flags = &mut self.cpu.rflags;
        *flags = *flags & !mask | value & mask;
    }
}
