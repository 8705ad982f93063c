//! IN and OUT.

use iced_x86::{Mnemonic, OpKind};

use super::operand::{register, set_register};
use super::{Context, Result};
use crate::cpu::io::check_port;
use crate::cpu::state::gpr;
use crate::runtime::stops::StopCause;

impl Context<'_> {
    /// Checks that the code may use `size` ports at `port`.
    pub fn check_port(&mut self, port: u16, size: usize) -> Result {
        self.with_memory(|cpu, mem| check_port(cpu, mem, port, size))
    }

    pub fn port_in(&mut self, port: u16, size: usize) -> u32 {
        self.engine.io_read(usize::from(self.v.cpu.id), port, size)
    }

    pub fn port_out(&mut self, port: u16, size: usize, value: u32) {
        self.engine
            .io_write(usize::from(self.v.cpu.id), port, size, value);
        if self.engine.stops.port == Some(port) {
            self.engine.stops.stopped = Some(StopCause::Output);
            self.engine.instruction.stop();
        }
    }
}

pub fn execute(c: &mut Context<'_>) -> Result {
    let input = c.insn.mnemonic() == Mnemonic::In;
    let (data, address) = if input { (0, 1) } else { (1, 0) };
    let accumulator = c.insn.op_register(data);
    let port = if c.insn.op_kind(address) == OpKind::Register {
        c.v.cpu.gpr[gpr::RDX] as u16
    } else {
        u16::from(c.insn.immediate8())
    };
    let size = accumulator.size();
    c.check_port(port, size)?;
    if input {
        let value = c.port_in(port, size);
        set_register(&mut c.v.cpu, accumulator, u64::from(value));
    } else {
        let value = register(&c.v.cpu, accumulator) as u32;
        c.port_out(port, size, value);
    }
    Ok(())
}
