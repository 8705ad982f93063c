//! Far jumps, calls and returns in every mode: direct, through call gates, and to other tasks (SDM
//! vol. 2A/2B, "JMP", "CALL", "RET"; vol. 3A, section 5.8).
//!
//! `size` is the operand size in bytes (2, 4 or 8), `next_rip` the address after the instruction.

use super::effects::{self, Effects, ModeSnapshot};
use super::exception::Exception;
use super::interrupt::{inner_stack, tss_stack_pointer};
use super::iret::{check_target, drop_inner_segments, return_code_segment, returned_rsp};
use super::memory::{LinearMemory, Privilege};
use super::segment::{
    check_stack_segment, is_null, null_stack_segment, read_descriptor, read_upper_half,
    real_mode_segment, selector_code, set_accessed, system_type, v8086_segment, Descriptor,
};
use super::stack::Stack;
use super::state::{gpr, sreg, CpuState, Segment};
use super::task::{self, Saved, Source};

/// CS:RIP as a direct transfer loads it in real-address and virtual-8086 mode.
fn load_real(cpu: &mut CpuState, selector: u16, rip: u64) {
    cpu.seg[sreg::CS] = if cpu.v8086() {
        v8086_segment(selector)
    } else {
        real_mode_segment(&cpu.seg[sreg::CS], selector)
    };
    cpu.rip = rip;
}

fn cut(value: u64, size: usize) -> u64 {
    match size {
        2 => value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}

const fn is_real_like(cpu: &CpuState) -> bool {
    !cpu.protected() || cpu.v8086()
}

/// The descriptor that a far JMP or CALL names.
fn target_descriptor(
    cpu: &CpuState,
    mem: &mut dyn LinearMemory,
    selector: u16,
) -> Result<Descriptor, Exception> {
    if is_null(selector) {
        return Err(Exception::gp(0));
    }
    read_descriptor(cpu, mem, selector, Exception::gp(selector_code(selector)))
}

/// The checks of a direct far JMP or CALL to a code segment.
fn check_direct(
    cpu: &CpuState,
    target: &Descriptor,
    selector: u16,
    rip: u64,
) -> Result<(), Exception> {
    let code = selector_code(selector);
    let rpl = (selector & 3) as u8;
    if cpu.long_mode() && target.long() && target.big() {
        return Err(Exception::gp(code));
    }
    let allowed = if target.is_conforming() {
        target.dpl() <= cpu.cpl
    } else {
        rpl <= cpu.cpl && target.dpl() == cpu.cpl
    };
    if !allowed {
        return Err(Exception::gp(code));
    }
    if !target.present() {
        return Err(Exception::np(code));
    }
    check_target(cpu, target, rip)
}

/// Where a call gate leads.
struct Gate {
    selector: u16,
    target: Descriptor,
    rip: u64,
    /// Size of what is pushed: 2, 4 or 8.
    size: usize,
    parameters: usize,
}

/// What a system descriptor means to a far JMP or CALL.
enum SystemTarget {
    Gate(Gate),
    Task(u16, Descriptor),
}

/// Checks a gate or TSS descriptor. `jump`: only same-level code may be reached through a gate.
fn system_target(
    cpu: &CpuState,
    mem: &mut dyn LinearMemory,
    selector: u16,
    descriptor: Descriptor,
    jump: bool,
) -> Result<SystemTarget, Exception> {
    let code = selector_code(selector);
    let long = cpu.long_mode();
    let kind = descriptor.kind();
    let known = match kind {
        system_type::CALL_GATE => true,
        system_type::CALL_GATE16
        | system_type::TASK_GATE
        | system_type::TSS16_AVAILABLE
        | system_type::TSS_AVAILABLE => !long,
        _ => false,
    };
    let rpl = (selector & 3) as u8;
    if !known || descriptor.dpl() < cpu.cpl || descriptor.dpl() < rpl {
        return Err(Exception::gp(code));
    }
    // A 16-byte gate whose upper half looks like a gate of its own is #GP before its P bit counts.
    let mut high = 0;
    if long {
        high = read_upper_half(cpu, mem, selector, Exception::gp(code))?;
        if (high >> 40) & 0x1f != 0 {
            return Err(Exception::gp(code));
        }
    }
    if !descriptor.present() {
        return Err(Exception::np(code));
    }
    match kind {
        system_type::TASK_GATE => {
            let selector = descriptor.gate_selector();
            let tss = task::available_tss(cpu, mem, selector, Exception::gp)?;
            return Ok(SystemTarget::Task(selector, tss));
        }
        system_type::TSS16_AVAILABLE | system_type::TSS_AVAILABLE => {
            if selector & 4 != 0 {
                return Err(Exception::gp(code));
            }
            return Ok(SystemTarget::Task(selector, descriptor));
        }
        _ => {}
    }
    let target_selector = descriptor.gate_selector();
    let target_code = selector_code(target_selector);
    let target = target_descriptor(cpu, mem, target_selector)?;
    let reachable = if jump && !target.is_conforming() {
        target.dpl() == cpu.cpl
    } else {
        target.dpl() <= cpu.cpl
    };
    if !target.is_code() || !reachable || (long && (!target.long() || target.big())) {
        return Err(Exception::gp(target_code));
    }
    if !target.present() {
        return Err(Exception::np(target_code));
    }
    let (size, rip) = match (long, kind) {
        (true, _) => (8, descriptor.gate_offset() | (high << 32)),
        (false, system_type::CALL_GATE) => (4, descriptor.gate_offset()),
        (false, _) => (2, descriptor.gate_offset() & 0xffff),
    };
    check_target(cpu, &target, rip)?;
    let parameters = if long {
        0
    } else {
        ((descriptor.raw >> 32) & 0x1f) as usize
    };
    Ok(SystemTarget::Gate(Gate {
        selector: target_selector,
        target,
        rip,
        size,
        parameters,
    }))
}

/// JMP far.
pub fn far_jmp(
    cpu: &mut CpuState,
    mem: &mut dyn LinearMemory,
    selector: u16,
    offset: u64,
    size: usize,
    next_rip: u64,
) -> Result<Effects, Exception> {
    let before = ModeSnapshot::of(cpu);
    let offset = cut(offset, size);
    if is_real_like(cpu) {
        if offset > u64::from(cpu.seg[sreg::CS].limit) {
            return Err(Exception::gp(0));
        }
        load_real(cpu, selector, offset);
        return Ok(effects::of_transfer(&before, cpu));
    }
    let descriptor = target_descriptor(cpu, mem, selector)?;
    let (selector, target, rip) = if descriptor.is_system() {
        match system_target(cpu, mem, selector, descriptor, true)? {
            SystemTarget::Gate(gate) => (gate.selector, gate.target, gate.rip),
            SystemTarget::Task(selector, tss) => {
                let saved = Saved {
                    rip: next_rip,
                    rflags: cpu.rflags,
                };
                return task::switch(cpu, mem, selector, &tss, Source::Jump, saved);
            }
        }
    } else {
        if !descriptor.is_code() {
            return Err(Exception::gp(selector_code(selector)));
        }
        check_direct(cpu, &descriptor, selector, offset)?;
        (selector, descriptor, offset)
    };
    set_accessed(cpu, mem, &target)?;
    cpu.seg[sreg::CS] = target.segment((selector & !3) | u16::from(cpu.cpl));
    cpu.rip = rip;
    Ok(effects::of_transfer(&before, cpu))
}

/// CALL far.
pub fn far_call(
    cpu: &mut CpuState,
    mem: &mut dyn LinearMemory,
    selector: u16,
    offset: u64,
    size: usize,
    next_rip: u64,
) -> Result<Effects, Exception> {
    let before = ModeSnapshot::of(cpu);
    let offset = cut(offset, size);
    let frame = [u64::from(cpu.seg[sreg::CS].selector), next_rip];
    if is_real_like(cpu) {
        if offset > u64::from(cpu.seg[sreg::CS].limit) {
            return Err(Exception::gp(0));
        }
        push_on_current(cpu, mem, &frame, size)?;
        load_real(cpu, selector, offset);
        return Ok(effects::of_transfer(&before, cpu));
    }
    let descriptor = target_descriptor(cpu, mem, selector)?;
    if descriptor.is_system() {
        match system_target(cpu, mem, selector, descriptor, false)? {
            SystemTarget::Gate(gate) => call_gate(cpu, mem, &gate, next_rip)?,
            SystemTarget::Task(selector, tss) => {
                let saved = Saved {
                    rip: next_rip,
                    rflags: cpu.rflags,
                };
                return task::switch(cpu, mem, selector, &tss, Source::Call, saved);
            }
        }
    } else {
        if !descriptor.is_code() {
            return Err(Exception::gp(selector_code(selector)));
        }
        check_direct(cpu, &descriptor, selector, offset)?;
        set_accessed(cpu, mem, &descriptor)?;
        push_on_current(cpu, mem, &frame, size)?;
        cpu.seg[sreg::CS] = descriptor.segment((selector & !3) | u16::from(cpu.cpl));
        cpu.rip = offset;
    }
    Ok(effects::of_transfer(&before, cpu))
}

/// Pushes a frame on the present stack and moves RSP.
fn push_on_current(
    cpu: &mut CpuState,
    mem: &mut dyn LinearMemory,
    frame: &[u64],
    size: usize,
) -> Result<(), Exception> {
    let mut stack = Stack::current(cpu);
    stack.push(cpu, mem, frame, size, Exception::ss(0))?;
    cpu.gpr[gpr::RSP] = stack.rsp(cpu.gpr[gpr::RSP]);
    Ok(())
}

/// A call through a call gate, to the same or to an inner level.
fn call_gate(
    cpu: &mut CpuState,
    mem: &mut dyn LinearMemory,
    gate: &Gate,
    next_rip: u64,
) -> Result<(), Exception> {
    let return_address = [u64::from(cpu.seg[sreg::CS].selector), next_rip];
    let inner = !gate.target.is_conforming() && gate.target.dpl() < cpu.cpl;
    set_accessed(cpu, mem, &gate.target)?;
    if !inner {
        if cpu.long_mode() {
            // The target is 64-bit code, so the frame goes to the flat stack it will see.
            let rsp = cpu.gpr[gpr::RSP];
            let mut stack = Stack::new(cpu.seg[sreg::SS], rsp, true, Privilege::Current);
            stack.push(cpu, mem, &return_address, gate.size, Exception::ss(0))?;
            cpu.gpr[gpr::RSP] = stack.pointer;
        } else {
            push_on_current(cpu, mem, &return_address, gate.size)?;
        }
        cpu.seg[sreg::CS] = gate
            .target
            .segment((gate.selector & !3) | u16::from(cpu.cpl));
        cpu.rip = gate.rip;
        return Ok(());
    }
    let cpl = gate.target.dpl();
    let mut frame = [0; 35];
    frame[0] = u64::from(cpu.seg[sreg::SS].selector);
    frame[1] = cpu.gpr[gpr::RSP];
    // Parameters keep their order: the first one popped here is pushed last.
    let mut old_stack = Stack::current(cpu);
    for index in (0..gate.parameters).rev() {
        frame[2 + index] = old_stack.pop(cpu, mem, gate.size)?;
    }
    let count = 2 + gate.parameters;
    frame[count..count + 2].copy_from_slice(&return_address);
    let (segment, mut stack) = if cpu.long_mode() {
        let pointer = tss_stack_pointer(cpu, mem, u64::from(cpl) * 8 + 4)?;
        let segment = null_stack_segment(u16::from(cpl), cpl);
        (
            segment,
            Stack::new(segment, pointer, true, Privilege::System),
        )
    } else {
        let (selector, pointer) = inner_stack(cpu, mem, cpl)?;
        let segment = check_stack_segment(cpu, mem, selector, cpl, false, Exception::ts)?;
        (
            segment,
            Stack::new(segment, pointer, false, Privilege::System),
        )
    };
    let full = Exception::ss(selector_code(segment.selector));
    stack.push(cpu, mem, &frame[..count + 2], gate.size, full)?;
    cpu.seg[sreg::SS] = segment;
    cpu.gpr[gpr::RSP] = stack.rsp(stack.pointer);
    cpu.cpl = cpl;
    cpu.seg[sreg::CS] = gate.target.segment((gate.selector & !3) | u16::from(cpl));
    cpu.rip = gate.rip;
    Ok(())
}

/// RET far, with `parameters` bytes to release (RETF imm16).
pub fn far_ret(
    cpu: &mut CpuState,
    mem: &mut dyn LinearMemory,
    size: usize,
    parameters: u16,
) -> Result<Effects, Exception> {
    let before = ModeSnapshot::of(cpu);
    let mut stack = Stack::current(cpu);
    let rip = stack.pop(cpu, mem, size)?;
    let selector = stack.pop(cpu, mem, size)? as u16;
    let release = u64::from(parameters);
    if is_real_like(cpu) {
        if rip > u64::from(cpu.seg[sreg::CS].limit) {
            return Err(Exception::gp(0));
        }
        stack.skip(release);
        cpu.gpr[gpr::RSP] = stack.rsp(cpu.gpr[gpr::RSP]);
        load_real(cpu, selector, rip);
        return Ok(effects::of_transfer(&before, cpu));
    }
    let target = return_code_segment(cpu, mem, selector)?;
    let new_cpl = (selector & 3) as u8;
    let outer = new_cpl > cpu.cpl;
    stack.skip(release);
    let mut new_stack: Option<(Segment, u64)> = None;
    if outer {
        let pointer = stack.pop(cpu, mem, size)?;
        let ss = stack.pop(cpu, mem, size)? as u16;
        let to_64 = cpu.long_mode() && target.long();
        let segment = check_stack_segment(cpu, mem, ss, new_cpl, to_64, Exception::gp)?;
        new_stack = Some((segment, pointer));
    }
    check_target(cpu, &target, rip)?;
    set_accessed(cpu, mem, &target)?;
    // Nothing below can fail.
    let old = cpu.gpr[gpr::RSP];
    cpu.rip = rip;
    cpu.seg[sreg::CS] = target.segment(selector);
    cpu.cpl = new_cpl;
    if let Some((segment, pointer)) = new_stack {
        cpu.seg[sreg::SS] = segment;
        let mut outer_stack = Stack::new(
            segment,
            returned_rsp(cpu, old, pointer),
            cpu.code64(),
            Privilege::Current,
        );
        outer_stack.skip(release);
        cpu.gpr[gpr::RSP] = outer_stack.rsp(outer_stack.pointer);
        drop_inner_segments(cpu);
    } else {
        cpu.gpr[gpr::RSP] = stack.rsp(old);
    }
    Ok(effects::of_transfer(&before, cpu))
}
