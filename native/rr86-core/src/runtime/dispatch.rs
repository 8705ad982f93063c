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
use crate::runtime::flags::sync_flags;
use crate::runtime::oracle::Seen;
use crate::runtime::progress::Resume;
use crate::runtime::signals;
use crate::runtime::slice::Flow;
use crate::runtime::stops::StopCause;
use crate::runtime::vcpu::{Vcpu, UNSTEPPED};
use crate::runtime::windows::{Fetched, Window};
use crate::translate::decode::classify::shape;
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

/// Instructions that a run is given at a time, so that code that needs nothing from the dispatcher comes back
/// to look at the clock. Most slices are shorter.
const PORTION: u64 = 200_000;

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

impl Engine {
    /// Runs a vCPU. Returns the instructions retired and why it stopped.
    ///
    /// Where a slice ends does not depend on the number of calls that it takes, so that the
    /// debugger's stops do not move it.
    pub fn run(&mut self, index: usize, span: Span) -> (u64, RunEnd) {
        let budget = if self.comes_back_unseen(self.cpu(index)) {
            span.budget.min(PORTION)
        } else {
            span.budget
        };
        let vcpu = self.vcpus.begin(index);
        let entered = signals::enter(vcpu, self.cache.buffer.range(), self.cache.stubs.signal);
        let this: *mut Self = self;
        // SAFETY: both are valid for the engine's life. What is called from code uses the engine through a
        // pointer that comes from `self` here, and `self` itself is not used until that has ended. `vcpu` is the
        // only way to the vCPU until `end`.
        unsafe {
            (*vcpu).pending.engine = this.cast();
            (*vcpu).run.icount_base = (*this).icount() as i64 + budget as i64;
            (*this).set_tsc_offset(&mut *vcpu);
            (*vcpu).run.budget = budget as i64;
            (*this).slice.reserve = span.budget - budget;
            (*this).slice.lent = 0;
            (*this).slice.beyond = span.beyond + (*this).slice.reserve;
            let below = &mut (*vcpu).run.pause_below;
            *below = below.saturating_sub_unsigned((*this).slice.reserve);
            if !std::mem::take(&mut (*this).slice.time_up) {
                // Another vCPU may see another page there.
                (*this).cache.to_chain = None;
            }
            (*vcpu).run.flags_ax = crate::runtime::flags::flags_to_ax((*vcpu).cpu.rflags);
            let start = (*this).icount();
            (*this).slice.vcpu = (*vcpu).cpu.id;
            (*this).finish_steps(&mut *vcpu);
            let end = Self::dispatch(this, vcpu, span);
            (*this).end_overrun(index);
            (*this).slice.clear_exit_request(&mut (*vcpu).run);
            (*this).clock.note_boundary(&(*vcpu).run);
            sync_flags(&mut *vcpu);
            drop(entered);
            (*this).vcpus.end();
            ((*this).icount() - start, end)
        }
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
                let stubs = (*this).cache.stubs;
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
        self.take_back(v);
        self.clock.note_boundary(&v.run);
        self.stand_between(Some(v.cpu.rip));
        self.observers.stats.dispatches += 1;
        if let Some(window) = self.coherence.in_window.take() {
            return Before::End(RunEnd::Window(window));
        }
        if let Some(cause) = self.stops.stopped.take() {
            return Before::End(RunEnd::Stopped(cause));
        }
        self.stops.reads.clear();
        if self.cache.buffer.uses_reserve() {
            self.drop_code();
        }
        if self.slice.reserve > 0 && v.run.budget < self.translator.limits.instructions as i64 {
            self.take_portion(v);
        }
        let index = usize::from(v.cpu.id);
        let resume = self.progress[index].resume;
        self.end_overrun(index);
        // Inside a block only a debugger stops; what else there is waits for its end. Behind a fault
        // it waits for an instruction, since the slice may end there: see below.
        let faulted = self.slice.faulted_at == Some(self.icount());
        let waits = faulted && v.cpu.semantics.signals_wait_behind_faults();
        if resume.is_none() && !waits && self.has_signals() {
            return Before::End(RunEnd::Signals);
        }
        if resume.is_none() {
            if let Some(end) = self.interrupts(v) {
                return Before::End(end);
            }
        }
        // A block that a slice has entered belongs to it, and a fetch window comes after all
        // that the slice counts.
        if v.run.budget <= 0
            && (span.exact || resume.is_none())
            && (resume.is_some() || !self.expects_fetch())
        {
            return Before::End(RunEnd::Budget);
        }
        if self.stops.before.is_some() && self.stops.before == Some(self.icount()) {
            self.stops.before = None;
            self.stops.passed_hook = Some(self.icount());
            return Before::End(RunEnd::Stopped(StopCause::Before));
        }
        if self.slice.patience.is_over() {
            self.slice.time_up = true;
            return Before::End(RunEnd::TimeUp);
        }
        self.slice.patience.step();
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
            let must = now == span.start || self.slice.faulted_at == Some(now);
            if !must && !self.fits(v, mode, self.slice.beyond) {
                return Before::End(RunEnd::Budget);
            }
        }
        let code = match self.next_code(v, resume, mode, span.exact) {
            Ok(code) => code,
            Err(before) => return before,
        };
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
        self.progress[index].resume = None;
        v.pending.debug_hits = 0;
        self.slice.faulted = false;
        self.stand_between(None);
        self.cache.buffer.settle();
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
                self.cache.to_chain = None;
                self.partial(v, resume, exact)
            }
            None => match self.known_code(v, mode) {
                Some(code) => Some(code),
                None => match self.enter(v, mode, exact) {
                    Ok(None) => return Err(Before::End(RunEnd::Window(Window::Fetch))),
                    Ok(Some(code)) => code,
                    Err(fault) => {
                        self.cache.to_chain = None;
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
        let retired = v.run.budget < entry.budget && !self.slice.faulted;
        let inside = self.progress[usize::from(v.cpu.id)].resume.is_some();
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
                self.slice.faulted_at = Some(self.icount());
            }
            self.deliver_exception(v, Exception::db(dr6));
            if v.cpu.activity == Activity::Shutdown {
                return Some(RunEnd::TripleFault);
            }
        }
        end
    }

    /// Gives a run more of what its slice allows.
    fn take_portion(&mut self, v: &mut Vcpu) {
        let more = self.slice.reserve.min(PORTION);
        self.slice.reserve -= more;
        self.slice.beyond -= more;
        v.run.budget += more as i64;
        v.run.icount_base += more as i64;
        if v.run.pause_below != i64::MIN {
            v.run.pause_below += more as i64;
        }
        self.slice.patience.look();
    }

    /// Frees a block that was removed while a vCPU was in it, once the vCPU is out.
    fn end_overrun(&mut self, index: usize) {
        if self.progress[index].resume.is_none() {
            if let Some(id) = self.cache.overrun.take() {
                self.cache.blocks.release(id);
            }
        }
    }

    /// Host address of the block at rip if the jump cache knows it, and if it fits whatever its length.
    #[inline]
    fn known_code(&self, v: &Vcpu, mode: Mode) -> Option<u64> {
        let roomy = v.run.budget >= self.translator.limits.instructions as i64;
        // The relative that leaves jumps behind does so in jumps, not in look-ups.
        let asked = self.cache.to_chain.is_some() || self.coherence.protocol.chain_kept;
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
        let link = self.cache.to_chain.take();
        if code.is_some() {
            self.chain(link, id);
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
            self.follow(v);
            return None;
        }
        if exit == Exit::Budget as u32 {
            self.sample(v);
            return None;
        }
        if exit == Exit::Partial as u32 {
            self.progress[usize::from(v.cpu.id)].resume = self.cache.partial.end.take();
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
            let flow = std::mem::replace(&mut self.slice.flow, Flow::Next);
            match flow {
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

    /// Follows a direct jump that is not linked yet.
    fn follow(&mut self, v: &mut Vcpu) {
        let from = v.run.site_block;
        let slot = v.run.exit_slot as usize;
        let block = self.cache.blocks.get(from);
        if block.code == 0 {
            // A part of a block that has no code of its own now; it has the same slots.
            v.cpu.rip = self.cache.partial.targets[slot];
            return;
        }
        v.cpu.rip = block.slots[slot].target;
        if block.slots[slot].patch.is_some() && self.cache.blocks.is_live(from) {
            self.cache.to_chain = Some((from, slot));
        }
    }

    /// Links the jump that was just followed to the block that it led to.
    fn chain(&mut self, link: Option<(BlockId, usize)>, to: BlockId) {
        let Some((from, slot)) = link else { return };
        let (source, target) = (self.cache.blocks.get(from), self.cache.blocks.get(to));
        if !self.cache.blocks.is_live(from)
            || source.code == 0
            // Only a part of the target may have been made.
            || target.code == 0
            || target.second.is_some()
            || target.mode != source.mode
            || source.slots[slot].target != target.rip
        {
            return;
        }
        if let Some((at, target)) = self.cache.blocks.chain(from, slot, to) {
            self.cache.buffer.patch_rel32(at, target);
        }
    }

    /// Whether the next block is sure to fit what is left of the budget. Asked between the blocks of a
    /// slice, and without any effect, so that a slice ends as if the question had not been asked: the
    /// replayer, which knows where the slice ends, does not ask it.
    fn fits(&mut self, v: &Vcpu, mode: Mode, beyond: u64) -> bool {
        let budget = v.run.budget.saturating_add_unsigned(beyond);
        if budget >= self.translator.limits.instructions as i64 {
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
        let mut decoded = self.translator.scratch.take_decoded().emptied();
        let limit = self.translator.limits.instructions;
        let bytes = self.memory.code_at(paddr);
        let offered = &self.translator.offered;
        let inside = shape::cut_into(&mut decoded.insns, bytes, rip, mode, offered, limit, false);
        let fits = inside && decoded.insns.len() as i64 <= budget;
        // Forgotten as a block: these bytes are not fetched now.
        self.translator.scratch.give_decoded(decoded.emptied());
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
        let watch = self.observers.spent.sample();
        let made = self.fetch_and_link(v, mode, linear, paddr);
        self.observers.spent.add_sample(Phase::Translating, watch);
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
        let progressed =
            self.icount() != self.slice.start && self.slice.faulted_at != Some(self.icount());
        if self.coherence.protocol.fetch_window
            && progressed
            && self.switch_in(Window::Fetch, v.run.budget)
        {
            self.note_fetch(v.cpu.id, &fetched, None);
            self.guard_fetch(&fetched);
            self.progress[usize::from(v.cpu.id)].under_way.fetched = Some(fetched);
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
        let limit = self.translator.limits.instructions;
        let mut decoded = self.translator.scratch.take_decoded().emptied();
        let inside = !crosses
            && shape::cut_into(
                &mut decoded.insns,
                self.memory.code_at(paddr),
                rip,
                mode,
                &self.translator.offered,
                limit,
                false,
            );
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
            decoded.insns.clear();
            let whole = shape::cut_into(
                &mut decoded.insns,
                &crossing,
                rip,
                mode,
                &self.translator.offered,
                1,
                true,
            );
            assert!(whole, "fifteen bytes hold an instruction");
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
            .scratch
            .keep_decoded(decoded, &bytes, rip, mode, second.is_some());
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
        if self.cache.to_chain.is_none() && !block.mode.one() && block.second.is_none() {
            let (linear, rip, mode) = (self.fetch_address(v), block.rip, block.mode);
            let mmu = self.vcpus.mmu_mut(usize::from(v.cpu.id));
            mmu.remember_jump(linear, rip, mode, code);
        }
        Some(code)
    }

    /// Takes back behind a block what the budget was raised by for it. The block may have ended early, and what it
    /// has left over is not the slice's.
    fn take_back(&mut self, v: &mut Vcpu) {
        let lent = std::mem::take(&mut self.slice.lent);
        // In version 1, what follows a fault is part of the slice.
        if v.cpu.semantics.faults_count() {
            v.run.budget -= lent;
            v.run.icount_base -= lent;
        }
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
            if let Some(offset) = self.cache.buffer.append(&code.bytes) {
                self.cache.partial.targets = code.slots.iter().map(|s| s.target).collect();
                self.cache.partial.traps = Some((offset, resume.block, code.traps));
                self.cache.partial.end = (stop < count).then_some(Resume {
                    block: resume.block,
                    index: stop,
                });
                return Some(self.cache.buffer.address(offset));
            }
            self.drop_code();
        }
    }
}
