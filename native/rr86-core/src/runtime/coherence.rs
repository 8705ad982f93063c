//! Keeping blocks and memory in step: guards, the one write function, invalidation, and the book-keeping
//! of blocks that a protocol has left stale.
//!
//! The engine itself always knows the truth: when a protocol skips a check, the write is compared
//! with the blocks all the same, and those that no longer match are *marked*. A marked block is entered
//! through a check that tells of the stale execution; it changes nothing else. Where nothing is stale,
//! nothing is checked. [`Engine::detect_stale`] turns it off, to find out what it costs.

use crate::memory::pages::{HandOffKind, PageFlags};
use crate::memory::{PAGE_MASK, PAGE_SHIFT, PAGE_SIZE};
use crate::runtime::agent::Agent;
use crate::runtime::agent::Writer;
use crate::runtime::cache::BlockId;
use crate::runtime::engine::Engine;
use crate::runtime::guest_memory::line_mask;
use crate::runtime::observers::Observed;
use crate::runtime::oracle::Seen;
use crate::runtime::progress::Resume;
use crate::runtime::protocol::Source;
use crate::runtime::windows::{Fetched, Unchecked, Uncommitted, Unguard};
use crate::runtime::writelog::{Commit, Passage};
use xxhash_rust::xxh3::xxh3_64;

/// What a write did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    /// The running block must end after its current instruction.
    pub stop: bool,
    /// A page with code has no block left.
    pub emptied: bool,
}

impl Engine {
    /// Marks a block's bytes as code, so that every write to their pages comes here.
    pub(in crate::runtime) fn guard(&mut self, id: BlockId) {
        self.guard_ranges(self.tracked_ranges(id));
    }

    /// Marks the bytes that a fetch under way has read as code, if the protocol does so before it reads them.
    pub(in crate::runtime) fn guard_fetch(&mut self, fetched: &Fetched) {
        if self.coherence.protocol().guard_first {
            self.guard_ranges(self.tracked(fetched.ranges()));
        }
    }

    fn guard_ranges(&mut self, ranges: [Option<(u64, u64)>; 2]) {
        for (at, len) in ranges.into_iter().flatten() {
            let Some(page) = self.memory.ram.page_index(at) else {
                continue;
            };
            let info = &mut self.memory.pages.info[page];
            info.code_lines |= line_mask(at, len);
            if !info.flags.contains(PageFlags::CODE) {
                info.flags |= PageFlags::CODE;
                self.vcpus.mmus().for_each(|mmu| mmu.tlb.guard_page(page));
                self.coherence.note_guarded(page);
            }
        }
    }

    /// The parts of a block that the protocol tracks.
    pub(in crate::runtime) fn tracked_ranges(&self, id: BlockId) -> [Option<(u64, u64)>; 2] {
        let mut ranges = self.cache.blocks.get(id).ranges();
        let first = ranges.next();
        self.tracked([first, ranges.next()])
    }

    fn tracked(&self, [first, second]: [Option<(u64, u64)>; 2]) -> [Option<(u64, u64)>; 2] {
        [
            first,
            second.filter(|_| !self.coherence.protocol().second_page_untracked),
        ]
    }

    /// Reads guest RAM as a device does.
    pub fn read_physical(&mut self, paddr: u64, out: &mut [u8]) {
        let last = paddr.saturating_add(out.len().max(1) as u64 - 1);
        for number in paddr >> PAGE_SHIFT..=last >> PAGE_SHIFT {
            if let Some(page) = self.memory.ram.page_index(number << PAGE_SHIFT) {
                self.acquire(Agent::Device.number(), page, HandOffKind::Read);
            }
        }
        self.seen(Agent::Device.number(), Seen::Read, paddr, out.len());
        self.memory.ram.read(paddr, out);
    }

    /// Writes guest RAM as a device or a plain store does; see [`Engine::write`].
    pub fn write_physical(
        &mut self,
        agent: Agent,
        paddr: u64,
        data: &[u8],
        running: Option<BlockId>,
    ) -> bool {
        let source = if agent == Agent::Device {
            Source::Device
        } else {
            Source::Store
        };
        self.write(
            Writer {
                agent,
                source,
                linear: None,
                running,
            },
            paddr,
            data,
        )
        .stop
    }

    /// Writes guest RAM for whoever has no tag for writing: both halves, `check` and `commit`. It knows about code,
    /// sharing, dirty pages and watchpoints. Bytes outside of RAM are dropped.
    pub fn write(&mut self, writer: Writer, paddr: u64, data: &[u8]) -> Written {
        let mut result = Written::default();
        let mut done = 0;
        while done < data.len() {
            let at = paddr + done as u64;
            let offset = (at & PAGE_MASK) as usize;
            let n = (data.len() - done).min(PAGE_SIZE as usize - offset);
            if let Some(page) = self.memory.ram.page_index(at) {
                let passage = self.passage(writer.source, page);
                let linear = writer.linear.map(|l| l.wrapping_add(done as u64));
                let part = self.check(Writer { linear, ..writer }, at, n);
                result.emptied |= part.emptied;
                result.stop |= part.stop;
                let commit = Commit {
                    agent: writer.agent,
                    linear,
                    late: None,
                    passage,
                };
                result.stop |= self.commit(&commit, at, &data[done..done + n]);
            }
            done += n;
        }
        result
    }

    /// The first half of a write: removes the blocks that it makes wrong. The range is in one page.
    pub(in crate::runtime) fn check(&mut self, writer: Writer, paddr: u64, len: usize) -> Written {
        let Some(page) = self.memory.ram.page_index(paddr) else {
            return Written::default();
        };
        if !self.memory.pages.info[page].flags.contains(PageFlags::CODE)
            || self.coherence.protocol().skips(writer.source)
        {
            return Written::default();
        }
        if self.coherence.protocol().store_waits {
            // The lock makes the store wait until a block under way is linked, and then it is
            // removed; the same as if it had not been fetched. Where the guard comes last, a store to the
            // second page has none to see.
            let guarded = if self.coherence.protocol().guard_first {
                2
            } else {
                1
            };
            for each in &mut self.progress {
                each.take_fetch_if(|f| {
                    let mut ranges = f.ranges().into_iter().take(guarded).flatten();
                    ranges.any(|(at, _)| at & !PAGE_MASK == paddr & !PAGE_MASK)
                });
            }
        }
        let stop = self.invalidate(&writer, page, paddr, len);
        Written {
            stop,
            emptied: !self.memory.pages.info[page].flags.contains(PageFlags::CODE),
        }
    }

    /// The second half of a write: the bytes change. The range is in one page.
    pub(in crate::runtime) fn commit(&mut self, commit: &Commit, paddr: u64, data: &[u8]) -> bool {
        let Some(page) = self.memory.ram.page_index(paddr) else {
            return false;
        };
        let agent = commit.agent.number();
        self.acquire(agent, page, HandOffKind::Write);
        self.seen(agent, Seen::Write, paddr, data.len());
        self.memory.pages.mark_dirty(page);
        let watched = self.memory.pages.info[page]
            .flags
            .contains(PageFlags::WATCHED);
        if watched {
            self.log_write(commit, paddr, data);
        }
        if self.memory.pages.info[page]
            .flags
            .contains(PageFlags::LOGGED)
        {
            self.log_store(commit, page, paddr, data);
        }
        self.memory.put(page, paddr, data);
        if self.coherence.detects() {
            self.mark_stale(page, paddr, data.len() as u64);
        }
        watched && self.stops.watched(paddr, data.len() as u64)
    }

    /// How a write that is about to be checked gets past the protocol.
    pub(in crate::runtime) fn passage(&self, source: Source, page: usize) -> Passage {
        if !self.memory.pages.info[page].flags.contains(PageFlags::CODE) {
            Passage::NoCode
        } else if self.coherence.protocol().skips(source) {
            Passage::Unchecked
        } else {
            Passage::Checked
        }
    }

    /// A store that takes the slow path only because its page is watched: what the fast path would
    /// have done, with a look at it.
    pub(in crate::runtime) fn commit_plain(
        &mut self,
        vcpu: u8,
        linear: u64,
        paddr: u64,
        data: &[u8],
    ) -> bool {
        let Some(page) = self.memory.ram.page_index(paddr) else {
            return false;
        };
        self.acquire(vcpu, page, HandOffKind::Write);
        self.seen(vcpu, Seen::Write, paddr, data.len());
        self.memory.pages.mark_dirty(page);
        let commit = Commit {
            agent: Agent::Vcpu(vcpu),
            linear: Some(linear),
            late: None,
            passage: if self.memory.pages.info[page].flags.contains(PageFlags::CODE) {
                Passage::Unguarded
            } else {
                Passage::NoCode
            },
        };
        if self.memory.pages.info[page]
            .flags
            .contains(PageFlags::LOGGED)
        {
            self.log_store(&commit, page, paddr, data);
        }
        self.log_write(&commit, paddr, data);
        self.memory.put(page, paddr, data);
        self.stops.watched(paddr, data.len() as u64)
    }

    /// Removes the blocks that were made from any of these bytes, as far as the protocol finds them.
    /// Tells whether the running one is among them and must end.
    fn invalidate(&mut self, writer: &Writer, page: usize, paddr: u64, len: usize) -> bool {
        let lines = line_mask(paddr, len as u64);
        if self.memory.pages.info[page].code_lines & lines == 0 {
            return false;
        }
        let hit: Vec<BlockId> = self
            .cache
            .blocks
            .in_page(page)
            .iter()
            .copied()
            .filter(|&id| {
                let found_by_address = !self.coherence.protocol().virtual_keyed
                    || writer.linear.is_none_or(|l| {
                        let block = self.cache.blocks.get(id);
                        let end = block
                            .rip
                            .wrapping_add(block.bytes.len() as u64)
                            .wrapping_sub(1);
                        [block.rip, end]
                            .iter()
                            .any(|at| at >> PAGE_SHIFT == l >> PAGE_SHIFT)
                    });
                found_by_address
                    && self
                        .tracked_ranges(id)
                        .iter()
                        .flatten()
                        .any(|&(start, size)| paddr < start + size && start < paddr + len as u64)
            })
            .collect();
        let mut stop = false;
        for id in hit {
            let serial = self.cache.blocks.get(id).serial;
            let by = writer.agent.number();
            let event = Observed::Invalidate {
                serial,
                by,
                paddr,
                len: len as u32,
            };
            self.observers.note(self.clock.icount(), event);
            let running = writer.running == Some(id);
            stop |= running;
            self.remove_block(id, running && self.coherence.protocol().same_block_ignored);
        }
        self.recount_code_lines(page);
        stop
    }

    /// What a page's remaining blocks still need guarded.
    fn recount_code_lines(&mut self, page: usize) {
        let start = self.memory.ram.page_address(page);
        let mut lines = 0;
        for &id in self.cache.blocks.in_page(page) {
            for (at, len) in self.cache.blocks.get(id).ranges() {
                if at & !PAGE_MASK == start {
                    lines |= line_mask(at, len);
                }
            }
        }
        if self.coherence.protocol().guard_first {
            let fetches = self
                .progress
                .iter()
                .filter_map(|p| p.under_way().fetched.as_ref());
            for (at, len) in fetches.flat_map(Fetched::ranges).flatten() {
                if at & !PAGE_MASK == start {
                    lines |= line_mask(at, len);
                }
            }
        }
        let info = &mut self.memory.pages.info[page];
        info.code_lines = lines;
        if lines == 0 {
            info.flags -= PageFlags::CODE;
        }
    }

    /// RAM pages in which a block is listed.
    pub(in crate::runtime) fn listed_pages(&self, id: BlockId) -> impl Iterator<Item = usize> {
        self.tracked_ranges(id)
            .map(|range| self.memory.ram.page_index(range?.0))
            .into_iter()
            .flatten()
    }

    /// `runs_on`: what is left of the block is still going to be executed by the running vCPU.
    fn remove_block(&mut self, id: BlockId, runs_on: bool) {
        self.observers.stats.blocks_invalidated += 1;
        let pages = self.listed_pages(id);
        if self.coherence.protocol().chain_kept {
            // Out of the tables, but whoever knows the code still gets there. Its page may have no
            // guard any more, so that nothing but its entry can tell whether it is stale.
            self.cache.retire(id, pages);
            self.check_entries(id);
            return;
        }
        self.unreach(id);
        self.cache.remove(id, pages, runs_on);
        // The store that removes it may go back into code.
        self.cache.settle();
        for each in &mut self.progress {
            each.leave_removed(id);
        }
    }

    /// Takes a block out of the caches that lead to its code without asking.
    pub(in crate::runtime) fn unreach(&mut self, id: BlockId) {
        if let Some((rip, code)) = self.cache.unreach(id) {
            self.vcpus.mmus().for_each(|mmu| mmu.forget_jump(rip, code));
        }
    }

    /// Whether memory no longer holds the bytes that a block was made from.
    pub fn is_stale(&self, id: BlockId) -> bool {
        let block = self.cache.blocks.get(id);
        let mut rest = &block.bytes[..];
        block.ranges().any(|(at, len)| {
            let (here, next) = rest.split_at(len as usize);
            rest = next;
            let offset = (at & PAGE_MASK) as usize;
            self.memory.ram.page_index(at).is_some_and(|page| {
                self.memory.ram.page(page)[offset..offset + here.len()] != *here
            })
        })
    }

    /// Marks the blocks that a write has made wrong and that the protocol has left in place.
    fn mark_stale(&mut self, page: usize, paddr: u64, len: u64) {
        let start = self.memory.ram.page_address(page);
        let mut ids: Vec<BlockId> = if self.coherence.protocol().second_page_untracked {
            self.cache.blocks.crossing_into(start)
        } else {
            Vec::new()
        };
        ids.extend_from_slice(self.cache.blocks.in_page(page));
        ids.extend(self.cache.unlisted());
        for id in ids {
            let block = self.cache.blocks.get(id);
            let touched = block
                .ranges()
                .any(|(at, n)| paddr < at + n && at < paddr + len);
            if touched && !block.stale.marked && self.is_stale(id) {
                self.mark(id, false);
            }
        }
    }

    /// Whether to look for stale blocks at all. Without, the run is the same, and no stale block is reported.
    pub fn detect_stale(&mut self, on: bool) {
        self.coherence.set_detects(on);
    }

    /// Marks one block, so that its entries are checked from now on.
    pub(in crate::runtime) fn mark(&mut self, id: BlockId, born: bool) {
        self.observers.stats.stale_blocks += 1;
        let icount = self.icount();
        let block = self.cache.blocks.get_mut(id);
        block.stale.marked = true;
        let serial = block.serial;
        let event = Observed::Stale {
            serial,
            vcpu: self.slice.vcpu(),
            born,
        };
        self.observers.note(icount, event);
        self.check_entries(id);
    }

    /// Counts an entry of a stale block, and tells of the first one.
    pub(in crate::runtime) fn note_stale_entry(&mut self, vcpu: u8, id: BlockId) {
        self.observers.stats.stale_entries += 1;
        if !self.cache.blocks.get(id).stale.marked {
            // The write did not come by where blocks are looked at.
            self.mark(id, false);
        }
        let block = self.cache.blocks.get_mut(id);
        if !std::mem::replace(&mut block.stale.entered, true) {
            let serial = block.serial;
            self.observers
                .note(self.clock.icount(), Observed::StaleEntry { serial, vcpu });
        }
    }

    /// Looks whether memory holds the breakpoint instruction that is being executed; tells of the
    /// block's first one that it does not hold.
    pub(in crate::runtime) fn note_int3(&mut self, vcpu: u8, length: usize) {
        let (id, offset) = self.clock.position();
        if !self.coherence.detects() || self.holds(id, usize::from(offset), length) {
            return;
        }
        self.observers.stats.stale_int3s += 1;
        let block = self.cache.blocks.get_mut(id);
        if !std::mem::replace(&mut block.stale.int3, true) {
            let serial = block.serial;
            self.observers
                .note(self.clock.icount(), Observed::StaleInt3 { serial, vcpu });
        }
    }

    /// How many of the next instructions memory holds, in a block that runs on after a store of its own
    /// has made it stale; `None` when that does not matter, or has been told.
    pub(in crate::runtime) fn still_right(&self, from: Resume) -> Option<usize> {
        let block = self.cache.blocks.get(from.block);
        if !self.cache.overruns(from.block) || !block.stale.marked || block.stale.entered {
            return None;
        }
        let memory = self.memory_of(block);
        let mut wrong = (0..memory.len())
            .filter(|&at| memory[at] != block.bytes[at])
            .map(|at| self.translator.index_after(block, at) - 1);
        wrong.find_map(|index| index.checked_sub(from.index))
    }

    /// Makes every entry of a block come through a check from now on.
    fn check_entries(&mut self, id: BlockId) {
        let block = self.cache.blocks.get_mut(id);
        if block.stale.checked || !self.coherence.detects() {
            return;
        }
        block.stale.checked = true;
        if block.code == 0 {
            return;
        }
        // Whoever jumps to the old code is sent on to the new.
        let (old, traps) = (block.place.offset, block.traps.clone());
        let was_running = self.cache.has_code_at(old);
        self.redirect(id, old);
        if was_running {
            self.cache.keep_former(id, old, traps);
        }
    }

    /// Links a block whose bytes have been fetched.
    pub(in crate::runtime) fn link(&mut self, vcpu: u8, fetched: &Fetched) -> BlockId {
        let Fetched {
            rip,
            linear,
            paddr,
            second,
            mode,
            ref bytes,
            count,
            ..
        } = *fetched;
        if let Some(id) = self.cache.blocks.find(paddr, second, rip, mode) {
            return id;
        }
        if self.cache.is_full(self.translator.capacity()) {
            self.flush_blocks(vcpu);
        }
        self.observers.stats.blocks_translated += 1;
        self.observers.stats.instructions_translated += u64::from(count);
        let tracked = if self.coherence.protocol().second_page_untracked {
            None
        } else {
            second
        };
        let pages = [Some(paddr), tracked].map(|at| self.memory.ram.page_index(at?));
        let id = self.cache.blocks.insert(
            rip,
            paddr,
            second,
            mode,
            bytes,
            count,
            pages.into_iter().flatten(),
        );
        self.guard(id);
        let linked_at = self.icount();
        let block = self.cache.blocks.get_mut(id);
        block.made.by = vcpu;
        block.made.fetched_at = fetched.icount;
        block.made.linked_at = linked_at;
        let serial = block.serial;
        if fetched.icount == self.icount() {
            self.note_fetch(vcpu, fetched, Some(serial));
        }
        let len = bytes.len() as u16;
        let digest = xxh3_64(bytes) as u32;
        let event = Observed::Link {
            serial,
            vcpu,
            rip: linear,
            paddr,
            len,
            mode: mode.0,
            digest,
        };
        self.observers.note(self.clock.icount(), event);
        if self.coherence.detects() {
            // Bytes that were read just now are those of memory.
            if fetched.icount != linked_at && self.is_stale(id) {
                self.mark(id, true);
            } else if second.is_some() && self.coherence.protocol().second_page_untracked
                || self
                    .memory
                    .ram
                    .page_index(paddr)
                    .is_some_and(|p| self.coherence.is_unguarded(p))
            {
                self.check_entries(id);
            }
        }
        id
    }

    /// Tells of a fetch.
    pub(in crate::runtime) fn note_fetch(
        &mut self,
        vcpu: u8,
        fetched: &Fetched,
        serial: Option<u64>,
    ) {
        let event = Observed::Fetch {
            serial,
            vcpu,
            rip: fetched.linear,
            paddr: fetched.paddr,
            len: fetched.bytes.len() as u16,
            mode: fetched.mode.0,
            digest: xxh3_64(&fetched.bytes) as u32,
        };
        self.observers.note(fetched.icount, event);
    }

    /// Commits a store that was checked before its vCPU was switched out.
    pub(in crate::runtime) fn commit_late(&mut self, vcpu: u8, store: &Uncommitted) {
        let commit = Commit {
            agent: Agent::Vcpu(vcpu),
            linear: Some(store.linear),
            late: Some(self.progress[usize::from(vcpu)].checked_store()),
            passage: Passage::Late,
        };
        self.commit(&commit, store.paddr, &store.data);
        if store.emptied {
            if let Some(page) = self.memory.ram.page_index(store.paddr) {
                let unguard = Unguard {
                    linear: store.linear,
                    mmu: store.mmu,
                    page,
                };
                self.drop_guard(vcpu, unguard);
            }
        }
    }

    /// Looks for the blocks that a store made wrong before its vCPU was switched out.
    pub(in crate::runtime) fn check_late(&mut self, vcpu: u8, store: &Unchecked) {
        let writer = Writer {
            agent: Agent::Vcpu(vcpu),
            source: store.source,
            linear: Some(store.linear),
            running: None,
        };
        let checked = self.check(writer, store.paddr, store.len);
        if !checked.emptied || !self.coherence.protocol().unguard_window {
            return;
        }
        if let Some(page) = self.memory.ram.page_index(store.paddr) {
            let unguard = Unguard {
                linear: store.linear,
                mmu: store.mmu,
                page,
            };
            self.drop_guard(vcpu, unguard);
        }
    }

    /// Drops the guard of a page in one TLB entry, without looking whether it is needed again.
    pub(in crate::runtime) fn drop_guard(&mut self, vcpu: u8, unguard: Unguard) {
        let Unguard { linear, mmu, page } = unguard;
        let coded = self.memory.pages.info[page].flags.contains(PageFlags::CODE);
        if !self.memory.may_write(page, vcpu) {
            return;
        }
        let tlb = &mut self.vcpus.mmu_mut(usize::from(vcpu)).tlb;
        if !tlb.unguard(mmu, linear, page, coded) {
            return;
        }
        if coded {
            self.coherence.note_unguarded(page);
            for id in self.cache.blocks.in_page(page).to_vec() {
                self.check_entries(id);
            }
        }
    }
}
