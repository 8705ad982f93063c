//! The block cache: which blocks exist, where they came from, and how they are linked.
//!
//! A block's existence is part of the machine; its host code is not. Code can be dropped and made
//! again from the block's own copy of its source bytes (when the code buffer is full, or when the
//! debugger's stops change) without any effect on the guest.

use crate::runtime::codebuf::CodeBuffer;
use crate::translate::code::OWN_SLOTS;
use crate::translate::code::{Code, Slot, Trap};
use crate::translate::mode::Mode;
use crate::translate::scratch::Source;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Index of a block in the cache.
pub use crate::translate::code::BlockId;

/// The number of no block.
pub const NO_BLOCK: BlockId = BlockId::MAX;
const NONE: BlockId = BlockId::MAX;

/// A stretch of the code buffer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    pub offset: usize,
    pub len: u32,
}

/// What is known of a block that may no longer match memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Staleness {
    /// Its source changed and the protocol left it in place.
    pub marked: bool,
    /// Entries compare the source with memory.
    pub checked: bool,
    /// It has been entered while it was stale.
    pub entered: bool,
    /// A breakpoint instruction in it was executed that memory did not hold.
    pub int3: bool,
}

/// How often a block runs, and what has been made of that.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hotness {
    /// Samples that found it about to run, see `hotness`.
    pub samples: u8,
    /// How often a superblock was made for it, and whether it has one now.
    pub superblocks: u8,
    pub has_superblock: bool,
}

/// The vCPU that made a block, and the moments at which its bytes were read and it was linked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Made {
    pub by: u8,
    pub fetched_at: u64,
    pub linked_at: u64,
}

/// A translation block.
///
/// What a look-up reads comes first, so that it lies in one line of the host's cache.
#[repr(C, align(64))]
pub struct Block {
    /// Physical address of the first byte.
    pub paddr: u64,
    /// rip of the first instruction.
    pub rip: u64,
    /// Physical address of the first byte in the second page, for an instruction that crosses.
    pub second: Option<u64>,
    /// Host address of the code; 0 when there is none now.
    pub code: u64,
    pub mode: Mode,
    next: BlockId,
    pub count: u8,
    live: bool,
    /// Number that is never used again, for the trace.
    pub serial: u64,
    /// Source bytes as they were fetched.
    pub bytes: Box<[u8]>,
    pub slots: Vec<Slot>,
    pub traps: Vec<Trap>,
    /// Jumps patched to lead here: (block, slot).
    incoming: Vec<(BlockId, u8)>,
    /// Where this block's own jumps lead, and those of its path.
    outgoing: [BlockId; OWN_SLOTS],
    exits: Vec<BlockId>,
    /// Paths that lead through it: the block that each belongs to, and where its code is.
    heads: Vec<Head>,
    /// Where its code is in the buffer.
    pub place: Place,
    pub stale: Staleness,
    pub hot: Hotness,
    pub made: Made,
}

impl Block {
    /// What its code is made from.
    pub fn source(&self) -> Source<'_> {
        Source {
            bytes: &self.bytes,
            rip: self.rip,
            mode: self.mode,
            whole: self.second.is_some(),
            count: usize::from(self.count),
        }
    }

    fn digest(&self) -> u64 {
        let place = self.paddr ^ self.rip.rotate_left(32) ^ u64::from(self.mode.0) << 20;
        xxh3_64_with_seed(&self.bytes, place ^ self.second.unwrap_or(0))
    }

    /// Physical ranges of the source bytes.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let len = self.bytes.len() as u64;
        let first = match self.second {
            Some(_) => 4096 - (self.paddr & 4095),
            None => len,
        };
        std::iter::once((self.paddr, first)).chain(self.second.map(|s| (s, len - first)))
    }
}

/// What to rewrite in the code buffer after links changed: a position, and the offset that it then leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patches {
    /// Displacements of 32 bits.
    pub links: Vec<(usize, usize)>,
    /// Places that become a jump.
    pub jumps: Vec<(usize, usize)>,
}

impl Patches {
    pub fn apply(self, code: &mut CodeBuffer) {
        for (at, target) in self.links {
            code.patch_rel32(at, target);
        }
        for (at, target) in self.jumps {
            code.patch_jump(at, target);
        }
    }
}

/// The entry of a path that leads through a block.
#[derive(Clone, Copy, Debug)]
struct Head {
    block: BlockId,
    /// Offset of the path's code, and of the block's ordinary code, which follows it.
    path: usize,
    ordinary: usize,
}

const BUCKETS: usize = 1 << 17;

/// All blocks, found by physical address, rip and mode, or by page.
pub struct Blocks {
    blocks: Vec<Block>,
    free: Vec<BlockId>,
    buckets: Vec<BlockId>,
    /// By page index, which of `page_lists` is the page's, counted from 1; 0 for a page that never had
    /// code. All zeros, so that the host gives memory for it only where the guest has code.
    by_page: Vec<u32>,
    /// Blocks with bytes in a RAM page.
    page_lists: Vec<Vec<BlockId>>,
    live: usize,
    next_serial: u64,
    /// Wrapping sum of the digests of all blocks that exist.
    sum: u64,
}

fn bucket(paddr: u64, rip: u64, mode: Mode) -> usize {
    let mixed =
        (paddr ^ rip.rotate_left(21) ^ u64::from(mode.0) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 47) as usize & (BUCKETS - 1)
}

impl Blocks {
    pub fn new(pages: usize) -> Self {
        Self {
            blocks: Vec::new(),
            free: Vec::new(),
            buckets: vec![NONE; BUCKETS],
            by_page: vec![0; pages],
            page_lists: Vec::new(),
            live: 0,
            next_serial: 0,
            sum: 0,
        }
    }

    /// Digest of the set of blocks: places, modes and source bytes, whatever their order.
    pub fn digest(&self) -> u64 {
        self.sum
    }

    /// Number of blocks that exist.
    pub fn len(&self) -> usize {
        self.live
    }

    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    pub fn get(&self, id: BlockId) -> &Block {
        &self.blocks[id as usize]
    }

    pub fn get_mut(&mut self, id: BlockId) -> &mut Block {
        &mut self.blocks[id as usize]
    }

    /// The block in this place of the table, if the place is in use.
    pub fn try_get(&self, id: BlockId) -> Option<&Block> {
        self.blocks.get(id as usize)
    }

    /// The block with this serial number.
    pub fn with_serial(&self, serial: u64) -> Option<BlockId> {
        (0..self.blocks.len() as BlockId).find(|&id| {
            let block = self.get(id);
            block.live && block.serial == serial
        })
    }

    /// Serial number of the next block.
    pub fn next_serial(&self) -> u64 {
        self.next_serial
    }

    /// Sets the serial number of the next block, for a checkpoint that is restored.
    pub fn set_next_serial(&mut self, serial: u64) {
        self.next_serial = serial;
    }

    /// Whether the block still exists.
    pub fn is_live(&self, id: BlockId) -> bool {
        self.blocks[id as usize].live
    }

    /// All blocks that exist, in the order of their serial numbers.
    pub fn iter_live(&self) -> Vec<&Block> {
        let mut all: Vec<&Block> = self.blocks.iter().filter(|b| b.live).collect();
        all.sort_by_key(|b| b.serial);
        all
    }

    /// Serial number and place in the table of all blocks that exist, in the order of their serial numbers.
    pub fn live_by_serial(&self) -> Vec<(u64, BlockId)> {
        let live = self.blocks.iter().zip(0..).filter(|(block, _)| block.live);
        let mut all: Vec<_> = live.map(|(block, id)| (block.serial, id)).collect();
        all.sort_unstable();
        all
    }

    /// The blocks that have host code.
    pub fn with_code(&self) -> Vec<BlockId> {
        let with_code = self
            .blocks
            .iter()
            .zip(0..)
            .filter(|(b, _)| b.live && b.code != 0);
        with_code.map(|(_, id)| id).collect()
    }

    pub fn find(&self, paddr: u64, second: Option<u64>, rip: u64, mode: Mode) -> Option<BlockId> {
        let mut at = self.buckets[bucket(paddr, rip, mode)];
        while at != NONE {
            let b = &self.blocks[at as usize];
            if b.paddr == paddr && b.rip == rip && b.mode == mode && b.second == second {
                return Some(at);
            }
            at = b.next;
        }
        None
    }

    /// Whether a block with this start exists that goes on in another page.
    pub fn crossing(&self, paddr: u64, rip: u64, mode: Mode) -> bool {
        let mut at = self.buckets[bucket(paddr, rip, mode)];
        while at != NONE {
            let b = &self.blocks[at as usize];
            if b.paddr == paddr && b.rip == rip && b.mode == mode && b.second.is_some() {
                return true;
            }
            at = b.next;
        }
        false
    }

    /// Adds a block; `pages` are the RAM pages that its bytes lie in.
    #[allow(clippy::too_many_arguments)]
    pub fn insert(
        &mut self,
        rip: u64,
        paddr: u64,
        second: Option<u64>,
        mode: Mode,
        bytes: &[u8],
        count: u8,
        pages: impl Iterator<Item = usize>,
    ) -> BlockId {
        let place = bucket(paddr, rip, mode);
        let block = Block {
            serial: self.next_serial,
            rip,
            paddr,
            second,
            mode,
            bytes: bytes.into(),
            count,
            code: 0,
            slots: Vec::new(),
            traps: Vec::new(),
            incoming: Vec::new(),
            outgoing: [NONE; OWN_SLOTS],
            place: Place::default(),
            stale: Staleness::default(),
            hot: Hotness::default(),
            made: Made::default(),
            exits: Vec::new(),
            heads: Vec::new(),
            next: self.buckets[place],
            live: true,
        };
        self.next_serial += 1;
        self.live += 1;
        self.sum = self.sum.wrapping_add(block.digest());
        let id = match self.free.pop() {
            Some(id) => {
                self.blocks[id as usize] = block;
                id
            }
            None => {
                self.blocks.push(block);
                (self.blocks.len() - 1) as BlockId
            }
        };
        self.buckets[place] = id;
        for page in pages {
            if self.by_page[page] == 0 {
                self.page_lists.push(Vec::new());
                self.by_page[page] = self.page_lists.len() as u32;
            }
            let list = &mut self.page_lists[self.by_page[page] as usize - 1];
            // Where a block goes on in an alias of its own page, both pages are one.
            if list.last() != Some(&id) {
                list.push(id);
            }
        }
        id
    }

    /// Blocks with bytes in a RAM page.
    pub fn in_page(&self, page: usize) -> &[BlockId] {
        match self.by_page[page] {
            0 => &[],
            list => &self.page_lists[list as usize - 1],
        }
    }

    /// The blocks that a block's own jumps are linked to, by slot.
    pub fn successors(&self, id: BlockId) -> [Option<BlockId>; OWN_SLOTS] {
        let block = &self.blocks[id as usize];
        block.outgoing.map(|to| (to != NONE).then_some(to))
    }

    /// Notes that a block's code begins with a superblock of these blocks, before its ordinary code at this offset
    /// in the code buffer. When one of them goes, it is not entered any more.
    pub fn set_path(&mut self, id: BlockId, members: &[BlockId], ordinary: usize) {
        let block = &mut self.blocks[id as usize];
        block.hot.has_superblock = true;
        block.hot.superblocks += 1;
        let head = Head {
            block: id,
            path: block.place.offset,
            ordinary,
        };
        for (place, &member) in members.iter().enumerate() {
            if member != id && !members[..place].contains(&member) {
                self.blocks[member as usize].heads.push(head);
            }
        }
    }

    /// Links a slot of `from` to `to`; returns where to patch.
    pub fn chain(&mut self, from: BlockId, slot: usize, to: BlockId) -> Option<(usize, usize)> {
        let target = self.blocks[to as usize].place.offset;
        let source = &mut self.blocks[from as usize];
        let patch = source.slots[slot].patch? as usize + source.place.offset;
        match slot.checked_sub(OWN_SLOTS) {
            None => source.outgoing[slot] = to,
            Some(exit) => source.exits[exit] = to,
        }
        self.blocks[to as usize].incoming.push((from, slot as u8));
        Some((patch, target))
    }

    fn unlink(&mut self, id: BlockId, patches: &mut Patches) {
        for (from, slot) in std::mem::take(&mut self.blocks[id as usize].incoming) {
            let source = &mut self.blocks[from as usize];
            let slot = usize::from(slot);
            match slot.checked_sub(OWN_SLOTS) {
                None => source.outgoing[slot] = NONE,
                Some(exit) => source.exits[exit] = NONE,
            }
            if let (true, Some(at)) = (source.code != 0, source.slots[slot].patch) {
                let exit = source.slots[slot].exit as usize;
                let links = &mut patches.links;
                links.push((
                    source.place.offset + at as usize,
                    source.place.offset + exit,
                ));
            }
        }
        self.unlink_own(id);
        for head in std::mem::take(&mut self.blocks[id as usize].heads) {
            patches.jumps.push((head.path, head.ordinary));
            let block = &mut self.blocks[head.block as usize];
            if block.place.offset == head.path && block.code != 0 {
                (block.hot.has_superblock, block.hot.samples) = (false, 0);
            }
        }
    }

    /// Forgets where a block's own jumps lead.
    fn unlink_own(&mut self, id: BlockId) {
        let block = &mut self.blocks[id as usize];
        let targets = std::mem::replace(&mut block.outgoing, [NONE; OWN_SLOTS]);
        let exits = std::mem::take(&mut block.exits);
        for (slot, &to) in targets.iter().chain(&exits).enumerate() {
            if to != NONE {
                self.blocks[to as usize]
                    .incoming
                    .retain(|&l| l != (id, slot as u8));
            }
        }
    }

    /// Removes a block; `pages` as for `insert`.
    pub fn remove(&mut self, id: BlockId, pages: impl Iterator<Item = usize>) -> Patches {
        let patches = self.detach(id, pages);
        self.release(id);
        patches
    }

    /// Removes a block that is needed until it is released: nothing leads to it any more, it has no
    /// code, and its place is not used again yet.
    pub fn detach(&mut self, id: BlockId, pages: impl Iterator<Item = usize>) -> Patches {
        let mut patches = Patches::default();
        self.unlink(id, &mut patches);
        self.take_out(id, pages);
        self.blocks[id as usize].code = 0;
        patches
    }

    /// Takes a block's host code away. Nothing leads to it any more.
    pub fn strip(&mut self, id: BlockId) -> Patches {
        let mut patches = Patches::default();
        self.unlink(id, &mut patches);
        let block = &mut self.blocks[id as usize];
        block.code = 0;
        block.slots.clear();
        block.traps.clear();
        (block.hot.has_superblock, block.hot.superblocks) = (false, 0);
        patches
    }

    /// Lets the place of a detached block be used again.
    pub fn release(&mut self, id: BlockId) {
        self.free.push(id);
    }

    fn take_out(&mut self, id: BlockId, pages: impl Iterator<Item = usize>) {
        let block = &mut self.blocks[id as usize];
        let place = bucket(block.paddr, block.rip, block.mode);
        let next = block.next;
        block.live = false;
        self.sum = self.sum.wrapping_sub(block.digest());
        self.live -= 1;
        if self.buckets[place] == id {
            self.buckets[place] = next;
        } else {
            let mut at = self.buckets[place];
            while self.blocks[at as usize].next != id {
                at = self.blocks[at as usize].next;
            }
            self.blocks[at as usize].next = next;
        }
        for page in pages {
            if let Some(list) = (self.by_page[page] as usize).checked_sub(1) {
                self.page_lists[list].retain(|&b| b != id);
            }
        }
    }

    /// Takes a block out of the tables only: what leads to its code still does, and its number is not
    /// used again.
    pub fn bury(&mut self, id: BlockId, pages: impl Iterator<Item = usize>) {
        self.take_out(id, pages);
    }

    /// Blocks whose second page starts at this physical address, in the order of their serial numbers.
    pub fn crossing_into(&self, page: u64) -> Vec<BlockId> {
        let mut found: Vec<BlockId> = (0..self.blocks.len() as BlockId)
            .filter(|&id| {
                let block = &self.blocks[id as usize];
                block.live && block.second == Some(page)
            })
            .collect();
        // Places in the table are reused, and not the same after a checkpoint.
        found.sort_by_key(|&id| self.get(id).serial);
        found
    }

    /// Gives a block new code. Its own jumps are not linked yet; jumps to it are rewritten to lead to the
    /// new code.
    pub fn replace_code(
        &mut self,
        id: BlockId,
        address: u64,
        offset: usize,
        code: Code,
    ) -> Patches {
        self.unlink_own(id);
        let block = &mut self.blocks[id as usize];
        block.code = address;
        block.place.offset = offset;
        block.place.len = code.bytes.len() as u32;
        block.exits = vec![NONE; code.slots.len().saturating_sub(OWN_SLOTS)];
        block.slots = code.slots;
        block.traps = code.traps;
        let incoming = block.incoming.clone();
        let links = incoming
            .into_iter()
            .filter_map(|(from, slot)| {
                let source = &self.blocks[from as usize];
                let at = source.slots.get(slot as usize)?.patch?;
                (source.code != 0).then_some((source.place.offset + at as usize, offset))
            })
            .collect();
        Patches {
            links,
            jumps: Vec::new(),
        }
    }

    /// Forgets all host code, keeping the blocks.
    pub fn drop_code(&mut self) {
        for block in &mut self.blocks {
            block.code = 0;
            block.slots.clear();
            block.traps.clear();
            block.incoming.clear();
            block.outgoing = [NONE; OWN_SLOTS];
            block.exits.clear();
            block.heads.clear();
            (block.hot.has_superblock, block.hot.superblocks) = (false, 0);
        }
    }

    /// Removes every block.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.free.clear();
        self.buckets.fill(NONE);
        self.page_lists.iter_mut().for_each(Vec::clear);
        self.live = 0;
        self.sum = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_that_goes_on_in_an_alias_of_its_page_is_listed_once() {
        let mut blocks = Blocks::new(4);
        let (rip, paddr, second) = (0x10ffe, 0x2ffe, Some(0x2000));
        let pages = || [2usize, 2].into_iter();
        let id = blocks.insert(rip, paddr, second, Mode(0), &[0xb8, 1, 0, 0, 0], 1, pages());
        assert_eq!(blocks.in_page(2), [id]);
        blocks.remove(id, pages());
        assert!(blocks.in_page(2).is_empty());
        assert!(blocks.is_empty());
    }
}
