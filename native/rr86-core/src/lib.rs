//! The native core of rr86: everything that runs per guest instruction, per memory access or per
//! block. It knows no Python. Arrows point one way: `session → machine → runtime → translate → cpu`, with `memory`
//! under `runtime` and `translate::layout`, and `trace` under `session` alone.

pub mod contents;
pub mod cpu;
pub mod host_time;
pub mod machine;
pub mod memory;
pub mod runtime;
pub mod saved;
pub mod session;
pub mod trace;
pub mod translate;
