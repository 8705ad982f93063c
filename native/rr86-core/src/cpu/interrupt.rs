//! Delivery of exceptions, software interrupts and external interrupts in every mode (SDM vol. 3A,
//! chapter 6; vol. 2A, "INT n/INTO/INT3/INT1" for the order of the checks).

use thiserror::Error;

use super::effects::{self, Effects, ModeSnapshot};
use super::exception::{vector, Exception};
use super::memory::{LinearMemory, Privilege};
use super::paging::is_canonical;
use super::segment::{
    self, check_stack_segment, is_null, linear_address, null_segment, null_stack_segment,
    read_descriptor, selector_code, set_accessed, system_type, Descriptor,
};
use super::stack::Stack;
use super::state::{gpr, sreg, Activity, CpuState, RFlags, Segment};
use super::task;

/// What is to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A fault, trap or abort that an instruction raised. INT3, INTO and INT1 have their own
    /// events.
    Exception(Exception),
    /// A maskable interrupt from the interrupt controller. That IF is set is the caller's business.
    External(u8),
    /// A non-maskable interrupt; blocks further ones until IRET.
    Nmi,
    /// INT n (CD ib): subject to the gate's DPL, and to IOPL in virtual-8086 mode.
    Software(u8),
    /// INT3 (CC): vector 3, subject to the gate's DPL.
    Int3,
    /// INTO with OF set: vector 4, subject to the gate's DPL.
    Into,
    /// INT1 (F1): vector 1, not subject to the gate's DPL.
    Icebp,
}

impl Event {
    /// The interrupt vector.
    pub const fn vector(&self) -> u8 {
        match self {
            Self::Exception(e) => e.vector,
            Self::External(v) | Self::Software(v) => *v,
            Self::Nmi => vector::NMI,
            Self::Int3 => vector::BP,
            Self::Into => vector::OF,
            Self::Icebp => vector::DB,
        }
    }

    /// Whether a gate's DPL has to be at least CPL.
    const fn checks_dpl(&self) -> bool {
        matches!(self, Self::Software(_) | Self::Int3 | Self::Into)
    }

    /// The EXT bit of error codes of faults during delivery.
    const fn ext(&self) -> u32 {
        !self.checks_dpl() as u32
    }
}

/// A fault while the double-fault handler was called: the processor shuts down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("triple fault: {0} while a double fault was delivered")]
pub struct TripleFault(pub Exception);

/// Delivers `event`. `return_rip` is pushed: the address of the next instruction for software
/// interrupts and traps, `cpu.rip` for the rest. Faults during delivery are delivered in turn, with
/// `cpu.rip` as their return address, combined by the double-fault rules (SDM vol. 3A, table 6-5).
///
/// The pushed RFLAGS are `cpu.rflags`, with RF added for faults. An interrupt between iterations of
/// a repeated string instruction needs RF as well; the caller sets it in `cpu.rflags` before. On
/// success a halted vCPU is active again and the STI/MOV SS shadow is over. On a triple fault the
/// caller decides what shutdown means; the state is that before the last attempt.
pub fn deliver(
    cpu: &mut CpuState,
    mem: &mut dyn LinearMemory,
    event: Event,
    return_rip: u64,
) -> Result<Effects, TripleFault> {
    let before = ModeSnapshot::of(cpu);
    let mut event = event;
    let mut return_rip = return_rip;
    let mut extra = Effects::empty();
    // A fault may come from the second half of a task switch, when CR3 and all else have changed.
    if !cpu.long_mode() && cpu.protected() && matches!(event, Event::Exception(_)) {
        extra = Effects::FLUSH_TLB_NONGLOBAL | Effects::MODE_CHANGED;
    }
    loop {
        match deliver_once(cpu, mem, event, return_rip) {
            Ok(once) => {
                cpu.activity = Activity::Active;
                cpu.shadow = 0;
                return Ok(extra | once | effects::of_transfer(&before, cpu));
            }
            Err(nested) => {
                event = Event::Exception(combine(&event, nested)?);
                return_rip = cpu.rip;
                if !cpu.long_mode() && cpu.protected() {
                    extra = Effects::FLUSH_TLB_NONGLOBAL | Effects::MODE_CHANGED;
                }
            }
        }
    }
}

/// What follows from `nested` being raised while `first` was delivered.
fn combine(first: &Event, nested: Exception) -> Result<Exception, TripleFault> {
    let Event::Exception(first) = first else {
        return Ok(nested);
    };
    let serious = nested.is_contributory() || nested.vector == vector::PF;
    let double = match first.vector {
        vector::DF => return Err(TripleFault(nested)),
        vector::PF => serious,
        _ => first.is_contributory() && nested.is_contributory(),
    };
    Ok(if double {
        Exception::with_code(vector::DF, 0)
    } else {
        nested
    })
}

/// One delivery, reduced to what the gates need to know.
struct Delivery {
    vector: u8,
    checks_dpl: bool,
    error_code: Option<u32>,
    /// RFLAGS image to save.
    flags: u64,
    return_rip: u64,
}

fn deliver_once(
    cpu: &mut CpuState,
    mem: &mut dyn LinearMemory,
    event: Event,
    return_rip: u64,
) -> Result<Effects, Exception> {
    let mut delivery = Delivery {
        vector: event.vector(),
        checks_dpl: event.checks_dpl(),
        error_code: None,
        flags: cpu.rflags,
        return_rip,
    };
    match event {
        Event::Exception(exception) => {
            delivery.error_code = exception.error_code;
            let detect = exception.is_general_detect() && cpu.semantics.general_detect_is_a_fault();
            if exception.is_fault() || detect {
                delivery.flags |= RFlags::RF.bits();
            }
            note_exception(cpu, &exception);
        }
        Event::Nmi => {
            cpu.nmi_blocked = 1;
            cpu.nmi_pending = 0;
        }
        Event::Software(_) | Event::External(_) | Event::Int3 | Event::Into | Event::Icebp => {}
    }
    if !cpu.protected() {
        return deliver_real(cpu, mem, &delivery);
    }
    if matches!(event, Event::Software(_)) && cpu.v8086() && iopl(cpu) < 3 {
        return Err(Exception::gp(0));
    }
    let result = if cpu.long_mode() {
        deliver_long(cpu, mem, &delivery)
    } else {
        deliver_protected(cpu, mem, &delivery, event.ext())
    };
    result.map_err(|e| e.with_ext(event.ext()))
}

/// IOPL of the current RFLAGS.
pub(super) const fn iopl(cpu: &CpuState) -> u8 {
    ((cpu.rflags >> 12) & 3) as u8
}

/// CR2 and the debug registers change even if the delivery itself faults.
fn note_exception(cpu: &mut CpuState, exception: &Exception) {
    match exception.vector {
        vector::PF => cpu.cr2 = exception.cr2,
        vector::DB => {
            cpu.dr[6] = (cpu.dr[6] & !0xf) | exception.dr6;
            // The handler may use the debug registers: GD goes off, as do LBR and BTF.
            cpu.dr[7] &= !(1 << 13);
            cpu.msr.debugctl &= !3;
        }
        _ => {}
    }
}

/// Real-address mode: the interrupt vector table has four bytes per vector; no error codes.
fn deliver_real(
    cpu: &mut CpuState,
    mem: &mut dyn LinearMemory,
    delivery: &Delivery,
) -> Result<Effects, Exception> {
    let offset = u64::from(delivery.vector) * 4;
    if offset + 3 > u64::from(cpu.idtr.limit) {
        return Err(Exception::gp(0));
    }
    let address = linear_address(cpu, cpu.idtr.base.wrapping_add(offset));
    let entry = mem.read(cpu, address, 4, Privilege::System)?;
    let mut stack = Stack::current(cpu);
    let frame = [
        delivery.flags,
        u64::from(cpu.seg[sreg::CS].selector),
        delivery.return_rip,
    ];
    stack.push(cpu, mem, &frame, 2, Exception::ss(0))?;
    cpu.gpr[gpr::RSP] = stack.rsp(cpu.gpr[gpr::RSP]);
    cpu.seg[sreg::CS] = segment::real_mode_segment(&cpu.seg[sreg::CS], (entry >> 16) as u16);
    cpu.rip = entry & 0xffff;
    cpu.rflags &= !(RFlags::IF | RFlags::TF | RFlags::AC | RFlags::RF).bits();
    Ok(Effects::empty())
}

/// RFLAGS in the handler.
fn handler_flags(flags: u64, interrupt_gate: bool) -> u64 {
    let mut cleared = RFlags::TF | RFlags::NT | RFlags::RF | RFlags::VM;
    if interrupt_gate {
        cleared |= RFlags::IF;
    }
    flags & !cleared.bits()
}

/// The code segment that a gate names, checked up to the privilege rules.
fn gate_code_segment(
    cpu: &CpuState,
    mem: &mut dyn LinearMemory,
    selector: u16,
) -> Result<Descriptor, Exception> {
    if is_null(selector) {
        return Err(Exception::gp(0));
    }
    let code = selector_code(selector);
    let target = read_descriptor(cpu, mem, selector, Exception::gp(code))?;
    if !target.is_code() || target.dpl() > cpu.cpl {
        return Err(Exception::gp(code));
    }
    Ok(target)
}

/// The gate's type and privilege checks that both protected and long mode make.
fn check_gate(cpu: &CpuState, gate: &Descriptor, delivery: &Delivery) -> Result<(), Exception> {
    let code = u32::from(delivery.vector) * 8 + 2;
    if delivery.checks_dpl && gate.dpl() < cpu.cpl {
        return Err(Exception::gp(code));
    }
    if !gate.present() {
        return Err(Exception::np(code));
    }
    Ok(())
}

fn deliver_protected(
    cpu: &mut CpuState,
    mem: &mut dyn LinearMemory,
    delivery: &Delivery,
    ext: u32,
) -> Result<Effects, Exception> {
    let code = u32::from(delivery.vector) * 8 + 2;
    let offset = u64::from(delivery.vector) * 8;
    if offset + 7 > u64::from(cpu.idtr.limit) {
        return Err(Exception::gp(code));
    }
    let address = linear_address(cpu, cpu.idtr.base.wrapping_add(offset));
    let gate = Descriptor {
        raw: mem.read(cpu, address, 8, Privilege::System)?,
        address,
    };
    let size = match gate.kind() {
        system_type::INTERRUPT_GATE16 | system_type::TRAP_GATE16 => 2,
        system_type::INTERRUPT_GATE | system_type::TRAP_GATE => 4,
        system_type::TASK_GATE => 0,
        _ => return Err(Exception::gp(code)),
    };
    if !gate.is_system() {
        return Err(Exception::gp(code));
    }
    check_gate(cpu, &gate, delivery)?;
    if size == 0 {
        return deliver_task(cpu, mem, delivery, gate.gate_selector(), ext);
    }
    let interrupt_gate = gate.kind() & 1 == 0;
    let selector = gate.gate_selector();
    let target = gate_code_segment(cpu, mem, selector)?;
    let target_code = selector_code(selector);
    if !target.present() {
        return Err(Exception::np(target_code));
    }
    let inner = !target.is_conforming() && target.dpl() < cpu.cpl;
    if cpu.v8086() && (!inner || target.dpl() != 0) {
        return Err(Exception::gp(target_code));
    }
    let new_cpl = if inner { target.dpl() } else { cpu.cpl };
    let rip = gate.gate_offset() & if size == 2 { 0xffff } else { 0xffff_ffff };
    let mut frame = Frame::default();
    let mut stack;
    let mut stack_segment = None;
    if inner {
        let (selector, pointer) = inner_stack(cpu, mem, new_cpl)?;
        let segment = check_stack_segment(cpu, mem, selector, new_cpl, false, Exception::ts)?;
        stack = Stack::new(segment, pointer, false, Privilege::System);
        stack_segment = Some(segment);
        if cpu.v8086() {
            for reg in [sreg::GS, sreg::FS, sreg::DS, sreg::ES] {
                frame.add(u64::from(cpu.seg[reg].selector));
            }
        }
        frame.add(u64::from(cpu.seg[sreg::SS].selector));
        frame.add(cpu.gpr[gpr::RSP]);
    } else {
        stack = Stack::current(cpu);
    }
    frame.add(delivery.flags);
    frame.add(u64::from(cpu.seg[sreg::CS].selector));
    frame.add(delivery.return_rip);
    if let Some(error_code) = delivery.error_code {
        frame.add(u64::from(error_code));
    }
    let full = match &stack_segment {
        Some(segment) => Exception::ss(selector_code(segment.selector)),
        None => Exception::ss(0),
    };
    if rip > u64::from(target.limit()) {
        return Err(Exception::gp(0));
    }
    set_accessed(cpu, mem, &target)?;
    stack.push(cpu, mem, frame.values(), size, full)?;
    // Nothing below can fail.
    if let Some(segment) = stack_segment {
        if cpu.v8086() {
            for reg in [sreg::GS, sreg::FS, sreg::DS, sreg::ES] {
                cpu.seg[reg] = null_segment(0);
            }
        }
        cpu.seg[sreg::SS] = segment;
        cpu.gpr[gpr::RSP] = stack.rsp(stack.pointer);
    } else {
        cpu.gpr[gpr::RSP] = stack.rsp(cpu.gpr[gpr::RSP]);
    }
    cpu.cpl = new_cpl;
    cpu.seg[sreg::CS] = target.segment((selector & !3) | u16::from(new_cpl));
    cpu.rip = rip;
    cpu.rflags = handler_flags(cpu.rflags, interrupt_gate);
    Ok(Effects::empty())
}

/// SS and ESP for `cpl` from the TSS, of which both formats exist outside of long mode.
pub(super) fn inner_stack(
    cpu: &CpuState,
    mem: &mut dyn LinearMemory,
    cpl: u8,
) -> Result<(u16, u64), Exception> {
    let wide = cpu.tr.kind() & 8 != 0;
    let offset = if wide {
        u64::from(cpl) * 8 + 4
    } else {
        u64::from(cpl) * 4 + 2
    };
    let size = if wide { 4 } else { 2 };
    let last = offset + size + 1;
    if !cpu.tr.present() || last > u64::from(cpu.tr.limit) {
        return Err(Exception::ts(selector_code(cpu.tr.selector)));
    }
    let base = cpu.tr.base.wrapping_add(offset);
    let pointer = mem.read(
        cpu,
        linear_address(cpu, base),
        size as usize,
        Privilege::System,
    )?;
    let at = linear_address(cpu, base.wrapping_add(size));
    let selector = mem.read(cpu, at, 2, Privilege::System)? as u16;
    Ok((selector, pointer))
}

/// A 64-bit stack pointer from the TSS of long mode: RSP0–RSP2 at offset 4, IST1–IST7 at offset 36.
pub(super) fn tss_stack_pointer(
    cpu: &CpuState,
    mem: &mut dyn LinearMemory,
    offset: u64,
) -> Result<u64, Exception> {
    if !cpu.tr.present() || offset + 7 > u64::from(cpu.tr.limit) {
        return Err(Exception::ts(selector_code(cpu.tr.selector)));
    }
    let pointer = mem.read(cpu, cpu.tr.base.wrapping_add(offset), 8, Privilege::System)?;
    if !is_canonical(pointer) {
        return Err(Exception::ss(0));
    }
    Ok(pointer)
}

/// The values of a stack frame in the order in which they are pushed.
#[derive(Default)]
struct Frame {
    slots: [u64; 10],
    count: usize,
}

impl Frame {
    fn add(&mut self, value: u64) {
        self.slots[self.count] = value;
        self.count += 1;
    }
    fn values(&self) -> &[u64] {
        &self.slots[..self.count]
    }
}

/// A task gate: the event becomes a nested task, with the error code on its stack.
fn deliver_task(
    cpu: &mut CpuState,
    mem: &mut dyn LinearMemory,
    delivery: &Delivery,
    selector: u16,
    ext: u32,
) -> Result<Effects, Exception> {
    let descriptor = task::available_tss(cpu, mem, selector, Exception::gp)?;
    let source = task::Source::Interrupt { ext };
    let saved = task::Saved {
        rip: delivery.return_rip,
        rflags: delivery.flags,
    };
    let mut effects = task::switch(cpu, mem, selector, &descriptor, source, saved)?;
    if let Some(error_code) = delivery.error_code {
        let size = if cpu.tr.kind() & 8 != 0 { 4 } else { 2 };
        let mut stack = Stack::current(cpu);
        stack.push(cpu, mem, &[u64::from(error_code)], size, Exception::ss(0))?;
        cpu.gpr[gpr::RSP] = stack.rsp(cpu.gpr[gpr::RSP]);
    }
    effects |= Effects::MODE_CHANGED;
    Ok(effects)
}

fn deliver_long(
    cpu: &mut CpuState,
    mem: &mut dyn LinearMemory,
    delivery: &Delivery,
) -> Result<Effects, Exception> {
    let code = u32::from(delivery.vector) * 8 + 2;
    let offset = u64::from(delivery.vector) * 16;
    if offset + 15 > u64::from(cpu.idtr.limit) {
        return Err(Exception::gp(code));
    }
    let address = cpu.idtr.base.wrapping_add(offset);
    let gate = Descriptor {
        raw: mem.read(cpu, address, 8, Privilege::System)?,
        address,
    };
    let high = mem.read(cpu, address.wrapping_add(8), 8, Privilege::System)?;
    let interrupt_gate = match gate.kind() {
        system_type::INTERRUPT_GATE => true,
        system_type::TRAP_GATE => false,
        _ => return Err(Exception::gp(code)),
    };
    if !gate.is_system() {
        return Err(Exception::gp(code));
    }
    check_gate(cpu, &gate, delivery)?;
    let selector = gate.gate_selector();
    let target = gate_code_segment(cpu, mem, selector)?;
    let target_code = selector_code(selector);
    if !target.long() || target.big() {
        return Err(Exception::gp(target_code));
    }
    if !target.present() {
        return Err(Exception::np(target_code));
    }
    let inner = !target.is_conforming() && target.dpl() < cpu.cpl;
    let new_cpl = if inner { target.dpl() } else { cpu.cpl };
    let ist = (gate.raw >> 32) & 7;
    let pointer = if ist != 0 {
        tss_stack_pointer(cpu, mem, ist * 8 + 28)?
    } else if inner {
        tss_stack_pointer(cpu, mem, u64::from(new_cpl) * 8 + 4)?
    } else {
        cpu.gpr[gpr::RSP]
    };
    let rip = gate.gate_offset() | (high << 32);
    if !is_canonical(rip) {
        return Err(Exception::gp(0));
    }
    let mut frame = Frame::default();
    frame.add(u64::from(cpu.seg[sreg::SS].selector));
    frame.add(cpu.gpr[gpr::RSP]);
    frame.add(delivery.flags);
    frame.add(u64::from(cpu.seg[sreg::CS].selector));
    frame.add(delivery.return_rip);
    if let Some(error_code) = delivery.error_code {
        frame.add(u64::from(error_code));
    }
    // A frame for an inner level is written with that level's rights.
    let privilege = if new_cpl != cpu.cpl && new_cpl < 3 {
        Privilege::System
    } else {
        Privilege::Current
    };
    let mut stack = Stack::new(Segment::default(), pointer & !0xf, true, privilege);
    set_accessed(cpu, mem, &target)?;
    stack.push(cpu, mem, frame.values(), 8, Exception::ss(0))?;
    // Nothing below can fail.
    if inner {
        cpu.seg[sreg::SS] = null_stack_segment(u16::from(new_cpl), new_cpl);
    }
    cpu.gpr[gpr::RSP] = stack.pointer;
    cpu.cpl = new_cpl;
    cpu.seg[sreg::CS] = target.segment((selector & !3) | u16::from(new_cpl));
    cpu.rip = rip;
    cpu.rflags = handler_flags(cpu.rflags, interrupt_gate);
    Ok(Effects::empty())
}
