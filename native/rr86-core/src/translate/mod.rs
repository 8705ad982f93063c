//! The translator: guest blocks become host code that runs on the host's CPU, instruction by
//! instruction as the guest wrote them.
//!
//! `classify` decides how an instruction is translated and where a block ends; `emit` and its families
//! (`access`, `copy`, `stack`, `branch`, `leave`) write the code; `cache` knows the blocks; `slow` is every access that
//! is not plain RAM; `execute` is every instruction that is not copied; `engine` owns it all and
//! `dispatch` runs it.

mod access;
mod acquire;
mod across;
pub mod ahead;
pub mod asm;
mod block_code;
mod branch;
pub mod bus;
pub mod cache;
mod checkpoint;
pub mod classify;
pub mod code;
pub mod codebuf;
mod coherence;
mod copy;
mod delivery;
pub mod dispatch;
pub mod emit;
mod encode;
pub mod engine;
pub mod execute;
pub mod fetch;
mod flags;
mod heat;
mod host;
mod inline;
pub mod inputs;
mod inspect;
mod leave;
mod loops;
mod lost;
pub mod mode;
pub mod offered;
mod operands;
pub mod oracle;
mod pins;
pub mod protocol;
mod runs;
pub mod shortcuts;
pub mod signals;
pub mod site;
pub mod slow;
mod stack;
pub mod storelog;
mod strings;
pub mod stubs;
pub mod superblock;
mod turns;
pub mod vcpu;
pub mod view;
pub mod windows;
pub mod workbench;
pub mod writelog;

pub use operands::address_size;
