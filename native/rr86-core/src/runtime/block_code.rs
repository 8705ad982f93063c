//! The host code of a block: making it when it is first needed, or taking what another thread has made ahead (see
//! `ahead`), and another one for the block later.

use crate::host_time::Phase;
use crate::memory::PAGE_MASK;
use crate::runtime::ahead::{Ahead, Prediction, Translation};
use crate::runtime::cache::BlockId;
use crate::runtime::engine::Engine;
use crate::translate::code::Code;
use crate::translate::lower::emitter::Request;
use crate::translate::mode::Mode;
use crate::translate::path::Superblock;
use crate::translate::shortcuts::Shortcuts;
use std::ops::Range;

impl Engine {
    /// Makes a block's code again, with its entry checked, and sends those who jump to its old code at
    /// `old` there.
    pub(in crate::runtime) fn redirect(&mut self, id: BlockId, old: usize) {
        let count = usize::from(self.cache.blocks.get(id).count);
        let code = self.generate(id, 0, count, true);
        if !self.replace(id, old, code) {
            // The reserve holds tens of thousands of blocks, and the dispatcher frees it.
            self.drop_code();
        }
    }

    /// Gives a block other code, and sends those who jump to its old code at `old` there. False if there is no
    /// room for it.
    pub(in crate::runtime) fn replace(&mut self, id: BlockId, old: usize, code: Code) -> bool {
        let block = self.cache.blocks.get(id);
        let (before, rip) = (block.code, block.rip);
        let Some(address) = self.cache.replace(id, old, code) else {
            return false;
        };
        // Jump caches too: when the block is removed, its new code alone is looked for there.
        for mmu in self.vcpus.mmus() {
            mmu.move_jump(rip, before, address);
        }
        true
    }

    /// Makes sure that a block has host code.
    pub(in crate::runtime) fn ensure_code(&mut self, id: BlockId) {
        if self.cache.blocks.get(id).code != 0 {
            return;
        }
        let block = self.cache.blocks.get(id);
        let (count, checked) = (usize::from(block.count), block.stale.checked);
        loop {
            let mut made = self.made_ahead(id);
            let mut code = match &mut made {
                Some(made) => {
                    let mut code = std::mem::take(&mut made.code);
                    self.cache.fit(id, &mut code);
                    code
                }
                None => self.generate(id, 0, count, checked),
            };
            if self.cache.install(id, &mut code) {
                match made {
                    Some(mut made) => {
                        made.code = code;
                        self.give_back_ahead(made);
                    }
                    None => self.translator.recycle(code),
                }
                return;
            }
            self.drop_code();
        }
    }

    /// Offset of the instruction whose code is so far into a block's code, and how many instructions of the block
    /// are left there. Made out by translating the block again, so it is not known of a block with a superblock.
    pub(in crate::runtime) fn instruction_of(
        &mut self,
        id: BlockId,
        at: usize,
    ) -> Option<(u16, u8)> {
        let block = self.cache.blocks.get(id);
        let (count, checked, length) = (block.count, block.stale.checked, block.place.len);
        let code = self.generate(id, 0, usize::from(count), checked);
        let index = self.translator.instruction_at(at)?;
        if code.bytes.len() != length as usize || at >= code.split {
            return None;
        }
        let decoded = self.translator.instructions(self.cache.blocks.get(id));
        let first = decoded.insns[0].0.ip();
        let offset = decoded.insns[index].0.ip().wrapping_sub(first) as u16;
        self.translator.give_back(decoded);
        Some((offset, count - index as u8))
    }

    pub(in crate::runtime) fn generate(
        &mut self,
        id: BlockId,
        start: usize,
        stop: usize,
        checked: bool,
    ) -> Code {
        self.generate_part(id, start..stop, checked, None)
    }

    /// Code for a block with a superblock before it.
    pub(in crate::runtime) fn generate_with(
        &mut self,
        id: BlockId,
        superblock: &Superblock,
    ) -> Code {
        let count = usize::from(self.cache.blocks.get(id).count);
        self.generate_part(id, 0..count, false, Some(superblock))
    }

    fn generate_part(
        &mut self,
        id: BlockId,
        Range { start, end: stop }: Range<usize>,
        checked: bool,
        superblock: Option<&Superblock>,
    ) -> Code {
        let watch = self.observers.sample_time();
        let block = self.cache.blocks.get(id);
        let decoded = self.translator.instructions(block);
        let request = Request {
            mode: block.mode,
            insns: &decoded.insns,
            start,
            stop,
            hooks: self.stops.hooks(),
            checked: checked || start == 0 && self.observers.asks_oracle(),
            tracking: self.tracking(),
            shortcuts: self.translator.shortcuts(),
            superblock,
        };
        let mut code = self.translator.translate(request, self.cache.stubs());
        self.translator.give_back(decoded);
        self.cache.fit(id, &mut code);
        self.observers.spend_sample(Phase::Translating, watch);
        code
    }

    // ---- code made ahead -------------------------------------------------------------------------

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
    fn made_ahead(&mut self, block: BlockId) -> Option<Box<Translation>> {
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
    fn give_back_ahead(&self, made: Box<Translation>) {
        self.translator.give_back_ahead(made, self.cache.used());
    }
}

#[cfg(test)]
#[path = "redirect_tests.rs"]
mod tests;
