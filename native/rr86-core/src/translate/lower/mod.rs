//! Host code for each family of guest instructions.

pub mod access;
pub mod across;
mod branch;
mod copy;
pub mod emitter;
pub mod inline;
mod jump_cache;
mod leave;
mod stack;
pub mod streams;
pub mod stubs;
