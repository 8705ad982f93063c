//! What an instruction is: whether the guest's CPU model offers it, how it is translated, what it touches.

pub mod classify;
pub mod flags;
pub mod offered;
pub mod operands;
