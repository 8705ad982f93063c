//! All that is known of blocks: the blocks, their host code, and what leads to it.

use super::cache::{BlockId, Blocks};
use super::codebuf::{CodeBuffer, CodeMap};
use super::progress::Resume;
use crate::translate::code::Trap;
use crate::translate::lower::stubs::Stubs;

/// Blocks and their host code.
pub struct CodeCache {
    pub blocks: Blocks,
    pub(in crate::runtime) buffer: CodeBuffer,
    pub(in crate::runtime) stubs: Stubs,
    /// Block by offset of its code, to find who raised a signal.
    pub(in crate::runtime) map: CodeMap,
    /// Traps of code that a block had before its present one, by that code's offset: a vCPU may still be in it.
    pub(in crate::runtime) former_traps: Vec<(usize, Vec<Trap>)>,
    pub(in crate::runtime) partial: Partial,
    /// A direct jump that was followed and could be chained.
    pub(in crate::runtime) to_chain: Option<(BlockId, usize)>,
    /// Blocks that were invalidated and can still be reached.
    pub(in crate::runtime) retired: Vec<BlockId>,
    /// The block that the running vCPU is in although a store of its own has removed it.
    pub(in crate::runtime) overrun: Option<BlockId>,
}

/// The last code that was made for a part of a block: its jump targets, its traps, and where it leaves off.
#[derive(Default)]
pub(in crate::runtime) struct Partial {
    pub targets: Vec<u64>,
    pub traps: Option<(usize, BlockId, Vec<Trap>)>,
    pub end: Option<Resume>,
}

impl CodeCache {
    /// An empty one for a machine with `pages` pages of RAM. The stubs are in the buffer already.
    pub(in crate::runtime) fn new(pages: usize, buffer: CodeBuffer, stubs: Stubs) -> Self {
        Self {
            blocks: Blocks::new(pages),
            buffer,
            stubs,
            map: CodeMap::default(),
            former_traps: Vec::new(),
            partial: Partial::default(),
            to_chain: None,
            retired: Vec::new(),
            overrun: None,
        }
    }

    /// Where the code that a block has, or had, at an offset may raise signals.
    #[inline]
    pub(in crate::runtime) fn traps_of(&self, offset: usize, id: BlockId) -> &[Trap] {
        let block = self.blocks.get(id);
        let former = || self.former_traps.iter().rev().find(|(at, _)| *at == offset);
        match former() {
            Some((_, traps)) if offset != block.place.offset => traps,
            _ => &block.traps,
        }
    }

    /// Forgets all host code. What leads to it from outside of the cache has to go, too.
    pub(in crate::runtime) fn forget_code(&mut self) {
        self.to_chain = None;
        self.buffer.clear();
        self.map.clear();
        self.partial.traps = None;
        self.former_traps.clear();
    }

    /// The block with this serial number, if it exists or can still be reached.
    pub(in crate::runtime) fn with_serial(&self, serial: u64) -> Option<BlockId> {
        self.blocks.with_serial(serial).or_else(|| {
            let mut removed = self.retired.iter().copied().chain(self.overrun);
            removed.find(|&id| self.blocks.get(id).serial == serial)
        })
    }
}
