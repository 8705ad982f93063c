//! How the semantics of system instructions reach memory, without knowing what stands behind it.

use super::exception::Exception;
use super::state::CpuState;

/// With whose rights an access is made (SDM vol. 3A, section 4.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// At the current privilege level; supervisor accesses honour SMAP with RFLAGS.AC.
    Current,
    /// An implicit supervisor access (descriptor tables, TSS, stack switches): never subject to
    /// CPL, and subject to SMAP whatever RFLAGS.AC says.
    System,
}

/// Linear (virtual, after segmentation) memory as the running vCPU sees it. Every access may raise
/// #PF or, for a non-canonical address, #GP(0); a failed access has changed nothing.
pub trait LinearMemory {
    /// Reads `size` bytes (1, 2, 4 or 8), little-endian, zero-extended.
    fn read(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        size: usize,
        privilege: Privilege,
    ) -> Result<u64, Exception>;

    /// Writes the low `size` bytes (1, 2, 4 or 8) of `value`.
    fn write(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        size: usize,
        value: u64,
        privilege: Privilege,
    ) -> Result<(), Exception>;

    /// Raises what a write of `len` bytes would raise, without writing (A/D bits may be set).
    fn probe_write(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        len: usize,
        privilege: Privilege,
    ) -> Result<(), Exception>;

    /// CR3 has changed in the middle of an instruction (a task switch): translations cached behind
    /// this trait are out of date from here on.
    fn translation_changed(&mut self) {}
}

/// Physical memory as the page walker sees it. Reads of absent memory give all ones.
pub trait PhysicalMemory {
    fn read_u32(&mut self, paddr: u64) -> u32;
    fn read_u64(&mut self, paddr: u64) -> u64;
    /// A page-table update (accessed and dirty bits): a write like any other.
    fn write_u32(&mut self, paddr: u64, value: u32);
    fn write_u64(&mut self, paddr: u64, value: u64);
}
