//! A vCPU's translations for instruction fetch, and the jump cache's entries that rest on them.
//!
//! Code that runs chained or through the jump cache fetches nothing, so how often the dispatcher is asked
//! depends on what host code happens to exist. What it does when asked must not: page walks set accessed
//! bits and make table pages change hands. Hence one rule: **the jump cache leads only into pages that
//! are in this table.** Whatever takes a page out (eviction, a flush, another vCPU's write to the
//! page) takes its jumps along, so the next way into the page leads through the dispatcher, at a moment
//! that is a function of the guest's run. Asking more often than that finds the page here, and does nothing.
//!
//! A flush takes pages out, and mostly the same pages come back with the next switch of processes. So
//! their jumps only fall asleep: when a walk finds the same page again at the same address, they wake.

use crate::memory::tlb::Tlb;
use crate::memory::PAGE_SHIFT;
use crate::saved::{LoadError, Reader, Writer};
use crate::translate::layout::{jump_index, Jumps, JUMP_BITS, NO_KEY};
use crate::translate::mode::Mode;

const SLOTS: usize = 1024;
const JUMPS: usize = 1 << JUMP_BITS;
/// End of a chain of jumps.
const NONE: u16 = u16::MAX;
/// Marks a `previous` that is a slot of the table and not a jump.
const HEAD: u16 = 1 << 15;

#[derive(Clone, Copy)]
struct FetchEntry {
    /// Virtual page number, with the privilege in the top bit; `u64::MAX` is nothing.
    tag: u64,
    /// The translation has been flushed; only the jumps are still of use.
    asleep: bool,
    /// Physical address of the page.
    page: u64,
    /// log2 of the size of the guest's page.
    shift: u8,
    global: bool,
    /// The slot stands in `local` or in `others`, whatever it holds now.
    in_local: bool,
    in_others: bool,
    /// First jump-cache entry that leads into the page.
    jumps: u16,
}

/// Turned over in the key of a jump that is asleep: no canonical pc has such a key.
const ASLEEP: u64 = 1 << 62;

const NOTHING: FetchEntry = FetchEntry {
    tag: u64::MAX,
    asleep: false,
    page: 0,
    shift: 0,
    global: false,
    in_local: false,
    in_others: false,
    jumps: NONE,
};

/// A translation for fetches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchPage {
    /// Physical address of the 4 KiB page.
    pub page: u64,
    /// log2 of the size of the guest's page.
    pub shift: u8,
    /// Survives a CR3 write.
    pub global: bool,
}

/// Direct-mapped by virtual page.
pub struct FetchTlb {
    entries: Vec<FetchEntry>,
    /// Slots that a flush of non-global translations has to look at, and those that one of the global ones has to.
    local: Vec<u16>,
    others: Vec<u16>,
    /// Neighbours in the chain of a page's jumps, by jump-cache index.
    next: Vec<u16>,
    previous: Vec<u16>,
}

impl Default for FetchTlb {
    fn default() -> Self {
        Self {
            entries: vec![NOTHING; SLOTS],
            local: Vec::new(),
            others: Vec::new(),
            next: vec![NONE; JUMPS],
            previous: vec![NONE; JUMPS],
        }
    }
}

fn tag(linear: u64, user: bool) -> u64 {
    linear >> PAGE_SHIFT | u64::from(user) << 63
}

fn slot_of(tag: u64) -> usize {
    tag as usize % SLOTS
}

impl FetchTlb {
    /// Physical page address for a fetch from `linear`.
    #[inline]
    pub fn get(&self, linear: u64, user: bool) -> Option<u64> {
        let tag = tag(linear, user);
        let entry = &self.entries[slot_of(tag)];
        (entry.tag == tag && !entry.asleep).then_some(entry.page)
    }

    /// Takes a jump out of its page's chain.
    #[inline]
    fn unchain(&mut self, jump: usize) {
        let (previous, next) = (self.previous[jump], self.next[jump]);
        if previous == NONE {
            return;
        }
        if previous & HEAD != 0 {
            self.entries[usize::from(previous & !HEAD)].jumps = next;
        } else {
            self.next[usize::from(previous)] = next;
        }
        if next != NONE {
            self.previous[usize::from(next)] = previous;
        }
        self.previous[jump] = NONE;
    }

    #[inline]
    fn chain(&mut self, slot: usize, jump: usize) {
        let first = std::mem::replace(&mut self.entries[slot].jumps, jump as u16);
        self.next[jump] = first;
        self.previous[jump] = HEAD | slot as u16;
        if first != NONE {
            self.previous[usize::from(first)] = jump as u16;
        }
    }
}

/// The translations that a vCPU keeps: of data accesses, of fetches, and of jumps.
#[repr(C, align(64))]
pub struct Mmu {
    pub tlb: Tlb,
    pub jumps: Jumps,
    pub fetch: FetchTlb,
}

impl Mmu {
    /// Remembers a translation for fetches.
    pub(in crate::runtime) fn remember_fetch(&mut self, linear: u64, user: bool, found: FetchPage) {
        let tag = tag(linear, user);
        let slot = slot_of(tag);
        let entry = &self.fetch.entries[slot];
        if entry.asleep && entry.tag == tag && entry.page == found.page {
            self.turn_jumps(slot);
        } else {
            self.forget_fetch(slot);
        }
        let entry = &mut self.fetch.entries[slot];
        entry.asleep = false;
        entry.tag = tag;
        entry.page = found.page;
        entry.shift = found.shift;
        entry.global = found.global;
        let (listed, list) = if found.global {
            (&mut entry.in_others, &mut self.fetch.others)
        } else {
            (&mut entry.in_local, &mut self.fetch.local)
        };
        if !std::mem::replace(listed, true) {
            list.push(slot as u16);
        }
    }

    /// Puts the jumps into a page to sleep, or wakes them.
    fn turn_jumps(&mut self, slot: usize) {
        let mut jump = self.fetch.entries[slot].jumps;
        while jump != NONE {
            let at = usize::from(jump);
            self.jumps.keys[at] ^= ASLEEP;
            jump = self.fetch.next[at];
        }
    }

    /// Takes a translation out, and the jumps into its page.
    fn forget_fetch(&mut self, slot: usize) {
        let entry = &mut self.fetch.entries[slot];
        entry.tag = u64::MAX;
        let mut jump = std::mem::replace(&mut entry.jumps, NONE);
        while jump != NONE {
            let at = usize::from(jump);
            self.jumps.keys[at] = NO_KEY;
            self.fetch.previous[at] = NONE;
            jump = self.fetch.next[at];
        }
    }

    /// Lets jumps to `rip` in a mode go straight to `code`. The page must be known for fetches.
    #[inline]
    pub(in crate::runtime) fn remember_jump(
        &mut self,
        linear: u64,
        rip: u64,
        mode: Mode,
        code: u64,
    ) {
        let tag = tag(linear, mode.user());
        let slot = slot_of(tag);
        let entry = &self.fetch.entries[slot];
        if entry.tag != tag || entry.asleep {
            return;
        }
        let jump = jump_index(rip);
        self.fetch.unchain(jump);
        self.jumps.keys[jump] = rip ^ mode.key();
        self.jumps.codes[jump] = code;
        self.fetch.chain(slot, jump);
    }

    /// Where jumps to `rip` in a mode lead, if that is remembered.
    #[inline]
    pub(in crate::runtime) fn known_jump(&self, rip: u64, mode: Mode) -> Option<u64> {
        let jump = jump_index(rip);
        (self.jumps.keys[jump] == rip ^ mode.key()).then_some(self.jumps.codes[jump])
    }

    /// Forgets the jump to `code`, which is that of a block at `rip`.
    pub(in crate::runtime) fn forget_jump(&mut self, rip: u64, code: u64) {
        let jump = jump_index(rip);
        if self.jumps.codes[jump] == code && self.jumps.keys[jump] != NO_KEY {
            self.jumps.keys[jump] = NO_KEY;
            self.fetch.unchain(jump);
        }
    }

    /// Sends the jump to a block at `rip` to its new code.
    pub(in crate::runtime) fn move_jump(&mut self, rip: u64, from: u64, to: u64) {
        let code = &mut self.jumps.codes[jump_index(rip)];
        if *code == from {
            *code = to;
        }
    }

    /// Forgets where host code is.
    pub(in crate::runtime) fn clear_jumps(&mut self) {
        self.jumps.keys.fill(NO_KEY);
        self.jumps.codes.fill(0);
        self.fetch.previous.fill(NONE);
        for entry in &mut self.fetch.entries {
            entry.jumps = NONE;
        }
    }

    /// Forgets translations for fetches: all, or all but the global ones. Costs what there is to forget.
    pub(in crate::runtime) fn flush_fetches(&mut self, keep_global: bool) {
        let mut local = std::mem::take(&mut self.fetch.local);
        for slot in local.drain(..).map(usize::from) {
            self.fetch.entries[slot].in_local = false;
            self.send_to_sleep(slot, false);
        }
        self.fetch.local = local;
        if keep_global {
            return;
        }
        let mut others = std::mem::take(&mut self.fetch.others);
        for slot in others.drain(..).map(usize::from) {
            self.fetch.entries[slot].in_others = false;
            self.send_to_sleep(slot, true);
        }
        self.fetch.others = others;
    }

    /// Forgets the translation in a slot, if it is one of the global ones, or of the others, as asked; its jumps
    /// fall asleep.
    fn send_to_sleep(&mut self, slot: usize, global: bool) {
        let entry = &mut self.fetch.entries[slot];
        if entry.global == global && entry.tag != u64::MAX && !entry.asleep {
            entry.asleep = true;
            self.turn_jumps(slot);
        }
    }

    /// INVLPG: forgets the translations of the guest's page that holds an address.
    pub(in crate::runtime) fn flush_fetch_page(&mut self, linear: u64) {
        // Shifting the page number back drops the privilege bit.
        self.forget_fetches(|e| (e.tag << PAGE_SHIFT ^ linear) >> e.shift == 0);
    }

    /// Forgets the translations that lead to a physical page.
    pub(in crate::runtime) fn revoke_fetches(&mut self, page: u64) {
        self.forget_fetches(|e| e.page == page);
    }

    fn forget_fetches(&mut self, wanted: impl Fn(&FetchEntry) -> bool) {
        for slot in 0..SLOTS {
            let entry = &self.fetch.entries[slot];
            if entry.tag != u64::MAX && wanted(entry) {
                self.forget_fetch(slot);
            }
        }
    }

    /// Writes the translations for fetches. Those that are asleep are none.
    pub(in crate::runtime) fn save_fetches(&self, w: &mut Writer) {
        let known = |e: &&FetchEntry| e.tag != u64::MAX && !e.asleep;
        w.varint(self.fetch.entries.iter().filter(known).count() as u64);
        for entry in self.fetch.entries.iter().filter(known) {
            w.bool(entry.tag >> 63 != 0);
            w.varint(entry.tag & !(1 << 63));
            w.varint(entry.page >> PAGE_SHIFT);
            w.u8(entry.shift);
            w.bool(entry.global);
        }
    }

    /// Replaces all translations for fetches.
    ///
    /// # Errors
    /// For addresses that do not exist.
    pub(in crate::runtime) fn load_fetches(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        self.flush_fetches(false);
        self.forget_fetches(|_| true);
        for _ in 0..r.count("number of fetch translations", SLOTS)? {
            let user = r.bool()?;
            let (linear, page) = (r.varint()?, r.varint()?);
            let found = FetchPage {
                page: page << PAGE_SHIFT,
                shift: r.u8()?,
                global: r.bool()?,
            };
            if linear >> 52 != 0 || page >> 40 != 0 || !(12..=30).contains(&found.shift) {
                return Err(LoadError::BadValue {
                    field: "fetch translation",
                    value: linear,
                });
            }
            self.remember_fetch(linear << PAGE_SHIFT, user, found);
        }
        Ok(())
    }
}
