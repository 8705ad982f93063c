//! All that is known of blocks: the blocks, their host code, and what leads to it.

use super::cache::{BlockId, Blocks};
use super::codebuf::{CodeBuffer, CodeMap, Mapping};
use super::progress::Resume;
use crate::translate::code::{Code, Trap};
use crate::translate::lower::stubs::Stubs;

/// Blocks and their host code.
pub(in crate::runtime) struct CodeCache {
    /// The blocks, a part of its own.
    pub blocks: Blocks,
    buffer: CodeBuffer,
    stubs: Stubs,
    /// Block by offset of its code, to find who raised a signal.
    map: CodeMap,
    /// Traps of code that a block had before its present one, by that code's offset: a vCPU may still be in it.
    former_traps: Vec<(usize, Vec<Trap>)>,
    partial: Partial,
    /// A direct jump that was followed and could be chained.
    to_chain: Option<(BlockId, usize)>,
    /// Blocks that were invalidated and can still be reached.
    retired: Vec<BlockId>,
    /// The block that the running vCPU is in although a store of its own has removed it.
    overrun: Option<BlockId>,
}

/// The last code that was made for a part of a block: its jump targets, its traps, and where it leaves off.
#[derive(Default)]
struct Partial {
    targets: Vec<u64>,
    traps: Option<(usize, BlockId, Vec<Trap>)>,
    end: Option<Resume>,
}

/// What a host address in the code buffer is.
#[derive(Default)]
pub(in crate::runtime) struct Found {
    /// The block that the code belongs to, and the offset in the code.
    pub block: Option<(BlockId, usize)>,
    /// The site that is noted for the host instruction.
    pub site: Option<u32>,
}

impl CodeCache {
    /// An empty one for a machine with `pages` pages of RAM. The stubs are in the buffer already.
    pub fn new(pages: usize, buffer: CodeBuffer, stubs: Stubs) -> Self {
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

    // ---- the buffer ------------------------------------------------------------------------------

    /// The code that all blocks share.
    #[inline]
    pub fn stubs(&self) -> Stubs {
        self.stubs
    }

    /// Uses another buffer with other stubs, before there are blocks.
    pub fn replace_buffer(&mut self, buffer: CodeBuffer, stubs: Stubs) {
        debug_assert!(self.blocks.is_empty());
        self.buffer = buffer;
        self.stubs = stubs;
    }

    /// Bounds of the executable mapping.
    #[inline]
    pub fn range(&self) -> (u64, u64) {
        self.buffer.range()
    }

    /// The buffer's mapping and how much of it is in use, for a thread that translates ahead.
    pub fn mapping(&self) -> (Mapping, usize) {
        (self.buffer.mapping(), self.buffer.used())
    }

    /// Bytes of code in use.
    #[inline]
    pub fn used(&self) -> usize {
        self.buffer.used()
    }

    /// Whether code has to be dropped before more is made.
    #[inline]
    pub fn uses_reserve(&self) -> bool {
        self.buffer.uses_reserve()
    }

    /// To be called between writing code and running it; see [`CodeBuffer::settle`].
    #[inline]
    pub fn settle(&mut self) {
        self.buffer.settle();
    }

    // ---- code of blocks --------------------------------------------------------------------------

    /// Fits code to the place that it would get next.
    #[inline]
    pub fn fit(&self, id: BlockId, code: &mut Code) {
        code.place(id, self.buffer.next_address());
    }

    /// Gives a block its host code, which has been fitted. False if there is no room for it.
    #[inline]
    pub fn install(&mut self, id: BlockId, code: &mut Code) -> bool {
        let Some(offset) = self.buffer.append(&code.bytes) else {
            return false;
        };
        let block = self.blocks.get_mut(id);
        block.code = self.buffer.address(offset);
        block.place.offset = offset;
        block.place.len = code.bytes.len() as u32;
        block.slots = std::mem::take(&mut code.slots);
        block.traps = std::mem::take(&mut code.traps);
        self.map.insert(offset, id);
        true
    }

    /// Gives a block other code, and sends those who jump to its old code at `old` there. Returns its address; `None` if
    /// there is no room for it.
    pub fn replace(&mut self, id: BlockId, old: usize, code: Code) -> Option<u64> {
        let offset = self.buffer.append_reserved(&code.bytes)?;
        self.buffer.patch_jump(old, offset);
        let address = self.buffer.address(offset);
        self.map.insert(offset, id);
        // Slots keep their numbers; links of the old code stay with the old code.
        self.blocks
            .replace_code(id, address, offset, code)
            .apply(&mut self.buffer);
        // A store under way may go back into code.
        self.buffer.settle();
        Some(address)
    }

    /// Keeps what is known of the code that a block had at an offset, because a vCPU may still be in it.
    pub fn keep_former(&mut self, id: BlockId, offset: usize, traps: Vec<Trap>) {
        self.map.insert(offset, id);
        self.former_traps.push((offset, traps));
    }

    /// Whether there is a block's code at an offset.
    #[inline]
    pub fn has_code_at(&self, offset: usize) -> bool {
        self.map.get(offset).is_some()
    }

    /// Places code for a part of a block, which leaves off at `end`. Returns its address; `None` if there is no room.
    pub fn place_partial(&mut self, id: BlockId, code: Code, end: Option<Resume>) -> Option<u64> {
        let offset = self.buffer.append(&code.bytes)?;
        self.partial = Partial {
            targets: code.slots.iter().map(|s| s.target).collect(),
            traps: Some((offset, id, code.traps)),
            end,
        };
        Some(self.buffer.address(offset))
    }

    /// Where the part of a block leaves off that has just run.
    #[inline]
    pub fn take_partial_end(&mut self) -> Option<Resume> {
        self.partial.end.take()
    }

    /// The code that a host address lies in.
    pub fn find(&self, address: u64) -> Found {
        let Some(offset) = self.buffer.offset_of(address) else {
            return Found::default();
        };
        let site = |start: usize, traps: &[Trap]| {
            let at = (offset - start) as u32;
            let trap = traps.iter().find(|t| (t.start..t.end).contains(&at));
            trap.map(|t| t.site)
        };
        if let Some((start, id, traps)) = &self.partial.traps {
            if offset >= *start {
                if let Some(site) = site(*start, traps) {
                    let block = Some((*id, offset - start));
                    let site = Some(site);
                    return Found { block, site };
                }
            }
        }
        match self.map.find(offset) {
            None => Found::default(),
            Some((start, id)) => Found {
                block: Some((id, offset - start)),
                site: site(start, self.traps_of(start, id)),
            },
        }
    }

    /// Where the code that a block has, or had, at an offset may raise signals.
    #[inline]
    fn traps_of(&self, offset: usize, id: BlockId) -> &[Trap] {
        let block = self.blocks.get(id);
        let former = || self.former_traps.iter().rev().find(|(at, _)| *at == offset);
        match former() {
            Some((_, traps)) if offset != block.place.offset => traps,
            _ => &block.traps,
        }
    }

    // ---- jumps between blocks --------------------------------------------------------------------

    /// Follows a direct jump of a block that is not linked yet: where it leads. It could be chained.
    #[inline]
    pub fn follow(&mut self, from: BlockId, slot: usize) -> u64 {
        let block = self.blocks.get(from);
        if block.code == 0 {
            // A part of a block that has no code of its own now; it has the same slots.
            return self.partial.targets[slot];
        }
        let target = block.slots[slot].target;
        if block.slots[slot].patch.is_some() && self.blocks.is_live(from) {
            self.to_chain = Some((from, slot));
        }
        target
    }

    /// Whether a jump was followed that could be chained to what comes next.
    #[inline]
    pub fn has_link(&self) -> bool {
        self.to_chain.is_some()
    }

    /// The jump that was followed, once.
    #[inline]
    pub fn take_link(&mut self) -> Option<(BlockId, usize)> {
        self.to_chain.take()
    }

    /// Does not chain the jump that was followed.
    #[inline]
    pub fn forget_link(&mut self) {
        self.to_chain = None;
    }

    /// Links the jump that was just followed to the block that it led to.
    #[inline]
    pub fn chain(&mut self, link: Option<(BlockId, usize)>, to: BlockId) {
        let Some((from, slot)) = link else { return };
        let (source, target) = (self.blocks.get(from), self.blocks.get(to));
        let fits = self.blocks.is_live(from)
            && source.code != 0
            && target.second.is_none()
            && target.mode == source.mode
            && source.slots[slot].target == target.rip;
        if fits {
            self.chain_slot(from, slot, to);
        }
    }

    /// Links a slot of a block to another block, if that has code.
    #[inline]
    pub fn chain_slot(&mut self, from: BlockId, slot: usize, to: BlockId) {
        // Only a part of it may have been made.
        if self.blocks.get(to).code == 0 {
            return;
        }
        if let Some((at, target)) = self.blocks.chain(from, slot, to) {
            self.buffer.patch_rel32(at, target);
        }
    }

    // ---- blocks that go --------------------------------------------------------------------------

    /// Lets nothing in the cache lead to a block's code any more: its rip and the code's address, if it has code.
    #[inline]
    pub fn unreach(&mut self, id: BlockId) -> Option<(u64, u64)> {
        let block = self.blocks.get(id);
        let (code, rip, offset) = (block.code, block.rip, block.place.offset);
        if code == 0 {
            return None;
        }
        self.to_chain.take_if(|(from, _)| *from == id);
        self.map.remove(offset);
        Some((rip, code))
    }

    /// Takes a block out that nothing leads to. `runs_on`: the running vCPU is in it and executes what is left.
    pub fn remove(&mut self, id: BlockId, pages: impl Iterator<Item = usize>, runs_on: bool) {
        let patches = self.blocks.detach(id, pages);
        patches.apply(&mut self.buffer);
        if runs_on {
            self.overrun = Some(id);
        } else {
            self.blocks.release(id);
        }
    }

    /// Takes a block's host code away, which nothing leads to.
    pub fn strip(&mut self, id: BlockId) {
        let patches = self.blocks.strip(id);
        patches.apply(&mut self.buffer);
    }

    /// Takes a block out of the tables that can still be reached through jumps.
    pub fn retire(&mut self, id: BlockId, pages: impl Iterator<Item = usize>) {
        self.blocks.bury(id, pages);
        self.retired.push(id);
    }

    /// Takes a block out of the tables, if it is in there, that will not be reached any more.
    pub fn forget_block(&mut self, id: BlockId, pages: impl Iterator<Item = usize>) {
        if self.blocks.is_live(id) {
            self.blocks.bury(id, pages);
        }
        self.retired.retain(|&each| each != id);
    }

    /// Whether the running vCPU is in this block although a store of its own has removed it.
    #[inline]
    pub fn overruns(&self, id: BlockId) -> bool {
        self.overrun == Some(id)
    }

    /// The vCPU has left the block that it was in although that had been removed.
    #[inline]
    pub fn end_overrun(&mut self) {
        if let Some(id) = self.overrun.take() {
            self.blocks.release(id);
        }
    }

    /// Blocks that are in no table and can still run.
    #[inline]
    pub fn unlisted(&self) -> impl Iterator<Item = BlockId> + '_ {
        self.retired.iter().copied().chain(self.overrun)
    }

    /// Whether there are as many blocks as there may be.
    #[inline]
    pub fn is_full(&self, capacity: usize) -> bool {
        self.blocks.len() + self.retired.len() >= capacity
    }

    /// Forgets the blocks that are in no table.
    pub fn forget_unlisted(&mut self) {
        self.retired.clear();
        self.overrun = None;
    }

    /// Forgets all host code. What leads to it from outside of the cache has to go, too.
    pub fn forget_code(&mut self) {
        self.to_chain = None;
        self.buffer.clear();
        self.map.clear();
        self.partial.traps = None;
        self.former_traps.clear();
    }

    /// The block with this serial number, if it exists or can still be reached.
    pub fn with_serial(&self, serial: u64) -> Option<BlockId> {
        self.blocks.with_serial(serial).or_else(|| {
            let mut removed = self.unlisted();
            removed.find(|&id| self.blocks.get(id).serial == serial)
        })
    }
}
