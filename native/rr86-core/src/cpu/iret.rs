//! IRET, IRETD and IRETQ in every mode (SDM vol. 2A, "IRET/IRETD/IRETQ").

use super::effects::{self, Effects, ModeSnapshot};
use super::exception::Exception;
use super::interrupt::iopl;
use super::memory::LinearMemory;
use super::paging::is_canonical;
use super::segment::{
    check_stack_segment, is_null, null_segment, read_descriptor, real_mode_segment, selector_code,
    set_accessed, v8086_segment, Descriptor,
};
use super::stack::Stack;
use super::state::{gpr, sreg, CpuState, RFlags, Segment};
use super::task;

/// Flags that 16-bit operands reach and every CPL may change.
const COMMON: u64 = 0x4dd5;
/// With 32-bit and 64-bit operands also RF, AC and ID.
const WIDE: u64 = RFlags::RF.bits() | RFlags::AC.bits() | RFlags::ID.bits();

/// IRET with operands of `size` bytes (2, 4 or 8); `next_rip` is the address after it, which a task
/// that is left by a nested-task return resumes with.
///
/// NMIs are unblocked even if the instruction faults, as the processor does; all else is unchanged
/// on an error (for nested tasks see [`task`]).
pub fn iret(
    cpu: &mut CpuState,
    mem: &mut dyn LinearMemory,
    size: usize,
    next_rip: u64,
) -> Result<Effects, Exception> {
    let was_blocked = std::mem::replace(&mut cpu.nmi_blocked, 0) != 0;
    let before = ModeSnapshot::of(cpu);
    let mut effects = if !cpu.protected() {
        iret_real(cpu, mem, size)
    } else if cpu.v8086() {
        iret_v8086(cpu, mem, size)
    } else if cpu.rflags & RFlags::NT.bits() != 0 {
        if cpu.long_mode() {
            Err(Exception::gp(0))
        } else {
            task::return_to_previous(cpu, mem, next_rip)
        }
    } else {
        iret_protected(cpu, mem, size)
    }?;
    if was_blocked {
        effects |= Effects::INTERRUPTS_ENABLED;
    }
    Ok(effects | effects::of_transfer(&before, cpu))
}

/// The three values at the top of the stack: RIP, CS, RFLAGS.
fn pop_frame(
    cpu: &CpuState,
    mem: &mut dyn LinearMemory,
    stack: &mut Stack,
    size: usize,
) -> Result<(u64, u16, u64), Exception> {
    let rip = stack.pop(cpu, mem, size)?;
    let selector = stack.pop(cpu, mem, size)? as u16;
    let flags = stack.pop(cpu, mem, size)?;
    Ok((rip, selector, flags))
}

/// Merges popped flags into RFLAGS where `mask` is set.
fn merge(old: u64, new: u64, mask: u64) -> u64 {
    (old & !mask) | (new & mask) | RFlags::FIXED.bits()
}

fn iret_real(
    cpu: &mut CpuState,
    mem: &mut dyn LinearMemory,
    size: usize,
) -> Result<Effects, Exception> {
    let mut stack = Stack::current(cpu);
    let (rip, selector, flags) = pop_frame(cpu, mem, &mut stack, size)?;
    if rip > u64::from(cpu.seg[sreg::CS].limit) {
        return Err(Exception::gp(0));
    }
    let own = COMMON | (RFlags::IF | RFlags::IOPL).bits();
    let mask = if size == 2 { own } else { own | WIDE };
    cpu.gpr[gpr::RSP] = stack.rsp(cpu.gpr[gpr::RSP]);
    cpu.seg[sreg::CS] = real_mode_segment(&cpu.seg[sreg::CS], selector);
    cpu.rip = rip;
    cpu.rflags = merge(cpu.rflags, flags, mask);
    Ok(Effects::empty())
}

fn iret_v8086(
    cpu: &mut CpuState,
    mem: &mut dyn LinearMemory,
    size: usize,
) -> Result<Effects, Exception> {
    if iopl(cpu) < 3 {
        return Err(Exception::gp(0));
    }
    let mut stack = Stack::current(cpu);
    let (rip, selector, flags) = pop_frame(cpu, mem, &mut stack, size)?;
    if rip > u64::from(cpu.seg[sreg::CS].limit) {
        return Err(Exception::gp(0));
    }
    let own = COMMON | RFlags::IF.bits();
    let mask = if size == 2 { own } else { own | WIDE };
    cpu.gpr[gpr::RSP] = stack.rsp(cpu.gpr[gpr::RSP]);
    cpu.seg[sreg::CS] = v8086_segment(selector);
    cpu.rip = rip;
    cpu.rflags = merge(cpu.rflags, flags, mask);
    Ok(Effects::empty())
}

/// Checks the code segment of a far return or IRET and reads its descriptor (SDM vol. 2A, "RET" and
/// "IRET": the same rules).
pub(super) fn return_code_segment(
    cpu: &CpuState,
    mem: &mut dyn LinearMemory,
    selector: u16,
) -> Result<Descriptor, Exception> {
    if is_null(selector) {
        return Err(Exception::gp(0));
    }
    let code = selector_code(selector);
    let target = read_descriptor(cpu, mem, selector, Exception::gp(code))?;
    let rpl = (selector & 3) as u8;
    let allowed = if target.is_conforming() {
        target.dpl() <= rpl
    } else {
        target.dpl() == rpl
    };
    if !target.is_code() || rpl < cpu.cpl || !allowed {
        return Err(Exception::gp(code));
    }
    if cpu.long_mode() && target.long() && target.big() {
        return Err(Exception::gp(code));
    }
    if !target.present() {
        return Err(Exception::np(code));
    }
    Ok(target)
}

/// #GP(0) if execution cannot continue at `rip` in the segment.
pub(super) fn check_target(cpu: &CpuState, target: &Descriptor, rip: u64) -> Result<(), Exception> {
    let valid = if cpu.long_mode() && target.long() {
        is_canonical(rip)
    } else {
        rip <= u64::from(target.limit())
    };
    if valid {
        Ok(())
    } else {
        Err(Exception::gp(0))
    }
}

/// After a return to an outer level, data segments that it may not use become null, and null selectors 0. The
/// base stays, because 64-bit mode uses those of FS and GS whatever the selector.
pub(super) fn drop_inner_segments(cpu: &mut CpuState) {
    let clears = cpu.semantics.returns_clear_null_selectors();
    for reg in [sreg::ES, sreg::FS, sreg::GS, sreg::DS] {
        let segment = &cpu.seg[reg];
        let conforming = segment.is_code() && segment.kind() & 4 != 0;
        let inner = segment.present() && !conforming && segment.dpl() < cpu.cpl;
        if clears && (inner || !segment.present()) {
            cpu.seg[reg] = Segment {
                base: segment.base,
                ..null_segment(0)
            };
        } else if inner {
            cpu.seg[reg] = null_segment(0);
        }
    }
}

fn iret_protected(
    cpu: &mut CpuState,
    mem: &mut dyn LinearMemory,
    size: usize,
) -> Result<Effects, Exception> {
    let mut stack = Stack::current(cpu);
    let (rip, selector, flags) = pop_frame(cpu, mem, &mut stack, size)?;
    let to_v8086 = !cpu.long_mode() && size == 4 && flags & RFlags::VM.bits() != 0;
    if to_v8086 && cpu.cpl == 0 {
        return return_to_v8086(cpu, mem, stack, rip, selector, flags);
    }
    let target = return_code_segment(cpu, mem, selector)?;
    let new_cpl = (selector & 3) as u8;
    let outer = new_cpl > cpu.cpl;
    let mut new_stack = None;
    if outer || cpu.code64() {
        let pointer = stack.pop(cpu, mem, size)?;
        let ss = stack.pop(cpu, mem, size)? as u16;
        let to_64 = cpu.long_mode() && target.long();
        let segment = check_stack_segment(cpu, mem, ss, new_cpl, to_64, Exception::gp)?;
        new_stack = Some((segment, pointer));
    }
    check_target(cpu, &target, rip)?;
    set_accessed(cpu, mem, &target)?;
    // Nothing below can fail.
    let mut mask = COMMON;
    if size != 2 {
        mask |= WIDE;
    }
    if cpu.cpl <= iopl(cpu) {
        mask |= RFlags::IF.bits();
    }
    if cpu.cpl == 0 {
        mask |= RFlags::IOPL.bits();
        if size != 2 {
            mask |= (RFlags::VIF | RFlags::VIP).bits();
        }
    }
    cpu.rflags = merge(cpu.rflags, flags, mask);
    cpu.rip = rip;
    cpu.seg[sreg::CS] = target.segment(selector);
    cpu.cpl = new_cpl;
    match new_stack {
        Some((segment, pointer)) => {
            cpu.seg[sreg::SS] = segment;
            let old = cpu.gpr[gpr::RSP];
            cpu.gpr[gpr::RSP] = returned_rsp(cpu, old, pointer);
        }
        None => cpu.gpr[gpr::RSP] = stack.rsp(cpu.gpr[gpr::RSP]),
    }
    if outer {
        drop_inner_segments(cpu);
    }
    Ok(Effects::empty())
}

/// RSP after a popped stack pointer: its width is that of the stack returned to.
pub(super) fn returned_rsp(cpu: &CpuState, old: u64, pointer: u64) -> u64 {
    if cpu.code64() {
        pointer
    } else if cpu.seg[sreg::SS].big() {
        pointer & 0xffff_ffff
    } else {
        (old & 0xffff_0000) | (pointer & 0xffff)
    }
}

/// IRETD at CPL 0 with VM set in the popped flags: six more values, and no descriptors.
fn return_to_v8086(
    cpu: &mut CpuState,
    mem: &mut dyn LinearMemory,
    mut stack: Stack,
    rip: u64,
    selector: u16,
    flags: u64,
) -> Result<Effects, Exception> {
    let esp = stack.pop(cpu, mem, 4)?;
    let mut selectors = [0u16; 6];
    selectors[sreg::CS] = selector;
    for reg in [sreg::SS, sreg::ES, sreg::DS, sreg::FS, sreg::GS] {
        selectors[reg] = stack.pop(cpu, mem, 4)? as u16;
    }
    if rip > 0xffff {
        return Err(Exception::gp(0));
    }
    let own = RFlags::IF | RFlags::IOPL | RFlags::VM | RFlags::VIF | RFlags::VIP;
    cpu.rflags = merge(cpu.rflags, flags, COMMON | WIDE | own.bits());
    cpu.rip = rip;
    for (reg, &selector) in selectors.iter().enumerate() {
        cpu.seg[reg] = v8086_segment(selector);
    }
    cpu.gpr[gpr::RSP] = esp;
    cpu.cpl = 3;
    Ok(Effects::empty())
}
