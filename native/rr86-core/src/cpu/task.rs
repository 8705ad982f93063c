//! Hardware task switches with 16-bit and 32-bit TSSs (SDM vol. 3A, section 7.3). Long mode has none.
//!
//! A switch has a point of no return: until then a fault belongs to the old task and nothing has
//! changed; after it the vCPU *is* the new task and faults (#TS, #NP, #SS, #PF) are raised before its
//! first instruction. So this is the one function here that may change the state and return an
//! error; `cpu.rip` then is the new task's first instruction, as delivery expects.

use super::effects::Effects;
use super::exception::Exception;
use super::memory::{LinearMemory, Privilege};
use super::segment::{
    check_ldt, check_stack_segment, is_null, linear_address, null_segment, read_descriptor,
    selector_code, set_accessed, system_type, v8086_segment, write_type_byte, Descriptor,
};
use super::state::{gpr, sreg, CpuState, Cr0, RFlags, Segment};

/// What causes a task switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Jump,
    /// CALL: the new task is nested in the old one.
    Call,
    /// IRET with NT set: back to the task in the link field.
    Iret,
    /// An interrupt or exception through a task gate; nested like a call. `ext` goes into error codes.
    Interrupt {
        ext: u32,
    },
}

/// What the old task resumes with.
#[derive(Clone, Copy, Debug)]
pub struct Saved {
    pub rip: u64,
    pub rflags: u64,
}

const BUSY: u8 = 2;

/// Offsets in a TSS (SDM vol. 3A, figures 7-2 and 7-10).
struct Layout {
    /// Size in bytes of a register slot.
    word: u64,
    min_limit: u32,
    eip: u64,
    /// ES, then CS, SS, DS and for 32 bits FS, GS.
    segments: u64,
    segment_count: usize,
    ldt: u64,
}

const TSS32: Layout = Layout {
    word: 4,
    min_limit: 0x67,
    eip: 0x20,
    segments: 0x48,
    segment_count: 6,
    ldt: 0x60,
};
const TSS16: Layout = Layout {
    word: 2,
    min_limit: 0x2b,
    eip: 0x0e,
    segments: 0x22,
    segment_count: 4,
    ldt: 0x2a,
};

impl Layout {
    fn of(kind: u16) -> &'static Self {
        if kind & 8 != 0 {
            &TSS32
        } else {
            &TSS16
        }
    }
    fn flags(&self) -> u64 {
        self.eip + self.word
    }
    fn register(&self, index: u64) -> u64 {
        self.eip + (2 + index) * self.word
    }
    fn segment(&self, index: u64) -> u64 {
        self.segments + index * self.word
    }
}

/// The descriptor of a TSS that may be switched to. `fault` makes #GP(code) or #TS(code).
pub fn available_tss(
    cpu: &CpuState,
    mem: &mut dyn LinearMemory,
    selector: u16,
    fault: fn(u32) -> Exception,
) -> Result<Descriptor, Exception> {
    let code = selector_code(selector);
    if is_null(selector) || selector & 4 != 0 {
        return Err(fault(code));
    }
    let descriptor = read_descriptor(cpu, mem, selector, fault(code))?;
    let available = matches!(
        descriptor.kind(),
        system_type::TSS_AVAILABLE | system_type::TSS16_AVAILABLE
    );
    if !descriptor.is_system() || !available {
        return Err(fault(code));
    }
    if !descriptor.present() {
        return Err(Exception::np(code));
    }
    Ok(descriptor)
}

/// IRET with NT set: switches back to the task named by the link field of the current TSS.
/// `next_rip` is the address after the IRET.
pub fn return_to_previous(
    cpu: &mut CpuState,
    mem: &mut dyn LinearMemory,
    next_rip: u64,
) -> Result<Effects, Exception> {
    let address = linear_address(cpu, cpu.tr.base);
    let selector = mem.read(cpu, address, 2, Privilege::System)? as u16;
    let code = selector_code(selector);
    if is_null(selector) || selector & 4 != 0 {
        return Err(Exception::ts(code));
    }
    let descriptor = read_descriptor(cpu, mem, selector, Exception::ts(code))?;
    let busy = matches!(
        descriptor.kind(),
        system_type::TSS_BUSY | system_type::TSS16_BUSY
    );
    if !descriptor.is_system() || !busy {
        return Err(Exception::ts(code));
    }
    if !descriptor.present() {
        return Err(Exception::np(code));
    }
    let saved = Saved {
        rip: next_rip,
        rflags: cpu.rflags,
    };
    switch(cpu, mem, selector, &descriptor, Source::Iret, saved)
}

/// Everything a TSS holds for the new task.
struct NewTask {
    cr3: u64,
    eip: u64,
    eflags: u64,
    gpr: [u64; 8],
    selectors: [u16; 6],
    ldt: u16,
    trap: bool,
}

/// Reads slots of the TSS at `base`.
struct Reader<'a> {
    cpu: &'a CpuState,
    mem: &'a mut dyn LinearMemory,
    base: u64,
}

impl Reader<'_> {
    fn read(&mut self, offset: u64, size: u64) -> Result<u64, Exception> {
        let address = linear_address(self.cpu, self.base.wrapping_add(offset));
        self.mem
            .read(self.cpu, address, size as usize, Privilege::System)
    }
}

fn read_task(
    cpu: &CpuState,
    mem: &mut dyn LinearMemory,
    base: u64,
    layout: &Layout,
) -> Result<NewTask, Exception> {
    let mut tss = Reader { cpu, mem, base };
    let wide = layout.word == 4;
    let mut task = NewTask {
        cr3: if wide { tss.read(0x1c, 4)? } else { cpu.cr3 },
        eip: tss.read(layout.eip, layout.word)?,
        eflags: tss.read(layout.flags(), layout.word)?,
        gpr: [0; 8],
        selectors: [0; 6],
        ldt: tss.read(layout.ldt, 2)? as u16,
        trap: wide && tss.read(0x64, 2)? & 1 != 0,
    };
    for index in 0..8 {
        task.gpr[index as usize] = tss.read(layout.register(index), layout.word)?;
    }
    for index in 0..layout.segment_count {
        task.selectors[index] = tss.read(layout.segment(index as u64), 2)? as u16;
    }
    Ok(task)
}

/// Switches to the task of `descriptor`, which `selector` names and whose type and presence have been checked.
pub fn switch(
    cpu: &mut CpuState,
    mem: &mut dyn LinearMemory,
    selector: u16,
    descriptor: &Descriptor,
    source: Source,
    saved: Saved,
) -> Result<Effects, Exception> {
    let ext = if let Source::Interrupt { ext } = source {
        ext
    } else {
        0
    };
    switch_inner(cpu, mem, selector, descriptor, source, saved).map_err(|e| e.with_ext(ext))
}

fn switch_inner(
    cpu: &mut CpuState,
    mem: &mut dyn LinearMemory,
    selector: u16,
    descriptor: &Descriptor,
    source: Source,
    saved: Saved,
) -> Result<Effects, Exception> {
    let new_layout = Layout::of(descriptor.kind());
    let old_layout = Layout::of(cpu.tr.kind());
    if descriptor.limit() < new_layout.min_limit {
        return Err(Exception::ts(selector_code(selector)));
    }
    if !cpu.tr.present() || cpu.tr.limit < old_layout.min_limit {
        return Err(Exception::ts(selector_code(cpu.tr.selector)));
    }
    let nested = matches!(source, Source::Call | Source::Interrupt { .. });
    let leaves = matches!(source, Source::Jump | Source::Iret);
    let old_base = linear_address(cpu, cpu.tr.base);
    let new_base = descriptor.base();
    let task = read_task(cpu, mem, new_base, new_layout)?;

    // Everything that the switch writes is probed before the first write.
    let system = Privilege::System;
    let first = old_layout.eip;
    let end = old_layout.segment(old_layout.segment_count as u64);
    let at = linear_address(cpu, old_base.wrapping_add(first));
    mem.probe_write(cpu, at, (end - first) as usize, system)?;
    if nested {
        mem.probe_write(cpu, linear_address(cpu, new_base), 2, system)?;
    }
    let old_descriptor = if leaves {
        let code = selector_code(cpu.tr.selector);
        Some(read_descriptor(
            cpu,
            mem,
            cpu.tr.selector,
            Exception::ts(code),
        )?)
    } else {
        None
    };
    for entry in old_descriptor.iter().chain([descriptor]) {
        mem.probe_write(
            cpu,
            linear_address(cpu, entry.address.wrapping_add(5)),
            1,
            system,
        )?;
    }

    if let Some(old) = &old_descriptor {
        write_type_byte(cpu, mem, old, (old.raw >> 40) as u8 & !BUSY)?;
    }
    let mut old_flags = saved.rflags;
    if source == Source::Iret {
        old_flags &= !RFlags::NT.bits();
    }
    save_task(cpu, mem, old_base, old_layout, saved.rip, old_flags)?;
    if nested {
        let link = u64::from(cpu.tr.selector);
        mem.write(cpu, linear_address(cpu, new_base), 2, link, system)?;
    }
    if source != Source::Iret {
        write_type_byte(cpu, mem, descriptor, (descriptor.raw >> 40) as u8 | BUSY)?;
    }

    // The point of no return.
    enter_task(cpu, mem, selector, descriptor, &task, nested);
    load_task_segments(cpu, mem, &task)?;
    let mut effects = Effects::MODE_CHANGED
        | Effects::FLUSH_TLB_NONGLOBAL
        | Effects::INTERRUPTS_ENABLED
        | Effects::FPU_CHANGED
        | Effects::BREAKPOINTS_CHANGED;
    if task.trap {
        effects |= Effects::TASK_TRAP;
    }
    Ok(effects)
}

fn save_task(
    cpu: &CpuState,
    mem: &mut dyn LinearMemory,
    base: u64,
    layout: &Layout,
    rip: u64,
    flags: u64,
) -> Result<(), Exception> {
    let size = layout.word as usize;
    let mut write = |offset: u64, size: usize, value: u64| {
        let address = linear_address(cpu, base.wrapping_add(offset));
        mem.write(cpu, address, size, value, Privilege::System)
    };
    write(layout.eip, size, rip)?;
    write(layout.flags(), size, flags)?;
    for index in 0..8 {
        write(layout.register(index), size, cpu.gpr[index as usize])?;
    }
    for index in 0..layout.segment_count {
        write(
            layout.segment(index as u64),
            2,
            u64::from(cpu.seg[index].selector),
        )?;
    }
    Ok(())
}

/// Loads what cannot fault.
fn enter_task(
    cpu: &mut CpuState,
    mem: &mut dyn LinearMemory,
    selector: u16,
    descriptor: &Descriptor,
    task: &NewTask,
    nested: bool,
) {
    let busy = descriptor.attr() | u16::from(BUSY);
    cpu.tr = Segment {
        attr: busy,
        ..descriptor.segment(selector)
    };
    cpu.cr0 |= Cr0::TS.bits();
    // Local breakpoint enables end with the task.
    cpu.dr[7] &= !0x155;
    let wide = descriptor.kind() & 8 != 0;
    if wide && cpu.paging() {
        cpu.cr3 = task.cr3;
        mem.translation_changed();
    }
    cpu.rip = task.eip;
    // A 16-bit TSS has no upper half of EFLAGS, so RF, VM, AC and ID end with the old task.
    cpu.rflags = (task.eflags & 0x0037_7fd5) | RFlags::FIXED.bits();
    if nested {
        cpu.rflags |= RFlags::NT.bits();
    }
    for (index, &value) in task.gpr.iter().enumerate() {
        cpu.gpr[index] = if wide { value } else { 0xffff_0000 | value };
    }
    for reg in 0..6 {
        // Unusable until checked: a fault in between finds no segment of the old task.
        cpu.seg[reg] = null_segment(task.selectors[reg]);
    }
    cpu.ldtr = null_segment(task.ldt);
    cpu.cpl = if cpu.v8086() {
        3
    } else {
        (task.selectors[sreg::CS] & 3) as u8
    };
}

/// Loads LDTR and the segment registers, in the order of SDM vol. 3A, table 7-1.
fn load_task_segments(
    cpu: &mut CpuState,
    mem: &mut dyn LinearMemory,
    task: &NewTask,
) -> Result<(), Exception> {
    cpu.ldtr = check_ldt(cpu, mem, task.ldt, Exception::ts, Exception::ts)?;
    if cpu.v8086() {
        for (reg, &selector) in task.selectors.iter().enumerate() {
            cpu.seg[reg] = v8086_segment(selector);
        }
        return Ok(());
    }
    let selector = task.selectors[sreg::CS];
    let code = selector_code(selector);
    if is_null(selector) {
        return Err(Exception::ts(code));
    }
    let target = read_descriptor(cpu, mem, selector, Exception::ts(code))?;
    let allowed = if target.is_conforming() {
        target.dpl() <= cpu.cpl
    } else {
        target.dpl() == cpu.cpl
    };
    if !target.is_code() || !allowed {
        return Err(Exception::ts(code));
    }
    if !target.present() {
        return Err(Exception::np(code));
    }
    set_accessed(cpu, mem, &target)?;
    cpu.seg[sreg::CS] = target.segment(selector);
    cpu.seg[sreg::SS] = check_stack_segment(
        cpu,
        mem,
        task.selectors[sreg::SS],
        cpu.cpl,
        false,
        Exception::ts,
    )?;
    for reg in [sreg::DS, sreg::ES, sreg::FS, sreg::GS] {
        cpu.seg[reg] = check_data_segment(cpu, mem, task.selectors[reg])?;
    }
    if cpu.rip > u64::from(cpu.seg[sreg::CS].limit) {
        return Err(Exception::gp(0));
    }
    // The stack pointer's upper half means nothing to a 16-bit stack; it was loaded as it stood.
    cpu.gpr[gpr::RSP] &= 0xffff_ffff;
    Ok(())
}

fn check_data_segment(
    cpu: &CpuState,
    mem: &mut dyn LinearMemory,
    selector: u16,
) -> Result<Segment, Exception> {
    if is_null(selector) {
        return Ok(null_segment(selector));
    }
    let code = selector_code(selector);
    let descriptor = read_descriptor(cpu, mem, selector, Exception::ts(code))?;
    let rpl = (selector & 3) as u8;
    let reachable =
        descriptor.is_conforming() || (descriptor.dpl() >= cpu.cpl && descriptor.dpl() >= rpl);
    if !descriptor.is_readable() || !reachable {
        return Err(Exception::ts(code));
    }
    if !descriptor.present() {
        return Err(Exception::np(code));
    }
    set_accessed(cpu, mem, &descriptor)?;
    Ok(descriptor.segment(selector))
}
