//! The engine's part of a checkpoint: vCPUs and what they have under way, translations, pages, blocks.
//!
//! Host code, chains, jump caches and counters are not state and are not kept; host addresses are
//! computed anew. A block's source bytes are kept only where memory no longer holds them.
//!
//! What is restored may come from a hostile trace. So every index is checked, and every block is cut
//! again from its bytes, which is what later steps rely on.

use crate::cpu::{check, save};
use crate::memory::pages::PageFlags;
use crate::memory::tlb::MmuIndex;
use crate::memory::{PAGE_MASK, PAGE_SIZE};
use crate::runtime::cache::{Block, BlockId, Made, Staleness};
use crate::runtime::engine::Engine;
use crate::runtime::guest_memory::line_mask;
use crate::runtime::instruction::CurrentInstruction;
use crate::runtime::progress::{Progress, Resume};
use crate::runtime::protocol::Source;
use crate::runtime::windows::{Fetched, Unchecked, Uncommitted, UnderWay, Unguard};
use crate::saved::{LoadError, Reader, Writer};
use crate::translate::decode::classify::shape::{self, Shape};
use crate::translate::decode::offered::Offered;
use crate::translate::mode::Mode;

/// Instruction counts and nanoseconds stay below this, so that sums of them cannot overflow.
const MOST_TIME: u64 = 1 << 62;
/// Physical addresses stay below this (SDM vol. 3A, section 4.1.4).
const MOST_ADDRESS: u64 = 1 << 52;
/// Bytes of the longest instruction.
const LONGEST: usize = 15;
/// Bytes of the largest store.
const WIDEST: usize = 64;

const MARKED: u8 = 1;
const CHECKED: u8 = 2;
const ENTERED_STALE: u8 = 4;
const OWN_BYTES: u8 = 8;
const STALE_INT3: u8 = 16;

/// What becomes of the blocks that exist when a state is restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocks {
    /// All are made again from the state, which may come from anywhere.
    Anew,
    /// Those that are also in the state, which this engine was in, stay with their host code.
    Kept,
}

pub(super) fn bad<T>(field: &'static str, value: u64) -> Result<T, LoadError> {
    Err(LoadError::BadValue { field, value })
}

fn moment(r: &mut Reader<'_>) -> Result<u64, LoadError> {
    match r.varint()? {
        at if at < MOST_TIME => Ok(at),
        at => bad("moment", at),
    }
}

fn maybe(w: &mut Writer, value: Option<u64>) {
    w.bool(value.is_some());
    if let Some(value) = value {
        w.varint(value);
    }
}

fn maybe_moment(r: &mut Reader<'_>) -> Result<Option<u64>, LoadError> {
    r.bool()?.then(|| moment(r)).transpose()
}

fn mmu(r: &mut Reader<'_>) -> Result<MmuIndex, LoadError> {
    Ok(match r.u8()? {
        0 => MmuIndex::Supervisor,
        1 => MmuIndex::User,
        2 => MmuIndex::SupervisorAc,
        other => return bad("kind of access", other.into()),
    })
}

/// Where a block is and what it looks like, apart from its bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub rip: u64,
    pub paddr: u64,
    pub second: Option<u64>,
    pub mode: Mode,
    len: usize,
    count: u8,
}

impl From<&Block> for Place {
    fn from(block: &Block) -> Self {
        Self {
            rip: block.rip,
            paddr: block.paddr,
            second: block.second,
            mode: block.mode,
            len: block.bytes.len(),
            count: block.count,
        }
    }
}

impl Place {
    fn save(&self, w: &mut Writer, before: &Self) {
        w.delta(before.rip, self.rip);
        let bias = |p: &Self| p.paddr.wrapping_sub(p.rip);
        w.delta(bias(before), bias(self));
        maybe(w, self.second);
        w.varint(u64::from(self.mode.0));
        w.varint(self.len as u64);
        w.u8(self.count);
    }

    fn load(r: &mut Reader<'_>, before: &Self) -> Result<Self, LoadError> {
        let rip = r.delta(before.rip)?;
        let bias = r.delta(before.paddr.wrapping_sub(before.rip))?;
        let second = r.bool()?.then(|| r.varint()).transpose()?;
        let place = Self {
            rip,
            paddr: rip.wrapping_add(bias),
            second,
            mode: Mode(r.varint()?.try_into().unwrap_or(u32::MAX)),
            len: r.index("length of a block", PAGE_SIZE as usize + LONGEST)?,
            count: r.u8()?,
        };
        place.check()?;
        Ok(place)
    }

    /// What precedes the first block.
    const START: Self = Self {
        rip: 0,
        paddr: 0,
        second: None,
        mode: Mode(0),
        len: 0,
        count: 0,
    };

    /// Whether a block can be here at all.
    fn check(&self) -> Result<(), LoadError> {
        let room = (PAGE_SIZE - (self.paddr & PAGE_MASK)) as usize;
        let fits = match self.second {
            None => self.len <= room,
            Some(second) => {
                let beyond = self.len.saturating_sub(room);
                second < MOST_ADDRESS && second & PAGE_MASK == 0 && (1..=LONGEST).contains(&beyond)
            }
        };
        if self.len == 0 || !fits || self.paddr >= MOST_ADDRESS {
            return bad("place of a block", self.paddr);
        }
        let top = if self.mode.code64() {
            u64::MAX
        } else {
            u64::from(u32::MAX)
        };
        if self.rip > top || self.rip.checked_add(self.len as u64 - 1).is_none() {
            return bad("address of a block", self.rip);
        }
        if !self.mode.is_possible() {
            return bad("mode of a block", u64::from(self.mode.0));
        }
        Ok(())
    }

    /// Whether these bytes make a block of this many instructions; gives their lengths.
    fn cut(&self, bytes: &[u8], offered: &Offered, limit: usize) -> Result<Vec<usize>, LoadError> {
        let whole = self.second.is_some();
        let count = usize::from(self.count);
        if count <= limit {
            if let Shape::Block(insns) =
                shape::cut(bytes, self.rip, self.mode, offered, count, whole)
            {
                let lengths: Vec<usize> = insns.iter().map(|(i, _)| i.len().max(1)).collect();
                if lengths.len() == count && lengths.iter().sum::<usize>() == bytes.len() {
                    return Ok(lengths);
                }
            }
        }
        bad("number of instructions in a block", self.count.into())
    }
}

/// What a state says of one block.
pub(super) struct BlockRecord {
    pub serial: u64,
    pub place: Place,
    pub made: Made,
    pub stale: Staleness,
    /// Its source bytes, where memory holds others.
    pub bytes: Option<Vec<u8>>,
}

impl BlockRecord {
    /// What precedes the first one.
    pub const START: Self = Self {
        serial: 0,
        place: Place::START,
        made: Made {
            by: 0,
            fetched_at: 0,
            linked_at: 0,
        },
        stale: Staleness {
            marked: false,
            checked: false,
            entered: false,
            int3: false,
        },
        bytes: None,
    };

    /// Reads the next one. It may make no sense, but for its place and its moments.
    pub fn load(r: &mut Reader<'_>, before: &Self) -> Result<Self, LoadError> {
        let serial = r.delta(before.serial)?;
        let place = Place::load(r, &before.place)?;
        let by = r.u8()?;
        let fetched_at = r.delta(before.made.linked_at)?;
        let linked_at = r.delta(fetched_at)?;
        let flags = r.u8()?;
        if flags >> 5 != 0 || fetched_at.max(linked_at) >= MOST_TIME {
            return bad("block", serial);
        }
        let has = |flag| flags & flag != 0;
        Ok(Self {
            serial,
            place,
            made: Made {
                by,
                fetched_at,
                linked_at,
            },
            stale: Staleness {
                marked: has(MARKED),
                checked: has(CHECKED),
                entered: has(ENTERED_STALE),
                int3: has(STALE_INT3),
            },
            bytes: has(OWN_BYTES).then(|| r.bytes()).transpose()?,
        })
    }
}

fn save_under_way(w: &mut Writer, steps: &UnderWay) {
    w.bool(steps.fetched.is_some());
    if let Some(f) = &steps.fetched {
        let place = Place {
            rip: f.rip,
            paddr: f.paddr,
            second: f.second,
            mode: f.mode,
            len: f.bytes.len(),
            count: f.count,
        };
        place.save(w, &Place::START);
        w.u64(f.linear);
        w.bytes(&f.bytes);
        w.varint(f.icount);
    }
    w.bool(steps.uncommitted.is_some());
    if let Some(store) = &steps.uncommitted {
        w.varint(store.paddr);
        w.u64(store.linear);
        w.u8(store.mmu as u8);
        w.bytes(&store.data);
        w.bool(store.emptied);
    }
    w.bool(steps.unguard.is_some());
    if let Some(unguard) = &steps.unguard {
        w.u64(unguard.linear);
        w.u8(unguard.mmu as u8);
        w.varint(unguard.page as u64);
    }
}

/// Only protocols that commit first have it.
fn save_unchecked(w: &mut Writer, unchecked: Option<&Unchecked>) {
    w.bool(unchecked.is_some());
    if let Some(store) = unchecked {
        w.varint(store.paddr);
        w.u64(store.linear);
        w.u8(store.mmu as u8);
        w.varint(store.len as u64);
        w.u8(store.source as u8);
    }
}

fn load_unchecked(r: &mut Reader<'_>) -> Result<Option<Unchecked>, LoadError> {
    if !r.bool()? {
        return Ok(None);
    }
    let paddr = r.varint()?;
    let store = Unchecked {
        paddr,
        linear: r.u64()?,
        mmu: mmu(r)?,
        len: r.index("length of a store that is not checked", WIDEST + 1)?,
        source: match r.u8()? {
            0 => Source::Store,
            1 => Source::Modify,
            2 => Source::Helper,
            other => return bad("origin of a store that is not checked", other.into()),
        },
    };
    if paddr >= MOST_ADDRESS || (paddr & PAGE_MASK) + store.len as u64 > PAGE_SIZE {
        return bad("store that is not checked", paddr);
    }
    Ok(Some(store))
}

fn load_under_way(
    r: &mut Reader<'_>,
    pages: usize,
    offered: &Offered,
    limit: usize,
) -> Result<UnderWay, LoadError> {
    let mut steps = UnderWay::default();
    if r.bool()? {
        let place = Place::load(r, &Place::START)?;
        let linear = r.u64()?;
        let bytes = r.bytes()?;
        place.cut(&bytes, offered, limit)?;
        steps.fetched = Some(Fetched {
            rip: place.rip,
            linear,
            paddr: place.paddr,
            second: place.second,
            mode: place.mode,
            bytes,
            count: place.count,
            icount: moment(r)?,
        });
    }
    if r.bool()? {
        let paddr = r.varint()?;
        let store = Uncommitted {
            paddr,
            linear: r.u64()?,
            mmu: mmu(r)?,
            data: r.bytes()?,
            emptied: r.bool()?,
        };
        let end = (paddr & PAGE_MASK) + store.data.len() as u64;
        if paddr >= MOST_ADDRESS || store.data.len() > WIDEST || end > PAGE_SIZE {
            return bad("store that is not committed", paddr);
        }
        steps.uncommitted = Some(store);
    }
    if r.bool()? {
        steps.unguard = Some(Unguard {
            linear: r.u64()?,
            mmu: mmu(r)?,
            page: r.index("page to be unguarded", pages)?,
        });
    }
    Ok(steps)
}

impl Engine {
    /// Why checkpoints of this engine would not hold all of its state, if that is so.
    pub fn keeps_more(&self) -> Option<&'static str> {
        self.coherence
            .protocol()
            .chain_kept
            .then_some("the block protocol chain-kept makes state of jumps between blocks")
    }

    /// Writes the state. The engine does not run, and digests have just been taken.
    pub fn save(&self, w: &mut Writer) {
        w.varint(self.icount());
        w.varint(self.skipped_ns());
        maybe(w, self.slice.uncounted_fault());
        w.u8(self.slice.vcpu());
        self.memory.pages.save(w, &self.memory.ram);
        self.save_blocks(w);
        self.coherence.save(w);
        for n in 0..self.vcpus.count() {
            w.bytes(&save::save(self.cpu(n)));
            let mmu = self.vcpus.mmu(n);
            mmu.tlb.save(w);
            mmu.save_fetches(w);
            maybe(w, self.progress[n].interrupted_at());
            maybe(w, self.progress[n].serialised_at());
            let (checked, rip) = self.progress[n].checked_store();
            w.varint(checked);
            w.u64(rip);
            save_under_way(w, self.progress[n].under_way());
            if self.coherence.protocol().commit_first {
                save_unchecked(w, self.progress[n].under_way().unchecked.as_ref());
            }
            // Before the first instruction of a block is no place inside: a vCPU is there when a debugger has stopped
            // it between two iterations of that instruction.
            let inside = self.inside_block(n).filter(|&(_, index)| index != 0);
            w.bool(inside.is_some());
            if let Some((serial, index)) = inside {
                w.varint(serial);
                w.varint(index as u64);
            }
        }
    }

    /// Replaces the state. RAM has its content already. After an error the engine must not be used.
    ///
    /// # Errors
    /// For a state that no engine like this one can have.
    pub fn restore(&mut self, r: &mut Reader<'_>, blocks: Blocks) -> Result<(), LoadError> {
        self.stop_everything();
        if blocks == Blocks::Anew {
            self.cache.blocks.clear();
            self.forget_code();
        }
        let vcpus = self.vcpus.count();
        self.clock.restore(moment(r)?, moment(r)?);
        self.slice.restore(maybe_moment(r)?, r.u8()?);
        self.memory.pages.load(r, &mut self.memory.ram, vcpus)?;
        match blocks {
            Blocks::Anew => self.load_blocks(r)?,
            Blocks::Kept => self.rewind_blocks(r)?,
        }
        let pages = self.memory.ram.pages();
        self.coherence.load(r, pages)?;
        for n in 0..vcpus {
            self.load_vcpu(r, n)?;
        }
        Ok(())
    }

    /// Forgets what is under way.
    fn stop_everything(&mut self) {
        self.instruction = CurrentInstruction::default();
        self.progress.iter_mut().for_each(Progress::forget_steps);
        self.cache.forget_unlisted();
        self.coherence.forget_pages();
        self.observers.forget_events();
        self.stops.forget();
        self.windows.forget();
        self.translator.forget_decoded();
    }

    fn load_vcpu(&mut self, r: &mut Reader<'_>, n: usize) -> Result<(), LoadError> {
        let pages = self.memory.ram.pages();
        let semantics = self.cpu(n).semantics;
        let state = save::restore(&r.bytes()?, semantics).map_err(|_| LoadError::BadValue {
            field: "vCPU",
            value: n as u64,
        })?;
        if let Err(field) = check::plausible(&state, n, self.translator.model().xcr0_mask) {
            return bad(field, n as u64);
        }
        let mode = Mode::of(&state);
        let rip = state.rip;
        *self.cpu_mut(n) = state;
        let ram = &self.memory.ram;
        let mmu = self.vcpus.mmu_mut(n);
        mmu.tlb
            .load(r, pages, |page| ram.page_pointer(page) as u64)?;
        mmu.load_fetches(r)?;
        let interrupted_at = maybe_moment(r)?;
        let serialised = maybe_moment(r)?;
        let checked_store = (moment(r)?, r.u64()?);
        let mut under_way = load_under_way(
            r,
            pages,
            self.translator.offered(),
            self.translator.longest(),
        )?;
        if self.coherence.protocol().commit_first {
            under_way.unchecked = load_unchecked(r)?;
        }
        self.progress[n].restore(interrupted_at, serialised, checked_store, under_way);
        if r.bool()? {
            let serial = r.varint()?;
            let index = r.varint()?;
            let resume = self.resume_in(serial, index, rip, mode)?;
            self.progress[n].stop_inside(resume);
        }
        Ok(())
    }

    /// The place in a block where a vCPU goes on; it must be where its rip is, in its mode.
    fn resume_in(
        &self,
        serial: u64,
        index: u64,
        rip: u64,
        mode: Mode,
    ) -> Result<Resume, LoadError> {
        let Some(id) = self.cache.blocks.with_serial(serial) else {
            return bad("block that a vCPU is in", serial);
        };
        let block = self.cache.blocks.get(id);
        let lengths = Place::from(block).cut(
            &block.bytes,
            self.translator.offered(),
            self.translator.longest(),
        )?;
        let inside = usize::try_from(index)
            .ok()
            .filter(|index| (1..lengths.len()).contains(index))
            .filter(|&index| {
                let offset: usize = lengths[..index].iter().sum();
                block.rip.wrapping_add(offset as u64) == rip
            })
            .filter(|_| block.mode.0 & !Mode::ONE == mode.0 & !Mode::ONE);
        match inside {
            Some(index) => Ok(Resume { block: id, index }),
            None => bad("place of a vCPU in a block", index),
        }
    }

    fn save_blocks(&self, w: &mut Writer) {
        let blocks = self.cache.blocks.iter_live();
        w.varint(self.cache.blocks.next_serial());
        w.varint(blocks.len() as u64);
        let (mut serial, mut linked) = (0, 0);
        let mut before = Place::START;
        for block in blocks {
            w.delta(serial, block.serial);
            serial = block.serial;
            let place = Place::from(block);
            place.save(w, &before);
            before = place;
            w.u8(block.made.by);
            w.delta(linked, block.made.fetched_at);
            w.delta(block.made.fetched_at, block.made.linked_at);
            linked = block.made.linked_at;
            let own = self.differs(block);
            let flags = [
                (block.stale.marked, MARKED),
                (block.stale.checked, CHECKED),
                (block.stale.entered, ENTERED_STALE),
                (own, OWN_BYTES),
                (block.stale.int3, STALE_INT3),
            ];
            w.u8(flags.iter().map(|&(on, bit)| u8::from(on) * bit).sum());
            if own {
                w.bytes(&block.bytes);
            }
        }
    }

    fn load_blocks(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        let next = r.varint()?;
        let count = r.count("number of blocks", self.translator.capacity())?;
        let mut before = BlockRecord::START;
        for n in 0..count {
            let record = BlockRecord::load(r, &before)?;
            let (serial, place) = (record.serial, &record.place);
            if serial >= next || n > 0 && serial <= before.serial {
                return bad("serial number of a block", serial);
            }
            let bytes = record.bytes.clone().unwrap_or_else(|| self.source(place));
            if bytes.len() != place.len || usize::from(record.made.by) >= self.vcpus.count() {
                return bad("block", serial);
            }
            place.cut(&bytes, self.translator.offered(), self.translator.longest())?;
            if self
                .cache
                .blocks
                .find(place.paddr, place.second, place.rip, place.mode)
                .is_some()
            {
                return bad("second block of one place", place.paddr);
            }
            let id = self.insert_record(&record, &bytes);
            if !self.is_guarded(id) {
                return bad("block on a page without code", serial);
            }
            before = record;
        }
        self.cache.blocks.set_next_serial(next);
        Ok(())
    }

    /// Adds a block with these bytes.
    pub(super) fn insert_record(&mut self, record: &BlockRecord, bytes: &[u8]) -> BlockId {
        let Place {
            rip,
            paddr,
            second,
            mode,
            count,
            ..
        } = record.place;
        let tracked = second.filter(|_| !self.coherence.protocol().second_page_untracked);
        let pages: Vec<usize> = std::iter::once(paddr)
            .chain(tracked)
            .filter_map(|at| self.memory.ram.page_index(at))
            .collect();
        self.cache.blocks.set_next_serial(record.serial);
        let id =
            self.cache
                .blocks
                .insert(rip, paddr, second, mode, bytes, count, pages.into_iter());
        let block = self.cache.blocks.get_mut(id);
        block.made = record.made;
        block.stale = record.stale;
        id
    }

    /// The bytes that memory holds where a block was made from.
    pub(super) fn source(&self, place: &Place) -> Vec<u8> {
        let mut bytes = vec![0; place.len];
        let room = (PAGE_SIZE - (place.paddr & PAGE_MASK)) as usize;
        let (first, rest) = bytes.split_at_mut(room.min(place.len));
        self.memory.ram.read(place.paddr, first);
        if let Some(second) = place.second {
            self.memory.ram.read(second, rest);
        }
        bytes
    }

    /// Whether memory holds other bytes than those that a block was made from.
    fn differs(&self, block: &Block) -> bool {
        let ram = &self.memory.ram;
        let mut rest = &block.bytes[..];
        block.ranges().any(|(at, len)| {
            let (here, next) = rest.split_at(len as usize);
            rest = next;
            let offset = (at & PAGE_MASK) as usize;
            match ram.page_index(at) {
                Some(page) => ram.page(page)[offset..offset + here.len()] != *here,
                // Absent memory reads as ones.
                None => here.iter().any(|&byte| byte != 0xff),
            }
        })
    }

    /// Whether the pages of a block say that they have code where it is.
    fn is_guarded(&self, id: BlockId) -> bool {
        self.tracked_ranges(id).iter().flatten().all(|&(at, len)| {
            self.memory.ram.page_index(at).is_none_or(|page| {
                let info = &self.memory.pages.info[page];
                let lines = line_mask(at, len);
                info.flags.contains(PageFlags::CODE) && info.code_lines & lines == lines
            })
        })
    }
}
