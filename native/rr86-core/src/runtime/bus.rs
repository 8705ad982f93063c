//! What the runtime needs of the machine around the vCPUs.

use std::any::Any;

/// An interprocessor interrupt that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipi {
    /// Delivery mode as in the ICR (SDM vol. 3A, section 11.6.1).
    pub mode: u8,
    pub vector: u8,
    /// Bit n: vCPU n was meant.
    pub targets: u64,
}

/// Devices and interrupt controllers, as an instruction reaches them. `now` is virtual time in
/// nanoseconds.
pub trait Bus: Any + Send {
    fn io_read(&mut self, vcpu: usize, port: u16, size: usize, now: u64) -> u32;
    fn io_write(&mut self, vcpu: usize, port: u16, size: usize, value: u32, now: u64);
    fn mmio_read(&mut self, vcpu: usize, paddr: u64, size: usize, now: u64) -> u64;
    fn mmio_write(&mut self, vcpu: usize, paddr: u64, size: usize, value: u64, now: u64);
    /// `None` is #GP.
    fn apic_msr_read(&mut self, vcpu: usize, msr: u32, now: u64) -> Option<u64>;
    /// `None` is #GP.
    fn apic_msr_write(&mut self, vcpu: usize, msr: u32, value: u64, now: u64) -> Option<()>;
    fn cr8(&self, vcpu: usize) -> u8;
    fn set_cr8(&mut self, vcpu: usize, value: u8);
    /// A maskable interrupt could be delivered if RFLAGS.IF allowed.
    fn pending_interrupt(&self, vcpu: usize) -> bool;
    /// The interrupt acknowledge cycle: the vector, or nothing when it went away.
    fn acknowledge_interrupt(&mut self, vcpu: usize) -> Option<u8>;
    /// Something waits for the machine: a vCPU to wake, a reset, a changed deadline.
    fn has_signals(&self) -> bool;
    /// The vector of the interrupts of a vCPU's own timer.
    fn timer_vector(&self, _vcpu: usize) -> Option<u8> {
        None
    }
    /// Whether to keep what `take_ipis` gives.
    fn note_ipis(&mut self, _on: bool) {}
    /// The interprocessor interrupts sent since the last call.
    fn take_ipis(&mut self) -> Vec<Ipi> {
        Vec::new()
    }
    /// Bytes of console output that have not been taken yet.
    fn console_waiting(&self) -> &[u8] {
        &[]
    }
}
