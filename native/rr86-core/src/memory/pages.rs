//! What is known of each page of RAM: who may touch it without being noticed, whether blocks were
//! made from it, and whether it changed since the last digest.
//!
//! A page is written by one agent at a time, its owner, who then is its only reader too; or it is read
//! by several, and written by none. Whoever needs more takes the slow path, which hands the page over
//! and tells (docs/determinism.md, "Cross-vCPU writes"). So every reader's first access after somebody
//! else's store is seen.

use std::io;

use bitflags::bitflags;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::image::RamImage;
use super::ram::GuestRam;
use crate::saved::{LoadError, Reader, Writer};

/// No agent has touched the page.
pub const NO_AGENT: u8 = 0xff;
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
        /// `writer` may write, and no other may read.
        const OWNED = 8;
        /// A device has read the page since its last store.
        const DEVICE_READS = 16;
        /// Some vCPU may know, or may have known, the page for fetches.
        const FETCHED = 32;
        /// Stores to this page are logged.
        const LOGGED = 64;
        /// A read watchpoint lies in this page: nothing there takes the fast path.
        const READ_WATCHED = 128;
        /// What a checkpoint keeps.
        const KEPT = Self::CODE.bits() | Self::OWNED.bits() | Self::DEVICE_READS.bits()
            | Self::FETCHED.bits();
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
    /// Pages whose content was different at some digest since the last checkpoint, once there are
    /// checkpoints; a page may be listed more than once.
    changed: Option<Vec<u32>>,
}

impl Pages {
    pub fn new(count: usize) -> Self {
        Self {
            info: vec![
                PageInfo {
                    writer: NO_AGENT,
                    flags: PageFlags::empty(),
                    readers: 0,
                    code_lines: 0
                };
                count
            ],
            dirty: Vec::new(),
            hashes: vec![0; count],
            sum: 0,
            changed: None,
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

    /// Gives an agent a page. Returns who wrote it last, [`NO_AGENT`] if none has touched it.
    pub fn give(&mut self, page: usize, agent: u8, kind: HandOffKind) -> u8 {
        let info = &mut self.info[page];
        let last = info.writer;
        let bit = if agent == DEVICE {
            0
        } else {
            1 << (agent & 63)
        };
        if kind == HandOffKind::Write || last == NO_AGENT {
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

    /// The regions of RAM in which some page has been touched, of so many pages each.
    pub fn touched(&self, region: usize) -> Vec<bool> {
        let touched = |pages: &[PageInfo]| pages.iter().any(|p| p.writer != NO_AGENT);
        self.info.chunks(region).map(touched).collect()
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
            if let (Some(changed), true) = (&mut self.changed, hash != self.hashes[page]) {
                changed.push(page as u32);
            }
            self.sum = self.sum.wrapping_sub(self.hashes[page]).wrapping_add(hash);
            self.hashes[page] = hash;
            self.info[page].flags -= PageFlags::DIRTY;
        }
        self.sum
    }

    // ---- checkpoints -----------------------------------------------------------------------------

    /// From now on notes which pages change; those that are not zero count as changed.
    pub fn note_changes(&mut self) {
        self.changed = Some(self.present().map(|page| page as u32).collect());
    }

    /// The pages that may have changed since the last call, up to the last digest, in ascending order.
    pub fn take_changed(&mut self) -> Vec<usize> {
        let mut pages = self
            .changed
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default();
        pages.sort_unstable();
        pages.dedup();
        pages.into_iter().map(|page| page as usize).collect()
    }

    /// Whether a page was all zero at the last digest.
    pub fn is_zero(&self, page: usize) -> bool {
        self.hashes[page] == 0
    }

    /// The pages that were not zero at the last digest, ascending.
    pub fn present(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.hashes.len()).filter(|&page| self.hashes[page] != 0)
    }

    /// The pages that were ever written.
    fn written(&self) -> Vec<usize> {
        let dirty = self.dirty.iter().map(|&page| page as usize);
        self.present().chain(dirty).collect()
    }

    /// Zeroes all of RAM, as far as it was ever written.
    pub fn wipe(&mut self, ram: &mut GuestRam) {
        for page in self.written() {
            ram.page_mut(page).fill(0);
            self.mark_dirty(page);
        }
    }

    /// Puts another content in the place of all of RAM.
    ///
    /// # Errors
    /// The host's error; then the RAM must not be used.
    pub fn show(&mut self, ram: &mut GuestRam, image: &RamImage) -> io::Result<()> {
        image.show(ram)?;
        let before = self.written();
        for page in before.into_iter().chain(image.pages().iter().copied()) {
            self.mark_dirty(page);
        }
        Ok(())
    }

    /// Writes what is known of each page, and which of its lines are marked. Nothing may have been
    /// written since the last digest.
    pub fn save(&self, w: &mut Writer, ram: &GuestRam) {
        let told = |info: &PageInfo| {
            info.writer != NO_AGENT
                || info.code_lines != 0
                || info.flags.intersects(PageFlags::KEPT)
        };
        w.varint(self.info.iter().filter(|info| told(info)).count() as u64);
        let mut last = 0;
        for (page, info) in self.info.iter().enumerate().filter(|(_, info)| told(info)) {
            w.delta(last, page as u64);
            last = page as u64;
            w.u8(info.writer);
            w.u8((info.flags & PageFlags::KEPT).bits());
            w.varint(info.readers);
            w.varint(info.code_lines);
            w.varint(ram.lines(page));
        }
    }

    /// Replaces what is known of each page; `vcpus` may read and write them.
    ///
    /// # Errors
    /// For pages and vCPUs that do not exist.
    pub fn load(
        &mut self,
        r: &mut Reader<'_>,
        ram: &mut GuestRam,
        vcpus: usize,
    ) -> Result<(), LoadError> {
        let bad = |field, value| Err(LoadError::BadValue { field, value });
        for (page, info) in self.info.iter_mut().enumerate() {
            if info.writer != NO_AGENT {
                ram.set_lines(page, 0);
            }
            info.writer = NO_AGENT;
            info.readers = 0;
            info.code_lines = 0;
            info.flags -= PageFlags::KEPT;
        }
        let mut last = 0;
        for _ in 0..r.count("number of pages", self.info.len())? {
            last = r.delta(last)?;
            let page = usize::try_from(last).unwrap_or(usize::MAX);
            let Some(info) = self.info.get_mut(page) else {
                return bad("page", last);
            };
            info.writer = r.u8()?;
            if usize::from(info.writer) >= vcpus && !matches!(info.writer, DEVICE | NO_AGENT) {
                return bad("owner of a page", info.writer.into());
            }
            let flags = r.u8()?;
            match PageFlags::from_bits(flags).filter(|&f| PageFlags::KEPT.contains(f)) {
                Some(flags) => info.flags |= flags,
                None => return bad("flags of a page", flags.into()),
            }
            info.readers = r.varint()?;
            if vcpus < 64 && info.readers >> vcpus != 0 {
                return bad("readers of a page", info.readers);
            }
            info.code_lines = r.varint()?;
            ram.set_lines(page, r.varint()?);
        }
        Ok(())
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
