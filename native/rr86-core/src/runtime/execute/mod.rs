//! Instructions that are not copied: what translated code calls for them.
//!
//! A helper sees the complete architectural state, does what the SDM says, and says how to go on. The
//! semantics themselves are in `cpu`; here operands are fetched and results stored. What an instruction may use beside
//! its vCPU's registers is in `parts`: no family of instructions reaches the engine.

mod arith;
mod fpu;
mod io;
mod operand;
mod parts;
mod strings;
mod system;
mod transfer;

use self::parts::Machine;
use crate::cpu::effects::Effects;
use crate::cpu::exception::Exception;
use crate::cpu::state::CpuState;
use crate::runtime::engine::Engine;
use crate::runtime::flags::{flags_to_ax, sync_flags};
use crate::runtime::instruction::Flow;
use crate::runtime::vcpu::Vcpu;
use crate::runtime::view::View;
use crate::translate::layout::Exit;
use crate::translate::lower::inline::falls_through;
use crate::translate::site::Site;
use iced_x86::{Instruction, Mnemonic as M};

/// A helper at work: the vCPU's registers, what there is of the machine around it, and the instruction.
pub(super) struct Context<'a> {
    pub cpu: &'a mut CpuState,
    pub machine: Machine<'a>,
    pub insn: &'a Instruction,
    pub flow: Flow,
    /// What is left of the budget after this instruction.
    pub left: i64,
}

pub(super) type Result<T = ()> = std::result::Result<T, Exception>;

impl Context<'_> {
    /// Runs semantics of `cpu` that need memory.
    pub fn with_memory<T>(
        &mut self,
        f: impl FnOnce(&mut CpuState, &mut View<'_>) -> Result<T>,
    ) -> Result<T> {
        f(self.cpu, &mut self.machine.memory())
    }

    pub fn apply(&mut self, effects: Effects) {
        self.machine.apply(effects);
    }
}

fn run(context: &mut Context<'_>) -> Result {
    if context.insn.is_string_instruction() {
        return strings::execute(context);
    }
    match context.insn.mnemonic() {
        M::Aaa
        | M::Aas
        | M::Aad
        | M::Aam
        | M::Daa
        | M::Das
        | M::Salc
        | M::Lahf
        | M::Sahf
        | M::Xlatb
        | M::Bound
        | M::Arpl => arith::execute(context),
        M::In | M::Out => io::execute(context),
        M::Fxsave
        | M::Fxsave64
        | M::Fxrstor
        | M::Fxrstor64
        | M::Xsave
        | M::Xsave64
        | M::Xsaveopt
        | M::Xsaveopt64
        | M::Xrstor
        | M::Xrstor64
        | M::Fnsave
        | M::Fsave
        | M::Frstor
        | M::Fnstenv
        | M::Fstenv
        | M::Fldenv
        | M::Ldmxcsr
        | M::Wait
        | M::Maskmovq
        | M::Maskmovdqu => fpu::execute(context),
        M::Jmp
        | M::Call
        | M::Ret
        | M::Retf
        | M::Iret
        | M::Iretd
        | M::Iretq
        | M::Int
        | M::Into
        | M::Int1
        | M::Int3
        | M::Syscall
        | M::Sysret
        | M::Sysretq
        | M::Sysenter
        | M::Sysexit
        | M::Sysexitq
        | M::Loop
        | M::Loope
        | M::Loopne
        | M::Jcxz
        | M::Enter
        | M::Push
        | M::Pop
        | M::Pusha
        | M::Pushad
        | M::Popa
        | M::Popad => transfer::execute(context),
        _ => system::execute(context),
    }
}

/// Called by translated code for the instruction at `site`. Returns 0 to go on with the next one.
///
/// # Safety
/// As for [`Engine::running`].
pub unsafe extern "sysv64" fn helper(vcpu: *mut Vcpu, site: u32) -> u32 {
    // SAFETY: the contracts are the same.
    let (v, engine) = unsafe { Engine::running(vcpu) };
    let site = Site::unpack(site);
    engine.stops.begin_access();
    let ends = site.stack;
    engine.observers.stats.helper_calls += 1;
    engine.slow_step(v);
    engine.clock.note_position(&v.run, site);
    sync_flags(v);
    let block = engine.cache.blocks.get(v.run.site_block);
    let (insn, refused) = engine.translator.for_helper(block, site.offset);
    let rip = insn.ip();
    v.cpu.rip = rip;
    engine.observers.count_helper(insn.mnemonic());
    engine.instruction.begin();
    let left = engine.left_after(v, site);
    let id = v.cpu.id;
    let mut context = Context {
        cpu: &mut v.cpu,
        machine: Machine::new(engine, id, &mut v.run, &mut v.pending.debug_hits),
        insn: &insn,
        flow: Flow::Next,
        left,
    };
    let result = match refused {
        Some(exception) => Err(exception),
        None => run(&mut context),
    };
    let flow = context.flow;
    if serialises(&insn) {
        let now = engine.icount();
        engine.progress[usize::from(v.cpu.id)].note_serialised(now);
    }
    v.run.flags_ax = flags_to_ax(v.cpu.rflags);
    if !ends && site.remaining > 1 {
        // The shadow of STI covers an instruction of the same block, which nothing interrupts.
        v.cpu.shadow = 0;
    } else if v.cpu.shadow != 0 {
        engine.slice.request_exit(&mut v.run);
    }
    engine.after_bus(v);
    match result {
        Err(exception) => {
            v.cpu.rip = rip;
            v.run.budget += i64::from(site.remaining);
            Engine::raise(v, exception);
            1
        }
        // What is pending has asked for an exit, or ends the block here.
        Ok(()) if ends && is_done(v, &insn) && goes_on(engine, &insn) => 0,
        Ok(()) if ends => {
            // Control transfers and repeated instructions have set rip themselves.
            if v.cpu.rip == rip && !keeps_rip(&insn) {
                v.cpu.rip = insn.next_ip();
            }
            engine.instruction.set_flow(flow);
            v.run.exit = Exit::Helper as u32;
            1
        }
        Ok(()) => {
            if engine.instruction.stops() {
                engine.end_after(v, site);
                return 1;
            }
            0
        }
    }
}

/// Serialising instructions (SDM vol. 3A, section 9.3).
fn serialises(insn: &Instruction) -> bool {
    match insn.mnemonic() {
        M::Mov => insn.op0_register().is_cr() || insn.op0_register().is_dr(),
        M::Cpuid
        | M::Iret
        | M::Iretd
        | M::Iretq
        | M::Serialize
        | M::Wrmsr
        | M::Invlpg
        | M::Invd
        | M::Wbinvd
        | M::Lgdt
        | M::Lidt
        | M::Lldt
        | M::Ltr => true,
        _ => false,
    }
}

/// Whether an instruction is followed by the next one in memory.
fn is_done(v: &Vcpu, insn: &Instruction) -> bool {
    v.cpu.rip == insn.next_ip() || v.cpu.rip == insn.ip() && !keeps_rip(insn)
}

/// Whether the code after an instruction that ends its block, and is done, is jumped to.
fn goes_on(engine: &Engine, insn: &Instruction) -> bool {
    falls_through(insn)
        && !engine.instruction.stops()
        && !engine.stops.is_stopped()
        && !engine.windows.is_entered()
}

/// Instructions that have set rip, perhaps to their own address.
fn keeps_rip(insn: &Instruction) -> bool {
    insn.is_string_instruction()
        || matches!(
            insn.mnemonic(),
            M::Jmp
                | M::Call
                | M::Retf
                | M::Iret
                | M::Iretd
                | M::Iretq
                | M::Syscall
                | M::Sysret
                | M::Sysretq
                | M::Sysenter
                | M::Sysexit
                | M::Sysexitq
                | M::Loop
                | M::Loope
                | M::Loopne
                | M::Jcxz
                | M::Int
                | M::Into
                | M::Int1
                | M::Int3
        )
}

/// Called by translated code before an instruction that the debugger waits for. Returns 0 to go on.
///
/// # Safety
/// As for [`helper`].
pub unsafe extern "sysv64" fn hook(vcpu: *mut Vcpu, site: u32) -> u32 {
    // SAFETY: the contracts are the same.
    let (v, engine) = unsafe { Engine::running(vcpu) };
    let site = Site::unpack(site);
    engine.clock.note_position(&v.run, site);
    let moment = engine.icount();
    let block = engine.cache.blocks.get(v.run.site_block);
    let rip = block.rip.wrapping_add(u64::from(site.offset));
    let probed = engine.probe(v, rip);
    if probed || !engine.stops.stop_at_hook(moment) {
        return 0;
    }
    engine.stop_inside(v, site);
    1
}

/// Called by translated code at the entry of a block that may be stale, or where one becomes so inside.
/// Returns 0 to go on.
///
/// # Safety
/// As for [`helper`].
pub unsafe extern "sysv64" fn entered(vcpu: *mut Vcpu, site: u32) -> u32 {
    // SAFETY: the contracts are the same.
    let (v, engine) = unsafe { Engine::running(vcpu) };
    let site = Site::unpack(site);
    let id = v.run.site_block;
    if site.offset == 0 && engine.oracle().is_some() {
        engine.clock.note_position(&v.run, site);
        engine.entered_block(v, id);
        if !engine.cache.blocks.get(id).stale.checked {
            return 0;
        }
    }
    if !engine.is_stale(id) {
        return 0;
    }
    engine.clock.note_position(&v.run, site);
    let moment = engine.icount();
    if !engine.stops.has_passed(moment) {
        engine.note_stale_entry(v.cpu.id, id);
    }
    if !engine.stops.stop_at_stale(moment) {
        return 0;
    }
    engine.stop_inside(v, site);
    1
}
