//! Pushing and popping whole frames, for instructions that transfer control.
//!
//! Such an instruction must not leave half a frame or a moved stack pointer behind when it faults. So a frame is
//! pushed only after every byte of it has been probed, and pops read ahead without touching RSP.

use super::exception::Exception;
use super::memory::{LinearMemory, Privilege};
use super::paging::is_canonical;
use super::state::{gpr, sreg, CpuState, Segment};

/// Most values in one frame: a 31-parameter call gate with SS, ESP, CS and EIP.
const MAX_FRAME: usize = 36;

/// A stack: its segment, the width of its pointer, and the pointer.
#[derive(Clone, Copy, Debug)]
pub struct Stack {
    segment: Segment,
    /// 64-bit mode: no base, no limit, canonical addresses.
    flat64: bool,
    /// RSP as the next push or pop finds it.
    pub pointer: u64,
    mask: u64,
    pub privilege: Privilege,
}

impl Stack {
    /// The stack that SS:RSP names now.
    pub fn current(cpu: &CpuState) -> Self {
        Self::new(
            cpu.seg[sreg::SS],
            cpu.gpr[gpr::RSP],
            cpu.code64(),
            Privilege::Current,
        )
    }

    /// A stack to switch to. `flat64` is for a stack that will be used in 64-bit mode.
    pub fn new(segment: Segment, pointer: u64, flat64: bool, privilege: Privilege) -> Self {
        let mask = if flat64 {
            u64::MAX
        } else if segment.big() {
            0xffff_ffff
        } else {
            0xffff
        };
        Self {
            segment,
            flat64,
            pointer,
            mask,
            privilege,
        }
    }

    /// Whether `size` bytes at `offset` lie within the segment.
    fn contains(&self, offset: u64, size: usize) -> bool {
        let last = offset.wrapping_add(size as u64 - 1);
        if self.flat64 {
            return is_canonical(offset) && is_canonical(last);
        }
        if !self.segment.present() {
            return false;
        }
        let limit = u64::from(self.segment.limit);
        // Expand-down data segments hold what is above their limit.
        if self.segment.attr & (Segment::S | 0xc) == Segment::S | 4 {
            let top = if self.segment.big() {
                0xffff_ffff
            } else {
                0xffff
            };
            offset > limit && last <= top
        } else {
            last <= limit
        }
    }

    fn linear(&self, offset: u64) -> u64 {
        if self.flat64 {
            offset
        } else {
            self.segment.base.wrapping_add(offset) & 0xffff_ffff
        }
    }

    /// Value of RSP for the present pointer: a 16-bit stack leaves the upper half of `old` alone.
    pub fn rsp(&self, old: u64) -> u64 {
        match self.mask {
            0xffff => (old & !0xffff) | (self.pointer & 0xffff),
            mask => self.pointer & mask,
        }
    }

    /// Pushes `values`, first one first, as `size` bytes each. `full` is raised if they do not fit.
    pub fn push(
        &mut self,
        cpu: &CpuState,
        mem: &mut dyn LinearMemory,
        values: &[u64],
        size: usize,
        full: Exception,
    ) -> Result<(), Exception> {
        let mut at = [0u64; MAX_FRAME];
        let mut pointer = self.pointer;
        for (slot, _) in at.iter_mut().zip(values) {
            let offset = pointer.wrapping_sub(size as u64) & self.mask;
            if !self.contains(offset, size) {
                return Err(full);
            }
            *slot = self.linear(offset);
            pointer = (pointer & !self.mask) | offset;
        }
        let at = &at[..values.len()];
        for &linear in at {
            mem.probe_write(cpu, linear, size, self.privilege)?;
        }
        for (&linear, &value) in at.iter().zip(values) {
            mem.write(cpu, linear, size, value, self.privilege)?;
        }
        self.pointer = pointer;
        Ok(())
    }

    /// Reads `size` bytes at the pointer and moves it; #SS(0) beyond the segment.
    pub fn pop(
        &mut self,
        cpu: &CpuState,
        mem: &mut dyn LinearMemory,
        size: usize,
    ) -> Result<u64, Exception> {
        let offset = self.pointer & self.mask;
        if !self.contains(offset, size) {
            return Err(Exception::ss(0));
        }
        let value = mem.read(cpu, self.linear(offset), size, self.privilege)?;
        self.skip(size as u64);
        Ok(value)
    }

    /// Moves the pointer up by `bytes` without reading.
    pub fn skip(&mut self, bytes: u64) {
        let moved = self.pointer.wrapping_add(bytes) & self.mask;
        self.pointer = (self.pointer & !self.mask) | moved;
    }
}
