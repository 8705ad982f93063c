//! Accesses of devices to guest memory.
//!
//! A device has no way to guest memory of its own. It says which access it needs next, the machine makes it, through
//! the one function for writes, and hands the outcome back. This happens before the next instruction.

/// One access of a device to guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DmaAccess {
    Read { paddr: u64, length: usize },
    Write { paddr: u64, data: Vec<u8> },
}
