//! The instructions that a vCPU executes in a stretch, one after the other.

use super::conditions::{Condition, Conditions};
use super::decisions::{Decisions, Stop};
use super::error::SessionError;
use super::machine::Machine;
use super::run::Session;
use crate::cpu::state::gpr;

/// Bytes of the longest instruction.
const LONGEST: usize = 15;

/// An instruction that is about to be executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub icount: u64,
    /// Its linear address, and the size of code there: 16, 32 or 64.
    pub linear: u64,
    pub bits: u32,
    /// What is executed: its bytes and maybe some behind it. A block can hold others than memory does.
    pub bytes: Vec<u8>,
    /// Its length, if it is a repeated string instruction of which further iterations may be left out.
    pub repeats: Option<usize>,
}

/// Instructions in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path {
    pub steps: Vec<Step>,
    /// Something was executed among the iterations that were left out.
    pub gaps: bool,
}

impl Machine {
    /// The instruction before which a vCPU stands.
    fn step(&self, vcpu: usize) -> Step {
        let engine = &self.engine;
        let cpu = engine.cpu(vcpu);
        let linear = if cpu.code64() {
            cpu.rip
        } else {
            let base = cpu.seg[crate::cpu::state::sreg::CS].base;
            cpu.rip.wrapping_add(base) & 0xffff_ffff
        };
        let of_block = engine.current_block(vcpu).and_then(|id| {
            let block = engine.blocks().get(id);
            let offset = usize::try_from(cpu.rip.wrapping_sub(block.rip)).ok()?;
            block.bytes.get(offset..).filter(|rest| !rest.is_empty())
        });
        let bytes = match of_block {
            Some(rest) => rest[..rest.len().min(LONGEST)].to_vec(),
            None => {
                let mut bytes = vec![0; LONGEST];
                let read = self.read_virtual(vcpu, linear, &mut bytes);
                bytes.truncate(read);
                bytes
            }
        };
        let bits = crate::translate::mode::Mode::of(cpu).bits();
        let repeats = if bits == 64 { repeated(&bytes) } else { None };
        Step {
            icount: engine.icount(),
            linear,
            bits,
            bytes,
            repeats,
        }
    }
}

/// Length of a repeated MOVS or STOS, if these bytes of 64-bit code begin with one.
fn repeated(bytes: &[u8]) -> Option<usize> {
    let mut repeats = false;
    for (n, &byte) in bytes.iter().enumerate() {
        match byte {
            0xf2 | 0xf3 => repeats = true,
            // Segments, the operand's size (SDM vol. 2A, section 2.1.1), REX.
            0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x66 | 0x40..=0x4f => {}
            0xa4 | 0xa5 | 0xaa | 0xab if repeats => return Some(n + 1),
            _ => return None,
        }
    }
    None
}

impl<D: Decisions> Session<D> {
    /// Runs on, and notes every instruction in these ranges of moments, which ascend; of a repeated string instruction
    /// only the first of the iterations that nothing interrupts, unless the `whole` path is wanted. Ends before the first one behind the ranges, or at the
    /// end of the run.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn path(&mut self, ranges: &[(u64, u64)], whole: bool) -> Result<Path, SessionError> {
        let mut path = Path::default();
        for &(start, end) in ranges {
            let mut stands = self.stand_before(start, false)?;
            while stands && self.machine.engine.icount() < end {
                let step = self.machine.step(self.vcpu);
                let cpu = self.machine.engine.cpu(self.vcpu);
                let iterations = step.repeats.map_or(1, |_| cpu.gpr[gpr::RCX].max(1));
                let next = step.icount.saturating_add(iterations).min(end);
                if whole || next == step.icount + 1 {
                    let next = step.icount + 1;
                    path.steps.push(step);
                    stands = self.stand_before(next, false)?;
                    continue;
                }
                stands = self.stand_before(next, true)?;
                path.gaps |= !self.has_repeated(&step, iterations);
                path.steps.push(step);
            }
            if !stands {
                break;
            }
        }
        Ok(path)
    }

    /// Whether nothing but iterations of this instruction has been executed since it was looked at.
    fn has_repeated(&self, step: &Step, iterations: u64) -> bool {
        let cpu = self.machine.engine.cpu(self.vcpu);
        let done = self.machine.engine.icount() - step.icount;
        let behind = step
            .linear
            .wrapping_add(step.repeats.map_or(0, |length| length as u64));
        // An interrupt before the last of them has not touched what is left of them.
        let there = done < iterations || [step.linear, behind].contains(&cpu.rip);
        there && cpu.gpr[gpr::RCX] == iterations.wrapping_sub(done)
    }

    /// Runs on up to an instruction, or up to the handler of an interrupt if that is `watched` for. False at the end of
    /// the run.
    fn stand_before(&mut self, icount: u64, watched: bool) -> Result<bool, SessionError> {
        if self.machine.engine.stands_before(icount) {
            return Ok(true);
        }
        let mut list = vec![Condition::Before(icount)];
        if watched {
            list.extend((0..=u8::MAX).map(Condition::Interrupt));
        }
        let mut conditions = Conditions::new(list);
        loop {
            match self.run(u64::MAX, &mut conditions)? {
                Stop::TimeUp => {}
                Stop::Condition(_) => return Ok(true),
                _ => return Ok(false),
            }
        }
    }
}
