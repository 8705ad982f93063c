//! Which blocks run often, and the paths on which they do.
//!
//! Nothing is counted in translated code. A slice ends before a block that does not fit its budget, and that
//! is a sample: a block that is found there several times runs often. Where its jumps are linked to, and what
//! samples say of the blocks there, gives the path for its superblock. All this is about host code alone.

use crate::memory::PAGE_MASK;
use crate::runtime::cache::BlockId;
use crate::runtime::engine::Engine;
use crate::runtime::vcpu::Vcpu;
use crate::translate::code::OWN_SLOTS;
use crate::translate::decode::classify::{shape, Class};
use crate::translate::mode::Mode;
use crate::translate::optimise::superblock::{may_end, may_join};
use crate::translate::path::{Member, Superblock};
use crate::translate::shortcuts::Shortcuts;
use iced_x86::Instruction;

/// How many times hotter the one way of a branch has to be than the other.
const CLEAR: u32 = 4;
/// Superblocks that are made for a block until it is left alone, because its path changes too often.
const MOST: u8 = 4;
/// Instructions and blocks of a superblock.
const LONGEST: usize = 48;
const MEMBERS: usize = 8;

type Insns = Vec<(Instruction, Class)>;

impl Engine {
    /// Sets how many samples make a block hot, 1 to 255; before any code is made. It changes when host code is made
    /// again, and nothing that a guest can see, so that short runs get superblocks, too.
    pub fn set_hot(&mut self, samples: u8) {
        debug_assert!(self.cache.blocks.is_empty());
        self.translator.set_hot(samples);
    }

    /// A slice has ended before the block at rip.
    pub(in crate::runtime) fn sample(&mut self, v: &Vcpu) {
        if !self.translator.shortcuts().has(Shortcuts::PATHS)
            // Each stale block's first execution is an event.
            || self.coherence.protocol().can_be_stale()
            || self.observers.asks_oracle()
            || self.stops.hooks().int3
        {
            return;
        }
        let mode = Mode::of(&v.cpu);
        if !mode.code64() || mode.one() {
            return;
        }
        let rip = v.cpu.rip;
        let Some(page) = self
            .vcpus
            .mmu(usize::from(v.cpu.id))
            .fetch
            .get(rip, v.cpu.cpl == 3)
        else {
            return;
        };
        let Some(id) = self
            .cache
            .blocks
            .find(page | rip & PAGE_MASK, None, rip, mode)
        else {
            return;
        };
        let block = self.cache.blocks.get_mut(id);
        block.hot.samples = block.hot.samples.saturating_add(1);
        let block = self.cache.blocks.get(id);
        if self.translator.is_hot(block.hot.samples)
            && !block.hot.has_superblock
            && block.hot.superblocks < MOST
            && block.code != 0
            && !self.is_loop(id)
        {
            self.make_superblock(id);
        }
    }

    /// Makes a block's code again, with a superblock before it, if there is a path for one.
    fn make_superblock(&mut self, id: BlockId) {
        let path = self.path_from(id);
        let mut members: Vec<Member> = Vec::new();
        for &id in &path {
            let block = self.cache.blocks.get(id);
            if self.stops.hooks().touch(block.rip, block.bytes.len()) {
                break;
            }
            let insns = self.instructions(id);
            let inner = insns.iter().all(|(insn, class)| may_join(insn, *class));
            if inner || insns.iter().all(|(insn, class)| may_end(insn, *class)) {
                members.push(Member { id, insns });
            }
            if !inner {
                break;
            }
        }
        let length = members.len();
        if length < 2 {
            return;
        }
        let links = self.cache.blocks.successors(id);
        let old = self.cache.blocks.get(id).place.offset;
        let code = self.generate_with(id, &Superblock::new(members));
        let ordinary = code.ordinary;
        if !self.replace(id, old, code) {
            return;
        }
        let offset = self.cache.blocks.get(id).place.offset;
        self.cache
            .blocks
            .set_path(id, &path[..length], offset + ordinary);
        self.observers.stats.superblocks += 1;
        for (slot, to) in links.into_iter().enumerate() {
            if let Some(to) = to {
                self.cache.chain_slot(id, slot, to);
            }
        }
        let block = self.cache.blocks.get(id);
        let (page, mode) = (block.paddr & !PAGE_MASK, block.mode);
        for slot in OWN_SLOTS..block.slots.len() {
            let target = self.cache.blocks.get(id).slots[slot].target;
            let paddr = page | target & PAGE_MASK;
            if let Some(to) = self.cache.blocks.find(paddr, None, target, mode) {
                self.cache.chain_slot(id, slot, to);
            }
        }
    }

    /// The blocks that mostly follow one another from this one on.
    fn path_from(&self, head: BlockId) -> Vec<BlockId> {
        let mut path = vec![head];
        let mut total = usize::from(self.cache.blocks.get(head).count);
        let mut closed = None;
        while let Some(next) = self.likely_next(path[path.len() - 1]) {
            if next == head {
                closed = Some(path.len());
            }
            total += usize::from(self.cache.blocks.get(next).count);
            if total > LONGEST || path.len() == MEMBERS || self.is_loop(next) {
                break;
            }
            path.push(next);
        }
        // What comes back to its start ends there.
        path.truncate(closed.unwrap_or(path.len()));
        path
    }

    /// The block that mostly follows, as far as is known.
    fn likely_next(&self, id: BlockId) -> Option<BlockId> {
        if self.is_loop(id) {
            return None;
        }
        let heat = |id: BlockId| u32::from(self.cache.blocks.get(id).hot.samples);
        match self.cache.blocks.successors(id) {
            [Some(a), Some(b)] if heat(a) >= CLEAR * heat(b).max(2) => Some(a),
            [Some(a), Some(b)] if heat(b) >= CLEAR * heat(a).max(2) => Some(b),
            [Some(_), Some(_)] => None,
            [a, b] => a.or(b),
        }
    }

    /// Whether a block jumps to its own start; it may have fast code of its own.
    fn is_loop(&self, id: BlockId) -> bool {
        let block = self.cache.blocks.get(id);
        let mut own = block.slots.iter().take(OWN_SLOTS);
        own.any(|slot| slot.target == block.rip)
    }

    fn instructions(&self, id: BlockId) -> Insns {
        let block = self.cache.blocks.get(id);
        let mut insns = Vec::new();
        let count = usize::from(block.count);
        shape::cut_into(
            &mut insns,
            &block.bytes,
            block.rip,
            block.mode,
            self.translator.offered(),
            count,
            false,
        );
        insns
    }
}

#[cfg(test)]
#[path = "hotness_tests.rs"]
mod tests;
