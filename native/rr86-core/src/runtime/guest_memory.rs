//! The guest's RAM, and what is known of each of its pages.

use crate::memory::pages::{HandOffKind, Pages};
use crate::memory::ram::GuestRam;
use crate::memory::{PAGE_MASK, PAGE_SIZE};

/// RAM and its pages.
pub struct GuestMemory {
    pub ram: GuestRam,
    pub pages: Pages,
    /// Pages have owners, and the lines that these write are marked.
    tracking: bool,
}

impl GuestMemory {
    pub(in crate::runtime) fn new(ram: GuestRam) -> Self {
        Self {
            pages: Pages::new(ram.pages()),
            ram,
            tracking: true,
        }
    }

    /// Switches owners of pages on or off, before anything has run.
    pub(in crate::runtime) fn set_tracking(&mut self, on: bool) {
        self.tracking = on;
    }

    /// Whether pages have owners, and the lines that these write are marked.
    #[inline]
    pub(in crate::runtime) fn tracking(&self) -> bool {
        self.tracking
    }

    /// Whether an agent has to acquire a page before it reads, or writes, it.
    #[inline]
    pub(in crate::runtime) fn must_acquire(
        &self,
        agent: u8,
        page: usize,
        kind: HandOffKind,
    ) -> bool {
        self.tracking
            && !match kind {
                HandOffKind::Read => self.pages.reads(page, agent),
                HandOffKind::Write => self.pages.owns(page, agent),
            }
    }

    /// Whether a vCPU may write a page without asking.
    #[inline]
    pub(in crate::runtime) fn may_write(&self, page: usize, vcpu: u8) -> bool {
        !self.tracking || self.pages.owns(page, vcpu)
    }

    /// Notes a write to RAM by Rust code.
    #[inline]
    pub(in crate::runtime) fn mark_lines(&mut self, host: *const u8, len: usize) {
        if self.tracking {
            self.ram.mark_lines(host, len);
        }
    }

    /// Changes bytes of one page of RAM.
    #[inline]
    pub(in crate::runtime) fn put(&mut self, page: usize, paddr: u64, data: &[u8]) {
        let host = self.ram.write(page, (paddr & PAGE_MASK) as usize, data);
        self.mark_lines(host, data.len());
    }

    /// The bytes from a physical address to the end of its page; absent bytes read as all ones.
    #[inline]
    pub(in crate::runtime) fn code_at(&self, paddr: u64) -> &[u8] {
        static ABSENT: [u8; PAGE_SIZE as usize] = [0xff; PAGE_SIZE as usize];
        let page = match self.ram.page_index(paddr) {
            Some(index) => self.ram.page(index),
            None => &ABSENT,
        };
        &page[(paddr & PAGE_MASK) as usize..]
    }
}

/// Bits of the 64-byte lines of a page that [paddr, paddr + len) touches; the range is in one page.
#[inline]
pub fn line_mask(paddr: u64, len: u64) -> u64 {
    let first = (paddr & PAGE_MASK) >> 6;
    let last = ((paddr & PAGE_MASK) + len.max(1) - 1) >> 6;
    (u64::MAX >> (63 - last.min(63))) & (u64::MAX << first)
}
