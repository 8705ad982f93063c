//! The native core of rr86: everything that runs per guest instruction, per memory access or per
//! block. It knows no Python. Arrows point one way:
//! `record, replay → schedule → machine → runtime → translate → memory → cpu`.

pub mod contents;
pub mod cpu;
pub mod host_time;
pub mod machine;
pub mod memory;
pub mod record;
pub mod replay;
pub mod runtime;
pub mod saved;
pub mod schedule;
pub mod translate;
