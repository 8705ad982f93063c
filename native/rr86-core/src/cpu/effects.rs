//! What a system instruction did to the things that the runtime caches.
//!
//! The semantics in this directory change [`CpuState`](super::state::CpuState) only. The runtime
//! keeps derived state (a TLB, the mode of the current block, pending interrupts), and each
//! function tells by its `Effects` which of it is out of date. Saying too much is slow; saying too
//! little is wrong.

use bitflags::bitflags;

use super::state::{sreg, CpuState, RFlags, Segment};

bitflags! {
    /// Derived state that is no longer valid after a system instruction.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Effects: u32 {
        /// Every cached translation, global ones included.
        const FLUSH_TLB = 1 << 0;
        /// Every cached translation whose page is not global.
        const FLUSH_TLB_NONGLOBAL = 1 << 1;
        /// Something a translated block depends on: CS attributes, CPL, CR0, CR4, EFER, whether
        /// segments are flat, RFLAGS.TF, AC and VM.
        const MODE_CHANGED = 1 << 2;
        /// RFLAGS.IF may have become set, NMIs may have been unblocked, or the task priority (CR8)
        /// may have dropped: look for pending interrupts.
        const INTERRUPTS_ENABLED = 1 << 3;
        /// DR0–DR3 or DR7 changed.
        const BREAKPOINTS_CHANGED = 1 << 4;
        /// CR8 was written; the new priority goes to the local APIC.
        const TASK_PRIORITY = 1 << 5;
        /// XCR0, CR0.TS/EM/MP or CR4.OSFXSR/OSXSAVE changed, which decide whether x87 and vector
        /// instructions fault.
        const FPU_CHANGED = 1 << 6;
        /// The debug trap of a TSS with T set is due before the first instruction of the new task
        /// (#DB with DR6.BT, a trap).
        const TASK_TRAP = 1 << 7;
        /// CR0.WP became set: translations that allow supervisor writes to read-only pages.
        const FLUSH_UNPROTECTED = 1 << 8;
    }
}

/// The part of RFLAGS that translated code depends on.
const MODE_FLAGS: u64 = RFlags::TF.bits() | RFlags::AC.bits() | RFlags::VM.bits();

/// Effects of a change of RFLAGS from `old` to `new`.
pub fn of_flags(old: u64, new: u64) -> Effects {
    let mut effects = Effects::empty();
    if (old ^ new) & MODE_FLAGS != 0 {
        effects |= Effects::MODE_CHANGED;
    }
    if new & !old & RFlags::IF.bits() != 0 {
        effects |= Effects::INTERRUPTS_ENABLED;
    }
    effects
}

/// Whether addresses in the segment are linear addresses, so that no check or addition is needed.
pub fn is_flat(segment: &Segment) -> bool {
    segment.present() && segment.base == 0 && segment.limit == u32::MAX
}

/// Effects of a change of segment register `reg`; `cpu` is the state after the change. In 64-bit
/// mode only FS and GS have bases, which blocks read at run time, so data segments do not
/// matter.
pub fn of_segment(cpu: &CpuState, reg: usize, old: &Segment) -> Effects {
    let new = &cpu.seg[reg];
    if reg != sreg::CS && cpu.code64() {
        return Effects::empty();
    }
    if old.attr != new.attr || is_flat(old) != is_flat(new) {
        Effects::MODE_CHANGED
    } else {
        Effects::empty()
    }
}

/// Effects of the difference between two whole states, as far as segments, CPL and RFLAGS go.
/// Control transfers use it: they change many things at once.
pub fn of_transfer(old: &ModeSnapshot, cpu: &CpuState) -> Effects {
    let new = ModeSnapshot::of(cpu);
    let mut effects = of_flags(old.rflags, new.rflags);
    let mode = |s: &ModeSnapshot| (s.cpl, s.segments, s.long);
    if mode(old) != mode(&new) {
        effects |= Effects::MODE_CHANGED;
    }
    effects
}

/// What [`of_transfer`] compares.
#[derive(Clone, Copy, Debug)]
pub struct ModeSnapshot {
    rflags: u64,
    cpl: u8,
    long: bool,
    /// Attributes and flatness; data segments count outside of 64-bit mode only.
    segments: [(u16, bool); 6],
}

impl ModeSnapshot {
    /// The mode of `cpu` now.
    pub fn of(cpu: &CpuState) -> Self {
        let mut segments = [(0, false); 6];
        for (reg, slot) in segments.iter_mut().enumerate() {
            if reg == sreg::CS || !cpu.code64() {
                *slot = (cpu.seg[reg].attr, is_flat(&cpu.seg[reg]));
            }
        }
        Self {
            rflags: cpu.rflags,
            cpl: cpu.cpl,
            long: cpu.long_mode(),
            segments,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_if_asks_for_an_interrupt_check_and_clearing_does_not() {
        let i = RFlags::IF.bits();
        assert_eq!(of_flags(2, 2 | i), Effects::INTERRUPTS_ENABLED);
        assert_eq!(of_flags(2 | i, 2), Effects::empty());
        assert_eq!(of_flags(2, 2 | RFlags::AC.bits()), Effects::MODE_CHANGED);
    }
}
