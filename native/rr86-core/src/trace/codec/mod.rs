//! How a chunk of events becomes bytes, and back. `columns` has the rules that both directions share.

mod columns;
pub mod decode;
pub mod encode;
#[cfg(test)]
pub(crate) mod tests;

pub use columns::MAX_EVENTS;
pub use decode::decode;
pub use encode::ChunkBuilder;
