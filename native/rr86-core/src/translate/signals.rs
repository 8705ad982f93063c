//! Host signals that translated code raises on the guest's behalf.
//!
//! Division, unmasked x87 and SSE exceptions, and misaligned SSE operands are left to the host's CPU,
//! which knows their rules exactly. The kernel turns them into signals; the handler, when the
//! interrupted instruction lies in the code buffer, notes what happened and continues at a stub that
//! leaves the code with all registers in place. Signals from anywhere else go to whoever handled them
//! before.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::sync::Once;

use super::engine::Engine;
use super::site::Site;
use super::slow::flags_to_ax;
use super::vcpu::Vcpu;
use crate::cpu::exception::{vector, Exception};

/// What the handler noted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Caught {
    /// Host address of the instruction.
    pub address: u64,
    /// The host's exception vector.
    pub vector: u64,
    pub rflags: u64,
}

#[derive(Clone, Copy)]
struct Running {
    vcpu: *mut Vcpu,
    code: (u64, u64),
    stub: u64,
}

thread_local! {
    static RUNNING: Cell<Option<Running>> = const { Cell::new(None) };
}

static INSTALL: Once = Once::new();
const SIGNALS: [libc::c_int; 3] = [libc::SIGFPE, libc::SIGSEGV, libc::SIGBUS];
/// The handlers that were there before, in the order of `SIGNALS`; written once by `install`.
static mut PREVIOUS: [MaybeUninit<libc::sigaction>; 3] = [MaybeUninit::uninit(); 3];

extern "C" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid ucontext; the vCPU pointer is valid while it is registered, and
    // the interrupted code is translated code of this thread, which holds no Rust references.
    unsafe {
        let context = &mut *context.cast::<libc::ucontext_t>();
        let registers = &mut context.uc_mcontext.gregs;
        let rip = registers[libc::REG_RIP as usize] as u64;
        if let Some(running) = RUNNING.get() {
            if (running.code.0..running.code.1).contains(&rip) {
                (*running.vcpu).run.signal = Caught {
                    address: rip,
                    vector: registers[libc::REG_TRAPNO as usize] as u64,
                    rflags: registers[libc::REG_EFL as usize] as u64,
                };
                registers[libc::REG_RIP as usize] = running.stub as i64;
                return;
            }
        }
        let place = SIGNALS.iter().position(|&s| s == signal).unwrap_or(0);
        let previous = PREVIOUS[place].assume_init();
        match previous.sa_sigaction {
            libc::SIG_DFL | libc::SIG_IGN => {
                // Let the default action happen when the instruction runs again.
                libc::sigaction(signal, &previous, std::ptr::null_mut());
            }
            address if previous.sa_flags & libc::SA_SIGINFO != 0 => {
                let next: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                    std::mem::transmute(address);
                next(signal, info, std::ptr::from_mut(context).cast());
            }
            address => {
                let next: extern "C" fn(libc::c_int) = std::mem::transmute(address);
                next(signal);
            }
        }
    }
}

fn install() {
    // SAFETY: runs once; `handler` is async-signal-safe: it touches memory and calls sigaction only.
    unsafe {
        for (place, &signal) in SIGNALS.iter().enumerate() {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&raw mut action.sa_mask);
            let previous = (&raw mut PREVIOUS[place]).cast::<libc::sigaction>();
            libc::sigaction(signal, &raw const action, previous);
        }
    }
}

fn has_fsgsbase() -> bool {
    // SAFETY: getauxval has no preconditions.
    unsafe { libc::getauxval(libc::AT_HWCAP2) & 2 != 0 }
}

fn gs_base() -> u64 {
    let mut base = 0u64;
    // SAFETY: the kernel said that user code may execute RDGSBASE; otherwise it is asked itself
    // (ARCH_GET_GS) and writes to a local variable.
    unsafe {
        if has_fsgsbase() {
            std::arch::asm!("rdgsbase {}", out(reg) base);
        } else {
            libc::syscall(libc::SYS_arch_prctl, 0x1004, &raw mut base);
        }
    }
    base
}

fn set_gs_base(base: u64) {
    // SAFETY: user space on x86-64 Linux keeps nothing in GS; the previous value is restored when the
    // engine stops running.
    unsafe {
        if has_fsgsbase() {
            std::arch::asm!("wrgsbase {}", in(reg) base);
        } else {
            libc::syscall(libc::SYS_arch_prctl, 0x1001, base);
        }
    }
}

/// Makes `vcpu` the one whose code runs on this thread. Returns what `leave` wants back.
pub(super) fn enter(vcpu: *mut Vcpu, code: (u64, u64), stub: u64) -> u64 {
    INSTALL.call_once(install);
    let previous = gs_base();
    set_gs_base(vcpu as u64);
    RUNNING.set(Some(Running { vcpu, code, stub }));
    previous
}

/// Ends what `enter` began.
pub(super) fn leave(previous: u64) {
    RUNNING.set(None);
    set_gs_base(previous);
    // SAFETY: FNINIT leaves the x87 unit as the ABI wants it: empty and with default control; the
    // guest's state has been saved.
    unsafe { std::arch::asm!("fninit", options(nomem, nostack)) };
}

/// The guest exception that a caught signal stands for; puts rip, flags and the budget where the
/// instruction was.
pub(super) fn exception(engine: &mut Engine, v: &mut Vcpu) -> Exception {
    let caught = v.run.signal;
    let offset = engine.code.offset_of(caught.address);
    let found = offset.and_then(|offset| {
        let inside = |start: usize, traps: &[super::code::Trap]| {
            let at = (offset - start) as u32;
            traps
                .iter()
                .find(|t| (t.start..t.end).contains(&at))
                .map(|t| t.site)
        };
        if let Some((start, block, traps)) = &engine.partial_traps {
            if offset >= *start {
                if let Some(site) = inside(*start, traps) {
                    return Some((*block, site));
                }
            }
        }
        let (start, block) = engine.code_map.find(offset)?;
        inside(start, engine.traps_of(start, block)).map(|site| (block, site))
    });
    let Some((block, site)) = found else {
        panic!(
            "translated code raised host exception {} at {:#x} where none is expected",
            caught.vector, caught.address
        );
    };
    let site = Site::unpack(site);
    v.cpu.rip = engine
        .blocks
        .get(block)
        .rip
        .wrapping_add(u64::from(site.offset));
    v.run.budget += i64::from(site.remaining);
    if site.host_flags {
        v.run.flags_ax = flags_to_ax(caught.rflags);
    }
    match u8::try_from(caught.vector) {
        Ok(vector::DE) => Exception::new(vector::DE),
        Ok(vector::MF) => Exception::new(vector::MF),
        Ok(vector::XM) => Exception::new(vector::XM),
        Ok(vector::AC) => Exception::with_code(vector::AC, 0),
        _ => Exception::gp(0),
    }
}
