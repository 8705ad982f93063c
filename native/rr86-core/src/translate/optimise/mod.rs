//! What of a block can do with fewer checks than one an access and one a jump, and the code for it.

mod lazy_flags;
mod loop_code;
mod loop_plan;
mod pins;
mod runs;
pub mod superblock;
