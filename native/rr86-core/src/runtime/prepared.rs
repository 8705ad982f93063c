//! Code that was translated before it was needed: asking for it, and taking it. See `ahead`.

use super::ahead::{Ahead, Guess, Settings, Translation};
use super::cache::BlockId;
use super::engine::Engine;
use crate::memory::PAGE_MASK;
use crate::translate::mode::Mode;
use crate::translate::shortcuts::Shortcuts;

impl Engine {
    /// Has blocks translated on another thread before they are needed. `guesses` gives `Some(None)` while the
    /// next is not known yet, and must not wait.
    pub fn translate_ahead(
        &mut self,
        guesses: impl Iterator<Item = Option<Guess>> + Send + 'static,
    ) {
        self.end_ahead();
        if !self.translator.shortcuts.has(Shortcuts::AHEAD) {
            return;
        }
        let settings = Settings {
            stubs: self.cache.stubs,
            tracking: self.tracking(),
            shortcuts: self.translator.shortcuts,
            offered: self.translator.offered,
            limit: self.translator.limits.instructions,
        };
        let buffer = &self.cache.buffer;
        let place = (buffer.room(), buffer.used());
        let next = self.cache.blocks.next_serial();
        // Without the thread, the engine translates everything.
        self.translator.ahead =
            Ahead::start(guesses, settings, next, self.memory.ram.reader(), place);
    }

    /// Ends what `translate_ahead` began.
    pub fn end_ahead(&mut self) {
        if let Some(ahead) = self.translator.ahead.take() {
            ahead.stop();
        }
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
        let made = self.translator.ahead.as_mut()?.look(serial)?;
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
        let translator = &mut self.translator;
        let ahead = translator.ahead.as_mut()?;
        let block = self.cache.blocks.get(block);
        let plain = !self.stops.hooks.touch(block.rip, block.bytes.len())
            && self.observers.oracle.is_none()
            && ahead.suits(tracking, translator.shortcuts, translator.offered)
            && !block.stale.checked
            && block.second.is_none();
        if !plain || block.serial + 1 != self.cache.blocks.next_serial() {
            return None;
        }
        let made = ahead.take(block)?;
        self.observers.stats.blocks_ahead += 1;
        Some(made)
    }

    /// Gives back a translation whose code has been placed.
    pub(in crate::runtime) fn give_back_ahead(&self, made: Box<Translation>) {
        if let Some(ahead) = &self.translator.ahead {
            ahead.give_back(made, self.cache.buffer.used());
        }
    }
}
