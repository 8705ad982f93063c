//! All that generated code knows of the world around it: which host register holds what, where the parts of a vCPU
//! are, how a TLB is laid out, and the sizes of pages and lines. The GS base points to a [`Frame`] while code runs.

use std::mem::offset_of;

use crate::cpu::state::{gpr, CpuState};
use crate::memory::tlb::{Pin, Tlb, TlbEntry};
use crate::translate::encode::asm::{self, Reg};

pub use crate::memory::ram::LINE_SHIFT;
pub use crate::memory::tlb::{
    MmuIndex, ENTRY_SHIFT, PINS, PIN_LIMIT, PIN_MARGIN, TABLES, UNGUARDED,
};
pub use crate::memory::{PAGE_MASK, PAGE_SHIFT, PAGE_SIZE};

/// Host registers by guest register. Four guest registers live in memory; host RAX holds the saved
/// status flags, R10 and R11 are temporary, RSP points to the vCPU, above a stack of its own.
///
/// RAX cannot keep its name because LAHF and SAHF need it, and RSP cannot because stubs and
/// signals need a stack. The four in memory are those that kernel code uses least; hosts forward a store
/// through RSP to the next load of the same word at once.
pub const HOST: [Option<Reg>; 16] = [
    Some(asm::R9),  // rax
    Some(asm::RCX), // rcx
    Some(asm::RDX), // rdx
    Some(asm::RBX), // rbx
    Some(asm::R15), // rsp
    Some(asm::RBP), // rbp
    Some(asm::RSI), // rsi
    Some(asm::RDI), // rdi
    Some(asm::R8),  // r8
    None,           // r9
    None,           // r10
    None,           // r11
    Some(asm::R12), // r12
    Some(asm::R13), // r13
    Some(asm::R14), // r14
    None,           // r15
];

/// Guest RAX and RSP.
pub const GUEST_RAX: Reg = asm::R9;
pub const GUEST_RSP: Reg = asm::R15;
/// Temporaries: the effective, then host, address of a memory operand; and a second one.
pub const T0: Reg = asm::R10;
pub const T1: Reg = asm::R11;

/// log2 of the number of jump-cache entries.
pub const JUMP_BITS: u32 = 14;

/// The jump cache: where code for a pc in a mode starts. Two arrays, so that code scales an index by 8.
#[repr(C)]
pub struct Jumps {
    /// pc XOR [`crate::translate::mode::Mode::key`], or a value that no pc gives.
    pub keys: [u64; 1 << JUMP_BITS],
    /// Host address of the code.
    pub codes: [u64; 1 << JUMP_BITS],
}

/// A key that no canonical pc in any mode gives: the mode part has 15 bits.
pub const NO_KEY: u64 = 0x7fff_8000_0000_0000;

/// Why translated code came back to the dispatcher.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A direct jump that is not chained yet; `exit_slot` tells which.
    Chain = 0,
    /// An indirect jump that the jump cache does not know; rip is set.
    Lookup = 1,
    /// The budget does not suffice for the next block; rip is set.
    Budget = 2,
    /// A memory access raised `fault`.
    Fault = 3,
    /// A helper has run and ended the block; `Slice::flow` of the runtime tells how.
    Helper = 4,
    /// A store into the running block, or a stop inside it; rip is set.
    Stopped = 5,
    /// A host signal became the guest exception `fault`.
    Signal = 6,
    /// The end of a partial block (`resume`) was reached.
    Partial = 7,
}

impl Exit {
    pub const COUNT: usize = 8;
    /// Names of all kinds, in the order of their numbers.
    pub const NAMES: [&'static str; Self::COUNT] = [
        "chain", "jump", "budget", "fault", "helper", "stopped", "signal", "partial",
    ];
}

/// Addresses that a loop without checks may have, and places that it may write.
pub const LOOP_GROUPS: usize = 3;
pub const LOOP_AREAS: usize = 4;
const LOOP_PLACES: usize = 256;

/// The words that translated code and the dispatcher share.
#[repr(C, align(64))]
pub struct RunState {
    /// Instructions that may still run; the next block runs if its length fits.
    pub budget: i64,
    /// Retired instructions = base − budget − instructions of the running block still to come.
    pub icount_base: i64,
    /// PAUSE gives way to the scheduler once the budget is below this.
    pub pause_below: i64,
    /// TSC − retired instructions.
    pub tsc_offset: u64,
    /// Saved status flags: AH as of LAHF, AL as of SETO.
    pub flags_ax: u64,
    /// This structure's own vCPU.
    pub this: u64,
    /// The thread's stack pointer when code was entered.
    pub host_rsp: u64,
    /// The stack pointer in a block, and that of a stub which has called Rust.
    pub code_rsp: u64,
    pub stub_rsp: u64,
    /// An offset in a page, while its pin is set.
    pub pin_offset: u64,
    /// [`crate::translate::mode::Mode::key`] of the running mode.
    pub jump_key: u64,
    pub exit: u32,
    pub exit_slot: u32,
    /// Block whose slow path or helper is running.
    pub site_block: u32,
    /// Packed [`crate::translate::site::Site`] of a signal or exit.
    pub site: u32,
    /// A word for values on their way between two accesses.
    pub scratch: u64,
    /// While an indirect call pushes: where it leads, and the code to go on with. The latter is
    /// [`crate::translate::lower::stubs::Stubs::lookup`] where the jump cache has not been asked, or not since Rust ran.
    pub target: u64,
    pub target_code: u64,
    /// What makes the store in the bounce buffer happen.
    pub commit: u64,
    /// Host addresses of the two pages of an access across their border; see `across`.
    pub across_first: u64,
    pub across_second: u64,
    /// The guest's FPU state is in the host's FPU.
    pub fpu_live: u8,
    pub fpu_was_live: u8,
    /// The MXCSR_MASK of a saved FPU state is the host's; see `Semantics::keeps_host_mxcsr_mask`.
    pub host_mxcsr_mask: u8,
    pub _pad: u8,
    pub host_mxcsr: u32,
    /// While a loop runs without checks: how many iterations the pages allow behind the first, what its clock shows
    /// at the start and in the last iteration, what its registers hold, and where what it writes begins. See `optimise::loop_code`.
    pub loop_iterations: u64,
    pub loop_start: u64,
    pub loop_last: u64,
    pub loop_hosts: [u64; LOOP_GROUPS],
    pub loop_marks: [u64; LOOP_AREAS],
    /// By a hash of a loop's address, for how many iterations it is not tried that way.
    pub loop_backoff: [i8; LOOP_PLACES],
    /// The same for what that will be after the next iterations that were not worth it.
    pub loop_failures: [u8; LOOP_PLACES],
    /// Where a special access takes place; used at the offset that keeps the guest's alignment.
    pub bounce: Bounce,
}

#[repr(C, align(64))]
pub struct Bounce(pub [u8; 192]);

/// The stack that translated code runs on. It holds the return addresses of stubs and the frames of host
/// signals; Rust runs on the thread's own. Its upper end is where the stack pointer stands in a block, so
/// that the words behind it are at small displacements.
#[repr(C, align(64))]
pub struct CodeStack([u8; 1 << 16]);

/// What generated code addresses, relative to the GS base or to the stack pointer. The vCPU of the runtime begins with
/// these fields, which its file has the compiler check.
#[repr(C, align(64))]
pub struct Frame {
    pub stack: CodeStack,
    pub cpu: CpuState,
    pub run: RunState,
    /// What is the runtime's alone.
    pub own: Own,
    pub tlb: Tlb,
    pub jumps: Jumps,
}

#[repr(C, align(64))]
pub struct Own([u64; 8]);

/// Index of a pc in the jump cache.
#[inline]
pub fn jump_index(pc: u64) -> usize {
    ((pc as u32).wrapping_mul(JUMP_HASH) >> JUMP_SHIFT) as usize
}

/// Multiplier that spreads pcs over the jump cache: functions start at multiples of 16, so the low
/// bits alone would leave most of it unused.
pub const JUMP_HASH: u32 = 0x9e37_79b1;
/// What makes a product with [`JUMP_HASH`], of 32 bits, an index.
pub const JUMP_SHIFT: u32 = 32 - JUMP_BITS;

/// Offsets from the GS base, for emitted code.
pub mod at {
    use super::*;

    /// Where the stack pointer stands in a block.
    pub const FRAME: usize = offset_of!(Frame, stack) + size_of::<CodeStack>();
    pub const fn gpr(index: usize) -> usize {
        offset_of!(Frame, cpu) + offset_of!(CpuState, gpr) + 8 * index
    }
    pub const RIP: usize = offset_of!(Frame, cpu) + offset_of!(CpuState, rip);
    pub const RFLAGS: usize = offset_of!(Frame, cpu) + offset_of!(CpuState, rflags);
    pub const FPU: usize = offset_of!(Frame, cpu) + offset_of!(CpuState, fpu);
    pub const fn segment_base(index: usize) -> usize {
        offset_of!(Frame, cpu)
            + offset_of!(CpuState, seg)
            + index * size_of::<crate::cpu::state::Segment>()
    }
    pub const fn selector(index: usize) -> usize {
        segment_base(index) + offset_of!(crate::cpu::state::Segment, selector)
    }
    pub const CR4: usize = offset_of!(Frame, cpu) + offset_of!(CpuState, cr4);
    pub const KERNEL_GS_BASE: usize = offset_of!(Frame, cpu)
        + offset_of!(CpuState, msr)
        + offset_of!(crate::cpu::state::Msrs, kernel_gs_base);
    pub const TSC_AUX: usize = offset_of!(Frame, cpu)
        + offset_of!(CpuState, msr)
        + offset_of!(crate::cpu::state::Msrs, tsc_aux);
    const RUN: usize = offset_of!(Frame, run);
    pub const BUDGET: usize = RUN + offset_of!(RunState, budget);
    pub const ICOUNT_BASE: usize = RUN + offset_of!(RunState, icount_base);
    pub const TSC_OFFSET: usize = RUN + offset_of!(RunState, tsc_offset);
    pub const PAUSE_BELOW: usize = RUN + offset_of!(RunState, pause_below);
    pub const FLAGS_AX: usize = RUN + offset_of!(RunState, flags_ax);
    pub const THIS: usize = RUN + offset_of!(RunState, this);
    pub const HOST_RSP: usize = RUN + offset_of!(RunState, host_rsp);
    pub const CODE_RSP: usize = RUN + offset_of!(RunState, code_rsp);
    pub const STUB_RSP: usize = RUN + offset_of!(RunState, stub_rsp);
    pub const JUMP_KEY: usize = RUN + offset_of!(RunState, jump_key);
    pub const EXIT: usize = RUN + offset_of!(RunState, exit);
    pub const EXIT_SLOT: usize = RUN + offset_of!(RunState, exit_slot);
    pub const SITE_BLOCK: usize = RUN + offset_of!(RunState, site_block);
    pub const SITE: usize = RUN + offset_of!(RunState, site);
    pub const SCRATCH: usize = RUN + offset_of!(RunState, scratch);
    pub const TARGET: usize = RUN + offset_of!(RunState, target);
    pub const TARGET_CODE: usize = RUN + offset_of!(RunState, target_code);
    pub const COMMIT: usize = RUN + offset_of!(RunState, commit);
    pub const ACROSS_FIRST: usize = RUN + offset_of!(RunState, across_first);
    pub const ACROSS_SECOND: usize = RUN + offset_of!(RunState, across_second);
    pub const BOUNCE: usize = RUN + offset_of!(RunState, bounce);
    pub const FPU_LIVE: usize = RUN + offset_of!(RunState, fpu_live);
    pub const FPU_WAS_LIVE: usize = RUN + offset_of!(RunState, fpu_was_live);
    pub const HOST_MXCSR_MASK: usize = RUN + offset_of!(RunState, host_mxcsr_mask);
    pub const HOST_MXCSR: usize = RUN + offset_of!(RunState, host_mxcsr);
    pub const LOOP_ITERATIONS: usize = RUN + offset_of!(RunState, loop_iterations);
    pub const LOOP_START: usize = RUN + offset_of!(RunState, loop_start);
    pub const LOOP_LAST: usize = RUN + offset_of!(RunState, loop_last);
    pub const fn loop_host(number: usize) -> usize {
        RUN + offset_of!(RunState, loop_hosts) + 8 * number
    }
    pub const fn loop_mark(number: usize) -> usize {
        RUN + offset_of!(RunState, loop_marks) + 8 * number
    }
    pub const fn loop_backoff(rip: u64) -> usize {
        RUN + offset_of!(RunState, loop_backoff) + loop_place(rip)
    }
    pub const fn loop_failures(rip: u64) -> usize {
        RUN + offset_of!(RunState, loop_failures) + loop_place(rip)
    }
    const fn loop_place(rip: u64) -> usize {
        (rip ^ rip >> 8) as usize % LOOP_PLACES
    }
    const TLB: usize = offset_of!(Frame, tlb) + offset_of!(Tlb, entries);
    /// Tags and host page of slot 0 of a table.
    pub const fn tlb(table: usize, field: usize) -> usize {
        TLB + (TABLES[table].0 << ENTRY_SHIFT) + field
    }
    /// A pin of a table that has some.
    pub const fn pin(table: usize, number: usize, field: usize) -> usize {
        offset_of!(Frame, tlb)
            + offset_of!(Tlb, pins)
            + (table * PINS + number) * size_of::<Pin>()
            + field
    }
    pub const PIN_TAG: usize = offset_of!(Pin, tag);
    pub const PIN_READ: usize = offset_of!(Pin, read);
    pub const PIN_WRITE: usize = offset_of!(Pin, write);
    pub const PIN_HOST: usize = offset_of!(Pin, host);
    pub const PIN_OFFSET: usize = RUN + offset_of!(RunState, pin_offset);
    pub const TAG_READ: usize = offset_of!(TlbEntry, read);
    pub const TAG_WRITE: usize = offset_of!(TlbEntry, write);
    pub const TLB_HOST: usize = offset_of!(TlbEntry, host);
    pub const TLB_FLAGS: usize = offset_of!(TlbEntry, flags);
    const JUMPS: usize = offset_of!(Frame, jumps);
    /// Key and code of index 0 of the jump cache.
    pub const JUMP: usize = JUMPS + offset_of!(Jumps, keys);
    pub const JUMP_CODE: usize = JUMPS + offset_of!(Jumps, codes);
}

/// Guest registers that live in host registers, with their numbers.
pub fn mapped() -> impl Iterator<Item = (usize, Reg)> {
    HOST.iter()
        .enumerate()
        .filter_map(|(g, h)| h.map(|h| (g, h)))
}

const _: () = assert!(gpr::RSP == 4 && size_of::<TlbEntry>() == 1 << ENTRY_SHIFT);
