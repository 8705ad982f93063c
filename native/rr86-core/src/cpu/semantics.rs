//! Which version of the machine's semantics a run follows.
//!
//! A fix of what a guest can see would keep older traces from replaying. So the version at which a trace was
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

    /// A fault that is delivered counts as an instruction. In version 1 it counted nothing, so that handlers that
    /// fault in their turn could stop time, or keep a slice from ending.
    pub fn faults_count(self) -> bool {
        self >= Self(2)
    }

    /// An interrupt that has to wait for the first block of another one's handler comes right after that block. In
    /// version 1 it came when the code next left its chained blocks.
    pub fn waiting_interrupts_come_next(self) -> bool {
        self >= Self(2)
    }

    /// While no vCPU runs, time jumps to the next timer that can do something, and the machine stands still if
    /// none can. In version 1 it jumped to the next timer of any kind, for ever.
    pub fn only_timers_with_effect_pass_time(self) -> bool {
        self >= Self(2)
    }

    /// A return to an outer level by IRET or RET makes null selectors 0 and leaves the bases of data segments that
    /// it drops as they were. In version 1, selectors 1 to 3 stayed, and the bases of others became 0.
    pub fn returns_clear_null_selectors(self) -> bool {
        self >= Self(2)
    }

    /// MOV SS and POP SS hold debug exceptions back until after the next instruction and keep breakpoints on it
    /// from matching. Version 1 delivered them at once.
    pub fn stack_loads_hold_debug_exceptions(self) -> bool {
        self >= Self(2)
    }

    /// Software interrupts are not single-stepped, and SYSCALL and SYSRET are by TF as they leave it. In version 1
    /// TF as it was before every instruction decided.
    pub fn steps_by_flags_after_system_calls(self) -> bool {
        self >= Self(2)
    }

    /// The #DB of DR7.GD sets RF in the saved flags, as faults do. Version 1 took every #DB for a trap.
    pub fn general_detect_is_a_fault(self) -> bool {
        self >= Self(2)
    }

    /// IA32_MISC_ENABLE has all bits that a processor of the model has. In version 1, most raised #GP when written
    /// as one.
    pub fn misc_enable_is_whole(self) -> bool {
        self >= Self(2)
    }

    /// Translations outlive a change of CR0.WP, but for those that allow writes to read-only pages when it is set.
    /// In version 1 all of them went.
    pub fn write_protection_keeps_translations(self) -> bool {
        self >= Self(2)
    }

    /// A repeated MOVS takes the page that it writes before it has looked whether it may read, if more than one of its
    /// iterations are left in the slice. Where the source faults, that showed: in hand-offs, dirty bits and lines that
    /// were never written.
    pub fn strings_take_destinations_first(self) -> bool {
        self < Self(2)
    }

    /// Each iteration of a repeated string instruction has a moment of its own, for devices and in the trace. In
    /// version 1, iterations had that of the first one since the code was entered.
    pub fn iterations_have_moments(self) -> bool {
        self >= Self(2)
    }

    /// A single-step trap follows a PAUSE whether or not the vCPU gives way there. In version 1 it did not where the
    /// slice ended.
    pub fn pauses_are_stepped(self) -> bool {
        self >= Self(2)
    }

    /// What a device asks of the machine between a fault and the first instruction of its handler is served behind
    /// that. In version 1 the slice could end in between, so that a replay, which counts instructions, raised the
    /// fault in a later one.
    pub fn signals_wait_behind_faults(self) -> bool {
        self >= Self(2)
    }

    /// A trace tells of timers that fired after the last slice, when they left no vCPU able to run.
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
