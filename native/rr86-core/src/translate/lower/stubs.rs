//! The assembly that all translated code shares: entering and leaving, slow memory accesses, helper
//! calls, and moving the guest's FPU state between memory and the host's FPU.
//!
//! While code runs, the guest's registers are in host registers (see `layout::HOST`). A stub that calls
//! Rust first writes back what Rust may clobber or must see. The FPU state is in the host's FPU only
//! between the first FPU instruction of a stretch of code and the next call of Rust.

use crate::cpu::fpu::MXCSR_MASK;
use crate::translate::encode::asm::{self, cc, Asm, W32, W64};
use crate::translate::layout::{at, mapped, Exit, T0, T1};
use crate::translate::lower::across::{self, Across};
use crate::translate::lower::jump_cache::ask_jump_cache;

/// Offset of MXCSR_MASK in an FXSAVE image (SDM vol. 1, table 10-2).
const MASK: usize = 28;

/// Registers that the System V ABI lets a callee clobber, among those that hold guest registers.
const CALLER_SAVED: [usize; 6] = [0, 1, 2, 6, 7, 8];

/// Host addresses of the stubs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stubs {
    /// `extern "sysv64" fn(code: u64)`: loads the guest's registers and jumps to `code`.
    pub enter: u64,
    /// Jump here with `exit` set: writes everything back and returns from `enter`.
    pub leave: u64,
    /// Call with T0 = linear address, T1 = packed site: T0 becomes the host address; T1 is not 0
    /// when the data has to be committed.
    pub access: u64,
    /// Call with T1 = packed site: makes the store in the bounce buffer happen.
    pub commit: u64,
    /// Call with T1 = packed site: runs the helper of that instruction.
    pub helper: u64,
    /// Call with T1 = packed site: asks whether to stop before that instruction.
    pub hook: u64,
    /// Call with T1 = packed site: a block is entered whose source may have changed.
    pub entered: u64,
    /// Call with T0 = offset, T1 = packed site, segment number in `site` word: T0 becomes linear.
    pub segment: u64,
    /// Loads the guest's FPU state into the host's FPU.
    pub fpu_load: u64,
    /// The same as `access` for up to 16 bytes in 64-bit mode, after which `commit` in the vCPU says what to
    /// call instead of `commit`; see `across`.
    pub across: Across,
    /// Jump here to go on at the `target` of the vCPU, for which the jump cache has to be asked.
    pub lookup: u64,
    /// Jumped to by the signal handler: leave with `Exit::Signal`.
    pub signal: u64,
}

fn store_registers(a: &mut Asm, which: impl Fn(usize) -> bool) {
    for (guest, host) in mapped().filter(|(g, _)| which(*g)) {
        a.store(W64, host, at::gpr(guest));
    }
}

fn load_registers(a: &mut Asm, which: impl Fn(usize) -> bool) {
    for (guest, host) in mapped().filter(|(g, _)| which(*g)) {
        a.load(W64, host, at::gpr(guest));
    }
}

/// Moves the FPU state to memory; clobbers nothing but host flags. The last-instruction pointers are
/// cleared, because they would be host addresses, and MXCSR_MASK is the guest's, because makers differ in it.
/// For tests, `mask` is what the host's FXSAVE is taken to store there.
fn unload_fpu(a: &mut Asm, mask: Option<u32>) {
    a.raw(&[0x65, 0x48, 0x0f, 0xae, 0x04, 0x25]); // fxsave64 gs:[FPU]
    a.u32(at::FPU as u32);
    if let Some(mask) = mask {
        a.gs_mov_imm32(at::FPU + MASK, mask);
    }
    a.gs_cmp_imm8(at::HOST_MXCSR_MASK, 0);
    let kept = a.jcc(cc::NE);
    a.gs_mov_imm32(at::FPU + MASK, MXCSR_MASK);
    a.patch_here(kept);
    for offset in [8, 16] {
        a.gs(&[0xc7], W64, asm::RAX, at::FPU + offset);
        a.u32(0);
    }
    a.gs(&[0xc7], asm::W16, asm::RAX, at::FPU + 6);
    a.raw(&[0, 0]);
    a.raw(&[0x65, 0x0f, 0xae, 0x14, 0x25]); // ldmxcsr gs:[HOST_MXCSR]
    a.u32(at::HOST_MXCSR as u32);
    a.gs_mov_imm8(at::FPU_LIVE, 0);
}

fn load_fpu(a: &mut Asm) {
    a.raw(&[0x65, 0x48, 0x0f, 0xae, 0x0c, 0x25]); // fxrstor64 gs:[FPU]
    a.u32(at::FPU as u32);
    a.gs_mov_imm8(at::FPU_LIVE, 1);
}

fn if_live(a: &mut Asm, flag: usize, body: impl FnOnce(&mut Asm)) {
    a.gs_cmp_imm8(flag, 0);
    let skip = a.jcc(cc::E);
    body(a);
    a.patch_here(skip);
}

fn call_rust(a: &mut Asm, target: u64) {
    a.mov_imm(asm::RAX, target);
    // `enter` has left the thread's stack pointer aligned for a call.
    a.store(W64, asm::RSP, at::STUB_RSP);
    a.load(W64, asm::RSP, at::HOST_RSP);
    a.raw(&[0xff, 0xd0]);
    a.load(W64, asm::RSP, at::STUB_RSP);
}

/// The part that slow access and commit share: save, call, and either come back or leave.
fn memory_call(
    a: &mut Asm,
    target: u64,
    mask: Option<u32>,
    leave_tail: &mut Vec<usize>,
    returns_address: bool,
) {
    let caller_saved = |g: usize| CALLER_SAVED.contains(&g);
    store_registers(a, caller_saved);
    a.store(W64, asm::RAX, at::FLAGS_AX);
    if_live(a, at::FPU_LIVE, |a| {
        unload_fpu(a, mask);
        a.gs_mov_imm8(at::FPU_WAS_LIVE, 1);
    });
    a.load(W64, asm::RDI, at::THIS);
    a.mov_rr(W64, asm::RSI, T0);
    a.mov_rr(W32, asm::RDX, T1);
    call_rust(a, target);
    a.rr(&[0x85], W64, asm::RAX, asm::RAX);
    leave_tail.push(a.jcc(cc::E));
    if returns_address {
        a.mov_rr(W64, T0, asm::RAX);
        a.mov_rr(W64, T1, asm::RDX);
    }
    if_live(a, at::FPU_WAS_LIVE, |a| {
        load_fpu(a);
        a.gs_mov_imm8(at::FPU_WAS_LIVE, 0);
    });
    load_registers(a, caller_saved);
    a.load(W64, asm::RAX, at::FLAGS_AX);
}

/// Host addresses of the functions that stubs call, with the C calling convention of the System V ABI. The first
/// argument is that of the vCPU.
#[derive(Clone, Copy, Debug)]
pub struct Helpers {
    /// `fn(vcpu, linear, site) -> (host, pending)`; 0 for the first when the block has to be left.
    pub access: u64,
    /// `fn(vcpu, …, site)`; 0 when the block has to be left.
    pub commit: u64,
    /// `fn(vcpu, offset, site) -> (linear, …)`; 0 for the first when the block has to be left.
    pub segment: u64,
    /// `fn(vcpu, site)`, as the following; not 0 when the block has to be left.
    pub helper: u64,
    pub hook: u64,
    pub entered: u64,
}

/// Makes the stubs, to run at `base`. For tests, `mask` is what the host's FXSAVE is taken to store as MXCSR_MASK.
/// In one function, because the stubs jump to each other's tails.
pub fn emit(base: u64, helpers: &Helpers, mask: Option<u32>) -> (Asm, Stubs) {
    let unload_fpu = |a: &mut Asm| unload_fpu(a, mask);
    let mut a = Asm::default();
    let mut stubs = Stubs::default();
    let here = |a: &Asm| base + a.len() as u64;
    // Callee-saved host registers: rbx, rbp, r12–r15.
    let push: [&[u8]; 6] = [
        &[0x53],
        &[0x55],
        &[0x41, 0x54],
        &[0x41, 0x55],
        &[0x41, 0x56],
        &[0x41, 0x57],
    ];
    let pop: [&[u8]; 6] = [
        &[0x41, 0x5f],
        &[0x41, 0x5e],
        &[0x41, 0x5d],
        &[0x41, 0x5c],
        &[0x5d],
        &[0x5b],
    ];

    stubs.enter = here(&a);
    push.iter().for_each(|p| a.raw(p));
    a.alu_imm(5, W64, asm::RSP, 8);
    a.store(W64, asm::RSP, at::HOST_RSP);
    a.load(W64, asm::RSP, at::CODE_RSP);
    a.mov_rr(W64, T0, asm::RDI);
    load_registers(&mut a, |_| true);
    a.load(W64, asm::RAX, at::FLAGS_AX);
    a.raw(&[0x41, 0xff, 0xe2]); // jmp r10

    stubs.lookup = here(&a);
    a.load(W64, T1, at::TARGET);
    let miss = ask_jump_cache(&mut a, T1);
    a.gs_scaled(&[0xff], W32, asm::Reg(4), T0, at::JUMP_CODE);
    a.patch_here(miss);
    a.gs(&[0x33], W64, T1, at::JUMP_KEY);
    a.store(W64, T1, at::RIP);
    a.gs_mov_imm32(at::EXIT, Exit::Lookup as u32);
    let lookup = a.jmp();

    stubs.signal = here(&a);
    a.gs_mov_imm32(at::EXIT, Exit::Signal as u32);
    stubs.leave = here(&a);
    a.patch_here(lookup);
    store_registers(&mut a, |_| true);
    a.store(W64, asm::RAX, at::FLAGS_AX);
    if_live(&mut a, at::FPU_LIVE, unload_fpu);
    let restore = a.len();
    a.load(W64, asm::RSP, at::HOST_RSP);
    a.alu_imm(0, W64, asm::RSP, 8);
    pop.iter().for_each(|p| a.raw(p));
    a.u8(0xc3);

    // Leaving from a stub that has saved the caller-saved registers and the flags.
    let tail = a.len();
    a.gs_mov_imm8(at::FPU_WAS_LIVE, 0);
    store_registers(&mut a, |g| !CALLER_SAVED.contains(&g));
    let jump = a.jmp();
    a.patch(jump, restore);

    let mut leaving = Vec::new();
    stubs.access = here(&a);
    memory_call(&mut a, helpers.access, mask, &mut leaving, true);
    a.u8(0xc3);

    stubs.commit = here(&a);
    a.u8(0x9c); // pushfq
    a.alu_imm(5, W64, asm::RSP, 8);
    // The instruction's flags, for the case that the block ends here.
    a.mem(&[0x8b], W64, T0, Some(asm::RSP), None, 8);
    memory_call(&mut a, helpers.commit, mask, &mut leaving, false);
    a.alu_imm(0, W64, asm::RSP, 8);
    a.u8(0x9d); // popfq
    a.u8(0xc3);

    stubs.across = across::emit(&mut a, base, stubs.access);

    stubs.segment = here(&a);
    memory_call(&mut a, helpers.segment, mask, &mut leaving, true);
    a.u8(0xc3);

    let full_call = |a: &mut Asm, target: u64| {
        store_registers(a, |_| true);
        a.store(W64, asm::RAX, at::FLAGS_AX);
        if_live(a, at::FPU_LIVE, unload_fpu);
        a.load(W64, asm::RDI, at::THIS);
        a.mov_rr(W32, asm::RSI, T1);
        call_rust(a, target);
        a.rr(&[0x85], W32, asm::RAX, asm::RAX);
        let stop = a.jcc(cc::NE);
        load_registers(a, |_| true);
        a.load(W64, asm::RAX, at::FLAGS_AX);
        a.u8(0xc3);
        a.patch(stop, restore);
    };
    stubs.helper = here(&a);
    full_call(&mut a, helpers.helper);
    stubs.hook = here(&a);
    full_call(&mut a, helpers.hook);

    stubs.entered = here(&a);
    full_call(&mut a, helpers.entered);

    stubs.fpu_load = here(&a);
    load_fpu(&mut a);
    a.u8(0xc3);

    for at in leaving {
        a.patch(at, tail);
    }
    (a, stubs)
}
