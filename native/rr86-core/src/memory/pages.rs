//! What is known of each page of RAM: who may touch it without being noticed, whether blocks were
//! made from it, and whether it changed since the last digest.
//!
//! A page is written by one agent at a time, its owner, who then is its only reader too; or it is read
//! by several, and written by none. Whoever needs more takes the slow path, which hands the page over
//! and tells (docs/determinism.md, "Cross-vCPU writes"). So every reader's first access after somebody
//! else's store is seen.

use bitflags::bitflags;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::ram::GuestRam;

/// Nobody has touched the page.
pub const NOBODY: u8 = 0xff;
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
        /// `writer` may write, and nobody else may read.
        const OWNED = 8;
        /// A device has read the page since its last store.
        const DEVICE_READS = 16;
        /// Some vCPU may know, or may have known, the page for fetches.
        const FETCHED = 32;
        /// Stores to this page are logged.
        const LOGGED = 64;
    }
}

#[derive(Clone, Copy, Debug)]
pub struct PageInfo {
    /// Who owns the page, or owned it last.
    pub writer: u8,
    pub flags: PageFlags,
    /// Bit n: vCPU n may read the page.
    pub readers: u64,
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
    /// Bit n: the n-th 64-byte line was written since the page's last hand-off.
    pub lines: u64,
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
                    writer: NOBODY,
                    flags: PageFlags::empty(),
                    readers: 0,
                    code_lines: 0
                };
                count
            ],
            dirty: Vec::new(),
            hashes: vec![0; count],
            sum: 0,
        }
    }

    /// Whether an agent may write a page.
    #[inline]
    pub fn owns(&self, page: usize, agent: u8) -> bool {
        let info = &self.info[page];
        info.writer == agent && info.flags.contains(PageFlags::OWNED)
    }

    /// Whether an agent may read a page.
    #[inline]
    pub fn reads(&self, page: usize, agent: u8) -> bool {
        let info = &self.info[page];
        if agent == DEVICE {
            info.flags.contains(PageFlags::DEVICE_READS) || self.owns(page, DEVICE)
        } else {
            info.readers >> (agent & 63) & 1 != 0
        }
    }

    /// Gives an agent a page. Returns who wrote it last, [`NOBODY`] if nobody has touched it.
    pub fn give(&mut self, page: usize, agent: u8, kind: HandOffKind) -> u8 {
        let info = &mut self.info[page];
        let last = info.writer;
        let bit = if agent == DEVICE {
            0
        } else {
            1 << (agent & 63)
        };
        if kind == HandOffKind::Write || last == NOBODY {
            info.writer = agent;
            info.readers = bit;
            info.flags |= PageFlags::OWNED;
            info.flags -= PageFlags::DEVICE_READS;
        } else {
            info.readers |= bit;
            info.flags -= PageFlags::OWNED;
            info.flags.set(
                PageFlags::DEVICE_READS,
                agent == DEVICE || info.flags.contains(PageFlags::DEVICE_READS),
            );
        }
        last
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
