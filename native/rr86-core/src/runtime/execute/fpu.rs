//! Saving and restoring FPU state. The layouts are in `cpu::fpu`; here they meet guest memory.
//!
//! The guest's state is in memory while a helper runs, because the stub that calls it put it there.

use iced_x86::{Code, Mnemonic as M, OpKind};

use super::{Context, Result};
use crate::cpu::exception::{vector, Exception};
use crate::cpu::fpu;
use crate::cpu::memory::Privilege;
use crate::cpu::state::{gpr, XSAVE_SIZE};
use crate::translate::site::AccessKind;

/// Offset of XSTATE_BV in an XSAVE area.
const XSTATE_BV: u64 = 512;

impl Context<'_> {
    fn read_block(&mut self, linear: u64, out: &mut [u8]) -> Result {
        self.with_memory(|cpu, mem| mem.read_bytes(cpu, linear, out, Privilege::Current))
    }

    fn write_block(&mut self, linear: u64, data: &[u8]) -> Result {
        self.with_memory(|cpu, mem| mem.write_bytes(cpu, linear, data, Privilege::Current))
    }

    /// Stores the ranges of an image that an instruction writes, after checking all of it.
    fn write_ranges(
        &mut self,
        linear: u64,
        image: &[u8],
        ranges: &fpu::Ranges,
        extent: usize,
    ) -> Result {
        use crate::cpu::memory::LinearMemory;
        // The last byte is checked first, as processors do.
        let last = linear.wrapping_add(extent as u64 - 1);
        self.with_memory(|cpu, mem| {
            mem.probe_write(cpu, last, 1, Privilege::Current)?;
            mem.probe_write(cpu, linear, extent, Privilege::Current)
        })?;
        for (start, end) in ranges.iter() {
            self.write_block(linear.wrapping_add(start as u64), &image[start..end])?;
        }
        Ok(())
    }

    /// Checks both ends of an image that is to be written, in the order in which processors do it: the
    /// control word with `size` bytes, then the last byte.
    fn probe_first_and_last(&mut self, linear: u64, size: usize, len: usize) -> Result {
        use crate::cpu::memory::LinearMemory;
        let last = linear.wrapping_add(len as u64 - 1);
        self.with_memory(|cpu, mem| {
            mem.probe_write(cpu, linear, size, Privilege::Current)?;
            mem.probe_write(cpu, last, 1, Privilege::Current)
        })
    }

    fn requested(&self) -> u64 {
        self.cpu.gpr[gpr::RAX] & 0xffff_ffff | self.cpu.gpr[gpr::RDX] << 32
    }
}

/// Operand size of the environment formats.
fn environment_operand(code: Code) -> usize {
    match code {
        Code::Fnstenv_m14byte
        | Code::Fstenv_m14byte
        | Code::Fldenv_m14byte
        | Code::Fnsave_m94byte
        | Code::Fsave_m94byte
        | Code::Frstor_m94byte => 2,
        _ => 4,
    }
}

pub fn execute(c: &mut Context<'_>) -> Result {
    let mnemonic = c.insn.mnemonic();
    let rex_w = matches!(
        mnemonic,
        M::Fxsave64 | M::Fxrstor64 | M::Xsave64 | M::Xsaveopt64 | M::Xrstor64
    );
    match mnemonic {
        M::Fxsave | M::Fxsave64 => {
            let at = c.address(fpu::FXSAVE_SIZE, AccessKind::Write)?;
            fpu::check_fxsave(c.cpu, at)?;
            let mut image = [0; fpu::FXSAVE_SIZE];
            let ranges = fpu::fxsave(c.cpu, rex_w, &mut image);
            c.write_ranges(at, &image, &ranges, fpu::FXSAVE_SIZE)
        }
        M::Fxrstor | M::Fxrstor64 => {
            let at = c.address(fpu::FXSAVE_SIZE, AccessKind::Read)?;
            fpu::check_fxsave(c.cpu, at)?;
            let mut image = [0; fpu::FXSAVE_SIZE];
            c.load(at.wrapping_add(fpu::FXSAVE_SIZE as u64 - 1), 1)?;
            c.read_block(at, &mut image)?;
            fpu::fxrstor(c.cpu, rex_w, &image)
        }
        M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 => {
            let extent = fpu::xsave_extent(c.cpu, c.requested());
            let at = c.address(extent, AccessKind::Write)?;
            fpu::check_xsave(c.cpu, at)?;
            let old = c.load(at.wrapping_add(XSTATE_BV), 8)?;
            let optimise = matches!(mnemonic, M::Xsaveopt | M::Xsaveopt64);
            let mut image = [0; XSAVE_SIZE];
            let requested = c.requested();
            let ranges = fpu::xsave(c.cpu, rex_w, requested, optimise, old, &mut image);
            c.write_ranges(at, &image, &ranges, extent)
        }
        M::Xrstor | M::Xrstor64 => {
            let requested = c.requested();
            let extent = fpu::xsave_extent(c.cpu, requested);
            let at = c.address(extent, AccessKind::Read)?;
            fpu::check_xsave(c.cpu, at)?;
            let mut image = [0; XSAVE_SIZE];
            c.read_block(at, &mut image[..extent])?;
            fpu::xrstor(c.cpu, rex_w, requested, &image)
        }
        M::Fnsave | M::Fsave | M::Fnstenv | M::Fstenv => {
            let size = environment_operand(c.insn.code());
            if matches!(mnemonic, M::Fsave | M::Fstenv) {
                pending_error(c)?;
            }
            let save = matches!(mnemonic, M::Fnsave | M::Fsave);
            let mut image = [0; fpu::FSAVE_MAX];
            let len = if save {
                fpu::fnsave(c.cpu, size, &mut image)
            } else {
                fpu::fnstenv(c.cpu, size, &mut image)
            };
            let at = c.address(len, AccessKind::Write)?;
            c.probe_first_and_last(at, size, len)?;
            c.write_block(at, &image[..len])?;
            if save {
                fpu::fninit(c.cpu);
            } else {
                fpu::mask_exceptions(c.cpu);
            }
            Ok(())
        }
        M::Fldenv | M::Frstor => {
            pending_error(c)?;
            let size = environment_operand(c.insn.code());
            let restore = mnemonic == M::Frstor;
            let len = fpu::environment_size(size) + if restore { 80 } else { 0 };
            let mut image = [0; fpu::FSAVE_MAX];
            let at = c.address(len, AccessKind::Read)?;
            c.load(at, size)?;
            c.load(at.wrapping_add(len as u64 - 1), 1)?;
            c.read_block(at, &mut image[..len])?;
            if restore {
                fpu::frstor(c.cpu, size, &image);
            } else {
                fpu::fldenv(c.cpu, size, &image);
            }
            Ok(())
        }
        M::Ldmxcsr => {
            let at = c.address(4, AccessKind::Read)?;
            let value = c.load(at, 4)?;
            // As copied SSE instructions do, because the state passes through the host's FPU then.
            fpu::clear_pointers(c.cpu);
            fpu::set_mxcsr(c.cpu, value as u32)
        }
        M::Wait => {
            fpu::check_wait(c.cpu)?;
            pending_error(c)
        }
        _ => masked_move(c),
    }
}

/// #MF for an unmasked x87 exception that waits (SDM vol. 1, section 8.7).
fn pending_error(c: &Context<'_>) -> Result {
    if fpu::pending_x87_error(c.cpu) {
        return Err(Exception::new(vector::MF));
    }
    Ok(())
}

/// MASKMOVQ and MASKMOVDQU: stores the bytes of the first operand whose mask byte has its top bit set.
fn masked_move(c: &mut Context<'_>) -> Result {
    let wide = c.insn.mnemonic() == M::Maskmovdqu;
    let len = if wide { 16 } else { 8 };
    if !wide {
        pending_error(c)?;
    }
    let vector = |c: &Context<'_>, operand: u32| -> [u8; 16] {
        let number = c.insn.op_register(operand).number();
        let at = if wide {
            160 + 16 * number
        } else {
            fpu::mmx_offset(c.cpu, number)
        };
        c.cpu.fpu.0[at..at + 16].try_into().expect("sixteen bytes")
    };
    debug_assert_eq!(c.insn.op1_kind(), OpKind::Register);
    let (data, mask) = (vector(c, 1), vector(c, 2));
    let size = match c.insn.op0_kind() {
        OpKind::MemorySegDI => 2,
        OpKind::MemorySegEDI => 4,
        _ => 8,
    };
    let offset = super::operand::truncate(c.cpu.gpr[gpr::RDI], size);
    let number = super::operand::segment_number(c.insn.memory_segment())
        .unwrap_or(crate::cpu::state::sreg::DS);
    let at = crate::runtime::slow::linear_address(c.cpu, number, offset, len, AccessKind::Write)?;
    use crate::cpu::memory::LinearMemory;
    // The x87 state changes even if the access faults.
    if !wide {
        fpu::enter_mmx(c.cpu);
    }
    // Faults do not depend on the mask (the SDM leaves that open).
    c.with_memory(|cpu, mem| mem.probe_write(cpu, at, len, Privilege::Current))?;
    for n in (0..len).filter(|&n| mask[n] & 0x80 != 0) {
        c.save(at.wrapping_add(n as u64), 1, u64::from(data[n]))?;
    }
    Ok(())
}
