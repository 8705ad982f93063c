//! The instruction that a helper or a slow access is carrying out: what it wants when it is done.

use crate::cpu::interrupt::Event;

/// How to go on after a helper.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flow {
    /// With the instruction at rip.
    #[default]
    Next,
    Pause,
    Halt,
    /// Deliver this, which returns to that address.
    Event(Event, u64),
}

/// State of the instruction at work.
#[derive(Default)]
pub(in crate::runtime) struct CurrentInstruction {
    /// What a helper that ends its block wants next.
    flow: Flow,
    /// Its store hit the running block or a watchpoint, or is in a window.
    stops: bool,
    /// What is left of the budget after the running iteration of a string instruction, whose store is the
    /// last thing that it does: the vCPU may be switched out in a window of that store.
    iteration_left: Option<i64>,
    /// Its last access was kept off the fast path only because its page is watched.
    watched_only: bool,
}

impl CurrentInstruction {
    /// A helper begins.
    #[inline]
    pub fn begin(&mut self) {
        self.stops = false;
    }

    /// The block ends behind this instruction.
    #[inline]
    pub fn stop(&mut self) {
        self.stops = true;
    }

    /// Whether the block ends behind this instruction.
    #[inline]
    pub fn stops(&self) -> bool {
        self.stops
    }

    /// Says how to go on behind the block.
    #[inline]
    pub fn set_flow(&mut self, flow: Flow) {
        self.flow = flow;
    }

    /// How to go on behind the block that has just ended.
    #[inline]
    pub fn take_flow(&mut self) -> Flow {
        std::mem::take(&mut self.flow)
    }

    /// An iteration of a string instruction begins, after which so much of the budget is left.
    #[inline]
    pub fn begin_iteration(&mut self, left: i64) {
        self.iteration_left = Some(left);
    }

    #[inline]
    pub fn end_iteration(&mut self) {
        self.iteration_left = None;
    }

    /// What is left of the budget after the running iteration of a string instruction; `None` outside of one.
    #[inline]
    pub fn iteration_left(&self) -> Option<i64> {
        self.iteration_left
    }

    /// An access is being looked into.
    #[inline]
    pub fn begin_access(&mut self) {
        self.watched_only = false;
    }

    /// The access would go straight to RAM if its page were not watched.
    #[inline]
    pub fn is_watched_only(&mut self) {
        self.watched_only = true;
    }

    /// Whether the last access was kept off the fast path only because its page is watched.
    #[inline]
    pub fn was_watched_only(&self) -> bool {
        self.watched_only
    }
}
