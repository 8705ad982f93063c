//! What optimisations keep about a block while it is written.

use iced_x86::Register;

use crate::translate::lower::streams::Flags;
use crate::translate::site::AccessKind;

/// What the addresses of a run have in common: base, index and scale.
pub(in crate::translate) type Key = (Register, Register, u32);

/// One access, its offset as seen from the key's registers when the instruction begins.
#[derive(Clone, Copy)]
pub(in crate::translate) struct Use {
    pub(in crate::translate) key: Key,
    pub(in crate::translate) offset: i64,
    pub(in crate::translate) size: i64,
    pub(in crate::translate) kind: AccessKind,
}

/// The run that is being emitted.
pub(in crate::translate) struct Run {
    /// Displacement from the checked address, for the instructions from `first` on.
    pub(in crate::translate) displacements: Vec<Option<i32>>,
    pub(in crate::translate) first: usize,
    /// All lines have been marked at its head.
    pub(in crate::translate) marked: bool,
    /// What pushes and pops have still to add to the stack pointer, which is not looked at meanwhile.
    pub(in crate::translate) stack_shift: i32,
}

impl Run {
    pub(in crate::translate) fn end(&self) -> usize {
        self.first + self.displacements.len()
    }
}

/// A run's second copy, which is still to be emitted.
pub(in crate::translate) struct SlowCopy {
    pub(in crate::translate) first: usize,
    pub(in crate::translate) end: usize,
    /// The fixup of the jump that leads to it.
    pub(in crate::translate) from: usize,
    pub(in crate::translate) fpu_loaded: bool,
    /// Where it goes on, and where the flags have to be there.
    pub(in crate::translate) back: usize,
    pub(in crate::translate) flags: Flags,
}

/// A block that jumps to its own start.
#[derive(Default)]
pub(in crate::translate) struct SelfLoop {
    /// Registers that move by a constant, and those that change otherwise.
    pub(in crate::translate) moved: Vec<Register>,
    pub(in crate::translate) changed: Vec<Register>,
    /// Addresses that have a pin, in the order of their pins.
    pub(in crate::translate) keys: Vec<Key>,
}
