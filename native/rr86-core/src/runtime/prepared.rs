//! Code that was translated before it was needed: asking for it, and taking it. See `ahead`.

use super::ahead::{Ahead, Prediction, Translation};
use super::cache::BlockId;
use super::engine::Engine;
use crate::memory::PAGE_MASK;
use crate::translate::mode::Mode;
use crate::translate::shortcuts::Shortcuts;

impl Engine {
    /// Has blocks translated on another thread before they are needed. `predictions` gives `Some(None)` while the
    /// next is not known yet, and must not wait.
    pub fn translate_ahead(
        &mut self,
        predictions: impl Iterator<Item = Option<Prediction>> + Send + 'static,
    ) {
        self.end_ahead();
        if !self.translator.shortcuts().has(Shortcuts::AHEAD) {
            return;
        }
        let settings = self
            .translator
            .settings(self.cache.stubs(), self.tracking());
        let place = self.cache.mapping();
        let next = self.cache.blocks.next_serial();
        // Without the thread, the engine translates everything.
        let ram = self.memory.ram.reader();
        let ahead = Ahead::start(predictions, settings, next, ram, place);
        self.translator.set_ahead(ahead);
    }

    /// Ends what `translate_ahead` began.
    pub fn end_ahead(&mut self) {
        self.translator.set_ahead(None);
    }

    /// Bytes and number of instructions of the next block, if it was translated ahead, is at this place, and is
    /// what memory holds.
    pub(in crate::runtime) fn foreseen(
        &mut self,
        paddr: u64,
        rip: u64,
        mode: Mode,
    ) -> Option<(Vec<u8>, u8)> {
        let serial = self.cache.blocks.next_serial();
        let made = self.translator.look_ahead(serial)?;
        if !made.closed || made.paddr != paddr || made.rip != rip || made.mode != mode {
            return None;
        }
        let ram = &self.memory.ram;
        let page = ram.page(ram.page_index(paddr)?);
        let bytes = page[(paddr & PAGE_MASK) as usize..].get(..made.bytes.len())?;
        (bytes == made.bytes).then(|| (bytes.to_vec(), made.count))
    }

    /// The translation of a whole block, if it was made ahead and nothing about the block is special.
    pub(in crate::runtime) fn made_ahead(&mut self, block: BlockId) -> Option<Box<Translation>> {
        let tracking = self.tracking();
        let block = self.cache.blocks.get(block);
        let plain = !self.stops.hooks().touch(block.rip, block.bytes.len())
            && !self.observers.asks_oracle()
            && !block.stale.checked
            && block.second.is_none();
        if !plain || block.serial + 1 != self.cache.blocks.next_serial() {
            return None;
        }
        let made = self.translator.take_ahead(block, tracking)?;
        self.observers.stats.blocks_ahead += 1;
        Some(made)
    }

    /// Gives back a translation whose code has been placed.
    pub(in crate::runtime) fn give_back_ahead(&self, made: Box<Translation>) {
        self.translator.give_back_ahead(made, self.cache.used());
    }
}
