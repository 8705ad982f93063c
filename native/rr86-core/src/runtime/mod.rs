//! Running translated blocks: the cache of blocks and the buffer of host code, the dispatcher, the slow paths of memory
//! accesses, what keeps blocks in step with memory, helpers for what is not copied, host signals, and observers.
//!
//! `engine` owns it all and `dispatch` runs it; `slow` is every access that is not plain RAM; `execute` is every
//! instruction that is not copied.

mod acquire;
pub mod ahead;
mod block_code;
pub mod bus;
pub mod cache;
mod checkpoint;
pub mod codebuf;
mod coherence;
mod delivery;
pub mod dispatch;
pub mod engine;
mod entry;
pub mod execute;
pub mod fetch;
mod host;
mod hotness;
pub mod inputs;
mod inspect;
pub mod oracle;
pub mod protocol;
pub mod signals;
pub mod slow;
pub mod storelog;
pub mod vcpu;
pub mod view;
pub mod windows;
pub mod writelog;
