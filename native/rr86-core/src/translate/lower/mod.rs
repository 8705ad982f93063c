//! Host code for each family of guest instructions.

pub mod access;
pub mod across;
pub mod branch;
pub mod copy;
pub mod emit;
pub mod inline;
pub mod leave;
pub mod stack;
pub mod stubs;
