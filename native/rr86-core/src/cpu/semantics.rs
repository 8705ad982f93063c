//! Which version of the machine's semantics a run follows.
//!
//! A mend of what a guest can see would keep older traces from replaying. So the version at which a trace was
//! recorded is in its header, and everything that has changed since asks here. All differences are listed in this
//! file, one method each; `docs/determinism.md` says what each one means for a guest.

use thiserror::Error;

/// A version of the machine's semantics.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Semantics(u8);

/// A version that this rr86 does not know.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the machine's semantics have versions 1 to {newest}, not {0}", newest = Semantics::CURRENT.0)]
pub struct UnknownSemantics(pub u32);

impl Semantics {
    /// What traces follow whose header names no version.
    pub const FIRST: Self = Self(1);
    /// What new recordings follow.
    pub const CURRENT: Self = Self(2);

    /// # Errors
    /// [`UnknownSemantics`] for versions that do not exist (yet).
    pub fn new(version: u32) -> Result<Self, UnknownSemantics> {
        u8::try_from(version)
            .ok()
            .map(Self)
            .filter(|version| (Self::FIRST..=Self::CURRENT).contains(version))
            .ok_or(UnknownSemantics(version))
    }

    /// The MXCSR_MASK in a vCPU's saved FPU state, and so in its digest, is the host's once its FPU has been used:
    /// 2FFFFH on AMD's processors and FFFFH on Intel's. Later it is FFFFH on all.
    pub fn keeps_host_mxcsr_mask(self) -> bool {
        self < Self(2)
    }

    /// A repeated MOVS takes the page that it writes before it has looked whether it may read, if more than one of its
    /// iterations are left in the slice. Where the source faults, that showed: in hand-offs, dirty bits and lines that
    /// were never written.
    pub fn strings_take_destinations_first(self) -> bool {
        self < Self(2)
    }

    /// What a device asks of the machine between a fault and the first instruction of its handler is served behind
    /// that. In version 1 the slice could end in between, so that a replay, which counts instructions, raised the
    /// fault in a later one.
    pub fn signals_wait_behind_faults(self) -> bool {
        self >= Self(2)
    }

    /// A trace tells of timers that fired after the last slice, when they left nobody able to run.
    pub fn last_timers_are_recorded(self) -> bool {
        self >= Self(2)
    }

    /// An interrupt that can be delivered at the end of a slice is, before another vCPU runs. In version 1 it
    /// depended on whether the slice could have gone on, which the trace does not tell: after HLT, PAUSE and
    /// accesses to devices.
    pub fn interrupts_before_slice_ends(self) -> bool {
        self >= Self(2)
    }

    /// An encoding does what the CPU model has it do; before, a fixed list did. What both have is the same.
    /// Hint NOPs that the list lacked (CLDEMOTE, PREFETCHWT1) were #UD, and WBNOINVD was.
    pub fn model_decides_encodings(self) -> bool {
        self >= Self(2)
    }
}

impl Default for Semantics {
    fn default() -> Self {
        Self::CURRENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_from_the_first_to_the_current_exist() {
        assert_eq!(Semantics::new(1), Ok(Semantics::FIRST));
        assert_eq!(Semantics::new(2), Ok(Semantics::CURRENT));
        assert_eq!(Semantics::new(0), Err(UnknownSemantics(0)));
        assert_eq!(Semantics::new(258), Err(UnknownSemantics(258)));
        let message = UnknownSemantics(3).to_string();
        assert_eq!(
            message,
            "the machine's semantics have versions 1 to 2, not 3"
        );
    }
}
