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

impl<D: Decisions> Session<D> {
    /// Runs on, and notes every instruction in these ranges of moments, which ascend. Ends before the first one behind
    /// them, or at the end of the run.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn path(&mut self, ranges: &[(u64, u64)]) -> Result<Vec<Step>, SessionError> {
        let mut steps = Vec::new();
        let mut conditions = Conditions::default();
        let last = ranges.last().map_or(0, |range| range.1);
        let inside = ranges.iter().flat_map(|&(start, end)| start..end);
        for icount in inside.chain([last]) {
            conditions.renew(vec![Condition::Before(icount)]);
            loop {
                match self.run(u64::MAX, &mut conditions)? {
                    Stop::TimeUp => {}
                    Stop::Condition(_) if icount == last => return Ok(steps),
                    Stop::Condition(_) => break,
                    _ => return Ok(steps),
                }
            }
            steps.push(self.machine.step(self.vcpu));
        }
        Ok(steps)
    }
}
