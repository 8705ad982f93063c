//! The translator: guest blocks become host code that runs on the host's CPU, instruction by instruction as the guest
//! wrote them. It is pure. Code follows from bytes, an address, a mode and options; what generated code needs of the
//! world around it is in `layout`. So it can be tested with bytes alone, and runs on any thread.
//!
//! - `decode` says what an instruction is, what it touches, and where a block ends.
//! - `lower` writes the code of each family of instructions.
//! - `optimise` finds what needs fewer checks, and writes that.
//! - `encode` writes host instructions.

pub mod block;
pub mod code;
pub mod decode;
pub mod encode;
pub mod layout;
pub mod lower;
pub mod mode;
pub mod optimise;
pub mod path;
pub mod plan;
pub mod scratch;
pub mod shortcuts;
pub mod site;
