//! The engine: RAM, pages, blocks and vCPUs, and what keeps them consistent with one another.
//!
//! Everything runs on one host thread. Translated code reaches the engine through a raw pointer in its
//! vCPU, which `run` derives from its own reference every time. The stubs' entry points in `slow` and
//! `execute` make references from the two pointers; `dispatch` uses none that it made before code ran.
//! A vCPU and the engine have no byte in common: what the engine changes of all vCPUs, their translations, is its
//! own ([`super::vcpu::Mmu`]).

use std::collections::BTreeSet;
use std::io;

use thiserror::Error;

use super::entry::place_stubs;
use crate::cpu::cpuid::CpuidTable;
use crate::cpu::effects::Effects;
use crate::cpu::exception::Exception;
use crate::cpu::msr::index;
use crate::cpu::semantics::Semantics;
use crate::cpu::state::{CpuState, RFlags};
use crate::host_time::{Patience, Spent};
use crate::memory::pages::{HandOff, PageFlags, Pages, DEVICE};
use crate::memory::ram::GuestRam;
use crate::memory::PAGE_SHIFT;
use crate::runtime::ahead::Ahead;
use crate::runtime::bus::Bus;
use crate::runtime::cache::{BlockId, Blocks};
use crate::runtime::codebuf::{CodeBuffer, CodeMap};
use crate::runtime::execute::{DecodedCache, Flow, HelperCounts};
use crate::runtime::host::check_host;
use crate::runtime::hotness::HOT;
use crate::runtime::inputs::Inputs;
use crate::runtime::oracle::Oracle;
use crate::runtime::protocol::Protocol;
use crate::runtime::signals::HostFault;
use crate::runtime::vcpu::{Mmu, Vcpu, Vcpus};
use crate::runtime::windows::{UnderWay, Window, WindowPolicy};
use crate::runtime::writelog::WriteLog;
use crate::translate::code::Trap;
use crate::translate::decode::offered::Offered;
use crate::translate::layout::Exit;
use crate::translate::lower::emitter::Hooks;
use crate::translate::lower::stubs::Stubs;
use crate::translate::scratch::Scratch;
use crate::translate::shortcuts::Shortcuts;
use crate::translate::site::Site;

/// Added to a budget to make the next block boundary come back to the dispatcher.
const EXIT_REQUEST: i64 = 1 << 40;

/// Who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agent {
    Vcpu(u8),
    /// DMA or a loader.
    Device,
}

impl Agent {
    /// Number in hand-offs.
    pub fn number(self) -> u8 {
        match self {
            Self::Vcpu(v) => v,
            Self::Device => DEVICE,
        }
    }
}

/// What the engine tells about blocks and pages, for the recorder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// A block came into being.
    Link {
        serial: u64,
        vcpu: u8,
        rip: u64,
        paddr: u64,
        len: u16,
        mode: u32,
        digest: u32,
    },
    /// A block's bytes were read. The block has no number yet if its link comes later.
    Fetch {
        serial: Option<u64>,
        vcpu: u8,
        rip: u64,
        paddr: u64,
        len: u16,
        mode: u32,
        digest: u32,
    },
    /// A block no longer matches memory, and the protocol has left it in place. `born`: it never
    /// did since it was linked.
    Stale {
        serial: u64,
        vcpu: u8,
        born: bool,
    },
    /// A stale block was entered; told once a block.
    StaleEntry {
        serial: u64,
        vcpu: u8,
    },
    /// A breakpoint instruction was executed that memory does not hold; told once a block.
    StaleInt3 {
        serial: u64,
        vcpu: u8,
    },
    /// A write removed a block.
    Invalidate {
        serial: u64,
        by: u8,
        paddr: u64,
        len: u32,
    },
    /// All blocks were removed because the cache was full.
    Flush {
        vcpu: u8,
    },
    HandOff(HandOff),
}

/// Why the engine stopped at the debugger's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// Before an instruction in `Hooks`.
    Hook,
    /// After an instruction wrote a watched range.
    Watch { paddr: u64 },
    /// Before the first instruction of an interrupt handler.
    Interrupt { vector: u8 },
    /// After an OUT to the watched port.
    Output,
    /// The instruction count was reached.
    Moment,
    /// Before a stale block runs.
    Stale,
}

/// Counters; none of them influences the run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    pub blocks_translated: u64,
    /// Blocks whose code was there before they were.
    pub blocks_ahead: u64,
    pub instructions_translated: u64,
    pub blocks_invalidated: u64,
    /// Blocks that a protocol let go stale, and executions of such blocks.
    pub stale_blocks: u64,
    pub stale_entries: u64,
    /// Executions of breakpoint instructions that memory did not hold.
    pub stale_int3s: u64,
    /// Superblocks made.
    pub superblocks: u64,
    pub block_flushes: u64,
    pub code_drops: u64,
    pub dispatches: u64,
    /// Returns of translated code by [`Exit`].
    pub exits: [u64; Exit::COUNT],
    pub lookups: u64,
    /// Look-ups that found the page not known for fetches.
    pub fetch_misses: u64,
    /// Accesses that called Rust, and those of them that took place in the bounce buffer. What `across` makes
    /// is in neither.
    pub slow_accesses: u64,
    pub bounced_accesses: u64,
    pub tlb_fills: u64,
    pub tlb_flushes: u64,
    pub page_walks: u64,
    pub helper_calls: u64,
    pub hand_offs: u64,
    pub exceptions: u64,
    pub interrupts: u64,
}

/// The host cannot run the engine.
#[derive(Debug, Error)]
pub enum HostError {
    #[error("this host's CPU lacks {0}, which rr86 needs (Intel Haswell, AMD Zen or later)")]
    MissingFeature(&'static str),
    #[error("this host's CPU lacks {0}, which the guest's CPU model offers")]
    MissingForModel(&'static str),
    #[error("the host refused {what}: {error}")]
    Refused {
        what: &'static str,
        error: io::Error,
    },
}

/// Where a vCPU that was stopped inside a block goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    pub block: BlockId,
    pub index: usize,
}

/// Limits of the block cache, part of the machine's configuration.
#[derive(Clone, Copy, Debug)]
pub struct BlockLimits {
    /// Most instructions in a block, 1 to 64.
    pub instructions: usize,
    /// Most blocks before everything is flushed.
    pub capacity: usize,
    pub protocol: Protocol,
}

pub struct Engine {
    pub ram: GuestRam,
    pub pages: Pages,
    pub blocks: Blocks,
    pub bus: Box<dyn Bus>,
    pub model: CpuidTable,
    /// What an encoding may do, as the model and the semantics have it.
    pub(in crate::runtime) offered: Offered,
    pub stats: Stats,
    /// What the run has cost the host; like the counters, for people alone.
    pub spent: Spent,
    pub helpers: HelperCounts,
    pub(in crate::runtime) decoded: DecodedCache,
    pub(in crate::runtime) vcpus: Vcpus,
    pub(in crate::runtime) code: CodeBuffer,
    pub(in crate::runtime) stubs: Stubs,
    pub(in crate::runtime) scratch: Scratch,
    pub(in crate::runtime) limits: BlockLimits,
    /// Retired instructions of all vCPUs at the last position that was noted.
    pub(in crate::runtime) icount: u64,
    /// Nanoseconds that virtual time has jumped ahead of the instruction count.
    pub skipped_ns: u64,
    /// What an exit request has taken from the budget for the time being; 0 if there is none.
    pub(in crate::runtime) exit_request: i64,
    /// The request follows from the machine's state, and not only from the host's time.
    pub(in crate::runtime) exit_due: bool,
    /// What a helper that ends its block wants next.
    pub(in crate::runtime) flow: Flow,
    /// What is left of the budget after the running iteration of a string instruction, whose store is the
    /// last thing that it does: the vCPU may be switched out in a window of that store.
    pub(in crate::runtime) string_left: Option<i64>,
    /// A helper's store hit the running block or a watchpoint, or is in a window.
    pub(in crate::runtime) helper_stop: bool,
    /// Where vCPUs' inputs come from.
    pub inputs: Inputs,
    pub(in crate::runtime) astray: Option<(u64, String)>,
    /// Code has failed on the host; nothing runs any more.
    pub(in crate::runtime) host_fault: Option<Box<HostFault>>,
    /// INITs of each vCPU.
    inits: Vec<u64>,
    /// Pages have owners, and the lines that these write are marked.
    pub(in crate::runtime) tracking: bool,
    pub(in crate::runtime) shortcuts: Shortcuts,
    /// Samples that make a block hot.
    pub(in crate::runtime) hot: u8,
    pub(in crate::runtime) resume: Vec<Option<Resume>>,
    pub(in crate::runtime) hooks: Hooks,
    pub(in crate::runtime) watches: Vec<(u64, u64)>,
    pub(in crate::runtime) stop_vectors: [u64; 4],
    pub(in crate::runtime) stop_port: Option<u16>,
    pub(in crate::runtime) stopped: Option<StopCause>,
    /// Moment of a hook that has already stopped the run.
    pub(in crate::runtime) passed_hook: Option<u64>,
    /// What the slice has left after the running budget.
    pub(in crate::runtime) beyond: u64,
    /// The part of it that this run may still use.
    pub(in crate::runtime) reserve: u64,
    /// When a run comes back to its caller.
    pub patience: Patience,
    /// The last run ended because its time was up, and nothing has happened since.
    pub(in crate::runtime) time_up: bool,
    /// A fault was delivered since code was last entered.
    pub(in crate::runtime) faulted: bool,
    /// Moment of the last fault that did not count as an instruction.
    pub(in crate::runtime) faulted_at: Option<u64>,
    /// Moment of each vCPU's last interrupt or NMI.
    pub(in crate::runtime) interrupted_at: Vec<Option<u64>>,
    /// What happened since the recorder last looked, with its icount.
    pub observed: Vec<(u64, Observed)>,
    pub(in crate::runtime) gs: Option<u64>,
    /// Block by offset of its code, to find who raised a signal.
    pub(in crate::runtime) code_map: CodeMap,
    /// Of the last code made for a part of a block: jump targets, traps, where it leaves off.
    pub(in crate::runtime) partial_targets: Vec<u64>,
    pub(in crate::runtime) partial_traps: Option<(usize, BlockId, Vec<Trap>)>,
    pub(in crate::runtime) partial_end: Option<Resume>,
    /// Traps of code that a block had before its present one, by that code's offset: a vCPU may still be in it.
    pub(in crate::runtime) former_traps: Vec<(usize, Vec<Trap>)>,
    /// A direct jump that was followed and could be linked.
    pub(in crate::runtime) link: Option<(BlockId, usize)>,
    pub(in crate::runtime) protocol: Protocol,
    /// Blocks are compared with memory wherever the protocol may have let them go stale.
    pub(in crate::runtime) detects: bool,
    pub(in crate::runtime) windows: WindowPolicy,
    pub(in crate::runtime) windows_open: bool,
    /// Instruction count at which the running slice began.
    pub slice_start: u64,
    /// Instructions by which the budget was raised for the block that runs.
    pub(in crate::runtime) lent: i64,
    /// The window in which the running vCPU is to be switched out.
    pub(in crate::runtime) in_window: Option<Window>,
    pub(in crate::runtime) under_way: Vec<UnderWay>,
    /// Blocks that were invalidated and can still be reached.
    pub(in crate::runtime) left_behind: Vec<BlockId>,
    /// The block that the running vCPU is in although a store of its own has removed it.
    pub(in crate::runtime) overrun: Option<BlockId>,
    /// Pages with code to which some vCPU can write unchecked.
    pub(in crate::runtime) leaky: BTreeSet<usize>,
    pub(in crate::runtime) current_vcpu: u8,
    pub(in crate::runtime) stop_on_stale: bool,
    pub(in crate::runtime) write_log: WriteLog,
    /// Hears of every access; see `oracle`.
    pub(in crate::runtime) oracle: Option<Box<Oracle>>,
    /// Block and offset of the instruction whose moment was noted last.
    pub(in crate::runtime) position: (BlockId, u16),
    /// The last access was kept off the fast path only because its page is watched.
    pub(in crate::runtime) plain: bool,
    /// Moment and rip of each vCPU's store that is checked and not committed.
    pub(in crate::runtime) checked_stores: Vec<(u64, u64)>,
    pub(in crate::runtime) serialised: Vec<Option<u64>>,
    /// Serial number of a block whose bytes are to be fetched anew.
    pub(in crate::runtime) refetched: Option<u64>,
    /// Who translates blocks before they are needed.
    pub(in crate::runtime) ahead: Option<Ahead>,
}

impl Engine {
    /// A powered-off machine's worth of memory and vCPUs.
    ///
    /// # Errors
    /// [`HostError`] when the host lacks an instruction or refuses memory.
    pub fn new(
        memory: u64,
        vcpus: usize,
        model: CpuidTable,
        bus: Box<dyn Bus>,
        limits: BlockLimits,
    ) -> Result<Box<Self>, HostError> {
        check_host(&model)?;
        let offered = Offered::of(&model, Semantics::CURRENT);
        let ram = GuestRam::new(memory).map_err(|error| HostError::Refused {
            what: "memory for the guest",
            error,
        })?;
        let mut code = new_code_buffer()?;
        let stubs = place_stubs(&mut code, None);
        let pages = ram.pages();
        let mut engine = Box::new(Self {
            pages: Pages::new(pages),
            blocks: Blocks::new(pages),
            ram,
            bus,
            offered,
            model,
            stats: Stats::default(),
            spent: Spent::default(),
            helpers: HelperCounts::new(),
            decoded: DecodedCache::new(),
            vcpus: Vcpus::new(vcpus, pages),
            code,
            stubs,
            scratch: Scratch::new(offered),
            limits,
            icount: 0,
            skipped_ns: 0,
            exit_request: 0,
            exit_due: false,
            flow: Flow::Next,
            string_left: None,
            helper_stop: false,
            inputs: Inputs::Live,
            astray: None,
            host_fault: None,
            inits: vec![0; vcpus],
            tracking: true,
            shortcuts: Shortcuts::default(),
            hot: HOT,
            resume: vec![None; vcpus],
            hooks: Hooks::default(),
            watches: Vec::new(),
            stop_vectors: [0; 4],
            stop_port: None,
            stopped: None,
            passed_hook: None,
            beyond: 0,
            reserve: 0,
            patience: Patience::default(),
            time_up: false,
            faulted: false,
            faulted_at: None,
            interrupted_at: vec![None; vcpus],
            observed: Vec::new(),
            gs: None,
            code_map: CodeMap::default(),
            partial_targets: Vec::new(),
            partial_traps: None,
            former_traps: Vec::new(),
            partial_end: None,
            link: None,
            protocol: limits.protocol,
            detects: limits.protocol.can_be_stale(),
            windows: WindowPolicy::Closed,
            windows_open: false,
            slice_start: 0,
            lent: 0,
            in_window: None,
            under_way: vec![UnderWay::default(); vcpus],
            left_behind: Vec::new(),
            overrun: None,
            leaky: BTreeSet::new(),
            current_vcpu: 0,
            stop_on_stale: false,
            write_log: WriteLog::default(),
            oracle: None,
            position: (0, 0),
            plain: false,
            checked_stores: vec![(0, 0); vcpus],
            serialised: vec![None; vcpus],
            refetched: None,
            ahead: None,
        });
        for index in 0..vcpus {
            let vcpu = engine.vcpus.vcpu_mut(index);
            vcpu.run.host_mxcsr = 0x1f80;
            let msr = &mut vcpu.cpu.msr;
            for (slot, index) in [
                (&mut msr.feature_control, index::FEATURE_CONTROL),
                (&mut msr.bios_sign_id, index::BIOS_SIGN_ID),
                (&mut msr.misc_enable, index::MISC_ENABLE),
                (&mut msr.pat, index::PAT),
            ] {
                *slot = engine.model.msr(index).unwrap_or(*slot);
            }
        }
        Ok(engine)
    }

    pub fn vcpu_count(&self) -> usize {
        self.vcpus.len()
    }

    /// The state of a vCPU; complete whenever the engine is not running.
    pub fn cpu(&self, index: usize) -> &CpuState {
        self.vcpus.cpu(index)
    }

    /// The state of a vCPU, to be changed between runs.
    pub fn cpu_mut(&mut self, index: usize) -> &mut CpuState {
        &mut self.vcpus.vcpu_mut(index).cpu
    }

    /// How translated code has failed on the host, if it has.
    pub fn host_fault(&self) -> Option<&HostFault> {
        self.host_fault.as_deref()
    }

    /// Puts host code in front of the copy of the guest instruction at `rip` in all code that is made from now
    /// on, to try what becomes of code that fails.
    pub fn plant(&mut self, rip: u64, code: &[u8]) {
        self.scratch.planted = Some((rip, code.into()));
        self.drop_code();
    }

    /// Where a vCPU stands inside a block: (block serial, instruction index), when it was stopped there.
    pub fn inside_block(&self, index: usize) -> Option<(u64, usize)> {
        self.resume[index].map(|r| (self.blocks.get(r.block).serial, r.index))
    }

    // ---- time ----------------------------------------------------------------------------------

    /// Retired instructions of all vCPUs.
    pub fn icount(&self) -> u64 {
        self.icount
    }

    /// Says that others have run up to this instruction count.
    pub fn set_icount(&mut self, icount: u64) {
        self.icount = icount;
    }

    /// Virtual time in nanoseconds: one per instruction, plus idle jumps.
    pub fn now(&self) -> u64 {
        self.icount + self.skipped_ns
    }

    /// Notes the moment of the instruction at `site` of the running block.
    #[inline]
    pub(in crate::runtime) fn note_position(&mut self, vcpu: &Vcpu, site: Site) {
        self.icount = (vcpu.run.icount_base - vcpu.run.budget - i64::from(site.remaining)) as u64;
        self.position = (vcpu.run.site_block, site.offset);
    }

    /// Block and offset of the instruction whose moment was noted last.
    pub(in crate::runtime) fn position(&self) -> (BlockId, u16) {
        self.position
    }

    /// rip of the instruction whose moment was noted last.
    pub(in crate::runtime) fn position_rip(&self) -> Option<u64> {
        let (id, offset) = self.position;
        let block = self.blocks.try_get(id)?;
        Some(block.rip.wrapping_add(u64::from(offset)))
    }

    /// Brings what translated code computes the TSC from up to date.
    pub(in crate::runtime) fn set_tsc_offset(&self, vcpu: &mut Vcpu) {
        vcpu.run.tsc_offset = self.skipped_ns.wrapping_add(vcpu.cpu.msr.tsc_adjust);
    }

    /// Says below which budget PAUSE ends a run of this vCPU, because others could use the time.
    pub fn set_pause_below(&mut self, index: usize, budget: i64) {
        self.vcpus.vcpu_mut(index).run.pause_below = budget;
    }

    /// Notes the moment between two blocks.
    #[inline]
    pub(in crate::runtime) fn note_boundary(&mut self, vcpu: &Vcpu) {
        self.icount = (vcpu.run.icount_base - vcpu.run.budget) as u64;
    }

    /// Makes the running code come back at the next block boundary, because the machine's state says so.
    pub(in crate::runtime) fn request_exit(&mut self, vcpu: &mut Vcpu) {
        self.exit_due = true;
        self.come_back(vcpu);
    }

    /// Makes the code that is going to run come back after a block of so many instructions.
    pub(in crate::runtime) fn request_exit_after(&mut self, vcpu: &mut Vcpu, instructions: i64) {
        self.exit_due = true;
        let more = vcpu.run.budget - instructions;
        if more > 0 {
            self.hold_back(vcpu, more);
        }
    }

    /// Sets the version of the semantics that all vCPUs follow; before any of them runs.
    pub fn set_semantics(&mut self, semantics: Semantics) {
        debug_assert!(self.blocks.is_empty());
        self.offered = Offered::of(&self.model, semantics);
        self.scratch = Scratch::new(self.offered);
        for index in 0..self.vcpus.len() {
            let vcpu = self.vcpus.vcpu_mut(index);
            vcpu.cpu.semantics = semantics;
            vcpu.run.host_mxcsr_mask = u8::from(semantics.keeps_host_mxcsr_mask());
        }
    }

    /// Has the host's FXSAVE store another MXCSR_MASK from now on, as on a processor of another maker: for tests,
    /// before any code is made.
    ///
    /// # Errors
    /// [`HostError`] when the host refuses memory.
    pub fn pretend_mxcsr_mask(&mut self, mask: u32) -> Result<(), HostError> {
        debug_assert!(self.blocks.is_empty());
        self.code = new_code_buffer()?;
        self.stubs = place_stubs(&mut self.code, Some(mask));
        Ok(())
    }

    fn come_back(&mut self, vcpu: &mut Vcpu) {
        self.hold_back(vcpu, EXIT_REQUEST);
    }

    fn hold_back(&mut self, vcpu: &mut Vcpu, amount: i64) {
        if self.exit_request == 0 {
            self.exit_request = amount;
            vcpu.run.budget -= amount;
            vcpu.run.icount_base -= amount;
        }
    }

    /// Counts a step of the running code that takes long, and makes it come back if the call is over.
    #[inline]
    pub(in crate::runtime) fn slow_step(&mut self, vcpu: &mut Vcpu) {
        if self.is_time_up(&vcpu.cpu) {
            self.come_back(vcpu);
        }
    }

    /// Counts a step that takes long. True when the call is over and coming back does not show.
    #[inline]
    pub(in crate::runtime) fn is_time_up(&mut self, cpu: &CpuState) -> bool {
        self.patience.step() && self.comes_back_unseen(cpu)
    }

    /// Whether coming back from code in the middle of a slice changes nothing: not where blocks stay chained
    /// that a look-up does not find, nor where an interrupt waits for just that.
    pub(in crate::runtime) fn comes_back_unseen(&self, cpu: &CpuState) -> bool {
        !self.protocol.chain_kept && cpu.semantics.waiting_interrupts_come_next()
    }

    /// Begins a slice at the current instruction count.
    pub fn begin_slice(&mut self) {
        self.slice_start = self.icount;
    }

    /// Sets the shortcuts that code takes; before any is made.
    pub fn set_shortcuts(&mut self, shortcuts: Shortcuts) {
        debug_assert!(self.blocks.is_empty());
        self.shortcuts = shortcuts;
    }

    /// The budget without an exit request.
    pub(in crate::runtime) fn plain_budget(&self, vcpu: &Vcpu) -> i64 {
        vcpu.run.budget + self.exit_request
    }

    pub(in crate::runtime) fn clear_exit_request(&mut self, vcpu: &mut Vcpu) {
        self.exit_due = false;
        let amount = std::mem::take(&mut self.exit_request);
        vcpu.run.budget += amount;
        vcpu.run.icount_base += amount;
    }

    /// Leaves the running block after the instruction at `site`, whose store hit the block itself or a
    /// watchpoint.
    pub(in crate::runtime) fn end_after(&mut self, vcpu: &mut Vcpu, site: Site) {
        let block = self.blocks.get(vcpu.run.site_block);
        let offset = usize::from(site.offset);
        let insn = crate::translate::decode::classify::shape::single(
            &block.bytes[offset..],
            block.rip + offset as u64,
            block.mode,
            &self.offered,
        );
        let left = i64::from(site.remaining) - 1;
        vcpu.cpu.rip = if insn.is_call_near() {
            insn.near_branch_target()
        } else if insn.is_call_near_indirect() {
            vcpu.run.target
        } else {
            insn.next_ip()
        };
        vcpu.run.budget += left;
        vcpu.run.exit = Exit::Stopped as u32;
        let count = usize::from(block.count);
        let index = self.index_after(vcpu.run.site_block, offset);
        let goes_on = self.blocks.is_live(vcpu.run.site_block) || self.protocol.same_block_ignored;
        if index < count && goes_on {
            // Only the debugger or a window stopped it: the rest of the block is still to come.
            self.resume[usize::from(vcpu.cpu.id)] = Some(Resume {
                block: vcpu.run.site_block,
                index,
            });
        }
    }

    /// Index of the instruction after the one at this offset of a block.
    pub(in crate::runtime) fn index_after(&self, id: BlockId, offset: usize) -> usize {
        let block = self.blocks.get(id);
        let (mut at, mut index) = (0, 0);
        while at <= offset {
            let rip = block.rip.wrapping_add(at as u64);
            let insn = crate::translate::decode::classify::shape::single(
                &block.bytes[at..],
                rip,
                block.mode,
                &self.offered,
            );
            at += insn.len().max(1);
            index += 1;
        }
        index
    }

    /// Has the repeated instruction at the end of the running block, of which a debugger's stop has
    /// cut off some iterations, go on in that block, as it would have without the stop.
    pub(in crate::runtime) fn resume_repeated(&mut self, vcpu: &Vcpu) {
        let id = vcpu.run.site_block;
        if self.blocks.is_live(id) {
            self.resume[usize::from(vcpu.cpu.id)] = Some(Resume {
                block: id,
                index: usize::from(self.blocks.get(id).count) - 1,
            });
        }
    }

    // ---- pages ---------------------------------------------------------------------------------

    /// Removes every block because the cache is full.
    pub(in crate::runtime) fn flush_blocks(&mut self, by: u8) {
        self.stats.block_flushes += 1;
        self.observed
            .push((self.icount, Observed::Flush { vcpu: by }));
        self.blocks.clear();
        for info in &mut self.pages.info {
            info.code_lines = 0;
            info.flags -= PageFlags::CODE;
        }
        self.resume.fill(None);
        self.left_behind.clear();
        self.overrun = None;
        self.leaky.clear();
        self.forget_code();
    }

    /// Drops host code, keeping the blocks.
    pub(in crate::runtime) fn drop_code(&mut self) {
        self.stats.code_drops += 1;
        self.blocks.drop_code();
        self.forget_code();
    }

    pub(in crate::runtime) fn forget_code(&mut self) {
        self.link = None;
        self.code.clear();
        self.code_map.clear();
        self.partial_traps = None;
        self.former_traps.clear();
        self.vcpus.mmus().for_each(Mmu::clear_jumps);
    }

    /// Forgets a vCPU's translations: all, or all but the global ones.
    pub fn flush_tlb(&mut self, vcpu: u8, keep_global: bool) {
        self.stats.tlb_flushes += 1;
        let mmu = self.vcpus.mmu_mut(usize::from(vcpu));
        mmu.tlb.flush(keep_global);
        mmu.flush_fetches(keep_global);
    }

    /// INIT of a vCPU: its state, and everything cached about it.
    pub fn init_vcpu(&mut self, index: usize) {
        self.inits[index] += 1;
        self.resume[index] = None;
        self.under_way[index] = UnderWay::default();
        self.cpu_mut(index).init();
        self.flush_tlb(index as u8, false);
    }

    /// How many INITs a vCPU has had.
    pub fn inits(&self, index: usize) -> u64 {
        self.inits[index]
    }

    /// After a device access: comes back soon if the board wants something, or if an interrupt can now
    /// be delivered. Without this, the moment of delivery would depend on when the dispatcher is next
    /// entered, which is not part of the machine.
    pub(in crate::runtime) fn after_bus(&mut self, vcpu: &mut Vcpu) {
        let open = vcpu.cpu.rflags & RFlags::IF.bits() != 0;
        if self.has_signals() || open && self.pending_interrupt(usize::from(vcpu.cpu.id)) {
            self.request_exit(vcpu);
        }
    }

    /// Digest of RAM. Takes the right of unnoticed writes away, so that the next one is noticed.
    pub fn ram_digest(&mut self) -> u64 {
        let digest = self.pages.digest(&self.ram);
        self.vcpus.mmus().for_each(|mmu| mmu.tlb.protect_all());
        digest
    }

    /// Applies what a system instruction changed to cached state.
    pub(in crate::runtime) fn apply(&mut self, vcpu: u8, effects: Effects) {
        if effects.contains(Effects::FLUSH_TLB) {
            self.flush_tlb(vcpu, false);
        } else if effects.contains(Effects::FLUSH_TLB_NONGLOBAL) {
            self.flush_tlb(vcpu, true);
        }
        if effects.contains(Effects::FLUSH_UNPROTECTED) {
            let mmu = self.vcpus.mmu_mut(usize::from(vcpu));
            mmu.tlb.flush_unprotected();
        }
        if effects.contains(Effects::BREAKPOINTS_CHANGED) {
            // Pages with data breakpoints must not be in the TLB.
            self.flush_tlb(vcpu, false);
        }
    }

    // ---- the debugger ----------------------------------------------------------------------------

    /// Whether to stop before a stale block runs.
    pub fn set_stop_on_stale(&mut self, stop: bool) {
        self.stop_on_stale = stop;
    }

    /// Sets what the debugger waits for. Blocks stay; their code is made again.
    pub fn set_stops(
        &mut self,
        hooks: Hooks,
        watches: Vec<(u64, u64)>,
        vectors: &[u8],
        port: Option<u16>,
    ) {
        self.stop_port = port;
        self.stop_vectors = [0; 4];
        for &v in vectors {
            self.stop_vectors[usize::from(v >> 6)] |= 1 << (v & 63);
        }
        if hooks != self.hooks {
            self.hooks = hooks;
            self.drop_code();
        }
        if watches != self.watches {
            let old = std::mem::replace(&mut self.watches, watches);
            for (at, len) in old {
                self.watch_pages(at, len, false);
            }
            self.watch_all();
        }
    }

    /// Whether one of the guest's data breakpoints lies in the page of `linear` (SDM vol. 3B, 17.2).
    pub(in crate::runtime) fn breakpoint_in_page(&self, cpu: &CpuState, linear: u64) -> bool {
        cpu.dr[7] & 0xff != 0
            && (0..4).any(|n| {
                cpu.dr[7] >> (2 * n) & 3 != 0
                    && cpu.dr[7] >> (16 + 4 * n) & 3 != 0
                    && cpu.dr[n] >> PAGE_SHIFT == linear >> PAGE_SHIFT
            })
    }

    /// The guest's data breakpoints that an access hits, as bits of DR6; the trap comes after the instruction. A vCPU
    /// with breakpoints runs blocks of one instruction.
    pub(in crate::runtime) fn breakpoints_hit(
        &self,
        cpu: &CpuState,
        linear: u64,
        size: usize,
        write: bool,
    ) -> u64 {
        if cpu.dr[7] & 0xff == 0 {
            return 0;
        }
        let hit = |n: &usize| {
            let condition = cpu.dr[7] >> (16 + 4 * n) & 3;
            let enabled = cpu.dr[7] >> (2 * n) & 3 != 0;
            let matches = condition == 3 || condition == 1 && write;
            let len = [1, 2, 8, 4][(cpu.dr[7] >> (18 + 4 * n) & 3) as usize];
            let at = cpu.dr[*n] & !(len - 1);
            let overlaps = linear <= at.saturating_add(len - 1)
                && at <= linear.saturating_add(size.max(1) as u64 - 1);
            enabled && matches && overlaps
        };
        (0..4).filter(hit).map(|n| 1 << n).sum()
    }

    /// Notes an exception for the dispatcher.
    pub(in crate::runtime) fn raise(vcpu: &mut Vcpu, exception: Exception) {
        vcpu.pending.fault = Some(exception);
        vcpu.run.exit = Exit::Fault as u32;
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.end_ahead();
    }
}

fn new_code_buffer() -> Result<CodeBuffer, HostError> {
    CodeBuffer::new(128 << 20).map_err(|error| HostError::Refused {
        what: "memory for translated code",
        error,
    })
}
