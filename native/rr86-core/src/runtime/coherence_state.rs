//! Which block protocol a machine has, and what that has led to.

use super::protocol::Protocol;
use crate::saved::{LoadError, Reader, Writer};
use std::collections::BTreeSet;

/// How blocks and memory are kept in step in this machine, and what that has led to.
pub(in crate::runtime) struct Coherence {
    protocol: Protocol,
    /// Blocks are compared with memory wherever the protocol may have let them go stale.
    detects: bool,
    /// Pages with code to which some vCPU can write unchecked.
    unguarded: BTreeSet<usize>,
}

impl Coherence {
    pub fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            detects: protocol.can_be_stale(),
            unguarded: BTreeSet::new(),
        }
    }

    /// The block protocol of the machine.
    #[inline]
    pub fn protocol(&self) -> &Protocol {
        &self.protocol
    }

    /// Whether blocks are compared with memory wherever they may be stale.
    #[inline]
    pub fn detects(&self) -> bool {
        self.detects
    }

    /// Compares blocks with memory, or does not; where the protocol lets none go stale, it never does.
    pub fn set_detects(&mut self, on: bool) {
        self.detects = on && self.protocol.can_be_stale();
    }

    /// Every vCPU's writes to this page with code are checked.
    #[inline]
    pub fn note_guarded(&mut self, page: usize) {
        self.unguarded.remove(&page);
    }

    /// Some vCPU can write to this page with code unchecked.
    pub fn note_unguarded(&mut self, page: usize) {
        self.unguarded.insert(page);
    }

    /// Whether some vCPU can write to this page with code unchecked.
    #[inline]
    pub fn is_unguarded(&self, page: usize) -> bool {
        self.unguarded.contains(&page)
    }

    /// No page has code any more.
    pub fn forget_pages(&mut self) {
        self.unguarded.clear();
    }

    pub fn save(&self, w: &mut Writer) {
        w.varint(self.unguarded.len() as u64);
        for &page in &self.unguarded {
            w.varint(page as u64);
        }
    }

    /// # Errors
    /// For pages that do not exist.
    pub fn load(&mut self, r: &mut Reader<'_>, pages: usize) -> Result<(), LoadError> {
        self.unguarded.clear();
        for _ in 0..r.count("number of unguarded pages", pages)? {
            self.unguarded.insert(r.index("unguarded page", pages)?);
        }
        Ok(())
    }
}
