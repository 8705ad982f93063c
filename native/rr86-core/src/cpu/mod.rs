//! The architectural state of a vCPU and the semantics of system instructions (Intel SDM vol. 3A).

pub mod exception;
pub mod memory;
pub mod state;
