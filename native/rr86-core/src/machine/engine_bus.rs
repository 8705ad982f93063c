//! The board as the engine reaches it.

use super::board::Board;
use crate::runtime::bus::{Bus, Ipi};

impl Bus for Board {
    fn io_read(&mut self, vcpu: usize, port: u16, size: usize, now: u64) -> u32 {
        Board::io_read(self, vcpu, port, size, now)
    }
    fn io_write(&mut self, vcpu: usize, port: u16, size: usize, value: u32, now: u64) {
        Board::io_write(self, vcpu, port, size, value, now);
    }
    fn mmio_read(&mut self, vcpu: usize, paddr: u64, size: usize, now: u64) -> u64 {
        Board::mmio_read(self, vcpu, paddr, size, now)
    }
    fn mmio_write(&mut self, vcpu: usize, paddr: u64, size: usize, value: u64, now: u64) {
        Board::mmio_write(self, vcpu, paddr, size, value, now);
    }
    fn apic_msr_read(&mut self, vcpu: usize, msr: u32, now: u64) -> Option<u64> {
        Board::apic_msr_read(self, vcpu, msr, now).ok()
    }
    fn apic_msr_write(&mut self, vcpu: usize, msr: u32, value: u64, now: u64) -> Option<()> {
        Board::apic_msr_write(self, vcpu, msr, value, now).ok()
    }
    fn cr8(&self, vcpu: usize) -> u8 {
        Board::cr8(self, vcpu)
    }
    fn set_cr8(&mut self, vcpu: usize, value: u8) {
        Board::set_cr8(self, vcpu, value);
    }
    fn pending_interrupt(&self, vcpu: usize) -> bool {
        Board::pending_interrupt(self, vcpu)
    }
    fn acknowledge_interrupt(&mut self, vcpu: usize) -> Option<u8> {
        Board::acknowledge_interrupt(self, vcpu)
    }
    fn has_signals(&self) -> bool {
        Board::has_signals(self)
    }
    fn timer_vector(&self, vcpu: usize) -> Option<u8> {
        Some(Board::timer_vector(self, vcpu))
    }
    fn note_ipis(&mut self, on: bool) {
        Board::note_ipis(self, on);
    }
    fn take_ipis(&mut self) -> Vec<Ipi> {
        Board::take_ipis(self)
    }
    fn console_waiting(&self) -> &[u8] {
        self.serial().waiting_output()
    }
}
