//! How far each vCPU has come in what takes more than one step.

use super::cache::BlockId;
use super::windows::{Fetched, Unchecked, Uncommitted, UnderWay, Unguard};

/// Where a vCPU that was stopped inside a block goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    pub block: BlockId,
    pub index: usize,
}

/// One vCPU's progress. It is part of the machine's state.
#[derive(Clone, Debug, Default)]
pub(in crate::runtime) struct Progress {
    /// Where it goes on, if it was stopped inside a block.
    resume: Option<Resume>,
    /// Moment of its last interrupt or NMI.
    interrupted_at: Option<u64>,
    /// Moment and rip of its store that is checked and not committed.
    checked_store: (u64, u64),
    /// Moment at which it was last serialised.
    serialised: Option<u64>,
    /// Steps of the block protocol that it has begun.
    under_way: UnderWay,
    /// How many INITs it has had.
    inits: u64,
}

impl Progress {
    // ---- inside a block --------------------------------------------------------------------------

    /// Where it goes on, if it was stopped inside a block.
    #[inline]
    pub fn resume(&self) -> Option<Resume> {
        self.resume
    }

    /// It goes on there.
    #[inline]
    pub fn stop_inside(&mut self, resume: Resume) {
        self.resume = Some(resume);
    }

    /// It stands in no block.
    #[inline]
    pub fn leave_block(&mut self) {
        self.resume = None;
    }

    /// It does not go on in this block, which is removed.
    #[inline]
    pub fn leave_removed(&mut self, id: BlockId) {
        self.resume.take_if(|resume| resume.block == id);
    }

    // ---- moments ---------------------------------------------------------------------------------

    /// It takes an interrupt or NMI.
    #[inline]
    pub fn note_interrupt(&mut self, icount: u64) {
        self.interrupted_at = Some(icount);
    }

    /// Whether its last interrupt or NMI was at this moment.
    #[inline]
    pub fn was_interrupted_at(&self, icount: u64) -> bool {
        self.interrupted_at == Some(icount)
    }

    /// Moment of its last interrupt or NMI.
    pub fn interrupted_at(&self) -> Option<u64> {
        self.interrupted_at
    }

    /// It is serialised.
    #[inline]
    pub fn note_serialised(&mut self, icount: u64) {
        self.serialised = Some(icount);
    }

    /// Moment at which it was last serialised.
    pub fn serialised_at(&self) -> Option<u64> {
        self.serialised
    }

    /// INIT: what it had begun is forgotten.
    pub fn init(&mut self) {
        self.inits += 1;
        self.forget_steps();
    }

    /// How many INITs it has had.
    pub fn inits(&self) -> u64 {
        self.inits
    }

    // ---- steps of the block protocol -------------------------------------------------------------

    /// The steps that it has begun.
    #[inline]
    pub fn under_way(&self) -> &UnderWay {
        &self.under_way
    }

    /// The same, to be finished now.
    #[inline]
    pub fn take_steps(&mut self) -> UnderWay {
        std::mem::take(&mut self.under_way)
    }

    /// Forgets where it goes on, and the steps that it has begun.
    pub fn forget_steps(&mut self) {
        self.resume = None;
        self.under_way = UnderWay::default();
    }

    /// Of the steps that it has begun, forgets those that are about blocks; a store that is not committed stays.
    pub fn forget_blocks(&mut self) {
        let mut steps = self.take_steps();
        self.under_way.uncommitted = steps.uncommitted.take().map(|store| Uncommitted {
            emptied: false,
            ..store
        });
    }

    /// It has read the bytes of a block that is not linked.
    pub fn begin_link(&mut self, fetched: Fetched) {
        self.under_way.fetched = Some(fetched);
    }

    /// The bytes that it has read and not linked, if they are as asked; it has to read them again.
    #[inline]
    pub fn take_fetch_if(&mut self, wanted: impl FnOnce(&Fetched) -> bool) -> Option<Fetched> {
        self.under_way.fetched.take_if(|fetched| wanted(fetched))
    }

    /// It has checked a store, at this moment and rip, and not committed it.
    pub fn begin_commit(&mut self, checked: (u64, u64), store: Uncommitted) {
        self.checked_store = checked;
        self.under_way.uncommitted = Some(store);
    }

    /// Moment and rip of the store that it has checked and not committed, or of the last one.
    pub fn checked_store(&self) -> (u64, u64) {
        self.checked_store
    }

    /// It has committed a store and not checked it.
    pub fn begin_check(&mut self, store: Unchecked) {
        self.under_way.unchecked = Some(store);
    }

    /// It is about to drop a guard.
    pub fn begin_unguard(&mut self, unguard: Unguard) {
        self.under_way.unguard = Some(unguard);
    }

    /// Replaces all but INITs by what a checkpoint has.
    pub fn restore(
        &mut self,
        interrupted_at: Option<u64>,
        serialised: Option<u64>,
        checked_store: (u64, u64),
        under_way: UnderWay,
    ) {
        *self = Self {
            resume: None,
            interrupted_at,
            checked_store,
            serialised,
            under_way,
            inits: self.inits,
        };
    }
}
