//! The engine: RAM, pages, blocks and vCPUs, and what keeps them consistent with one another.
//!
//! All that a guest can see happens on one host thread; other threads only read RAM, translate ahead, or take memory from
//! the host. Translated code reaches the engine through a raw pointer in its
//! vCPU, which `run` derives from its own reference every time. The stubs' entry points in `slow` and
//! `execute` make references from the two pointers; `dispatch` uses none that it made before code ran.
//! A vCPU and the engine have no byte in common: what the engine changes of all vCPUs, their translations, is its
//! own ([`Mmu`]).

use super::bus::Bus;
use super::cache::Blocks;
use super::clock::Clock;
use super::code_cache::CodeCache;
use super::coherence_state::Coherence;
use super::fetch::Mmu;
use super::guest_memory::GuestMemory;
use super::inputs::{InputDivergence, InputRecorder, Inputs};
use super::instruction::CurrentInstruction;
use super::observers::{Observed, Observers};
use super::outside::Outside;
use super::progress::{Progress, Resume};
use super::signals::HostFault;
use super::slice::Slice;
use super::stops::Stops;
use super::translator::Translator;
use super::vcpu::{Vcpu, Vcpus};
use super::windows::Windows;
use crate::cpu::effects::Effects;
use crate::cpu::exception::Exception;
use crate::cpu::state::{CpuState, RFlags};
use crate::host_time::CallLimit;
use crate::memory::pages::PageFlags;
use crate::memory::PAGE_SHIFT;
use crate::translate::code::BlockId;
use crate::translate::layout::{Exit, RunState};
use crate::translate::lower::emitter::Hooks;
use crate::translate::shortcuts::Shortcuts;
use crate::translate::site::Site;

/// Everything that runs a machine's vCPUs.
pub struct Engine {
    pub memory: GuestMemory,
    pub(in crate::runtime) cache: CodeCache,
    pub(in crate::runtime) translator: Translator,
    pub(in crate::runtime) vcpus: Vcpus,
    pub(in crate::runtime) progress: Vec<Progress>,
    pub(in crate::runtime) clock: Clock,
    pub(in crate::runtime) slice: Slice,
    pub(in crate::runtime) instruction: CurrentInstruction,
    pub(in crate::runtime) coherence: Coherence,
    pub(in crate::runtime) windows: Windows,
    pub(in crate::runtime) stops: Stops,
    pub observers: Observers,
    pub(in crate::runtime) outside: Outside,
    /// Code has failed on the host; nothing runs any more.
    pub(in crate::runtime) host_fault: Option<Box<HostFault>>,
}

impl Engine {
    /// The running vCPU and its engine, for what generated code calls.
    ///
    /// # Safety
    /// `vcpu` is what the code was entered with, the code has called the caller, and nothing else was made from either
    /// pointer since.
    pub(in crate::runtime) unsafe fn running<'a>(vcpu: *mut Vcpu) -> (&'a mut Vcpu, &'a mut Self) {
        // SAFETY: `run` has set the pointer to the engine, which lives while its code runs. While code runs, no
        // reference to the vCPU or the engine is used, and the two have no byte in common.
        unsafe {
            let engine: *mut Self = (*vcpu).pending.engine.cast();
            (&mut *vcpu, &mut *engine)
        }
    }

    pub fn vcpu_count(&self) -> usize {
        self.vcpus.count()
    }

    /// The state of a vCPU; complete whenever the engine is not running.
    pub fn cpu(&self, index: usize) -> &CpuState {
        self.vcpus.cpu(index)
    }

    /// The state of a vCPU, to be changed between runs.
    pub fn cpu_mut(&mut self, index: usize) -> &mut CpuState {
        &mut self.vcpus.vcpu_mut(index).cpu
    }

    /// The devices.
    pub fn bus(&mut self) -> &mut dyn Bus {
        self.outside.bus()
    }

    /// Where vCPUs' inputs come from.
    pub fn inputs(&self) -> &Inputs {
        self.outside.inputs()
    }

    pub fn set_inputs(&mut self, inputs: Inputs) {
        self.outside.set_inputs(inputs);
    }

    /// Who logs the vCPUs' inputs, if they are logged.
    pub fn input_recorder(&mut self) -> Option<&mut InputRecorder> {
        self.outside.recorder()
    }

    /// What a vCPU that runs alone did otherwise than logged, and when; once.
    pub fn take_divergence(&mut self) -> Option<(u64, InputDivergence)> {
        self.outside.take_divergence()
    }

    /// The blocks that there are.
    pub fn blocks(&self) -> &Blocks {
        &self.cache.blocks
    }

    /// How translated code has failed on the host, if it has.
    pub fn host_fault(&self) -> Option<&HostFault> {
        self.host_fault.as_deref()
    }

    /// Puts host code in front of the copy of the guest instruction at `rip` in all code that is made from now
    /// on, to try what becomes of code that fails.
    pub fn plant(&mut self, rip: u64, code: &[u8]) {
        self.translator.plant(rip, code);
        self.drop_code();
    }

    /// Where a vCPU stands inside a block: (block serial, instruction index), when it was stopped there.
    pub fn inside_block(&self, index: usize) -> Option<(u64, usize)> {
        self.progress[index]
            .resume()
            .map(|r| (self.cache.blocks.get(r.block).serial, r.index))
    }

    // ---- time ----------------------------------------------------------------------------------

    /// Retired instructions of all vCPUs.
    #[inline]
    pub fn icount(&self) -> u64 {
        self.clock.icount()
    }

    /// Says that others have run up to this instruction count.
    pub fn set_icount(&mut self, icount: u64) {
        self.clock.set_icount(icount);
    }

    /// Virtual time in nanoseconds: one per instruction, plus idle jumps.
    #[inline]
    pub fn now(&self) -> u64 {
        self.clock.now()
    }

    /// How far virtual time has jumped ahead of the instruction count, in nanoseconds.
    pub fn skipped_ns(&self) -> u64 {
        self.clock.skipped_ns()
    }

    /// Lets virtual time jump ahead to a nanosecond while no vCPU runs.
    pub fn jump_to(&mut self, ns: u64) {
        self.clock.jump_to(ns);
    }

    /// rip of the instruction whose moment was noted last.
    #[inline]
    pub(in crate::runtime) fn position_rip(&self) -> Option<u64> {
        let (id, offset) = self.clock.position();
        let block = self.cache.blocks.try_get(id)?;
        Some(block.rip.wrapping_add(u64::from(offset)))
    }

    /// Brings what translated code computes the TSC from up to date.
    #[inline]
    pub(in crate::runtime) fn set_tsc_offset(&self, cpu: &CpuState, run: &mut RunState) {
        run.tsc_offset = self.clock.skipped_ns().wrapping_add(cpu.msr.tsc_adjust);
    }

    /// Says below which budget PAUSE ends a run of this vCPU, because others could use the time.
    pub fn set_pause_below(&mut self, index: usize, budget: i64) {
        self.vcpus.vcpu_mut(index).run.pause_below = budget;
    }

    /// Counts a step of the running code that takes long, and makes it come back if the call is over.
    #[inline]
    pub(in crate::runtime) fn slow_step(&mut self, vcpu: &mut Vcpu) {
        if self.is_time_up(&vcpu.cpu) {
            self.slice.come_back(&mut vcpu.run);
        }
    }

    /// Counts a step that takes long. True when the call is over and coming back does not show.
    #[inline]
    pub(in crate::runtime) fn is_time_up(&mut self, cpu: &CpuState) -> bool {
        self.slice.call_limit().step() && self.comes_back_unseen(cpu)
    }

    /// Whether coming back from code in the middle of a slice changes nothing: not where blocks stay chained
    /// that a look-up does not find, nor where an interrupt waits for just that.
    #[inline]
    pub(in crate::runtime) fn comes_back_unseen(&self, cpu: &CpuState) -> bool {
        !self.coherence.protocol().chain_kept && cpu.semantics.waiting_interrupts_come_next()
    }

    /// Says when calls come back to their caller.
    pub fn limit_calls(&mut self, limit: CallLimit) {
        *self.slice.call_limit() = limit;
    }

    /// A call begins.
    pub fn begin_call(&mut self) {
        self.slice.call_limit().begin();
    }

    /// Whether the call has lasted long enough.
    pub fn call_is_over(&mut self) -> bool {
        self.slice.call_limit().is_over()
    }

    /// Counts a step of the call between two runs.
    pub fn count_step(&mut self) {
        self.slice.call_limit().step();
    }

    /// Instruction count at which the slice began.
    pub fn slice_start(&self) -> u64 {
        self.slice.start()
    }

    /// Begins a slice at the current instruction count.
    pub fn begin_slice(&mut self) {
        self.slice.begin(self.icount());
    }

    /// Sets the shortcuts that code takes; before any is made.
    pub fn set_shortcuts(&mut self, shortcuts: Shortcuts) {
        debug_assert!(self.cache.blocks.is_empty());
        self.translator.set_shortcuts(shortcuts);
    }

    /// Leaves the running block after the instruction at `site`, whose store hit the block itself or a
    /// watchpoint.
    pub(in crate::runtime) fn end_after(&mut self, vcpu: &mut Vcpu, site: Site) {
        let block = self.cache.blocks.get(vcpu.run.site_block);
        let offset = usize::from(site.offset);
        let insn = self.translator.instruction_in(block, offset);
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
        let index = self.translator.index_after(block, offset);
        let goes_on = self.cache.blocks.is_live(vcpu.run.site_block)
            || self.coherence.protocol().same_block_ignored;
        if index < count && goes_on {
            // Only the debugger or a window stopped it: the rest of the block is still to come.
            self.progress[usize::from(vcpu.cpu.id)].stop_inside(Resume {
                block: vcpu.run.site_block,
                index,
            });
        }
    }

    /// Has the repeated instruction at the end of the running block, of which a debugger's stop has
    /// cut off some iterations, go on in that block, as it would have without the stop.
    pub(in crate::runtime) fn resume_repeated(&mut self, vcpu: u8, id: BlockId) {
        if self.cache.blocks.is_live(id) {
            self.progress[usize::from(vcpu)].stop_inside(Resume {
                block: id,
                index: usize::from(self.cache.blocks.get(id).count) - 1,
            });
        }
    }

    // ---- pages ---------------------------------------------------------------------------------

    /// Removes every block because the cache is full.
    pub(in crate::runtime) fn flush_blocks(&mut self, by: u8) {
        self.observers.stats.block_flushes += 1;
        self.observers
            .note(self.clock.icount(), Observed::Flush { vcpu: by });
        self.cache.blocks.clear();
        for info in &mut self.memory.pages.info {
            info.code_lines = 0;
            info.flags -= PageFlags::CODE;
        }
        self.progress.iter_mut().for_each(Progress::leave_block);
        self.cache.forget_unlisted();
        self.coherence.forget_pages();
        for vcpu in 0..self.progress.len() {
            if let Some(fetched) = self.progress[vcpu].take_fetch_if(|_| true) {
                self.guard_fetch(&fetched);
                self.progress[vcpu].begin_link(fetched);
            }
        }
        self.forget_code();
    }

    /// Drops host code, keeping the blocks.
    pub(in crate::runtime) fn drop_code(&mut self) {
        self.observers.stats.code_drops += 1;
        self.cache.blocks.drop_code();
        self.forget_code();
    }

    pub(in crate::runtime) fn forget_code(&mut self) {
        self.cache.forget_code();
        self.vcpus.mmus().for_each(Mmu::clear_jumps);
    }

    /// Forgets a vCPU's translations: all, or all but the global ones.
    pub fn flush_tlb(&mut self, vcpu: u8, keep_global: bool) {
        self.observers.stats.tlb_flushes += 1;
        let mmu = self.vcpus.mmu_mut(usize::from(vcpu));
        mmu.tlb.flush(keep_global);
        mmu.flush_fetches(keep_global);
    }

    /// INIT of a vCPU: its state, and everything cached about it.
    pub fn init_vcpu(&mut self, index: usize) {
        self.progress[index].init();
        self.cpu_mut(index).init();
        self.flush_tlb(index as u8, false);
    }

    /// How many INITs a vCPU has had.
    pub fn inits(&self, index: usize) -> u64 {
        self.progress[index].inits()
    }

    /// After a device access: comes back soon if the board wants something, or if an interrupt can now
    /// be delivered. Without this, the moment of delivery would depend on when the dispatcher is next
    /// entered, which is not part of the machine.
    #[inline]
    pub(in crate::runtime) fn after_bus(&mut self, vcpu: &mut Vcpu) {
        let open = vcpu.cpu.rflags & RFlags::IF.bits() != 0;
        if self.outside.has_signals()
            || open && self.outside.pending_interrupt(usize::from(vcpu.cpu.id))
        {
            self.slice.request_exit(&mut vcpu.run);
        }
    }

    /// Digest of RAM. Takes the right of unnoticed writes away, so that the next one is noticed.
    pub fn ram_digest(&mut self) -> u64 {
        let digest = self.memory.pages.digest(&self.memory.ram);
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
        self.stops.set_on_stale(stop);
    }

    /// The watched ranges that the event wrote for which the run has stopped.
    pub fn written(&self) -> &[(u64, u64)] {
        self.stops.written()
    }

    /// Sets what the debugger waits for. Blocks stay; code that this changes is made again.
    pub fn set_stops(
        &mut self,
        hooks: Hooks,
        watches: Vec<(u64, u64)>,
        vectors: &[u8],
        port: Option<u16>,
    ) {
        self.stops.set_events(vectors, port);
        if let Some(old) = self
            .stops
            .replace_hooks(hooks, self.observers.journal.rips())
        {
            self.follow_hooks(&old);
        }
        if let Some(old) = self.stops.replace_watches(watches) {
            for (at, len) in old {
                self.watch_pages(at, len, false);
            }
            self.watch_all();
        }
    }

    /// Sets the physical ranges of which a read by an instruction stops the run. Page walks and fetches do not.
    pub fn set_read_watches(&mut self, watches: Vec<(u64, u64)>) {
        if let Some(old) = self.stops.replace_read_watches(&watches) {
            self.watch_reads(&old, false);
            self.watch_reads(&watches, true);
        }
    }

    /// Stops before the instruction at this moment, which is now, when everything that comes before it is done; hooks do
    /// not stop there once more.
    pub fn stop_before(&mut self, moment: Option<u64>) {
        self.stops.set_before(moment);
    }

    /// Whether the run has stopped before the instruction at this moment, which is still to come.
    pub fn stands_before(&self, moment: u64) -> bool {
        self.stops.has_stopped_before(moment) && self.icount() == moment
    }

    /// The watched ranges that the access read for which the run has stopped.
    pub fn read(&self) -> &[(u64, u64)] {
        self.stops.reads()
    }

    /// Makes code follow the instructions before which to stop. Only blocks with an instruction whose stop is new or gone lose
    /// their code: debuggers set and clear breakpoints at every step.
    fn follow_hooks(&mut self, old: &Hooks) {
        let new = self.stops.hooks();
        // Code that is reached through a jump that the protocol has kept cannot be taken away alone.
        if old.int3 != new.int3 || self.coherence.protocol().chain_kept {
            self.drop_code();
            return;
        }
        let gone = old
            .rips
            .iter()
            .filter(|&at| new.rips.binary_search(at).is_err());
        let come = new
            .rips
            .iter()
            .filter(|&at| old.rips.binary_search(at).is_err());
        let mut rips: Vec<u64> = gone.chain(come).copied().collect();
        rips.sort_unstable();
        let changed = Hooks { rips, int3: false };
        for id in self.cache.blocks.with_code() {
            let block = self.cache.blocks.get(id);
            if changed.touch(block.rip, block.bytes.len()) {
                self.strip_code(id);
            }
        }
        self.cache.settle();
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
