//! A vCPU: what generated code addresses of it (`translate::layout`), and what is for the runtime alone.
//!
//! A vCPU lies in memory as one piece, because generated code addresses all of it. Rust sees two parts: the [`Vcpu`],
//! which whoever runs it holds, and its [`Mmu`], which belongs to the machine, because whatever changes a page or a
//! block has to take translations out of those of all vCPUs. No reference covers both.

use std::alloc::{alloc_zeroed, handle_alloc_error, Layout};
use std::mem::{offset_of, size_of};
use std::ptr::NonNull;

use super::fetch::{FetchTlb, Mmu};
use crate::cpu::exception::Exception;
use crate::cpu::state::CpuState;
use crate::memory::tlb::Tlb;
use crate::translate::layout::{at, CodeStack, Frame, Jumps, RunState};

/// In [`Pending::debug_hits`]: TF as it was before the instruction does not single-step it.
pub const UNSTEPPED: u64 = 1 << 63;

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

/// A store in the bounce buffer that has not happened yet.
#[derive(Clone, Copy, Debug, Default)]
pub struct PendingAccess {
    /// Offset of the data in the bounce buffer.
    pub(in crate::runtime) offset: usize,
    /// Physical address and length of each part; the second is for a page crossing.
    pub(in crate::runtime) parts: [(u64, usize); 2],
    pub(in crate::runtime) linear: u64,
    /// Without a watch on its page this write would have taken the fast path.
    pub(in crate::runtime) plain: bool,
}

/// What is on its way between generated code, the dispatcher and the helpers that code has called.
pub struct Pending {
    /// Data breakpoints that the current instruction hit, as in DR6; BS and [`UNSTEPPED`] where it decides itself
    /// whether it is single-stepped.
    pub debug_hits: u64,
    pub signal: Caught,
    pub fault: Option<Exception>,
    /// Whose vCPU this is, while code runs.
    pub engine: *mut (),
    /// The access in the bounce buffer.
    pub access: PendingAccess,
}

/// What only the one who runs a vCPU touches.
#[repr(C, align(64))]
pub struct Vcpu {
    pub stack: CodeStack,
    pub cpu: CpuState,
    pub run: RunState,
    pub pending: Box<Pending>,
}

/// A vCPU as it lies in memory.
#[repr(C, align(64))]
struct Parts {
    vcpu: Vcpu,
    mmu: Mmu,
}

/// The allocation begins with a [`Frame`].
const _: () = {
    assert!(offset_of!(Vcpu, stack) == offset_of!(Frame, stack));
    assert!(offset_of!(Vcpu, cpu) == offset_of!(Frame, cpu));
    assert!(offset_of!(Vcpu, run) == offset_of!(Frame, run));
    let mmu = offset_of!(Parts, mmu);
    assert!(offset_of!(Parts, vcpu) == 0);
    assert!(mmu + offset_of!(Mmu, tlb) == offset_of!(Frame, tlb));
    assert!(mmu + offset_of!(Mmu, jumps) == offset_of!(Frame, jumps));
    assert!(offset_of!(Frame, jumps) + size_of::<Jumps>() <= size_of::<Parts>());
};

/// All vCPUs of a machine.
pub struct Vcpus {
    all: Vec<NonNull<Parts>>,
    running: Option<usize>,
}

// SAFETY: the allocations are owned by this structure alone, and everything in them is `Send` but the pointer to the
// engine, which is used only while the engine runs.
unsafe impl Send for Vcpus {}

impl Vcpus {
    /// So many vCPUs in their power-on state, for a machine with `pages` pages of RAM.
    pub fn new(count: usize, pages: usize) -> Self {
        Self {
            all: (0..count).map(|id| allocate(id as u8, pages)).collect(),
            running: None,
        }
    }

    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// The state of a vCPU. No vCPU runs.
    #[inline]
    pub fn cpu(&self, index: usize) -> &CpuState {
        assert!(self.running.is_none());
        // SAFETY: the pointer is valid as long as `self`. Nothing else refers to the vCPU, because none runs, and
        // `&self` keeps `begin` and `vcpu_mut` from being called.
        unsafe { &(*self.all[index].as_ptr()).vcpu.cpu }
    }

    /// A vCPU, to be changed between runs. No vCPU runs.
    #[inline]
    pub fn vcpu_mut(&mut self, index: usize) -> &mut Vcpu {
        assert!(self.running.is_none());
        // SAFETY: as in `cpu`, with `&mut self` for uniqueness.
        unsafe { &mut (*self.all[index].as_ptr()).vcpu }
    }

    /// The translations of a vCPU, whether it runs or not.
    #[inline]
    pub fn mmu(&self, index: usize) -> &Mmu {
        // SAFETY: the pointer is valid as long as `self`. References to an `Mmu` are made here and in the next
        // functions alone, and generated code, which uses it too, runs only while no reference is held.
        unsafe { &(*self.all[index].as_ptr()).mmu }
    }

    /// The same, to be changed.
    #[inline]
    pub fn mmu_mut(&mut self, index: usize) -> &mut Mmu {
        // SAFETY: as in `mmu`, with `&mut self` for uniqueness.
        unsafe { &mut (*self.all[index].as_ptr()).mmu }
    }

    /// The translations of all vCPUs.
    pub fn mmus(&mut self) -> impl Iterator<Item = &mut Mmu> {
        // SAFETY: as in `mmu_mut`; each comes once.
        let mmu = |parts: &NonNull<Parts>| unsafe { &mut (*parts.as_ptr()).mmu };
        self.all.iter().map(mmu)
    }

    /// Begins to run a vCPU: until [`Vcpus::end`], the pointer is the way to it. It is good for all of the vCPU,
    /// translations included, as generated code needs it.
    pub fn begin(&mut self, index: usize) -> *mut Vcpu {
        assert!(self.running.replace(index).is_none());
        self.all[index].as_ptr().cast()
    }

    /// Ends what `begin` began. The pointer is not used any more.
    pub fn end(&mut self) {
        self.running = None;
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        for &parts in &self.all {
            // SAFETY: made by `allocate`, with the global allocator and this layout, and freed only here.
            drop(unsafe { Box::from_raw(parts.as_ptr()) });
        }
    }
}

/// A vCPU in its power-on state.
fn allocate(id: u8, pages: usize) -> NonNull<Parts> {
    let layout = Layout::new::<Parts>();
    // SAFETY: the layout has a size. All-zero bytes are valid for the stack, `RunState`, and the jump cache, which are
    // integers; every other field is written before anything reads or drops it.
    unsafe {
        let raw = alloc_zeroed(layout).cast::<Parts>();
        let Some(parts) = NonNull::new(raw) else {
            handle_alloc_error(layout);
        };
        let pending = Pending {
            debug_hits: 0,
            signal: Caught::default(),
            fault: None,
            engine: std::ptr::null_mut(),
            access: PendingAccess::default(),
        };
        (&raw mut (*raw).vcpu.cpu).write(CpuState::reset(id));
        (&raw mut (*raw).vcpu.pending).write(Box::new(pending));
        Tlb::init(&raw mut (*raw).mmu.tlb, pages);
        (&raw mut (*raw).mmu.fetch).write(FetchTlb::default());
        (*raw).vcpu.run.this = raw as u64;
        (*raw).vcpu.run.code_rsp = raw as u64 + at::FRAME as u64;
        (*raw).mmu.clear_jumps();
        parts
    }
}
