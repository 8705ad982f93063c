//! What of a block can do with fewer checks than one an access and one a jump, and the code for it.

pub mod loops;
pub mod lost;
pub mod pins;
pub mod runs;
pub mod superblock;
pub mod turns;
