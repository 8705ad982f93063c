//! How far each vCPU has come in what takes more than one step.

use super::cache::BlockId;
use super::windows::UnderWay;

/// Where a vCPU that was stopped inside a block goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    pub block: BlockId,
    pub index: usize,
}

/// One vCPU's progress. It is part of the machine's state.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Where it goes on, if it was stopped inside a block.
    pub(in crate::runtime) resume: Option<Resume>,
    /// Moment of its last interrupt or NMI.
    pub(in crate::runtime) interrupted_at: Option<u64>,
    /// Moment and rip of its store that is checked and not committed.
    pub(in crate::runtime) checked_store: (u64, u64),
    /// Moment at which it was last serialised.
    pub(in crate::runtime) serialised: Option<u64>,
    /// Steps of the block protocol that it has begun.
    pub(in crate::runtime) under_way: UnderWay,
    /// How many INITs it has had.
    pub(in crate::runtime) inits: u64,
}

impl Progress {
    /// Whether it stands in a block.
    pub(in crate::runtime) fn is_in(&self, id: BlockId) -> bool {
        self.resume.is_some_and(|resume| resume.block == id)
    }
}
