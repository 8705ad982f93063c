//! gdb's agent expressions: conditions of breakpoints, evaluated where the breakpoint is.
//!
//! gdb compiles a condition to bytecode and sends it along (GDB manual, appendix "The GDB Agent Expression Mechanism"). To
//! evaluate it here spares a way to the debugger and back for every hit. What an expression may do is read registers and
//! memory; those that trace or print are refused when they are made.

use thiserror::Error;

use super::machine::Machine;
use crate::cpu::state::CpuState;

/// Bytes of the longest expression, steps of its evaluation, and values on its stack.
const LONGEST: usize = 1 << 16;
const STEPS: usize = 100_000;
const DEEPEST: usize = 1 << 10;

/// Bytecode that is not an expression, or does what a condition may not do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AgentError {
    #[error("the agent expression is longer than {LONGEST} bytes")]
    Long,
    #[error("the agent expression has opcode {0:#04x}, which no condition may have")]
    Opcode(u8),
    #[error("the agent expression ends inside an instruction")]
    Short,
    #[error("the agent expression reads register {0}, which does not exist")]
    Register(u16),
}

/// Why an evaluation has no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failed;

/// An expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression(Vec<u8>);

/// Registers by their numbers in the target description: rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8 to r15, rip, eflags,
/// cs, ss, ds, es, fs, gs, fs_base, gs_base, k_gs_base, cr0, cr2, cr3, cr4, cr8, efer. That is QEMU's order.
pub const REGISTERS: [&str; 33] = [
    "rax",
    "rbx",
    "rcx",
    "rdx",
    "rsi",
    "rdi",
    "rbp",
    "rsp",
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
    "rip",
    "rflags",
    "cs",
    "ss",
    "ds",
    "es",
    "fs",
    "gs",
    "fs_base",
    "gs_base",
    "kernel_gs_base",
    "cr0",
    "cr2",
    "cr3",
    "cr4",
    "cr8",
    "efer",
];

/// Bytes that follow an opcode; `None` for one that no condition has.
fn operand_of(opcode: u8) -> Option<usize> {
    Some(match opcode {
        0x02..=0x0b | 0x0e..=0x15 | 0x17..=0x1a | 0x27..=0x29 | 0x2b | 0x33 => 0,
        0x16 | 0x22 | 0x2a | 0x32 => 1,
        0x20 | 0x21 | 0x23 | 0x26 => 2,
        0x24 => 4,
        0x25 => 8,
        _ => return None,
    })
}

impl Expression {
    /// An expression of this bytecode.
    ///
    /// # Errors
    /// [`AgentError`] for bytes that are no expression, and for what floats, traces or prints.
    pub fn new(code: &[u8]) -> Result<Self, AgentError> {
        if code.len() > LONGEST {
            return Err(AgentError::Long);
        }
        let mut at = 0;
        while let Some(&opcode) = code.get(at) {
            let operand = operand_of(opcode).ok_or(AgentError::Opcode(opcode))?;
            let bytes = code
                .get(at + 1..at + 1 + operand)
                .ok_or(AgentError::Short)?;
            if let (0x26, &[high, low]) = (opcode, bytes) {
                let number = u16::from_be_bytes([high, low]);
                if usize::from(number) >= REGISTERS.len() {
                    return Err(AgentError::Register(number));
                }
            }
            at += 1 + operand;
        }
        Ok(Self(code.to_vec()))
    }

    /// Whether it is not zero for a vCPU. One that cannot be evaluated, because it reads memory that is not mapped or
    /// divides by zero, counts as true: gdb then looks itself, and says why.
    pub fn holds(&self, machine: &mut Machine, vcpu: usize) -> bool {
        !self.value(machine, vcpu).is_ok_and(|value| value == 0)
    }

    fn value(&self, machine: &mut Machine, vcpu: usize) -> Result<u64, Failed> {
        let mut stack = Stack(Vec::new());
        let mut at = 0;
        for _ in 0..STEPS {
            let opcode = *self.0.get(at).ok_or(Failed)?;
            let operand = operand_of(opcode).ok_or(Failed)?;
            let bytes = self.0.get(at + 1..at + 1 + operand).ok_or(Failed)?;
            let n = bytes.iter().fold(0, |n, &byte| n << 8 | u64::from(byte));
            at += 1 + operand;
            match opcode {
                0x20 => {
                    if stack.pop()? != 0 {
                        at = n as usize;
                    }
                }
                0x21 => at = n as usize,
                0x22..=0x25 => stack.push(n)?,
                0x26 => stack.push(register(machine, vcpu, n as usize)?)?,
                0x17..=0x1a => {
                    let address = stack.pop()?;
                    let mut value = [0; 8];
                    let size = 1 << (opcode - 0x17);
                    if machine.read_virtual(vcpu, address, &mut value[..size]) < size {
                        return Err(Failed);
                    }
                    stack.push(u64::from_le_bytes(value))?;
                }
                0x27 => return stack.pop(),
                _ => stack.operate(opcode, n)?,
            }
        }
        Err(Failed)
    }
}

fn register(machine: &mut Machine, vcpu: usize, number: usize) -> Result<u64, Failed> {
    let name = *REGISTERS.get(number).ok_or(Failed)?;
    if name == "cr8" {
        return Ok(u64::from(machine.board().cr8(vcpu)));
    }
    let cpu: &CpuState = machine.engine.cpu(vcpu);
    crate::cpu::registers::get(cpu, name).ok_or(Failed)
}

struct Stack(Vec<u64>);

impl Stack {
    fn push(&mut self, value: u64) -> Result<(), Failed> {
        if self.0.len() == DEEPEST {
            return Err(Failed);
        }
        self.0.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<u64, Failed> {
        self.0.pop().ok_or(Failed)
    }

    /// Opcodes that only move and compute values.
    fn operate(&mut self, opcode: u8, n: u64) -> Result<(), Failed> {
        match opcode {
            0x28 => {
                let top = *self.0.last().ok_or(Failed)?;
                return self.push(top);
            }
            0x29 => return self.pop().map(|_| ()),
            0x32 => {
                let place = self.0.len().checked_sub(1 + n as usize).ok_or(Failed)?;
                return self.push(self.0[place]);
            }
            0x33 => {
                // a b c, with c on top, becomes c a b.
                let place = self.0.len().checked_sub(3).ok_or(Failed)?;
                self.0[place..].rotate_right(1);
                return Ok(());
            }
            _ => {}
        }
        let b = self.pop()?;
        if let Some(value) = unary(opcode, b, n) {
            return self.push(value);
        }
        let a = self.pop()?;
        if opcode == 0x2b {
            self.push(b)?;
            return self.push(a);
        }
        self.push(binary(opcode, a, b)?)
    }
}

fn unary(opcode: u8, value: u64, bits: u64) -> Option<u64> {
    let spare = 64u32.saturating_sub(bits as u32).min(63);
    let whole = bits == 0 || bits >= 64;
    Some(match opcode {
        0x0e => u64::from(value == 0),
        0x12 => !value,
        0x16 | 0x2a if whole => value,
        0x16 => ((value << spare) as i64 >> spare) as u64,
        0x2a => value << spare >> spare,
        _ => return None,
    })
}

fn binary(opcode: u8, a: u64, b: u64) -> Result<u64, Failed> {
    let (signed_a, signed_b) = (a as i64, b as i64);
    let shift = |by: u64| u32::try_from(by).ok().filter(|&by| by < 64);
    Ok(match opcode {
        0x02 => a.wrapping_add(b),
        0x03 => a.wrapping_sub(b),
        0x04 => a.wrapping_mul(b),
        0x05..=0x08 if b == 0 => return Err(Failed),
        0x05 => signed_a.wrapping_div(signed_b) as u64,
        0x06 => a / b,
        0x07 => signed_a.wrapping_rem(signed_b) as u64,
        0x08 => a % b,
        0x09 => shift(b).map_or(0, |by| a << by),
        0x0a => (signed_a >> shift(b).unwrap_or(63)) as u64,
        0x0b => shift(b).map_or(0, |by| a >> by),
        0x0f => a & b,
        0x10 => a | b,
        0x11 => a ^ b,
        0x13 => u64::from(a == b),
        0x14 => u64::from(signed_a < signed_b),
        0x15 => u64::from(a < b),
        _ => return Err(Failed),
    })
}

#[cfg(test)]
#[path = "agent_tests.rs"]
mod tests;
