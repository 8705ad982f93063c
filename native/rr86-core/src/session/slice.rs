//! Slices: what is decided of them, how they end, and what comes between two.

use crate::runtime::stops::StopCause;
use crate::runtime::windows::Window;

/// Where the lengths of slices come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slices {
    /// They are decided on now. A timer, PAUSE, or a block that does not fit may end one early.
    New,
    /// They were recorded, so all of that has been taken into account: they run to the instruction, if need be
    /// into a block.
    Recorded,
}

/// Which vCPU runs next, and for how many instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub vcpu: usize,
    pub budget: u64,
}

/// Why the machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    PowerOff,
    Reset,
    /// isa-debug-exit, with the exit status that QEMU would give.
    DebugExit(u32),
    /// A device could not do its work.
    DeviceFailed,
    /// A vCPU shut down after a triple fault.
    TripleFault {
        vcpu: usize,
    },
}

/// What happens before the next slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Some vCPU can run.
    Ready,
    /// Virtual time jumped to this many nanoseconds, and now some vCPU can run, or has to wait on.
    Skipped(u64),
    /// No vCPU can run and no timer is set: only input could wake the machine.
    Deadlock,
    Ended(Ending),
}

/// Why a slice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SliceStop {
    Quantum,
    Pause,
    Halt,
    Deadline,
    Ended(Ending),
    /// Switched out between two steps of the block protocol.
    Window(Window),
}

/// A slice that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    pub vcpu: usize,
    /// The instruction count at its start.
    pub start: u64,
    pub instructions: u64,
    pub stop: SliceStop,
}

/// What became of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SliceReport {
    /// It is over.
    Done(Finished),
    /// The debugger's stop inside the slice; `resume` goes on with it.
    Stopped(StopCause),
    /// Translated code failed on the host. The slice has no end, and nothing runs any more.
    Failed,
    /// The call has lasted long enough; `resume` goes on with the slice.
    TimeUp,
}

/// A slice under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slice {
    pub vcpu: usize,
    pub start: u64,
    /// Instructions that the decision still allows.
    pub left: u64,
    /// Why it ends when these are used up.
    pub stop: SliceStop,
}
