//! Running translated blocks. [`engine::Engine`] is made of parts with one job each; what takes several of them is in
//! files of its own.
//!
//! | parts | |
//! |---|---|
//! | `guest_memory` | RAM, and what is known of each page |
//! | `code_cache`, `cache`, `codebuf` | blocks, their links, and their host code |
//! | `translator`, `ahead` | how blocks are made, and making them before they are needed |
//! | `vcpu`, `fetch`, `progress` | what is one vCPU's: registers, translations, steps under way |
//! | `clock`, `slice`, `instruction` | virtual time, the budget of what runs, and the instruction that a helper carries out |
//! | `coherence_state`, `windows`, `protocol` | block protocols, and the windows between their steps |
//! | `stops` | what the debugger waits for |
//! | `agent`, `bus`, `host`, `flags`, `entry`, `signals` | who writes, the devices, the host's CPU, the way into code and out of it |
//! | `setup` | making an engine |
//! | `outside`, `inputs` | the bus and what else reaches a vCPU from outside, live, logged or replayed |
//! | `observers`, `oracle`, `writelog`, `storelog`, `journal` | what is noted beside the run |
//!
//! Built on these: `dispatch` goes from block to block, with `delivery` (interrupts and exceptions), `block_code` (host code
//! of a block), `hotness` (superblocks) and `caught` (guest exceptions out of host signals). `slow` is every access that
//! is not plain RAM, `view` memory as helpers see it, `execute` every instruction that is not copied. `coherence` keeps
//! blocks and memory in step, `acquire` pages and their owners, `steps` what a protocol has under way.
//! `watching` and `noting` are the observers as the others use them. `inspect`, `checkpoint` and `rewind` are for callers.

mod acquire;
pub mod agent;
pub mod ahead;
mod block_code;
pub mod bus;
pub mod cache;
mod caught;
pub mod checkpoint;
pub mod clock;
mod code_cache;
pub mod codebuf;
mod coherence;
mod coherence_state;
mod delivery;
pub mod dispatch;
pub mod engine;
mod entry;
pub mod execute;
pub mod fetch;
mod flags;
pub mod guest_memory;
pub mod host;
mod hotness;
pub mod inputs;
mod inspect;
mod instruction;
pub mod journal;
mod noting;
pub mod observers;
pub mod oracle;
mod outside;
mod progress;
pub mod protocol;
mod rewind;
mod setup;
pub mod signals;
mod slice;
pub mod slow;
mod steps;
pub mod stops;
pub mod storelog;
pub mod translator;
pub mod vcpu;
pub mod view;
mod watching;
pub mod windows;
pub mod writelog;
