//! Host instructions as bytes.

pub mod asm;
pub mod instruction;
