//! The Q35 board: devices as state machines on virtual time.
//!
//! Every call takes `now`, the virtual time in nanoseconds. Counters are computed from the time and
//! the value at which they were last set, never ticked, so that a device's state does not depend on
//! when it is asked. Devices never call each other: the board samples their interrupt lines and
//! routes what they ask for.
//!
//! [`device`] says what a device is, [`q35`] lists those of the board, [`bus`] finds the one that answers, and [`board`]
//! has the wires and the timers.

pub mod address_map;
pub mod board;
pub mod bus;
pub mod device;
#[cfg(test)]
mod device_tests;
pub mod dma;
mod engine_bus;
pub mod fw_cfg;
pub mod fw_cfg_dma;
pub mod fw_cfg_items;
pub mod hpet;
pub mod i8042;
mod idle;
pub mod interrupts;
pub mod ioapic;
pub mod lapic;
mod lapic_device;
pub mod lapic_msr;
pub mod message;
pub mod misc;
pub mod msix;
pub mod pci;
pub mod pci_config;
pub mod pci_function;
pub mod pic;
pub mod pit;
pub mod pm;
#[cfg(test)]
mod probe;
pub mod q35;
pub mod range;
pub mod rtc;
pub mod serial;
pub mod signal;

pub use board::{Board, PlugError};
pub use device::{load_from_bytes, save_to_bytes, Device, LoadError, Reader, State, Writer};
pub use q35::BoardConfig;
pub use signal::Signal;
