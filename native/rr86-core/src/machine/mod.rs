//! The Q35 board: devices as state machines on virtual time.
//!
//! Every call takes `now`, the virtual time in nanoseconds. Counters are computed from the time and
//! the value at which they were last set, never ticked, so that a device's state does not depend on
//! when it is asked. Devices never call each other: the board samples their interrupt lines and
//! routes what they ask for.

pub mod board;
mod bus;
pub mod device;
pub mod fw_cfg;
pub mod fw_cfg_dma;
pub mod hpet;
pub mod i8042;
pub mod io;
pub mod ioapic;
pub mod lapic;
pub mod lapic_bus;
pub mod lapic_msr;
#[cfg(test)]
mod legacy_tests;
pub mod misc;
pub mod pci;
pub mod pci_function;
pub mod pic;
pub mod pit;
pub mod pm;
pub mod rtc;
pub mod serial;

pub use board::{Board, BoardConfig, Signal};
pub use device::{load_from_bytes, save_to_bytes, LoadError, Reader, State, Writer};
