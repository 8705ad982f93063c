//! A vCPU's cache of translations for instruction fetch. Only the dispatcher uses it: code that runs
//! chained or through the jump cache fetches nothing.

use crate::memory::PAGE_SHIFT;
use crate::saved::{LoadError, Reader, Writer};

const SLOTS: usize = 1024;

#[derive(Clone, Copy)]
struct FetchEntry {
    /// Virtual page number, with the privilege in the top bit; `u64::MAX` is nothing.
    tag: u64,
    page: u64,
}

/// Direct-mapped by virtual page.
pub struct FetchTlb {
    entries: Vec<FetchEntry>,
    /// Part of every tag, so that forgetting all entries costs nothing most of the time.
    generation: u64,
}

/// Generations take the tag's bits 52 to 61, which no page number has.
const GENERATIONS: u64 = 1 << 10;

const NOTHING: FetchEntry = FetchEntry {
    tag: u64::MAX,
    page: 0,
};

impl Default for FetchTlb {
    fn default() -> Self {
        Self {
            entries: vec![NOTHING; SLOTS],
            generation: 0,
        }
    }
}

impl FetchTlb {
    fn tag(&self, linear: u64, user: bool) -> u64 {
        linear >> PAGE_SHIFT | self.generation << 52 | u64::from(user) << 63
    }
}

impl FetchTlb {
    /// Physical page address for a fetch from `linear`.
    pub fn get(&self, linear: u64, user: bool) -> Option<u64> {
        let tag = self.tag(linear, user);
        let entry = &self.entries[tag as usize % SLOTS];
        (entry.tag == tag).then_some(entry.page)
    }

    pub fn insert(&mut self, linear: u64, user: bool, page: u64) {
        let tag = self.tag(linear, user);
        self.entries[tag as usize % SLOTS] = FetchEntry { tag, page };
    }

    pub fn clear(&mut self) {
        self.generation = (self.generation + 1) % GENERATIONS;
        if self.generation == 0 {
            self.entries.fill(NOTHING);
        }
    }

    /// Writes the translations that are in.
    pub fn save(&self, w: &mut Writer) {
        let current = |entry: &&FetchEntry| {
            entry.tag != u64::MAX && entry.tag >> 52 & (GENERATIONS - 1) == self.generation
        };
        let kept: Vec<&FetchEntry> = self.entries.iter().filter(current).collect();
        w.varint(kept.len() as u64);
        for entry in kept {
            w.bool(entry.tag >> 63 != 0);
            w.varint(entry.tag & ((1 << 52) - 1));
            w.varint(entry.page >> PAGE_SHIFT);
        }
    }

    /// Replaces all translations.
    ///
    /// # Errors
    /// For addresses that do not exist.
    pub fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        self.clear();
        for _ in 0..r.count("number of fetch translations", SLOTS)? {
            let user = r.bool()?;
            let (linear, page) = (r.varint()?, r.varint()?);
            if linear >> 52 != 0 || page >> 40 != 0 {
                return Err(LoadError::BadValue {
                    field: "fetch translation",
                    value: linear | page,
                });
            }
            self.insert(linear << PAGE_SHIFT, user, page << PAGE_SHIFT);
        }
        Ok(())
    }
}
