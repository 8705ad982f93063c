//! A vCPU: what generated code addresses of it (`translate::layout`), and what is for the runtime alone.

use std::alloc::{alloc_zeroed, handle_alloc_error, Layout};
use std::mem::offset_of;

use super::engine::Engine;
use super::fetch::FetchTlb;
use super::signals::Caught;
use super::slow::PendingAccess;
use crate::cpu::exception::Exception;
use crate::cpu::state::CpuState;
use crate::memory::tlb::Tlb;
use crate::translate::layout::{at, CodeStack, Frame, Jumps, RunState};

/// In [`Pending::debug_hits`]: TF as it was before the instruction does not single-step it.
pub const UNSTEPPED: u64 = 1 << 63;

/// What is on its way between generated code, the dispatcher and the helpers that code has called.
pub struct Pending {
    /// Data breakpoints that the current instruction hit, as in DR6; BS and [`UNSTEPPED`] where it decides itself
    /// whether it is single-stepped.
    pub debug_hits: u64,
    pub signal: Caught,
    pub fault: Option<Exception>,
    /// Whose vCPU this is, while code runs.
    pub engine: *mut Engine,
    /// The access in the bounce buffer.
    pub access: PendingAccess,
}

/// A vCPU.
#[repr(C, align(64))]
pub struct Vcpu {
    pub stack: CodeStack,
    pub cpu: CpuState,
    pub run: RunState,
    pub tlb: Tlb,
    pub jumps: Jumps,
    pub fetch: FetchTlb,
    pub pending: Pending,
}

impl Vcpu {
    /// A vCPU in its power-on state for a machine with `pages` pages of RAM.
    pub fn new(id: u8, pages: usize) -> Box<Self> {
        let layout = Layout::new::<Self>();
        // SAFETY: all-zero bytes are valid for every field that is read before it is initialised
        // below: the Vecs inside `tlb` and `fetch` are overwritten with `ptr::write`, never dropped
        // as zeroes; `Option<Exception>`, integers and raw pointers accept zero.
        let mut this = unsafe {
            let raw = alloc_zeroed(layout).cast::<Self>();
            if raw.is_null() {
                handle_alloc_error(layout);
            }
            Tlb::init(&raw mut (*raw).tlb, pages);
            (&raw mut (*raw).cpu).write(CpuState::reset(id));
            (&raw mut (*raw).pending.fault).write(None);
            (&raw mut (*raw).pending.access).write(PendingAccess::default());
            (&raw mut (*raw).fetch).write(FetchTlb::default());
            Box::from_raw(raw)
        };
        this.run.this = &raw const *this as u64;
        this.run.code_rsp = this.run.this + at::FRAME as u64;
        this.clear_jumps();
        this
    }
}

/// The vCPU begins with a [`Frame`].
const _: () = {
    assert!(offset_of!(Vcpu, stack) == offset_of!(Frame, stack));
    assert!(offset_of!(Vcpu, cpu) == offset_of!(Frame, cpu));
    assert!(offset_of!(Vcpu, run) == offset_of!(Frame, run));
    assert!(offset_of!(Vcpu, tlb) == offset_of!(Frame, tlb));
    assert!(offset_of!(Vcpu, jumps) == offset_of!(Frame, jumps));
};
