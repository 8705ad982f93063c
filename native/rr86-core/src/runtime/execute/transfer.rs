//! Control transfers other than near ones, and stack instructions with more than one access.

use iced_x86::{Code, Mnemonic as M, OpKind};

use super::operand::{offset, segment_number, truncate};
use super::{Context, Result};
use crate::cpu::exception::{vector, Exception};
use crate::cpu::interrupt::Event;
use crate::cpu::memory::{LinearMemory, Privilege};
use crate::cpu::stack::Stack;
use crate::cpu::state::{gpr, sreg, RFlags, Segment};
use crate::cpu::{far, iret, segment, syscall};
use crate::runtime::instruction::Flow;
use crate::runtime::journal::Noted;
use crate::translate::site::AccessKind;

/// What a push beyond the stack segment raises.
pub const FULL: Exception = Exception::with_code(vector::SS, 0);

/// Operand size from the suffix of the code's name.
fn far_size(code: Code) -> usize {
    use Code as C;
    match code {
        C::Jmp_ptr1616
        | C::Call_ptr1616
        | C::Jmp_m1616
        | C::Call_m1616
        | C::Retfw
        | C::Retfw_imm16
        | C::Iretw => 2,
        C::Jmp_m1664
        | C::Call_m1664
        | C::Retfq
        | C::Retfq_imm16
        | C::Iretq
        | C::Sysretq
        | C::Sysexitq => 8,
        _ => 4,
    }
}

impl Context<'_> {
    /// Selector and offset of a far pointer operand.
    fn far_pointer(&mut self, size: usize) -> Result<(u16, u64)> {
        match self.insn.op0_kind() {
            OpKind::FarBranch16 => Ok((
                self.insn.far_branch_selector(),
                u64::from(self.insn.far_branch16()),
            )),
            OpKind::FarBranch32 => Ok((
                self.insn.far_branch_selector(),
                u64::from(self.insn.far_branch32()),
            )),
            _ => {
                let at = self.address(size + 2, AccessKind::Read)?;
                let offset = self.load(at, size)?;
                let selector = self.load(at.wrapping_add(size as u64), 2)?;
                Ok((selector as u16, offset))
            }
        }
    }

    fn push(&mut self, values: &[u64], size: usize) -> Result {
        self.with_memory(|cpu, mem| {
            let mut stack = Stack::current(cpu);
            stack.push(cpu, mem, values, size, FULL)?;
            cpu.gpr[gpr::RSP] = stack.rsp(cpu.gpr[gpr::RSP]);
            Ok(())
        })
    }
}

pub fn execute(c: &mut Context<'_>) -> Result {
    let next = c.insn.next_ip();
    let size = far_size(c.insn.code());
    // Near transfers come here only to raise what their target makes them raise.
    if c.insn.is_jmp_near_indirect()
        || c.insn.is_call_near_indirect()
        || c.insn.mnemonic() == M::Ret
    {
        return Err(Exception::gp(0));
    }
    match c.insn.mnemonic() {
        M::Jmp => {
            let (selector, target) = c.far_pointer(size)?;
            let e =
                c.with_memory(|cpu, mem| far::far_jmp(cpu, mem, selector, target, size, next))?;
            c.apply(e);
        }
        M::Call => {
            let (selector, target) = c.far_pointer(size)?;
            let e =
                c.with_memory(|cpu, mem| far::far_call(cpu, mem, selector, target, size, next))?;
            c.apply(e);
        }
        M::Retf => {
            let parameters = if c.insn.op_count() == 1 {
                c.insn.immediate16()
            } else {
                0
            };
            let e = c.with_memory(|cpu, mem| far::far_ret(cpu, mem, size, parameters))?;
            c.apply(e);
        }
        M::Iret | M::Iretd | M::Iretq => {
            let stack = c.cpu.gpr[gpr::RSP];
            let e = c.with_memory(|cpu, mem| iret::iret(cpu, mem, size, next))?;
            c.apply(e);
            let (user, rip) = (c.cpu.cpl == 3, c.cpu.rip);
            c.machine.note(|| Noted::Returned { user, rip, stack });
        }
        M::Syscall => {
            let e = syscall::syscall(c.cpu, next)?;
            c.apply(e);
            note_system_call(c);
            step_by_flags_after(c);
        }
        M::Sysret | M::Sysretq => {
            let e = syscall::sysret(c.cpu, size)?;
            c.apply(e);
            note_system_return(c);
            step_by_flags_after(c);
        }
        M::Sysenter => {
            let e = syscall::sysenter(c.cpu)?;
            c.apply(e);
            note_system_call(c);
        }
        M::Sysexit | M::Sysexitq => {
            let e = syscall::sysexit(c.cpu, size)?;
            c.apply(e);
            note_system_return(c);
        }
        M::Int => {
            if c.insn.immediate8() == vector::BP {
                c.machine.note_int3(c.insn.len());
            }
            c.flow = Flow::Event(Event::Software(c.insn.immediate8()), next);
        }
        M::Int3 => {
            c.machine.note_int3(c.insn.len());
            c.flow = Flow::Event(Event::Int3, next);
        }
        M::Int1 => {
            c.flow = Flow::Event(Event::Icebp, next);
        }
        M::Into => {
            if c.cpu.rflags & RFlags::OF.bits() != 0 {
                c.flow = Flow::Event(Event::Into, next);
            } else {
                c.cpu.rip = next;
            }
        }
        M::Loop | M::Loope | M::Loopne | M::Jcxz => count_branch(c),
        M::Enter => enter(c)?,
        M::Push => {
            let number = segment_number(c.insn.op0_register()).unwrap_or(sreg::DS);
            let selector = u64::from(c.cpu.seg[number].selector);
            let size = c.insn.stack_pointer_increment().unsigned_abs() as usize;
            c.push(&[selector], size)?;
        }
        M::Pop => pop_segment(c)?,
        M::Pusha | M::Pushad => {
            let size = if c.insn.mnemonic() == M::Pusha { 2 } else { 4 };
            let values: [u64; 8] = c.cpu.gpr[..8].try_into().expect("eight registers");
            c.push(&values, size)?;
        }
        _ => popa(c)?,
    }
    Ok(())
}

fn note_system_call(c: &mut Context<'_>) {
    let (number, rip) = (c.cpu.gpr[gpr::RAX], c.cpu.rip);
    c.machine.note(|| Noted::SystemCall { number, rip });
}

fn note_system_return(c: &mut Context<'_>) {
    let rip = c.cpu.rip;
    c.machine.note(|| Noted::SystemReturn { rip });
}

/// SYSCALL and SYSRET are single-stepped if TF is set once they are done: the system call as a whole is one step
/// to the user (a debugger that lets SYSRET set TF stops right behind SYSCALL).
fn step_by_flags_after(c: &mut Context<'_>) {
    if c.cpu.semantics.steps_by_flags_after_system_calls() {
        let trap = c.cpu.rflags & RFlags::TF.bits() != 0;
        c.machine.step_by_flags_after(trap);
    }
}

/// The forms of LOOP and JCXZ that count in CX, which the host cannot run.
fn count_branch(c: &mut Context<'_>) {
    let mut cx = c.cpu.gpr[gpr::RCX] as u16;
    let zero_flag = c.cpu.rflags & RFlags::ZF.bits() != 0;
    let taken = if c.insn.mnemonic() == M::Jcxz {
        cx == 0
    } else {
        cx = cx.wrapping_sub(1);
        let rcx = &mut c.cpu.gpr[gpr::RCX];
        *rcx = *rcx & !0xffff | u64::from(cx);
        cx != 0
            && match c.insn.mnemonic() {
                M::Loope => zero_flag,
                M::Loopne => !zero_flag,
                _ => true,
            }
    };
    c.cpu.rip = if taken {
        c.insn.near_branch_target()
    } else {
        c.insn.next_ip()
    };
}

/// ENTER (SDM vol. 2A).
fn enter(c: &mut Context<'_>) -> Result {
    let size = match c.insn.code() {
        Code::Enterw_imm16_imm8 => 2,
        Code::Enterd_imm16_imm8 => 4,
        _ => 8,
    };
    let bytes = u64::from(c.insn.immediate16());
    let level = usize::from(c.insn.immediate8_2nd()) % 32;
    c.with_memory(|cpu, mem| {
        let old = cpu.gpr[gpr::RSP];
        let mut stack = Stack::current(cpu);
        // As on processors, what was pushed before a fault stays in memory; the registers do not change.
        stack.push(cpu, mem, &[cpu.gpr[gpr::RBP]], size, FULL)?;
        let frame = stack.pointer;
        let mut frames = stack_at(cpu, cpu.gpr[gpr::RBP]);
        for _ in 1..level {
            frames.skip((size as u64).wrapping_neg());
            let mut at = stack_at(cpu, frames.pointer);
            let value = at.pop(cpu, mem, size)?;
            stack.push(cpu, mem, &[value], size, FULL)?;
        }
        if level > 0 {
            stack.push(cpu, mem, &[frame], size, FULL)?;
        }
        stack.skip(bytes.wrapping_neg());
        // The processor checks that the new top of the stack could be written.
        let top = stack.rsp(old);
        let segment_base = if cpu.code64() {
            0
        } else {
            cpu.seg[sreg::SS].base
        };
        let masked = if cpu.code64() {
            top
        } else {
            top.wrapping_add(segment_base) & 0xffff_ffff
        };
        mem.probe_write(cpu, masked, size, Privilege::Current)?;
        cpu.gpr[gpr::RSP] = top;
        let rbp = &mut cpu.gpr[gpr::RBP];
        *rbp = match size {
            2 => *rbp & !0xffff | frame & 0xffff,
            4 => frame & 0xffff_ffff,
            _ => frame,
        };
        Ok(())
    })
}

fn stack_at(cpu: &crate::cpu::state::CpuState, pointer: u64) -> Stack {
    Stack::new(cpu.seg[sreg::SS], pointer, cpu.code64(), Privilege::Current)
}

fn pop_segment(c: &mut Context<'_>) -> Result {
    let number = segment_number(c.insn.op0_register()).unwrap_or(sreg::DS);
    let size = c.insn.stack_pointer_increment().unsigned_abs() as usize;
    let e = c.with_memory(|cpu, mem| {
        let mut stack = Stack::current(cpu);
        let selector = stack.pop(cpu, mem, size)? as u16;
        let old = cpu.gpr[gpr::RSP];
        let effects = segment::load_segment(cpu, mem, number, selector)?;
        cpu.gpr[gpr::RSP] = stack.rsp(old);
        Ok(effects)
    })?;
    if number == sreg::SS {
        c.cpu.shadow_stack_load();
    }
    c.apply(e);
    Ok(())
}

fn popa(c: &mut Context<'_>) -> Result {
    let size = if c.insn.mnemonic() == M::Popa { 2 } else { 4 };
    c.with_memory(|cpu, mem| {
        let mut stack = Stack::current(cpu);
        let mut values = [0; 8];
        for value in values.iter_mut().rev() {
            *value = stack.pop(cpu, mem, size)?;
        }
        for (n, &value) in values.iter().enumerate() {
            if n != gpr::RSP {
                let register = &mut cpu.gpr[n];
                *register = if size == 2 {
                    *register & !0xffff | value
                } else {
                    truncate(value, 4)
                };
            }
        }
        cpu.gpr[gpr::RSP] = stack.rsp(cpu.gpr[gpr::RSP]);
        Ok(())
    })
}

/// LDS, LES, LSS, LFS, LGS: a far pointer into a segment register and a general one.
pub fn load_far_pointer(c: &mut Context<'_>) -> Result {
    let number = match c.insn.mnemonic() {
        M::Lds => sreg::DS,
        M::Les => sreg::ES,
        M::Lss => sreg::SS,
        M::Lfs => sreg::FS,
        _ => sreg::GS,
    };
    let destination = c.insn.op0_register();
    let size = destination.size();
    let at = c.address(size + 2, AccessKind::Read)?;
    let value = c.load(at, size)?;
    let selector = c.load(at.wrapping_add(size as u64), 2)? as u16;
    let e = c.with_memory(|cpu, mem| segment::load_segment(cpu, mem, number, selector))?;
    super::operand::set_register(c.cpu, destination, value);
    c.apply(e);
    Ok(())
}

/// INVLPG's operand, which is an address and not an access.
pub fn operand_linear(c: &Context<'_>) -> u64 {
    let number = segment_number(c.insn.memory_segment()).unwrap_or(sreg::DS);
    let cpu = &*c.cpu;
    let Segment { base, .. } = cpu.seg[number];
    let at = offset(cpu, c.insn);
    if cpu.code64() {
        if number >= sreg::FS {
            at.wrapping_add(base)
        } else {
            at
        }
    } else {
        at.wrapping_add(base) & 0xffff_ffff
    }
}
