//! Hostile traces. Each decoder of a trace file stands behind a checksum, so bytes that were changed at
//! random never reach it. Here every target starts from a valid file, changes what its decoder reads, makes
//! the checksums fit, and reads the file as rr86 does. Whatever comes of it, an error or a value, there may be
//! no panic, no hang, and no allocation out of proportion to the file.
//!
//! An input follows from a seed and a number alone ([`campaign`]), so a finding is repeated by these two.

pub mod campaign;
pub mod files;
pub mod memory;
pub mod mutate;
pub mod sample;
pub mod targets;
