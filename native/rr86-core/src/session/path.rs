//! The instructions that a vCPU executes in a stretch, one after the other.

use super::conditions::{Condition, Conditions};
use super::decisions::{Decisions, Stop};
use super::error::SessionError;
use super::machine::Machine;
use super::run::Session;

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
            let block = engine.cache.blocks.get(id);
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
        Step {
            icount: engine.icount(),
            linear,
            bits: crate::translate::mode::Mode::of(cpu).bits(),
            bytes,
        }
    }
}

impl Machine {
    /// How many iterations of a repeated MOVS or STOS are left, at the most; 1 for other instructions.
    fn iterations(&self, vcpu: usize, step: &Step) -> u64 {
        let mut repeated = false;
        for &byte in &step.bytes {
            match byte {
                0xf2 | 0xf3 => repeated = true,
                // Other prefixes (SDM vol. 2A, section 2.1.1), and REX in 64-bit code.
                0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x66 => {}
                0x40..=0x4f if step.bits == 64 => {}
                0xa4 | 0xa5 | 0xaa | 0xab if repeated => {
                    let count = self.engine.cpu(vcpu).gpr[gpr::RCX];
                    return if step.bits == 64 { count.max(1) } else { 1 };
                }
                _ => return 1,
            }
        }
        1
    }
}

impl<D: Decisions> Session<D> {
    /// Runs on, and notes every instruction in these ranges of moments, which ascend; of a repeated string instruction
    /// only the first of the iterations that nothing interrupts. Ends before the first one behind the ranges, or at the
    /// end of the run.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn path(&mut self, ranges: &[(u64, u64)]) -> Result<Vec<Step>, SessionError> {
        let mut steps = Vec::new();
        for &(start, end) in ranges {
            let mut stands = self.stand_before(start, false)?;
            while stands && self.machine.engine.icount() < end {
                let step = self.machine.step(self.vcpu);
                let next = (step.icount + self.machine.iterations(self.vcpu, &step)).min(end);
                let repeats = next > step.icount + 1;
                steps.push(step);
                stands = self.stand_before(next, repeats)?;
            }
            if !stands {
                break;
            }
        }
        Ok(steps)
    }

    /// Runs on up to an instruction, or up to the handler of an interrupt if that is `watched` for. False at the end of
    /// the run.
    fn stand_before(&mut self, icount: u64, watched: bool) -> Result<bool, SessionError> {
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
