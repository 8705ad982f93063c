//! IN and OUT.

use iced_x86::{Mnemonic, OpKind};

use super::operand::{register, set_register};
use super::{Context, Result};
use crate::cpu::io::check_port;
use crate::cpu::state::gpr;

impl Context<'_> {
    /// Checks that the code may use `size` ports at `port`.
    pub fn check_port(&mut self, port: u16, size: usize) -> Result {
        self.with_memory(|cpu, mem| check_port(cpu, mem, port, size))
    }
}

pub fn execute(c: &mut Context<'_>) -> Result {
    let input = c.insn.mnemonic() == Mnemonic::In;
    let (data, address) = if input { (0, 1) } else { (1, 0) };
    let accumulator = c.insn.op_register(data);
    let port = if c.insn.op_kind(address) == OpKind::Register {
        c.cpu.gpr[gpr::RDX] as u16
    } else {
        u16::from(c.insn.immediate8())
    };
    let size = accumulator.size();
    c.check_port(port, size)?;
    if input {
        let value = c.machine.ports().read(port, size);
        set_register(c.cpu, accumulator, u64::from(value));
    } else {
        let value = register(c.cpu, accumulator) as u32;
        c.machine.ports().write(port, size, value);
    }
    Ok(())
}
