//! A vCPU's cache of translations for instruction fetch. Only the dispatcher uses it: code that runs
//! chained or through the jump cache fetches nothing.

use crate::memory::PAGE_SHIFT;

const SLOTS: usize = 1024;

#[derive(Clone, Copy)]
struct FetchEntry {
    /// Virtual page number, with the privilege in the top bit; `u64::MAX` is nothing.
    tag: u64,
    page: u64,
}

/// Direct-mapped by virtual page.
pub struct FetchTlb(Vec<FetchEntry>);

impl Default for FetchTlb {
    fn default() -> Self {
        Self(vec![
            FetchEntry {
                tag: u64::MAX,
                page: 0
            };
            SLOTS
        ])
    }
}

fn tag(linear: u64, user: bool) -> u64 {
    linear >> PAGE_SHIFT | u64::from(user) << 63
}

impl FetchTlb {
    /// Physical page address for a fetch from `linear`.
    pub fn get(&self, linear: u64, user: bool) -> Option<u64> {
        let tag = tag(linear, user);
        let entry = &self.0[tag as usize % SLOTS];
        (entry.tag == tag).then_some(entry.page)
    }

    pub fn insert(&mut self, linear: u64, user: bool, page: u64) {
        let tag = tag(linear, user);
        self.0[tag as usize % SLOTS] = FetchEntry { tag, page };
    }

    pub fn clear(&mut self) {
        self.0.fill(FetchEntry {
            tag: u64::MAX,
            page: 0,
        });
    }
}
