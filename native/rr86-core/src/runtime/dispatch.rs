//! The dispatcher: runs one vCPU from block to block until its budget is used up or something wants
//! the machine.

use super::entry;
use crate::cpu::exception::{Exception, DR6_BS};
use crate::cpu::memory::Privilege;
use crate::cpu::paging::Access;
use crate::cpu::state::{sreg, Activity, RFlags};
use crate::host_time::Phase;
use crate::memory::pages::{HandOffKind, PageFlags};
use crate::memory::{PAGE_MASK, PAGE_SIZE};
use crate::runtime::cache::BlockId;
use crate::runtime::caught;
use crate::runtime::engine::Engine;
use crate::runtime::fetch::FetchPage;
use crate::runtime::flags::{flags_to_ax, sync_flags};
use crate::runtime::instruction::Flow;
use crate::runtime::oracle::Seen;
use crate::runtime::progress::Resume;
use crate::runtime::signals;
use crate::runtime::stops::StopCause;
use crate::runtime::vcpu::{Vcpu, UNSTEPPED};
use crate::runtime::windows::{Fetched, Window};
use crate::translate::layout::Exit;
use crate::translate::mode::Mode;

/// Why a vCPU stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunEnd {
    /// The next block does not fit the budget.
    Budget,
    Pause,
    /// HLT: the vCPU waits for an interrupt.
    Halt,
    /// The bus has signals for the machine; the vCPU can go on afterwards.
    Signals,
    /// The debugger's stop, exact to the instruction.
    Stopped(StopCause),
    TripleFault,
    /// Switched out between two steps of the block protocol.
    Window(Window),
    /// The code failed on the host; see [`Engine::host_fault`].
    HostFault,
    /// The call has lasted long enough; the vCPU can go on.
    TimeUp,
}

/// How far a vCPU runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Instructions, counted in whole blocks.
    pub budget: u64,
    /// To the instruction, if need be into a block.
    pub exact: bool,
    /// Instructions that the slice has left after the budget: it is the debugger who stops there.
    pub beyond: u64,
    /// The slice ends before a block that does not fit all of this; otherwise its length is known to
    /// be right.
    pub fitting: bool,
    /// Instruction count at which the slice began; its first block runs whether it fits or not.
    pub start: u64,
}

/// What comes next between two blocks.
enum Before {
    Enter(Entry),
    /// Something has changed where the vCPU stands: look again.
    Again,
    End(RunEnd),
}

/// Code that is about to run, and what was so before.
struct Entry {
    /// Its host address.
    code: u64,
    /// It is one instruction, after which there may be traps.
    single: bool,
    /// RFLAGS.TF is set.
    stepping: bool,
    /// The interrupt shadow, and the debug exceptions that MOV SS holds back.
    shadow: u8,
    held: u64,
    /// The budget without an exit request.
    budget: i64,
}

/// A run that has begun. It ends when this is dropped, be it by a panic: then the vCPU is where that was, and can still
/// be looked at.
struct Begun(*mut Engine);

impl Drop for Begun {
    fn drop(&mut self) {
        // SAFETY: `run` has made this from its own reference to the engine, and drops it before it returns. No reference
        // to the engine is used any more when that happens.
        unsafe { (*self.0).vcpus.end() };
    }
}

impl Engine {
    /// Runs a vCPU. Returns the instructions retired and why it stopped.
    ///
    /// Where a slice ends does not depend on the number of calls that it takes, so that the
    /// debugger's stops do not move it.
    pub fn run(&mut self, index: usize, span: Span) -> (u64, RunEnd) {
        let divisible = self.comes_back_unseen(self.cpu(index));
        let vcpu = self.vcpus.begin(index);
        let entered = signals::enter(vcpu, self.cache.range(), self.cache.stubs().signal);
        let this: *mut Self = self;
        // SAFETY: both are valid for the engine's life. What is called from code uses the engine through a
        // pointer that comes from `self` here, and `self` itself is not used until that has ended. `vcpu` is the
        // only way to the vCPU until `Begun` is dropped.
        unsafe {
            let begun = Begun(this);
            (*vcpu).pending.engine = this.cast();
            let start = (*this).icount();
            (*this).begin_run(&mut *vcpu, &span, divisible);
            (*this).finish_steps(&mut *vcpu);
            let end = Self::dispatch(this, vcpu, span);
            (*this).end_overrun(index);
            (*this).slice.clear_exit_request(&mut (*vcpu).run);
            (*this).clock.note_boundary(&(*vcpu).run);
            sync_flags(&mut *vcpu);
            drop(entered);
            drop(begun);
            ((*this).icount() - start, end)
        }
    }

    fn begin_run(&mut self, v: &mut Vcpu, span: &Span, divisible: bool) {
        self.set_tsc_offset(&v.cpu, &mut v.run);
        let parts = (&v.cpu, &mut v.run);
        let amounts = (span.budget, span.beyond);
        if !self
            .slice
            .begin_run(parts, self.clock.icount(), amounts, divisible)
        {
            // Another vCPU may see another page there.
            self.cache.forget_link();
        }
        v.run.flags_ax = flags_to_ax(v.cpu.rflags);
    }

    /// The loop of `run`.
    ///
    /// # Safety
    /// Both pointers are valid, and the GS base points to `vcpu`.
    unsafe fn dispatch(this: *mut Self, vcpu: *mut Vcpu, span: Span) -> RunEnd {
        loop {
            // SAFETY: the pointers are valid by the contract, and nothing else refers to what they lead to. The
            // references end before code runs, which uses both pointers itself.
            let entry = match unsafe { (*this).before_code(&mut *vcpu, &span) } {
                Before::Enter(entry) => entry,
                Before::Again => continue,
                Before::End(end) => return end,
            };
            // SAFETY: as above; the code is that of the block which comes next.
            let end = unsafe {
                let stubs = (*this).cache.stubs();
                entry::enter(&stubs, vcpu, entry.code);
                (*this).after_code(&mut *vcpu, &entry)
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    /// What is due between two blocks, and then the code of the next one.
    fn before_code(&mut self, v: &mut Vcpu, span: &Span) -> Before {
        self.slice.clear_exit_request(&mut v.run);
        self.slice.take_back(&v.cpu, &mut v.run);
        self.clock.note_boundary(&v.run);
        self.stand_between(Some(v.cpu.rip));
        self.observers.stats.dispatches += 1;
        if let Some(window) = self.windows.take_entered() {
            return Before::End(RunEnd::Window(window));
        }
        if let Some(cause) = self.stops.take_stop() {
            return Before::End(RunEnd::Stopped(cause));
        }
        self.stops.begin_access();
        if self.cache.uses_reserve() {
            self.drop_code();
        }
        let longest = self.translator.longest();
        self.slice.refill(&mut v.run, longest);
        let index = usize::from(v.cpu.id);
        let resume = self.progress[index].resume();
        self.end_overrun(index);
        // Inside a block only a debugger stops; what else there is waits for its end. Behind a fault
        // it waits for an instruction, since the slice may end there: see below.
        let faulted = self.slice.is_behind_fault(self.icount());
        let waits = faulted && v.cpu.semantics.signals_wait_behind_faults();
        if resume.is_none() && !waits && self.outside.has_signals() {
            return Before::End(RunEnd::Signals);
        }
        if resume.is_none() {
            if let Some(end) = self.interrupts(v) {
                return Before::End(end);
            }
        }
        if let (None, Some(cause)) = (resume, self.stops.take_written()) {
            return Before::End(RunEnd::Stopped(cause));
        }
        // A block that a slice has entered belongs to it, and a fetch window comes after all
        // that the slice counts.
        if v.run.budget <= 0
            && (span.exact || resume.is_none())
            && (resume.is_some() || !self.expects_fetch())
        {
            return Before::End(RunEnd::Budget);
        }
        if self.stops.stops_before(self.clock.icount()) {
            return Before::End(RunEnd::Stopped(StopCause::Before));
        }
        if self.slice.ends_for_time() {
            return Before::End(RunEnd::TimeUp);
        }
        let mode = Mode::of(&v.cpu);
        v.run.jump_key = mode.key();
        let single = match resume {
            None => mode.one(),
            Some(resume) => self.cache.blocks.get(resume.block).mode.one(),
        };
        let stepping = v.cpu.rflags & RFlags::TF.bits() != 0;
        let armed = v.cpu.dr[7] & 0xff != 0 && !v.cpu.holds_debug();
        if single && armed && resume.is_none() && self.execution_breakpoint(v) {
            return Before::Again;
        }
        if span.fitting && resume.is_none() {
            let now = self.icount();
            // A fault that does not count is part of the slice in which it was raised only if an
            // instruction follows: a decision counts instructions, and cannot tell otherwise.
            let must = now == span.start || self.slice.is_behind_fault(now);
            if !must && !self.fits(v, mode, self.slice.beyond()) {
                return Before::End(RunEnd::Budget);
            }
        }
        let code = match self.next_code(v, resume, mode, span.exact) {
            Ok(code) => code,
            Err(before) => return before,
        };
        // The walk for the fetch has written what is watched.
        if self.stops.concerns_access() && self.stops.stop_before_access(self.icount()) {
            return Before::Again;
        }
        let entry = Entry {
            code,
            single,
            stepping,
            shadow: v.cpu.shadow,
            held: v.cpu.held_debug(),
            budget: self.slice.plain_budget(&v.run),
        };
        v.cpu.shadow = 0;
        v.cpu.rflags &= !RFlags::RF.bits();
        self.progress[index].leave_block();
        v.pending.debug_hits = 0;
        self.slice.begin_code();
        self.stand_between(None);
        self.cache.settle();
        Before::Enter(entry)
    }

    /// Host address of the code that comes next: of the rest of a block, or of the block at rip.
    fn next_code(
        &mut self,
        v: &mut Vcpu,
        resume: Option<Resume>,
        mode: Mode,
        exact: bool,
    ) -> Result<u64, Before> {
        let code = match resume {
            Some(resume) => {
                self.cache.forget_link();
                self.partial(v, resume, exact)
            }
            None => match self.known_code(v, mode) {
                Some(code) => Some(code),
                None => match self.enter(v, mode, exact) {
                    Ok(None) => return Err(Before::End(RunEnd::Window(Window::Fetch))),
                    Ok(Some(code)) => code,
                    Err(fault) => {
                        self.cache.forget_link();
                        self.deliver_fault(v, fault);
                        return Err(if v.cpu.activity == Activity::Shutdown {
                            Before::End(RunEnd::TripleFault)
                        } else {
                            Before::Again
                        });
                    }
                },
            },
        };
        code.ok_or(Before::End(RunEnd::Budget))
    }

    /// What to do after code came back, traps after the instruction included. `None` goes on.
    fn after_code(&mut self, v: &mut Vcpu, entry: &Entry) -> Option<RunEnd> {
        let end = self.after(v);
        // Whether a PAUSE ends the run is the scheduler's choice, so its trap cannot depend on that.
        let paused = end == Some(RunEnd::Pause) && v.cpu.semantics.pauses_are_stepped();
        if end.is_some() && !paused {
            return end;
        }
        self.slice.clear_exit_request(&mut v.run);
        let retired = v.run.budget < entry.budget && !self.slice.has_faulted();
        let inside = self.progress[usize::from(v.cpu.id)].resume().is_some();
        if entry.held != 0 && !retired && inside {
            // A debugger stopped before the instruction, which is still to come.
            v.cpu.shadow = entry.shadow;
        }
        // Traps after the instruction (SDM vol. 3B, section 17.3.1).
        let hits = v.pending.debug_hits;
        let step = entry.stepping && hits & UNSTEPPED == 0;
        let dr6 = hits & !UNSTEPPED | entry.held | if step { DR6_BS } else { 0 };
        if (entry.single || hits & DR6_BS != 0) && retired && dr6 != 0 {
            if v.cpu.holds_debug() {
                v.cpu.hold_debug(dr6);
                return None;
            }
            if !v.cpu.semantics.faults_count() {
                self.slice.note_uncounted_fault(self.icount());
            }
            self.deliver_exception(v, Exception::db(dr6));
            if v.cpu.activity == Activity::Shutdown {
                return Some(RunEnd::TripleFault);
            }
        }
        end
    }

    /// Frees a block that was removed while a vCPU was in it, once the vCPU is out.
    fn end_overrun(&mut self, index: usize) {
        if self.progress[index].resume().is_none() {
            self.cache.end_overrun();
        }
    }

    /// Host address of the block at rip if the jump cache knows it, and if it fits whatever its length.
    #[inline]
    fn known_code(&self, v: &Vcpu, mode: Mode) -> Option<u64> {
        let roomy = v.run.budget >= self.translator.longest() as i64;
        // The relative that leaves jumps behind does so in jumps, not in look-ups.
        let asked = self.cache.has_link() || self.coherence.protocol().chain_kept;
        if !roomy || asked || mode.one() || !mode.code_flat() || self.waits_for_interrupt(v) {
            return None;
        }
        self.vcpus
            .mmu(usize::from(v.cpu.id))
            .known_jump(v.cpu.rip, mode)
    }

    /// Host address of the block at rip, made if need be; or as `lookup` and `ready` have it.
    fn enter(
        &mut self,
        v: &mut Vcpu,
        mode: Mode,
        exact: bool,
    ) -> Result<Option<Option<u64>>, Exception> {
        let Some(id) = self.lookup(v, mode)? else {
            return Ok(None);
        };
        let code = self.ready(v, id, exact);
        // Not before: a flush on the way here has dropped what it names.
        let link = self.cache.take_link();
        if code.is_some() {
            self.cache.chain(link, id);
            if self.waits_for_interrupt(v) {
                let count = i64::from(self.cache.blocks.get(id).count);
                self.slice.request_exit_after(&mut v.run, count);
            }
        }
        Ok(Some(code))
    }

    /// What to do after code came back. `None` goes on.
    fn after(&mut self, v: &mut Vcpu) -> Option<RunEnd> {
        let exit = v.run.exit;
        self.observers.stats.exits[exit as usize % Exit::COUNT] += 1;
        if exit == Exit::Chain as u32 {
            let slot = v.run.exit_slot as usize;
            v.cpu.rip = self.cache.follow(v.run.site_block, slot);
            return None;
        }
        if exit == Exit::Budget as u32 {
            self.sample(v);
            return None;
        }
        if exit == Exit::Partial as u32 {
            if let Some(resume) = self.cache.take_partial_end() {
                self.progress[usize::from(v.cpu.id)].stop_inside(resume);
            }
            return None;
        }
        if exit == Exit::Signal as u32 {
            match caught::exception(self, v) {
                Ok(fault) => Self::raise(v, fault),
                Err(fault) => {
                    self.host_fault = Some(fault);
                    return Some(RunEnd::HostFault);
                }
            }
        }
        if let Some(fault) = v.pending.fault.take() {
            self.slice.clear_exit_request(&mut v.run);
            self.clock.note_boundary(&v.run);
            self.deliver_fault(v, fault);
            return (v.cpu.activity == Activity::Shutdown).then_some(RunEnd::TripleFault);
        }
        if exit == Exit::Helper as u32 {
            match self.instruction.take_flow() {
                Flow::Next => {}
                Flow::Pause => return Some(RunEnd::Pause),
                Flow::Halt => return Some(RunEnd::Halt),
                Flow::Event(event, next) => {
                    self.slice.clear_exit_request(&mut v.run);
                    self.clock.note_boundary(&v.run);
                    self.deliver_at(v, event, next);
                    if v.cpu.semantics.steps_by_flags_after_system_calls() {
                        v.pending.debug_hits |= UNSTEPPED;
                    }
                    if v.cpu.activity == Activity::Shutdown {
                        return Some(RunEnd::TripleFault);
                    }
                }
            }
        }
        None
    }

    /// Whether the next block is sure to fit what is left of the budget. Asked between the blocks of a
    /// slice, and without any effect, so that a slice ends as if the question had not been asked: the
    /// replayer, which knows where the slice ends, does not ask it.
    fn fits(&mut self, v: &Vcpu, mode: Mode, beyond: u64) -> bool {
        let budget = v.run.budget.saturating_add_unsigned(beyond);
        if budget >= self.translator.longest() as i64 {
            return true;
        }
        let linear = self.fetch_address(v);
        let mmu = self.vcpus.mmu(usize::from(v.cpu.id));
        let Some(page) = mmu.fetch.get(linear, v.cpu.cpl == 3) else {
            return false;
        };
        let paddr = page | linear & PAGE_MASK;
        let rip = v.cpu.rip;
        if let Some(id) = self.cache.blocks.find(paddr, None, rip, mode) {
            return i64::from(self.cache.blocks.get(id).count) <= budget;
        }
        let (decoded, inside) = self.translator.cut(self.memory.code_at(paddr), rip, mode);
        let fits = inside && decoded.insns.len() as i64 <= budget;
        // Forgotten as a block: these bytes are not fetched now.
        self.translator.drop_cut(decoded);
        fits
    }

    /// Linear address of the next instruction.
    pub(in crate::runtime) fn fetch_address(&self, v: &Vcpu) -> u64 {
        if v.cpu.code64() {
            v.cpu.rip
        } else {
            v.cpu.rip.wrapping_add(v.cpu.seg[sreg::CS].base) & 0xffff_ffff
        }
    }

    fn fetch_page(&mut self, v: &mut Vcpu, linear: u64) -> Result<u64, Exception> {
        let user = v.cpu.cpl == 3;
        let index = usize::from(v.cpu.id);
        if let Some(page) = self.vcpus.mmu(index).fetch.get(linear, user) {
            return Ok(page);
        }
        self.observers.stats.fetch_misses += 1;
        let found = self.translate(&v.cpu, linear, Access::Fetch, Privilege::Current)?;
        let fetch = FetchPage {
            page: found.paddr,
            shift: found.page_size.trailing_zeros() as u8,
            global: found.global,
        };
        if let Some(page) = self.memory.ram.page_index(found.paddr) {
            self.acquire(v.cpu.id, page, HandOffKind::Read);
            self.memory.pages.info[page].flags |= PageFlags::FETCHED;
        }
        self.vcpus
            .mmu_mut(index)
            .remember_fetch(linear, user, fetch);
        Ok(found.paddr)
    }

    /// Finds the block at rip, or makes it. `None` when the vCPU is to be switched out between the
    /// fetch of the block's bytes and its link.
    fn lookup(&mut self, v: &mut Vcpu, mode: Mode) -> Result<Option<BlockId>, Exception> {
        self.observers.stats.lookups += 1;
        let rip = v.cpu.rip;
        if !mode.code64() && rip > u64::from(v.cpu.seg[sreg::CS].limit) {
            return Err(Exception::gp(0));
        }
        let linear = self.fetch_address(v);
        let page = self.fetch_page(v, linear)?;
        let paddr = page | linear & PAGE_MASK;
        if let Some(id) = self.cache.blocks.find(paddr, None, rip, mode) {
            return Ok(Some(id));
        }
        let watch = self.observers.sample_time();
        let made = self.fetch_and_link(v, mode, linear, paddr);
        self.observers.spend_sample(Phase::Translating, watch);
        made
    }

    /// The part of `lookup` for blocks that are not known where rip is.
    fn fetch_and_link(
        &mut self,
        v: &mut Vcpu,
        mode: Mode,
        linear: u64,
        paddr: u64,
    ) -> Result<Option<BlockId>, Exception> {
        let fetched = match self.fetch(v, mode, linear, paddr)? {
            Ok(fetched) => fetched,
            Err(id) => return Ok(Some(id)),
        };
        // A fault belongs to a slice only with an instruction after it.
        let progressed = self.slice.has_progressed(self.icount());
        if self.coherence.protocol().fetch_window
            && progressed
            && self.switch_in(Window::Fetch, v.run.budget)
        {
            self.note_fetch(v.cpu.id, &fetched, None);
            self.guard_fetch(&fetched);
            self.progress[usize::from(v.cpu.id)].begin_link(fetched);
            return Ok(None);
        }
        Ok(Some(self.link(v.cpu.id, &fetched)))
    }

    /// Reads the bytes of the block at rip; or finds that it exists after all, as one that goes on in
    /// a second page.
    fn fetch(
        &mut self,
        v: &mut Vcpu,
        mode: Mode,
        linear: u64,
        paddr: u64,
    ) -> Result<Result<Fetched, BlockId>, Exception> {
        let rip = v.cpu.rip;
        let room = PAGE_SIZE as usize - (linear & PAGE_MASK) as usize;
        let crosses = self.cache.blocks.crossing(paddr, rip, mode);
        let foreseen = if crosses {
            None
        } else {
            self.foreseen(paddr, rip, mode)
        };
        if let Some((bytes, count)) = foreseen {
            self.seen(v.cpu.id, Seen::Fetch, paddr, bytes.len());
            return Ok(Ok(Fetched {
                rip,
                linear,
                paddr,
                second: None,
                mode,
                bytes,
                count,
                icount: self.icount(),
            }));
        }
        let bytes = if crosses {
            &[][..]
        } else {
            self.memory.code_at(paddr)
        };
        let (mut decoded, inside) = self.translator.cut(bytes, rip, mode);
        let mut crossing = Vec::new();
        let mut second = None;
        if !inside {
            crossing.resize(room + 15, 0);
            let next = linear - linear % PAGE_SIZE;
            let next = next.wrapping_add(PAGE_SIZE);
            let next = if mode.code64() {
                next
            } else {
                next & 0xffff_ffff
            };
            let next_page = self.fetch_page(v, next)?;
            if let Some(id) = self.cache.blocks.find(paddr, Some(next_page), rip, mode) {
                return Ok(Err(id));
            }
            second = Some(next_page);
            self.memory.ram.read(paddr, &mut crossing[..room]);
            self.memory.ram.read(next_page, &mut crossing[room..]);
            self.translator
                .cut_crossing(&mut decoded, &crossing, rip, mode);
        }
        let len: usize = decoded.insns.iter().map(|(i, _)| i.len().max(1)).sum();
        if len <= room {
            second = None;
        }
        let count = decoded.insns.len() as u8;
        let bytes = if inside {
            self.memory.code_at(paddr)[..len].to_vec()
        } else {
            crossing.truncate(len);
            crossing
        };
        self.translator
            .keep_cut(decoded, &bytes, rip, mode, second.is_some());
        self.seen(v.cpu.id, Seen::Fetch, paddr, len.min(room));
        if let Some(second) = second {
            self.seen(v.cpu.id, Seen::Fetch, second, len - room);
        }
        Ok(Ok(Fetched {
            rip,
            linear,
            paddr,
            second,
            mode,
            bytes,
            count,
            icount: self.icount(),
        }))
    }

    /// Host address to enter a block at, or `None` when the budget forbids it. With `exact`, as much of
    /// the block as fits.
    fn ready(&mut self, v: &mut Vcpu, id: BlockId, exact: bool) -> Option<u64> {
        let count = i64::from(self.cache.blocks.get(id).count);
        if v.run.budget < count {
            if exact {
                return self.partial(
                    v,
                    Resume {
                        block: id,
                        index: 0,
                    },
                    true,
                );
            }
            // A slice makes progress however short it is: this is its first block.
            let more = count - v.run.budget;
            self.slice.lend(&mut v.run, more);
        }
        self.ensure_code(id);
        let block = self.cache.blocks.get(id);
        let code = block.code;
        // A jump that is going to be linked does not ask the jump cache.
        if !self.cache.has_link() && !block.mode.one() && block.second.is_none() {
            let (linear, rip, mode) = (self.fetch_address(v), block.rip, block.mode);
            let mmu = self.vcpus.mmu_mut(usize::from(v.cpu.id));
            mmu.remember_jump(linear, rip, mode, code);
        }
        Some(code)
    }

    /// Host address of code for a part of a block, made for this one time.
    fn partial(&mut self, v: &mut Vcpu, resume: Resume, exact: bool) -> Option<u64> {
        let block = self.cache.blocks.get(resume.block);
        let count = usize::from(block.count);
        let mut checked = resume.index == 0 && block.stale.checked;
        let mut left = (count - resume.index) as i64;
        if let Some(instructions) = self.still_right(resume) {
            // Up to the first instruction that is not what memory holds; that one is reported.
            checked = instructions == 0;
            if !checked {
                left = instructions as i64;
            }
        }
        let run = if exact { left.min(v.run.budget) } else { left };
        if run <= 0 {
            return None;
        }
        if run > v.run.budget {
            // The slice's first block, stopped inside; see `ready`.
            let more = run - v.run.budget;
            self.slice.lend(&mut v.run, more);
        }
        let stop = resume.index + run as usize;
        loop {
            let code = self.generate(resume.block, resume.index, stop, checked);
            let rest = Resume {
                block: resume.block,
                index: stop,
            };
            let end = (stop < count).then_some(rest);
            let placed = self.cache.place_partial(resume.block, code, end);
            if placed.is_some() {
                return placed;
            }
            self.drop_code();
        }
    }
}
