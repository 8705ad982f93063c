//! The two streams of host code that a block is written to: the hot one, which runs when nothing special happens, and
//! the cold one behind it with the slow paths. Jumps between them are filled in when both are done.

/// Where the status flags are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flags {
    Ax,
    Host,
    Both,
}

/// A displacement that is filled in when both streams are done: where it lies, and where it leads.
pub(in crate::translate) type Fixup = (Stream, usize, Label);

pub(in crate::translate) enum Label {
    Hot(usize),
    Cold(usize),
    Stub(u64),
}

/// Which stream a position lies in.
#[derive(Clone, Copy)]
pub(in crate::translate) enum Stream {
    Hot,
    Cold,
}

/// Marks a trap's position as one in the cold stream until both streams are joined.
pub(in crate::translate) const COLD: u32 = 1 << 31;
