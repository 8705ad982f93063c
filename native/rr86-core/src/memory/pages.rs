//! What is known of each page of RAM: who may touch it without being noticed, whether blocks were
//! made from it, and whether it changed since the last digest.
//!
//! A page belongs to one vCPU, or is read-shared. Whoever needs more takes the slow path, which
//! hands the page over and tells (docs/determinism.md, "Cross-vCPU writes").

use bitflags::bitflags;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::ram::GuestRam;

/// Nobody has touched the page.
pub const NOBODY: u8 = 0xff;
/// Several vCPUs may read the page; none may write it.
pub const SHARED: u8 = 0xfe;
/// A device or loader, in hand-offs.
pub const DEVICE: u8 = 0xfd;

bitflags! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PageFlags: u8 {
        /// Blocks were made from this page: every write takes the slow path.
        const CODE = 1;
        /// A write watchpoint lies in this page.
        const WATCHED = 2;
        /// Written since the last digest.
        const DIRTY = 4;
    }
}

#[derive(Clone, Copy, Debug)]
pub struct PageInfo {
    pub owner: u8,
    pub flags: PageFlags,
    /// Bit n: a block was made from bytes of the n-th 64-byte line.
    pub code_lines: u64,
}

/// What kind of access made a page change hands.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandOffKind {
    Read = 0,
    Write = 1,
}

/// A page that changed hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandOff {
    /// Physical page number.
    pub page: u64,
    pub from: u8,
    pub to: u8,
    pub kind: HandOffKind,
}

/// The table of all pages, and the incremental digest of RAM.
pub struct Pages {
    pub info: Vec<PageInfo>,
    dirty: Vec<u32>,
    hashes: Vec<u64>,
    sum: u64,
}

impl Pages {
    pub fn new(count: usize) -> Self {
        Self {
            info: vec![
                PageInfo {
                    owner: NOBODY,
                    flags: PageFlags::empty(),
                    code_lines: 0
                };
                count
            ],
            dirty: Vec::new(),
            hashes: vec![0; count],
            sum: 0,
        }
    }

    /// Notes that a page is about to be written.
    #[inline]
    pub fn mark_dirty(&mut self, page: usize) {
        let info = &mut self.info[page];
        if !info.flags.contains(PageFlags::DIRTY) {
            info.flags |= PageFlags::DIRTY;
            self.dirty.push(page as u32);
        }
    }

    /// Digest of all RAM: the wrapping sum of the hashes of all pages ever written, each seeded with
    /// its index. Only pages written since the last call are hashed; an all-zero page counts as 0,
    /// so that touching a page and leaving it zero does not show. The caller must afterwards take
    /// the right of unnoticed writes away from every TLB.
    pub fn digest(&mut self, ram: &GuestRam) -> u64 {
        for page in std::mem::take(&mut self.dirty) {
            let page = page as usize;
            let bytes = ram.page(page);
            let hash = if bytes.iter().all(|&b| b == 0) {
                0
            } else {
                xxh3_64_with_seed(bytes, page as u64)
            };
            self.sum = self.sum.wrapping_sub(self.hashes[page]).wrapping_add(hash);
            self.hashes[page] = hash;
            self.info[page].flags -= PageFlags::DIRTY;
        }
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_depends_on_content_and_place_and_not_on_history() {
        let mut ram = GuestRam::new(4 << 12).unwrap();
        let mut pages = Pages::new(4);
        assert_eq!(pages.digest(&ram), 0);
        ram.page_mut(1)[0] = 1;
        pages.mark_dirty(1);
        let one = pages.digest(&ram);
        assert_ne!(one, 0);
        ram.page_mut(1)[0] = 0;
        ram.page_mut(2)[0] = 1;
        pages.mark_dirty(1);
        pages.mark_dirty(2);
        assert_ne!(pages.digest(&ram), one);
        ram.page_mut(1)[0] = 1;
        ram.page_mut(2)[0] = 0;
        pages.mark_dirty(1);
        pages.mark_dirty(2);
        assert_eq!(pages.digest(&ram), one);
    }
}
