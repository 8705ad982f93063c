//! The host CPU as a subject: cases run in a child process, a batch for each round trip.
//!
//! The child lives in one signal handler. Every case ends in an exception (at least that of its final
//! `hlt`), the kernel hands over the complete register state with the signal, the handler stores it
//! as the outcome, writes the next case's state into the signal frame and returns: the kernel's
//! return from the signal loads every register at once, so that no code stands between handler
//! and case. FS and GS bases are not part of the frame and are set with WRFSBASE and WRGSBASE.
//! A seccomp filter kills the child should a stray jump make the case enter the kernel.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use crate::case::{
    layout, outcome_of_exception, Case, Entry, Fault, Outcome, Subject, SubjectError,
};

/// Cases for each round trip.
const BATCH: usize = 64;
/// Milliseconds without an answer after which a batch counts as hung; long, for a host may be busy.
const TIMEOUT_MS: i32 = 30_000;
const CODE_MAX: usize = 2048;

#[repr(C)]
struct Slot {
    entry: Entry,
    code_address: u64,
    code_len: u64,
    code: [u8; CODE_MAX],
    gpr: [u64; 16],
    rip: u64,
    rflags: u64,
    fxsave: [u8; 512],
    vector: u64,
    error_code: u64,
    cr2: u64,
    arena: [u8; layout::ARENA_SIZE],
}

/// The memory that parent and child share.
#[repr(C)]
struct Shared {
    count: AtomicU32,
    /// Cases of this batch that have an outcome.
    done: AtomicU32,
    // What follows is the child's own.
    /// A case is running, so that a signal brings an outcome.
    running: bool,
    child_fs: u64,
    child_gs: u64,
    request: i32,
    response: i32,
    code_alias: *mut u8,
    arena_alias: *mut u8,
    dirty: (usize, usize),
    writable_code: bool,
    slots: [Slot; BATCH],
}

static SHARED: AtomicPtr<Shared> = AtomicPtr::new(ptr::null_mut());

/// The host CPU, through a child process that is restarted when a case kills it.
pub struct Native {
    shared: *mut Shared,
    child: Option<Child>,
    writable_code: bool,
}

struct Child {
    pid: libc::pid_t,
    request: i32,
    response: i32,
}

// SAFETY: the shared mapping belongs to this value alone on the parent's side.
unsafe impl Send for Native {}

impl Native {
    /// Maps the shared memory; the child starts with the first case.
    pub fn new() -> Result<Self, SubjectError> {
        // SAFETY: HWCAP2 is a plain number.
        if unsafe { libc::getauxval(libc::AT_HWCAP2) } & 2 == 0 {
            return Err(SubjectError::Other(
                "this host lacks FSGSBASE for user code".into(),
            ));
        }
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let shared = unsafe {
            libc::mmap(
                ptr::null_mut(),
                std::mem::size_of::<Shared>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if shared == libc::MAP_FAILED {
            return Err(SubjectError::last("mmap of the shared memory"));
        }
        Ok(Self {
            shared: shared.cast(),
            child: None,
            writable_code: false,
        })
    }

    /// The same with a code region that user code may write. A case may only change its own code.
    pub fn with_writable_code() -> Result<Self, SubjectError> {
        let mut native = Self::new()?;
        native.writable_code = true;
        Ok(native)
    }

    fn start(&mut self) -> Result<(), SubjectError> {
        if self.child.is_some() {
            return Ok(());
        }
        let mut request = [0; 2];
        let mut response = [0; 2];
        // SAFETY: both arrays hold two descriptors.
        if unsafe { libc::pipe2(request.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
            return Err(SubjectError::last("pipe"));
        }
        // SAFETY: as above.
        if unsafe { libc::pipe2(response.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
            return Err(SubjectError::last("pipe"));
        }
        // SAFETY: the child only makes system calls and touches its own mappings; it neither allocates nor returns.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: this is the child, which owns the descriptors and the shared memory.
            unsafe { child_main(self.shared, request[0], response[1], self.writable_code) }
        }
        // SAFETY: these ends belong to the child.
        unsafe {
            libc::close(request[0]);
            libc::close(response[1]);
        }
        if pid < 0 {
            // SAFETY: ours, and not used any more.
            unsafe {
                libc::close(request[1]);
                libc::close(response[0]);
            }
            return Err(SubjectError::last("fork"));
        }
        self.child = Some(Child {
            pid,
            request: request[1],
            response: response[0],
        });
        Ok(())
    }

    /// Ends the child and gives its wait status.
    fn stop(&mut self) -> i32 {
        let Some(child) = self.child.take() else {
            return 0;
        };
        let mut status = 0;
        // SAFETY: our own child, by its id, and our own descriptors.
        unsafe {
            libc::kill(child.pid, libc::SIGKILL);
            libc::waitpid(child.pid, &mut status, 0);
            libc::close(child.request);
            libc::close(child.response);
        }
        status
    }

    /// Runs up to [`BATCH`] cases; gives fewer outcomes, the last one an error, when the child died.
    fn run_some(&mut self, cases: &[Case]) -> Vec<Result<Outcome, SubjectError>> {
        if let Err(error) = self.start() {
            return vec![Err(error)];
        }
        // SAFETY: the child is waiting for a request, so the parent alone uses the memory.
        let shared = unsafe { &mut *self.shared };
        for (slot, case) in shared.slots.iter_mut().zip(cases) {
            slot.entry.clone_from(&case.entry);
            slot.code_address = case.code_address;
            slot.code_len = case.code.len() as u64;
            slot.code[..case.code.len()].copy_from_slice(&case.code);
            slot.arena.copy_from_slice(&case.arena);
        }
        shared.count.store(cases.len() as u32, Ordering::SeqCst);
        shared.done.store(0, Ordering::SeqCst);
        let mut failure = None;
        if let Some(child) = &self.child {
            let mut byte = 0u8;
            let mut poll = libc::pollfd {
                fd: child.response,
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one byte each way over our own pipes.
            let answered = unsafe {
                libc::write(child.request, (&byte as *const u8).cast(), 1) == 1
                    && libc::poll(&mut poll, 1, TIMEOUT_MS) == 1
            };
            if !answered {
                failure = Some(true);
            } else if
            // SAFETY: one byte over our own pipe; a dead child gives end of file.
            unsafe { libc::read(child.response, (&mut byte as *mut u8).cast(), 1) } != 1 {
                failure = Some(false);
            }
        }
        let status = failure.map(|_| self.stop());
        // SAFETY: the child waits again, or is gone.
        let shared = unsafe { &*self.shared };
        let done = (shared.done.load(Ordering::SeqCst) as usize).min(cases.len());
        let mut outcomes: Vec<_> = shared.slots[..done]
            .iter()
            .zip(cases)
            .map(|(slot, case)| {
                let fault = Fault {
                    vector: slot.vector as u8,
                    error_code: slot.error_code,
                    cr2: slot.cr2,
                };
                Ok(outcome_of_exception(
                    case,
                    slot.gpr,
                    slot.rip,
                    slot.rflags,
                    slot.fxsave,
                    slot.arena.to_vec(),
                    fault,
                ))
            })
            .collect();
        if done < cases.len() {
            outcomes.push(Err(match failure {
                Some(true) => SubjectError::TimedOut,
                _ => SubjectError::Killed(status.unwrap_or(0)),
            }));
        }
        outcomes
    }
}

impl Subject for Native {
    fn run(&mut self, case: &Case) -> Result<Outcome, SubjectError> {
        self.run_batch(std::slice::from_ref(case)).remove(0)
    }

    fn run_batch(&mut self, cases: &[Case]) -> Vec<Result<Outcome, SubjectError>> {
        let mut outcomes = Vec::with_capacity(cases.len());
        while outcomes.len() < cases.len() {
            let rest = &cases[outcomes.len()..];
            let usable = rest
                .iter()
                .take(BATCH)
                .take_while(|case| fits(case))
                .count();
            if usable == 0 {
                outcomes.push(Err(SubjectError::Malformed(
                    "code or arena outside of its region",
                )));
                continue;
            }
            outcomes.extend(self.run_some(&rest[..usable]));
        }
        outcomes
    }
}

/// Whether code with its final `hlt` lies in the code region, and the arena has its size.
fn fits(case: &Case) -> bool {
    let offset = case.code_address.wrapping_sub(layout::CODE);
    case.code.len() <= CODE_MAX
        && offset < layout::CODE_SIZE as u64
        && offset as usize + case.code.len() < layout::CODE_SIZE
        && case.arena.len() == layout::ARENA_SIZE
}

impl Drop for Native {
    fn drop(&mut self) {
        self.stop();
        // SAFETY: mapped by `new`, and no child uses it any more.
        unsafe { libc::munmap(self.shared.cast(), std::mem::size_of::<Shared>()) };
    }
}

/// Maps `size` bytes of `fd` at `address` (0: anywhere), or ends the child.
unsafe fn map(fd: i32, address: u64, offset: usize, size: usize, protection: i32) -> *mut u8 {
    let fixed = if address == 0 {
        0
    } else {
        libc::MAP_FIXED_NOREPLACE
    };
    // SAFETY: never replaces a mapping.
    let mapped = unsafe {
        libc::mmap(
            address as *mut libc::c_void,
            size,
            protection,
            // Populated, so that a fault on a page never depends on whether it was touched before.
            libc::MAP_SHARED | libc::MAP_POPULATE | fixed,
            fd,
            offset as libc::off_t,
        )
    };
    if mapped == libc::MAP_FAILED {
        // SAFETY: ends the process.
        unsafe { libc::_exit(90) };
    }
    mapped.cast()
}

/// The child: sets up memory, handlers and the filter, then raises the first exception.
unsafe fn child_main(shared: *mut Shared, request: i32, response: i32, writable_code: bool) -> ! {
    use layout::*;
    // SAFETY: the calls below only touch this process; each failure ends it.
    unsafe {
        // Descriptors of other children would keep their pipes open.
        for fd in 3..1024 {
            if fd != request && fd != response {
                libc::close(fd);
            }
        }
        let no_core = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        libc::setrlimit(libc::RLIMIT_CORE, &no_core);

        let fd = libc::memfd_create(c"rr86-differential".as_ptr(), 0);
        if fd < 0 || libc::ftruncate(fd, (CODE_SIZE + ARENA_SIZE) as libc::off_t) != 0 {
            libc::_exit(91);
        }
        let both = libc::PROT_READ | libc::PROT_WRITE;
        let write = if writable_code { libc::PROT_WRITE } else { 0 };
        let protection = libc::PROT_READ | libc::PROT_EXEC | write;
        map(fd, CODE, 0, CODE_SIZE, protection);
        (*shared).code_alias = map(fd, 0, 0, CODE_SIZE, both);
        (*shared).arena_alias = map(fd, 0, CODE_SIZE, ARENA_SIZE, both);
        for page in (0..ARENA_SIZE / PAGE).filter(|&page| mapped(page)) {
            let offset = page * PAGE;
            let protection = if page == READ_ONLY_PAGE {
                libc::PROT_READ
            } else {
                both
            };
            map(
                fd,
                ARENA + offset as u64,
                CODE_SIZE + offset,
                PAGE,
                protection,
            );
        }
        ptr::write_bytes((*shared).code_alias, 0xf4, CODE_SIZE);
        (*shared).dirty = (0, 0);
        (*shared).writable_code = writable_code;
        (*shared).request = request;
        (*shared).response = response;
        (*shared).child_fs = read_fs_base();
        (*shared).child_gs = 0;
        (*shared).running = false;
        SHARED.store(shared, Ordering::SeqCst);

        let stack_size = 256 << 10;
        let stack = libc::mmap(
            ptr::null_mut(),
            stack_size,
            both,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        let alternate = libc::stack_t {
            ss_sp: stack,
            ss_flags: 0,
            ss_size: stack_size,
        };
        libc::sigaltstack(&alternate, ptr::null_mut());
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigfillset(&mut action.sa_mask);
        for signal in [
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGFPE,
            libc::SIGILL,
            libc::SIGTRAP,
        ] {
            libc::sigaction(signal, &action, ptr::null_mut());
        }
        if !forbid_system_calls_of_cases() {
            libc::_exit(92);
        }
        // Enters the handler, which then waits for the first batch.
        std::arch::asm!("ud2");
        libc::_exit(93)
    }
}

/// Kills the process on a system call from below 4 GiB, where only the case's code lives.
unsafe fn forbid_system_calls_of_cases() -> bool {
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const IP_HIGH: u32 = 12; // upper half of seccomp_data.instruction_pointer
    let filter = [
        libc::sock_filter {
            code: LOAD,
            jt: 0,
            jf: 0,
            k: IP_HIGH,
        },
        libc::sock_filter {
            code: JUMP_EQUAL,
            jt: 0,
            jf: 1,
            k: 0,
        },
        libc::sock_filter {
            code: RETURN,
            jt: 0,
            jf: 0,
            k: libc::SECCOMP_RET_KILL_PROCESS,
        },
        libc::sock_filter {
            code: RETURN,
            jt: 0,
            jf: 0,
            k: libc::SECCOMP_RET_ALLOW,
        },
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the program outlives the call, which copies it.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, 2, ptr::addr_of!(program)) == 0
    }
}

fn read_fs_base() -> u64 {
    let base;
    // SAFETY: reads a register; `Native::new` has checked that user code may.
    unsafe { std::arch::asm!("rdfsbase {}", out(reg) base, options(nomem, nostack)) };
    base
}

/// gregs indices in the order of instruction encoding.
const GREGS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];
/// Bytes of the FXSAVE image that hold state; the signal frame keeps its own data behind them.
const FRAME_FX: usize = crate::case::FXSAVE_USED;

/// Stores the outcome of the case that raised the signal and enters the next one.
unsafe extern "C" fn on_signal(
    _signal: i32,
    _info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: SHARED is set before the handler is installed; reading a static needs no FS base.
    let shared = unsafe { &mut *SHARED.load(Ordering::SeqCst) };
    // SAFETY: gives this process its own thread pointer back before any library code runs.
    unsafe {
        std::arch::asm!("wrfsbase {}", in(reg) shared.child_fs, options(nomem, nostack));
    }
    // SAFETY: the kernel passes the frame that it will restore.
    let machine = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext };
    let fx: *mut u8 = machine.fpregs.cast();
    let mut batch_over = true;
    if shared.running {
        let index = shared.done.load(Ordering::SeqCst) as usize;
        let slot = &mut shared.slots[index];
        for (value, &greg) in slot.gpr.iter_mut().zip(&GREGS) {
            *value = machine.gregs[greg as usize] as u64;
        }
        slot.rip = machine.gregs[libc::REG_RIP as usize] as u64;
        slot.rflags = machine.gregs[libc::REG_EFL as usize] as u64;
        slot.vector = machine.gregs[libc::REG_TRAPNO as usize] as u64;
        slot.error_code = machine.gregs[libc::REG_ERR as usize] as u64;
        slot.cr2 = machine.gregs[libc::REG_CR2 as usize] as u64;
        // SAFETY: the frame's image and the arena's alias are at least that long.
        unsafe {
            ptr::copy_nonoverlapping(fx, slot.fxsave.as_mut_ptr(), FRAME_FX);
            ptr::copy_nonoverlapping(
                shared.arena_alias,
                slot.arena.as_mut_ptr(),
                layout::ARENA_SIZE,
            );
        }
        shared.done.store(index as u32 + 1, Ordering::SeqCst);
        batch_over = index + 1 >= shared.count.load(Ordering::SeqCst) as usize;
    }
    if batch_over {
        let mut byte = 0u8;
        // SAFETY: one byte each way; without a parent there is nothing left to do.
        unsafe {
            if shared.running && libc::write(shared.response, (&byte as *const u8).cast(), 1) != 1 {
                libc::_exit(0);
            }
            if libc::read(shared.request, (&mut byte as *mut u8).cast(), 1) != 1 {
                libc::_exit(0);
            }
        }
    }
    shared.running = true;
    // The parent has set this to zero for a new batch.
    let slot = &mut shared.slots[shared.done.load(Ordering::SeqCst) as usize];
    // SAFETY: the parent has checked that the code lies in its region.
    unsafe {
        ptr::write_bytes(shared.code_alias.add(shared.dirty.0), 0xf4, shared.dirty.1);
        let offset = (slot.code_address - layout::CODE) as usize;
        let len = slot.code_len as usize;
        ptr::copy_nonoverlapping(slot.code.as_ptr(), shared.code_alias.add(offset), len);
        // A case may have written all of a region that it may write.
        shared.dirty = if shared.writable_code {
            (0, layout::CODE_SIZE)
        } else {
            (offset, len)
        };
        ptr::copy_nonoverlapping(slot.arena.as_ptr(), shared.arena_alias, layout::ARENA_SIZE);
        ptr::copy_nonoverlapping(slot.entry.fxsave.as_ptr(), fx, FRAME_FX);
        // XSTATE_BV follows the legacy region: x87 and SSE state are to be loaded, not reset.
        *fx.add(512).cast::<u64>() |= 3;
    }
    for (&value, &greg) in slot.entry.gpr.iter().zip(&GREGS) {
        machine.gregs[greg as usize] = value as i64;
    }
    machine.gregs[libc::REG_RIP as usize] = slot.code_address as i64;
    let flags = (slot.entry.rflags & crate::case::FLAG_MASK) | 0x202;
    machine.gregs[libc::REG_EFL as usize] = flags as i64;
    // SAFETY: nothing after this needs the thread pointer; the next signal restores it.
    unsafe {
        std::arch::asm!(
            "wrfsbase {}",
            "wrgsbase {}",
            in(reg) slot.entry.fs_base,
            in(reg) slot.entry.gs_base,
            options(nomem, nostack)
        );
    }
}
