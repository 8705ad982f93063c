//! Privileged and identifying instructions.

use iced_x86::{Mnemonic as M, OpKind, Register};

use super::operand::{register, segment_number, set_register};
use super::transfer::{load_far_pointer, operand_linear, FULL};
use super::{Context, Result};
use crate::cpu::control;
use crate::cpu::exception::Exception;
use crate::cpu::msr::{self, is_apic_msr};
use crate::cpu::segment;
use crate::cpu::state::{gpr, sreg, RFlags, TableRegister};
use crate::cpu::syscall::swapgs;
use crate::runtime::instruction::Flow;
use crate::translate::site::AccessKind;

const ZF: u64 = RFlags::ZF.bits();

impl Context<'_> {
    fn edx_eax(&mut self, value: u64) {
        self.cpu.gpr[gpr::RAX] = value & 0xffff_ffff;
        self.cpu.gpr[gpr::RDX] = value >> 32;
    }

    fn edx_eax_value(&self) -> u64 {
        self.cpu.gpr[gpr::RAX] & 0xffff_ffff | self.cpu.gpr[gpr::RDX] << 32
    }

    fn ecx(&self) -> u32 {
        self.cpu.gpr[gpr::RCX] as u32
    }

    /// Size of the operand that a system instruction stores.
    fn store_size(&self, in_memory: usize) -> usize {
        if self.insn.op0_kind() == OpKind::Register {
            self.insn.op0_register().size()
        } else {
            in_memory
        }
    }

    fn tsc(&mut self) -> u64 {
        self.machine
            .system()
            .now()
            .wrapping_add(self.cpu.msr.tsc_adjust)
    }
}

/// One match, a few lines for each instruction; it is long because they are many.
pub fn execute(c: &mut Context<'_>) -> Result {
    match c.insn.mnemonic() {
        M::Cpuid => {
            let enabled = c.machine.system().has_apic();
            let (leaf, subleaf) = (c.cpu.gpr[gpr::RAX] as u32, c.ecx());
            let (a, b, x, d) = c
                .machine
                .system()
                .model()
                .query(c.cpu, leaf, subleaf, enabled);
            let cpu = &mut *c.cpu;
            cpu.gpr[gpr::RAX] = u64::from(a);
            cpu.gpr[gpr::RBX] = u64::from(b);
            cpu.gpr[gpr::RCX] = u64::from(x);
            cpu.gpr[gpr::RDX] = u64::from(d);
        }
        M::Clflush => {
            // There is no cache; what remains is the check of a read of one byte.
            let at = c.address(1, crate::translate::site::AccessKind::Read)?;
            c.with_memory(|cpu, mem| mem.probe_read(cpu, at, 1))?;
        }
        M::Rdtsc => {
            control::check_rdtsc(c.cpu)?;
            let tsc = c.tsc();
            c.edx_eax(tsc);
        }
        M::Rdtscp => {
            control::check_rdtsc(c.cpu)?;
            let tsc = c.tsc();
            c.edx_eax(tsc);
            c.cpu.gpr[gpr::RCX] = c.cpu.msr.tsc_aux & 0xffff_ffff;
        }
        M::Rdpmc => {
            let value = control::rdpmc()?;
            c.edx_eax(value);
        }
        M::Rdmsr => {
            let index = c.ecx();
            let value = if is_apic_msr(index) {
                segment::require_ring0(c.cpu)?;
                let value = c.machine.system().read_apic(index);
                value.ok_or(Exception::gp(0))?
            } else {
                let now = c.machine.system().now();
                msr::rdmsr(c.cpu, c.machine.system().model(), index, now)?
            };
            c.edx_eax(value);
        }
        M::Wrmsr => {
            let index = c.ecx();
            let value = c.edx_eax_value();
            if is_apic_msr(index) {
                segment::require_ring0(c.cpu)?;
                let written = c.machine.system().write_apic(index, value);
                written.ok_or(Exception::gp(0))?;
            } else {
                let now = c.machine.system().now();
                let effects = msr::wrmsr(c.cpu, c.machine.system().model(), index, value, now)?;
                c.apply(effects);
                c.machine.system().set_tsc_offset(c.cpu);
            }
        }
        M::Cli => {
            control::cli(c.cpu)?;
        }
        M::Sti => {
            control::sti(c.cpu)?;
        }
        M::Stac | M::Clac => {
            let allow = c.insn.mnemonic() == M::Stac;
            let effects = control::set_alignment_check(c.cpu, c.machine.system().model(), allow)?;
            c.apply(effects);
        }
        M::Pushf | M::Pushfd | M::Pushfq => {
            let value = control::pushf(c.cpu)?;
            let size = c.insn.stack_pointer_increment().unsigned_abs() as usize;
            c.with_memory(|cpu, mem| {
                let mut stack = crate::cpu::stack::Stack::current(cpu);
                stack.push(cpu, mem, &[value], size, FULL)?;
                cpu.gpr[gpr::RSP] = stack.rsp(cpu.gpr[gpr::RSP]);
                Ok(())
            })?;
        }
        M::Popf | M::Popfd | M::Popfq => {
            let size = c.insn.stack_pointer_increment().unsigned_abs() as usize;
            let effects = c.with_memory(|cpu, mem| {
                let mut stack = crate::cpu::stack::Stack::current(cpu);
                let value = stack.pop(cpu, mem, size)?;
                let effects = control::popf(cpu, value, size)?;
                cpu.gpr[gpr::RSP] = stack.rsp(cpu.gpr[gpr::RSP]);
                Ok(effects)
            })?;
            c.apply(effects);
        }
        M::Hlt => {
            control::hlt(c.cpu)?;
            c.flow = Flow::Halt;
        }
        M::Pause => c.flow = Flow::Pause,
        M::Mov => move_system(c)?,
        M::Lmsw => {
            check_privilege_first(c)?;
            let value = c.read_operand(0, 2)? as u16;
            let effects = control::lmsw(c.cpu, value)?;
            c.apply(effects);
        }
        M::Smsw => {
            let value = control::smsw(c.cpu)?;
            let size = c.store_size(2);
            c.write_operand(0, size, value)?;
        }
        M::Clts => {
            let effects = control::clts(c.cpu)?;
            c.apply(effects);
        }
        M::Xgetbv => {
            let ecx = c.ecx();
            let value = control::xgetbv(c.cpu, c.machine.system().model(), ecx)?;
            c.edx_eax(value);
        }
        M::Xsetbv => {
            let (ecx, value) = (c.ecx(), c.edx_eax_value());
            let effects = control::xsetbv(c.cpu, c.machine.system().model(), ecx, value)?;
            c.apply(effects);
        }
        M::Invlpg => {
            control::check_invalidate(c.cpu)?;
            let linear = operand_linear(c);
            c.machine.system().flush_page(linear);
        }
        M::Wbinvd | M::Invd => control::check_invalidate(c.cpu)?,
        M::Swapgs => {
            swapgs(c.cpu)?;
        }
        M::Rdfsbase | M::Rdgsbase => {
            control::check_fsgsbase(c.cpu, None)?;
            let number = if c.insn.mnemonic() == M::Rdfsbase {
                sreg::FS
            } else {
                sreg::GS
            };
            let base = c.cpu.seg[number].base;
            set_register(c.cpu, c.insn.op0_register(), base);
        }
        M::Wrfsbase | M::Wrgsbase => {
            let value = register(c.cpu, c.insn.op0_register());
            control::check_fsgsbase(c.cpu, Some(value))?;
            let number = if c.insn.mnemonic() == M::Wrfsbase {
                sreg::FS
            } else {
                sreg::GS
            };
            c.cpu.seg[number].base = value;
        }
        M::Lds | M::Les | M::Lss | M::Lfs | M::Lgs => load_far_pointer(c)?,
        _ => tables(c)?,
    }
    Ok(())
}

fn move_system(c: &mut Context<'_>) -> Result {
    let (to, from) = (c.insn.op0_register(), c.insn.op1_register());
    let to_register = c.insn.op0_kind() == OpKind::Register;
    if to_register && to.is_segment_register() {
        let selector = c.read_operand(1, 2)? as u16;
        let number = to.number();
        let effects =
            c.with_memory(|cpu, mem| segment::load_segment(cpu, mem, number, selector))?;
        if number == sreg::SS {
            c.cpu.shadow_stack_load();
        }
        c.apply(effects);
        return Ok(());
    }
    if let Some(number) = segment_number(from).filter(|_| c.insn.op1_kind() == OpKind::Register) {
        let selector = u64::from(c.cpu.seg[number].selector);
        let size = c.store_size(2);
        return c.write_operand(0, size, selector);
    }
    if from.is_cr() {
        segment::require_ring0(c.cpu)?;
        let value = if from == Register::CR8 {
            u64::from(c.machine.system().cr8())
        } else {
            control::read_cr(c.cpu, from.number())?
        };
        set_register(c.cpu, to, value);
        return Ok(());
    }
    if from.is_dr() {
        let value = control::read_dr(c.cpu, from.number())?;
        set_register(c.cpu, to, value);
        return Ok(());
    }
    let value = register(c.cpu, from);
    let effects = if to == Register::CR8 {
        let effects = control::check_cr8(c.cpu, value)?;
        c.machine.system().set_cr8(value as u8);
        effects
    } else if to.is_cr() {
        let value = if c.cpu.code64() {
            value
        } else {
            value & 0xffff_ffff
        };
        control::write_cr(c.cpu, c.machine.system().model(), to.number(), value)?
    } else {
        control::write_dr(c.cpu, to.number(), value)?
    };
    c.apply(effects);
    Ok(())
}

fn tables(c: &mut Context<'_>) -> Result {
    match c.insn.mnemonic() {
        M::Sgdt | M::Sidt => {
            segment::check_umip(c.cpu)?;
            let table = if c.insn.mnemonic() == M::Sgdt {
                c.cpu.gdtr
            } else {
                c.cpu.idtr
            };
            let wide = if c.cpu.code64() { 8 } else { 4 };
            let at = c.address(2 + wide, AccessKind::Write)?;
            c.save(at, 2, u64::from(table.limit))?;
            c.save(at.wrapping_add(2), wide, table.base)
        }
        M::Lgdt | M::Lidt => {
            check_privilege_first(c)?;
            let wide = if c.cpu.code64() { 8 } else { 4 };
            let at = c.address(2 + wide, AccessKind::Read)?;
            let limit = c.load(at, 2)? as u16;
            let base = c.load(at.wrapping_add(2), wide)?;
            let size = operand_size(c);
            let table: TableRegister = segment::load_table(c.cpu, limit, base, size)?;
            if c.insn.mnemonic() == M::Lgdt {
                c.cpu.gdtr = table;
            } else {
                c.cpu.idtr = table;
            }
            Ok(())
        }
        M::Sldt | M::Str => {
            let segment = if c.insn.mnemonic() == M::Sldt {
                c.cpu.ldtr
            } else {
                c.cpu.tr
            };
            let selector = segment::store_selector(c.cpu, &segment)?;
            let size = c.store_size(2);
            c.write_operand(0, size, u64::from(selector))
        }
        M::Lldt | M::Ltr => {
            segment::require_protected(c.cpu)?;
            segment::require_ring0(c.cpu)?;
            let selector = c.read_operand(0, 2)? as u16;
            let load = if c.insn.mnemonic() == M::Lldt {
                segment::lldt
            } else {
                segment::ltr
            };
            let effects = c.with_memory(|cpu, mem| load(cpu, mem, selector))?;
            c.apply(effects);
            Ok(())
        }
        M::Verr | M::Verw => {
            segment::require_protected(c.cpu)?;
            let selector = c.read_operand(0, 2)? as u16;
            let write = c.insn.mnemonic() == M::Verw;
            let yes = c.with_memory(|cpu, mem| segment::verify(cpu, mem, selector, write))?;
            c.set_flags(ZF, if yes { ZF } else { 0 });
            Ok(())
        }
        M::Lar | M::Lsl => {
            segment::require_protected(c.cpu)?;
            let selector = c.read_operand(1, 2)? as u16;
            let ask = if c.insn.mnemonic() == M::Lar {
                segment::lar
            } else {
                segment::lsl
            };
            match c.with_memory(|cpu, mem| ask(cpu, mem, selector))? {
                Some(value) => {
                    set_register(c.cpu, c.insn.op0_register(), u64::from(value));
                    c.set_flags(ZF, ZF);
                }
                None => c.set_flags(ZF, 0),
            }
            Ok(())
        }
        _ => Err(Exception::ud()),
    }
}

/// #GP(0) outside of ring 0, before the operand is read.
fn check_privilege_first(c: &Context<'_>) -> Result {
    if c.cpu.semantics.privilege_comes_before_memory() {
        segment::require_ring0(c.cpu)?;
    }
    Ok(())
}

/// Operand size of LGDT and LIDT, which decides how much of the base counts.
fn operand_size(c: &Context<'_>) -> usize {
    use iced_x86::Code as C;
    match c.insn.code() {
        C::Lgdt_m1632_16 | C::Lidt_m1632_16 => 2,
        C::Lgdt_m1632 | C::Lidt_m1632 => 4,
        _ => 8,
    }
}
