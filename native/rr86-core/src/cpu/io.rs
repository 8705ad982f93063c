//! Whether the running code may use I/O ports (SDM vol. 1, section 18.5).

use super::exception::Exception;
use super::interrupt::iopl;
use super::memory::{LinearMemory, Privilege};
use super::segment::linear_address;
use super::state::CpuState;

/// #GP(0) unless IN, OUT, INS or OUTS may access `size` ports (1, 2 or 4) at `port`: by IOPL, or by the
/// I/O permission bitmap of a 32-bit or 64-bit TSS. Virtual-8086 mode always asks the bitmap.
pub fn check_port(
    cpu: &CpuState,
    mem: &mut dyn LinearMemory,
    port: u16,
    size: usize,
) -> Result<(), Exception> {
    let free = !cpu.protected() || (!cpu.v8086() && cpu.cpl <= iopl(cpu));
    if free {
        return Ok(());
    }
    let limit = u64::from(cpu.tr.limit);
    if !cpu.tr.present() || cpu.tr.kind() & 8 == 0 || limit < 0x67 {
        return Err(Exception::gp(0));
    }
    let at = |offset: u64| linear_address(cpu, cpu.tr.base.wrapping_add(offset));
    let map = mem.read(cpu, at(0x66), 2, Privilege::System)?;
    // Two bytes are read always, so the bitmap needs a byte beyond its last.
    let byte = map + u64::from(port >> 3);
    if byte + 1 > limit {
        return Err(Exception::gp(0));
    }
    let bits = mem.read(cpu, at(byte), 2, Privilege::System)? >> (port & 7);
    if bits & ((1 << size) - 1) != 0 {
        return Err(Exception::gp(0));
    }
    Ok(())
}
