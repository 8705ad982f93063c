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

    /// An encoding does what the CPU model has it do; before, a fixed list did. What both have is the same.
    /// Hint NOPs that the list lacked (CLDEMOTE, PREFETCHWT1) were #UD, and WBNOINVD was.
    pub fn model_decides_encodings(self) -> bool {
        self >= Self(2)
    }

    /// LGDT, LIDT and LMSW outside of ring 0 raise #GP before their operand can fault. Before, its #PF came first.
    pub fn privilege_comes_before_memory(self) -> bool {
        self >= Self(2)
    }

    /// CRC32 and MOVNTI, which use no register of the FPU's, do not ask CR0 and CR4 whether they may; and CR0.EM
    /// makes MMX instructions #UD. Before, those asked as SSE instructions do, and these raised #NM.
    pub fn fpu_is_asked_where_it_is_used(self) -> bool {
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
