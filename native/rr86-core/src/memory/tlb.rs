//! The software TLB of a vCPU.
//!
//! Translated code checks an access with one subtraction and one compare:
//! `address − tag ≤ 4096 − size` holds exactly when the entry is for this page and the access does
//! not leave it. Everything special about a page (device, code, another vCPU's page, watched, clean
//! for dirty tracking) is expressed by *not* putting a tag in for that kind of access, so that it
//! takes the slow path; the fast path never grows.
//!
//! An entry keeps its translation while its tags are away, and the slow path uses it. So page walks,
//! which set accessed bits and see changed tables, come when the guest's own accesses and flushes make
//! them come: sharing, digests and watchpoints, which take tags away, do not add to them.
//!
//! Pins hold pages that translated code has found in the table and will probably want again, at fixed
//! places and with a limit instead of a tag that matches nothing: an offset is allowed if it is below.
//!
//! There is one table per kind of privilege, because what may be touched differs: user, supervisor,
//! and supervisor with SMAP suspended (RFLAGS.AC). Entries are also threaded by physical page
//! (`heads`), so that taking a page's rights away from a vCPU costs its few aliases and not a
//! scan.

use super::PAGE_SHIFT;
use crate::saved::{LoadError, Reader, Writer};

/// Which of a vCPU's tables an access uses.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmuIndex {
    Supervisor = 0,
    User = 1,
    /// Supervisor with RFLAGS.AC set while CR4.SMAP is on.
    SupervisorAc = 2,
}

/// First slot and log2 of the number of slots of each table.
pub const TABLES: [(usize, u32); 3] = [(0, 12), (4096, 12), (8192, 8)];
/// Slots of all tables together.
pub const SLOTS: usize = 8192 + 256;
const NO_SLOT: u16 = u16::MAX;

/// Bytes in a [`TlbEntry`]; translated code scales its index by this.
pub const ENTRY_SHIFT: u32 = 5;

/// One entry. A tag is the virtual page address; or, to match nothing, the same with its lowest bit
/// turned over, which is an address that has another slot.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TlbEntry {
    pub read: u64,
    pub write: u64,
    /// Host address of the page.
    pub host: u64,
    /// RAM page index.
    pub page: u32,
    /// Next slot of this vCPU that maps the same page.
    next: u16,
    /// `USED` and its like.
    pub flags: u16,
}

const USED: u16 = 1;
const GLOBAL: u16 = 2;
/// A block protocol has dropped the guard of this entry's page although the page has code.
pub const UNGUARDED: u16 = 4;
/// The slot stands in the list of that name; survives what the slot holds.
const IN_LOCAL: u16 = 8;
const IN_GLOBAL: u16 = 16;
const LISTED: u16 = IN_LOCAL | IN_GLOBAL;
/// The translation allows reads, and writes without setting D.
const MAY_READ: u16 = 32;
const MAY_WRITE: u16 = 64;
/// The guest's page is larger than 4 KiB, or than 4 MiB.
const LARGE: u16 = 128;
const HUGE: u16 = 256;
/// The guest's page is read-only, so that writes hang on CR0.WP.
const UNPROTECTED: u16 = 512;

/// What a checkpoint keeps.
const KEPT: u16 = GLOBAL | UNGUARDED | MAY_READ | MAY_WRITE | LARGE | HUGE | UNPROTECTED;

/// What turns a tag into one that matches nothing.
const AWAY: u64 = 1 << PAGE_SHIFT;

/// Bytes at the end of a page that a pin leaves to the table, so that one limit serves all sizes up to it.
pub const PIN_MARGIN: u64 = 64;
/// The limit of a pin that is in force: a smaller offset in the page is allowed.
pub const PIN_LIMIT: u64 = (1 << PAGE_SHIFT) - PIN_MARGIN + 1;
/// Pins of each kind of privilege that has any: one for the stack, the others for loops.
pub const PINS: usize = 5;

/// A page that an instruction has found in the table, for those that will probably want it again:
/// they need not compute its slot. Set by translated code; whatever takes a right away from any entry
/// takes all pins away.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Pin {
    /// Virtual page address.
    pub tag: u64,
    /// [`PIN_LIMIT`] if reads, or writes, are allowed; otherwise 0.
    pub read: u64,
    pub write: u64,
    /// Host address of the page.
    pub host: u64,
}

/// Result of a page walk that may be cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// RAM page index.
    pub page: u32,
    pub read: bool,
    pub write: bool,
    /// The page is read-only, and `write` hangs on CR0.WP.
    pub unprotected: bool,
    pub global: bool,
    /// Size in bytes of the guest's page.
    pub size: u64,
}

/// The tables of one vCPU. Translated code reads `entries` directly.
#[repr(C)]
pub struct Tlb {
    pub pins: [[Pin; PINS]; 2],
    pub entries: [TlbEntry; SLOTS],
    /// Slots that a flush of non-global translations, or of the global ones, has to look at.
    local: Vec<u16>,
    global: Vec<u16>,
    /// Head slot by RAM page index.
    heads: Vec<u16>,
    /// Some translation may allow writes to a read-only page.
    unprotected: bool,
}

impl TlbEntry {
    /// Virtual page address of the translation in `slot`.
    fn address(&self, slot: usize) -> u64 {
        let here = (slot as u64) << PAGE_SHIFT;
        self.read ^ ((self.read ^ here) & AWAY)
    }

    fn is_for(&self, slot: usize, address: u64) -> bool {
        self.flags & USED != 0 && (self.address(slot) ^ address) >> PAGE_SHIFT == 0
    }
}

fn table_of(slot: usize) -> (usize, u32) {
    if slot < TABLES[1].0 {
        TABLES[0]
    } else if slot < TABLES[2].0 {
        TABLES[1]
    } else {
        TABLES[2]
    }
}

/// Slot of a virtual address in a table.
#[inline]
pub fn slot_of(mmu: MmuIndex, address: u64) -> usize {
    let (first, bits) = TABLES[mmu as usize];
    first + ((address >> PAGE_SHIFT) as usize & ((1 << bits) - 1))
}

impl Tlb {
    /// Initialises an empty TLB in place, for a machine with `pages` pages of RAM. The structure is
    /// large, so it is never built on the stack.
    ///
    /// # Safety
    /// `this` points to memory for a `Tlb` that nothing else refers to; what it held is overwritten
    /// without being dropped.
    pub unsafe fn init(this: *mut Self, pages: usize) {
        // SAFETY: the caller owns the memory; each field is written, none is read.
        unsafe {
            (&raw mut (*this).pins).write(Default::default());
            (&raw mut (*this).local).write(Vec::new());
            (&raw mut (*this).global).write(Vec::new());
            (&raw mut (*this).heads).write(vec![NO_SLOT; pages]);
            (&raw mut (*this).unprotected).write(false);
            for slot in 0..SLOTS {
                (&raw mut (*this).entries[slot]).write(Self::empty(slot));
            }
        }
    }

    fn empty(slot: usize) -> TlbEntry {
        let tag = ((slot - table_of(slot).0) as u64) << PAGE_SHIFT ^ AWAY;
        TlbEntry {
            read: tag,
            write: tag,
            host: 0,
            page: 0,
            next: NO_SLOT,
            flags: 0,
        }
    }

    fn drop_pins(&mut self) {
        for pin in self.pins.as_flattened_mut() {
            (pin.read, pin.write) = (0, 0);
        }
    }

    /// Puts a translation in, which gives no right yet.
    pub fn insert(&mut self, mmu: MmuIndex, address: u64, host: u64, fill: &Fill) {
        self.drop_pins();
        let slot = slot_of(mmu, address);
        let tag = address >> PAGE_SHIFT << PAGE_SHIFT;
        let entry = &self.entries[slot];
        let old = entry.flags;
        let same = entry.is_for(slot, address) && entry.page == fill.page;
        let unguarded = if same { old & UNGUARDED } else { 0 };
        if old & USED != 0 {
            self.unthread(slot);
        }
        let (list, mark) = if fill.global {
            (&mut self.global, IN_GLOBAL)
        } else {
            (&mut self.local, IN_LOCAL)
        };
        if old & mark == 0 {
            list.push(slot as u16);
        }
        self.unprotected |= fill.write && fill.unprotected;
        let set = |flag: u16, on: bool| if on { flag } else { 0 };
        let flags = USED
            | old & LISTED
            | mark
            | unguarded
            | set(GLOBAL, fill.global)
            | set(MAY_READ, fill.read)
            | set(MAY_WRITE, fill.write)
            | set(UNPROTECTED, fill.write && fill.unprotected)
            | set(LARGE, fill.size > 1 << PAGE_SHIFT)
            | set(HUGE, fill.size > 1 << 22);
        let head = &mut self.heads[fill.page as usize];
        self.entries[slot] = TlbEntry {
            read: tag ^ AWAY,
            write: tag ^ AWAY,
            host,
            page: fill.page,
            next: *head,
            flags,
        };
        *head = slot as u16;
    }

    /// The translation of an address, if it is here and allows the access.
    pub fn get(&self, mmu: MmuIndex, address: u64, write: bool) -> Option<Fill> {
        let slot = slot_of(mmu, address);
        let entry = &self.entries[slot];
        let needed = if write { MAY_WRITE } else { MAY_READ };
        (entry.flags & needed != 0 && entry.is_for(slot, address)).then_some(Fill {
            page: entry.page,
            read: entry.flags & MAY_READ != 0,
            write: entry.flags & MAY_WRITE != 0,
            unprotected: entry.flags & UNPROTECTED != 0,
            global: entry.flags & GLOBAL != 0,
            size: match entry.flags & (LARGE | HUGE) {
                0 => 1 << PAGE_SHIFT,
                LARGE => 1 << 21,
                _ => 1 << 30,
            },
        })
    }

    /// Lets reads of an address, and writes if wanted, take the fast path as far as its translation
    /// allows them.
    pub fn allow(&mut self, mmu: MmuIndex, address: u64, write: bool) {
        self.drop_pins();
        let slot = slot_of(mmu, address);
        let entry = &mut self.entries[slot];
        debug_assert!(entry.is_for(slot, address));
        let tag = address >> PAGE_SHIFT << PAGE_SHIFT;
        let away = |flag: u16, on: bool| {
            if on && entry.flags & flag != 0 {
                0
            } else {
                AWAY
            }
        };
        let (read, write) = (away(MAY_READ, true), away(MAY_WRITE, write));
        entry.read = tag ^ read;
        entry.write = tag ^ write;
    }

    fn unthread(&mut self, slot: usize) {
        let page = self.entries[slot].page as usize;
        let next = self.entries[slot].next;
        if self.heads[page] == slot as u16 {
            self.heads[page] = next;
            return;
        }
        let mut at = self.heads[page];
        while at != NO_SLOT {
            let entry = &mut self.entries[at as usize];
            if entry.next == slot as u16 {
                entry.next = next;
                return;
            }
            at = entry.next;
        }
        unreachable!("a used TLB slot is threaded on its page");
    }

    /// Empties a slot; the caller drops the pins.
    fn drop_slot(&mut self, slot: usize) {
        self.unthread(slot);
        let listed = self.entries[slot].flags & LISTED;
        self.entries[slot] = Self::empty(slot);
        self.entries[slot].flags = listed;
    }

    /// Forgets all translations, or all but the global ones. Costs what there is to forget.
    pub fn flush(&mut self, keep_global: bool) {
        self.drop_pins();
        self.empty_list(IN_LOCAL, 0);
        if !keep_global {
            self.empty_list(IN_GLOBAL, GLOBAL);
        }
    }

    /// Forgets the translations that allow writes to read-only pages.
    pub fn flush_unprotected(&mut self) {
        if !std::mem::take(&mut self.unprotected) {
            return;
        }
        self.drop_pins();
        for n in 0..self.local.len() + self.global.len() {
            let slot = match self.local.get(n) {
                Some(&slot) => slot,
                None => self.global[n - self.local.len()],
            };
            let slot = usize::from(slot);
            if self.entries[slot].flags & UNPROTECTED != 0 {
                self.drop_slot(slot);
            }
        }
    }

    /// Drops the slots of one list whose translations are of its kind.
    fn empty_list(&mut self, mark: u16, kind: u16) {
        let mut list = std::mem::take(if mark == IN_LOCAL {
            &mut self.local
        } else {
            &mut self.global
        });
        for slot in list.drain(..) {
            let slot = usize::from(slot);
            let flags = self.entries[slot].flags;
            if flags & USED != 0 && flags & GLOBAL == kind {
                self.drop_slot(slot);
            }
            self.entries[slot].flags &= !mark;
        }
        *(if mark == IN_LOCAL {
            &mut self.local
        } else {
            &mut self.global
        }) = list;
    }

    /// Forgets the translations of the guest's page that holds `address`, whatever its size (INVLPG;
    /// SDM vol. 3A, section 4.10.4.1).
    pub fn flush_page(&mut self, address: u64) {
        self.drop_pins();
        for mmu in [MmuIndex::Supervisor, MmuIndex::User, MmuIndex::SupervisorAc] {
            let slot = slot_of(mmu, address);
            if self.entries[slot].is_for(slot, address) {
                self.drop_slot(slot);
            }
        }
        for n in 0..self.local.len() + self.global.len() {
            let slot = match self.local.get(n) {
                Some(&slot) => slot,
                None => self.global[n - self.local.len()],
            };
            let slot = usize::from(slot);
            let entry = &self.entries[slot];
            let shift = match entry.flags & (LARGE | HUGE) {
                0 => continue,
                // Of 2 and 4 MiB, the larger: forgetting more is allowed.
                LARGE => 22,
                _ => 30,
            };
            if (entry.address(slot) ^ address) >> shift == 0 {
                self.drop_slot(slot);
            }
        }
    }

    fn for_page(&mut self, page: usize, mut change: impl FnMut(&mut TlbEntry, u64)) {
        let mut at = self.heads[page];
        if at != NO_SLOT {
            self.drop_pins();
        }
        while at != NO_SLOT {
            let slot = at as usize;
            let entry = &mut self.entries[slot];
            let away = entry.address(slot) ^ AWAY;
            at = entry.next;
            change(entry, away);
        }
    }

    /// Takes the right to write a RAM page without the slow path away.
    pub fn protect_page(&mut self, page: usize) {
        self.for_page(page, |entry, away| entry.write = away);
    }

    /// Guards a page: no write passes unchecked any more.
    pub fn guard_page(&mut self, page: usize) {
        self.for_page(page, |entry, away| {
            entry.write = away;
            entry.flags &= !UNGUARDED;
        });
    }

    /// Drops the guard of a page in the entry for an address, if there is one. `coded` says that the
    /// page has code after all.
    pub fn unguard(&mut self, mmu: MmuIndex, address: u64, page: usize, coded: bool) -> bool {
        let slot = slot_of(mmu, address);
        let entry = &mut self.entries[slot];
        if !entry.is_for(slot, address) || entry.page as usize != page {
            return false;
        }
        if coded {
            entry.flags |= UNGUARDED;
        }
        true
    }

    /// Whether writes through the entry for an address go unchecked although the page has code.
    pub fn is_unguarded(&self, mmu: MmuIndex, address: u64, page: usize) -> bool {
        let slot = slot_of(mmu, address);
        let entry = &self.entries[slot];
        entry.flags & UNGUARDED != 0 && entry.is_for(slot, address) && entry.page as usize == page
    }

    /// Takes all rights to a RAM page away.
    pub fn revoke_page(&mut self, page: usize) {
        self.for_page(page, |entry, away| {
            entry.write = away;
            entry.read = away;
        });
    }

    /// Takes the right to write without the slow path away from every page.
    pub fn protect_all(&mut self) {
        self.drop_pins();
        for &slot in self.local.iter().chain(&self.global) {
            let slot = slot as usize;
            let entry = &mut self.entries[slot];
            if entry.flags & USED != 0 {
                entry.write = entry.address(slot) ^ AWAY;
            }
        }
    }

    // ---- checkpoints -----------------------------------------------------------------------------

    /// Writes the translations that are in, without the rights that they give at the moment: the next
    /// access gets these anew, which does not show.
    pub fn save(&self, w: &mut Writer) {
        let used = |slot: &usize| self.entries[*slot].flags & USED != 0;
        w.varint((0..SLOTS).filter(used).count() as u64);
        for slot in (0..SLOTS).filter(used) {
            let entry = &self.entries[slot];
            let first = table_of(slot).0;
            let table = TABLES.iter().position(|&(start, _)| start == first);
            w.u8(table.unwrap_or(0) as u8);
            w.u16(entry.flags & KEPT);
            w.varint(entry.address(slot) >> PAGE_SHIFT);
            w.varint(u64::from(entry.page));
        }
    }

    /// Replaces all translations. `host` gives the host address of a page of RAM, of which there are
    /// `pages`.
    ///
    /// # Errors
    /// For tables, addresses and pages that do not exist.
    pub fn load(
        &mut self,
        r: &mut Reader<'_>,
        pages: usize,
        host: impl Fn(usize) -> u64,
    ) -> Result<(), LoadError> {
        let bad = |field, value| Err(LoadError::BadValue { field, value });
        self.flush(false);
        for _ in 0..r.count("number of translations", SLOTS)? {
            let mmu = match r.u8()? {
                0 => MmuIndex::Supervisor,
                1 => MmuIndex::User,
                2 => MmuIndex::SupervisorAc,
                table => return bad("table of a translation", table.into()),
            };
            let flags = r.u16()?;
            let address = r.varint()?;
            if flags & !KEPT != 0 || address >> (64 - PAGE_SHIFT) != 0 {
                return bad("translation", address);
            }
            let page = r.index("page of a translation", pages)?;
            let fill = Fill {
                page: page as u32,
                read: flags & MAY_READ != 0,
                write: flags & MAY_WRITE != 0,
                unprotected: flags & UNPROTECTED != 0,
                global: flags & GLOBAL != 0,
                size: match flags & (LARGE | HUGE) {
                    0 => 1 << PAGE_SHIFT,
                    LARGE => 1 << 21,
                    _ => 1 << 30,
                },
            };
            let address = address << PAGE_SHIFT;
            self.insert(mmu, address, host(page), &fill);
            self.entries[slot_of(mmu, address)].flags |= flags & UNGUARDED;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tlb() -> Box<Tlb> {
        let mut tlb = Box::<Tlb>::new_uninit();
        // SAFETY: the box owns the memory, and `init` writes every field.
        unsafe {
            Tlb::init(tlb.as_mut_ptr(), 64);
            tlb.assume_init()
        }
    }

    fn fill(page: u32, global: bool) -> Fill {
        Fill {
            page,
            read: true,
            write: true,
            unprotected: false,
            global,
            size: 4096,
        }
    }

    fn insert(tlb: &mut Tlb, mmu: MmuIndex, address: u64, fill: &Fill) {
        tlb.insert(mmu, address, 0x1000, fill);
        tlb.allow(mmu, address, true);
    }

    fn hits(tlb: &Tlb, mmu: MmuIndex, address: u64) -> bool {
        address.wrapping_sub(tlb.entries[slot_of(mmu, address)].write) <= 4095
    }

    #[test]
    fn an_empty_slot_matches_no_address_of_its_index() {
        let tlb = tlb();
        for address in [
            0u64,
            0xfff,
            0x1000,
            0xffff_ffff_ffff_f000,
            0x0000_7fff_ffff_f000,
            1 << 63,
        ] {
            assert!(!hits(&tlb, MmuIndex::Supervisor, address));
            assert!(!hits(&tlb, MmuIndex::SupervisorAc, address));
        }
    }

    #[test]
    fn revoking_a_page_reaches_every_alias_and_nothing_else() {
        let mut tlb = tlb();
        insert(&mut tlb, MmuIndex::Supervisor, 0x1000, &fill(5, false));
        insert(&mut tlb, MmuIndex::User, 0x7000, &fill(5, false));
        insert(&mut tlb, MmuIndex::Supervisor, 0x2000, &fill(6, false));
        tlb.revoke_page(5);
        assert!(!hits(&tlb, MmuIndex::Supervisor, 0x1000));
        assert!(!hits(&tlb, MmuIndex::User, 0x7000));
        assert!(hits(&tlb, MmuIndex::Supervisor, 0x2000));
    }

    #[test]
    fn a_slot_that_is_taken_over_leaves_its_old_page_s_thread() {
        let mut tlb = tlb();
        insert(&mut tlb, MmuIndex::Supervisor, 0x1000, &fill(5, false));
        insert(
            &mut tlb,
            MmuIndex::Supervisor,
            0x1000 + (4096 << 12),
            &fill(6, false),
        );
        tlb.revoke_page(5);
        assert!(hits(&tlb, MmuIndex::Supervisor, 0x1000 + (4096 << 12)));
        tlb.flush(false);
        insert(&mut tlb, MmuIndex::Supervisor, 0x1000, &fill(6, false));
        assert!(hits(&tlb, MmuIndex::Supervisor, 0x1000));
    }

    #[test]
    fn global_entries_survive_a_cr3_write_only() {
        let mut tlb = tlb();
        insert(&mut tlb, MmuIndex::Supervisor, 0x1000, &fill(5, true));
        insert(&mut tlb, MmuIndex::Supervisor, 0x2000, &fill(6, false));
        tlb.flush(true);
        assert!(hits(&tlb, MmuIndex::Supervisor, 0x1000));
        assert!(!hits(&tlb, MmuIndex::Supervisor, 0x2000));
        tlb.flush(false);
        assert!(!hits(&tlb, MmuIndex::Supervisor, 0x1000));
    }

    #[test]
    fn write_protection_takes_writable_read_only_pages_alone() {
        let mut tlb = tlb();
        let unprotected = Fill {
            unprotected: true,
            ..fill(5, true)
        };
        let read_only = Fill {
            write: false,
            ..unprotected
        };
        for (address, fill) in [
            (0x1000, fill(6, false)),
            (0x2000, unprotected),
            (0x3000, read_only),
        ] {
            insert(&mut tlb, MmuIndex::Supervisor, address, &fill);
        }
        tlb.pins[0][0].write = PIN_LIMIT;
        tlb.flush_unprotected();
        assert_eq!(tlb.get(MmuIndex::Supervisor, 0x2000, false), None);
        assert_eq!(tlb.pins[0][0].write, 0);
        assert!(hits(&tlb, MmuIndex::Supervisor, 0x1000));
        assert!(tlb.get(MmuIndex::Supervisor, 0x3000, false).is_some());
    }

    #[test]
    fn a_checkpoint_keeps_what_hangs_on_write_protection() {
        let mut saved = tlb();
        let unprotected = Fill {
            unprotected: true,
            ..fill(5, false)
        };
        insert(&mut saved, MmuIndex::Supervisor, 0x2000, &unprotected);
        let mut writer = Writer::default();
        saved.save(&mut writer);
        let bytes = writer.into_bytes();
        let mut loaded = tlb();
        loaded.load(&mut Reader::new(&bytes), 16, |_| 0).unwrap();
        loaded.flush_unprotected();
        assert_eq!(loaded.get(MmuIndex::Supervisor, 0x2000, false), None);
    }

    #[test]
    fn a_translation_outlives_the_rights_that_are_taken_away() {
        let mut tlb = tlb();
        let read_only = Fill {
            write: false,
            ..fill(5, false)
        };
        insert(&mut tlb, MmuIndex::User, 0x1000, &fill(5, false));
        insert(&mut tlb, MmuIndex::User, 0x2000, &read_only);
        tlb.revoke_page(5);
        assert!(!hits(&tlb, MmuIndex::User, 0x1000));
        assert_eq!(tlb.get(MmuIndex::User, 0x1fff, true), Some(fill(5, false)));
        assert_eq!(tlb.get(MmuIndex::User, 0x2000, false), Some(read_only));
        assert_eq!(tlb.get(MmuIndex::User, 0x2000, true), None);
        assert_eq!(tlb.get(MmuIndex::Supervisor, 0x1000, false), None);
        tlb.allow(MmuIndex::User, 0x1000, true);
        assert!(hits(&tlb, MmuIndex::User, 0x1000));
    }

    #[test]
    fn whatever_takes_a_right_away_takes_the_pins_away() {
        let changes: [fn(&mut Tlb); 8] = [
            |tlb| tlb.flush(true),
            |tlb| tlb.flush(false),
            |tlb| tlb.flush_page(0x1000),
            |tlb| tlb.protect_page(5),
            |tlb| tlb.guard_page(5),
            |tlb| tlb.revoke_page(5),
            Tlb::protect_all,
            |tlb| insert(tlb, MmuIndex::User, 0x1000 + (4096 << 12), &fill(6, false)),
        ];
        for change in changes {
            let mut tlb = tlb();
            insert(&mut tlb, MmuIndex::User, 0x1000, &fill(5, false));
            tlb.pins[1][2] = Pin {
                tag: 0x1000,
                read: PIN_LIMIT,
                write: PIN_LIMIT,
                host: 0x1000,
            };
            change(&mut tlb);
            assert_eq!((tlb.pins[1][2].read, tlb.pins[1][2].write), (0, 0));
        }
    }

    #[test]
    fn invlpg_forgets_all_of_a_large_page() {
        let mut tlb = tlb();
        let large = Fill {
            size: 1 << 21,
            ..fill(5, true)
        };
        insert(&mut tlb, MmuIndex::Supervisor, 0x20_1000, &large);
        insert(&mut tlb, MmuIndex::Supervisor, 0x20_2000, &fill(6, true));
        tlb.flush_page(0x3f_f000);
        assert!(!hits(&tlb, MmuIndex::Supervisor, 0x20_1000));
        assert!(hits(&tlb, MmuIndex::Supervisor, 0x20_2000));
    }
}
