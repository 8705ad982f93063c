//! The host code of a block: making it when it is first needed, and another one for the block later.

use crate::host_time::Phase;
use crate::runtime::cache::BlockId;
use crate::runtime::engine::Engine;
use crate::translate::code::Code;
use crate::translate::lower::emitter::Request;
use crate::translate::path::Superblock;
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
}
