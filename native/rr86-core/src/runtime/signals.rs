//! Host signals that translated code raises on the guest's behalf.
//!
//! Division, unmasked x87 and SSE exceptions, and misaligned SSE operands are left to the host's CPU,
//! which knows their rules exactly. The kernel turns them into signals; the handler, when the
//! interrupted instruction lies in the code buffer or runs on the stack of translated code, notes what
//! happened and continues at a stub that leaves the code with all registers in place. Signals from anywhere
//! else go to whoever handled them before.
//!
//! What no guest instruction stands for ends the run with a [`HostFault`], which says where it was.

use crate::runtime::vcpu::Caught;
use std::cell::Cell;
use std::fmt;
use std::mem::MaybeUninit;
use std::sync::Once;

use crate::runtime::vcpu::Vcpu;
use crate::translate::layout::at;

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
const SIGNALS: [libc::c_int; 5] = [
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGTRAP,
];
/// The handlers that were there before, in the order of `SIGNALS`; written once by `install`.
static mut PREVIOUS: [MaybeUninit<libc::sigaction>; SIGNALS.len()] =
    [MaybeUninit::uninit(); SIGNALS.len()];

extern "C" fn handler(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid ucontext. The vCPU pointer is valid while it is registered, and the vCPU is
    // touched only where translated code was interrupted, which holds no Rust references.
    unsafe {
        let context = &mut *context.cast::<libc::ucontext_t>();
        let registers = &mut context.uc_mcontext.gregs;
        let rip = registers[libc::REG_RIP as usize] as u64;
        if let Some(running) = RUNNING.get() {
            let rsp = registers[libc::REG_RSP as usize] as u64;
            // Rust runs on the thread's own stack: on this one, a jump has led out of the code.
            let stack = running.vcpu as u64..=running.vcpu as u64 + at::FRAME as u64;
            if (running.code.0..running.code.1).contains(&rip) || stack.contains(&rsp) {
                (*running.vcpu).pending.signal = Caught {
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

/// A vCPU's code may run on this thread; when dropped, what was before is back. Runs nest, where a device in Python
/// runs another machine.
pub(in crate::runtime) struct Entered {
    gs: u64,
    running: Option<Running>,
}

/// Makes `vcpu` the one whose code runs on this thread.
pub(in crate::runtime) fn enter(vcpu: *mut Vcpu, code: (u64, u64), stub: u64) -> Entered {
    INSTALL.call_once(install);
    let gs = gs_base();
    set_gs_base(vcpu as u64);
    let running = RUNNING.replace(Some(Running { vcpu, code, stub }));
    Entered { gs, running }
}

impl Drop for Entered {
    fn drop(&mut self) {
        RUNNING.set(self.running.take());
        set_gs_base(self.gs);
        // SAFETY: FNINIT leaves the x87 unit as the ABI wants it: empty and with default control; the
        // guest's state has been saved.
        unsafe { std::arch::asm!("fninit", options(nomem, nostack)) };
    }
}

/// A vCPU, and the range of its code.
#[cfg(test)]
type Registered = (u64, (u64, u64));

/// For tests: what GS leads to, and the vCPU whose code, in that range, may run on this thread.
#[cfg(test)]
pub(in crate::runtime) fn on_this_thread() -> (u64, Option<Registered>) {
    let running = RUNNING.get().map(|r| (r.vcpu as u64, r.code));
    (gs_base(), running)
}

/// Translated code has raised an exception on the host that no guest instruction stands for: a mistake of
/// rr86's, or of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFault {
    /// The host's exception vector, and the host address of the instruction.
    pub vector: u64,
    pub address: u64,
    pub vcpu: u8,
    /// Instructions retired before the guest's instruction, as far as that is known.
    pub icount: u64,
    pub place: Option<Place>,
}

/// Where in the guest a host fault was raised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The instruction and its bytes, if it could be told apart; otherwise the block's first, and all its bytes.
    pub rip: u64,
    pub bytes: Vec<u8>,
    pub block: u64,
    pub block_rip: u64,
    pub code_bits: u32,
}

impl fmt::Display for HostFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 20] = [
            "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "#09", "#TS", "#NP",
            "#SS", "#GP", "#PF", "#15", "#MF", "#AC", "#MC", "#XM",
        ];
        let name = NAMES.get(self.vector as usize).unwrap_or(&"an exception");
        write!(
            f,
            "translated code raised {name} on the host, which is a bug in rr86: vCPU {}, after instruction {}",
            self.vcpu, self.icount
        )?;
        let Some(place) = &self.place else {
            return write!(
                f,
                ", outside of any block, at host address {:#x}",
                self.address
            );
        };
        write!(f, ", rip {:#x}, bytes", place.rip)?;
        place
            .bytes
            .iter()
            .try_for_each(|byte| write!(f, " {byte:02x}"))?;
        write!(
            f,
            " (block {} at {:#x}, {}-bit code); the trace has everything up to that slice",
            place.block, place.block_rip, place.code_bits
        )
    }
}

impl std::error::Error for HostFault {}

#[cfg(test)]
#[path = "panic_tests.rs"]
mod tests;
