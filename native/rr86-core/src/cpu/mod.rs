//! The architectural state of a vCPU and the semantics of system instructions (Intel SDM vol. 3A).

pub mod check;
pub mod control;
pub mod cpuid;
pub mod effects;
pub mod exception;
pub mod far;
pub mod fpu;
pub mod interrupt;
pub mod io;
pub mod iret;
pub mod memory;
pub mod msr;
pub mod paging;
pub mod registers;
pub mod reset;
pub mod save;
pub mod segment;
pub mod semantics;
pub mod stack;
pub mod state;
pub mod syscall;
pub mod task;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod transfer_tests;
