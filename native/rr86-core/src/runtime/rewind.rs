//! Going back to a state that this engine was in, and leaving host code where it is.
//!
//! A debugger that steps backwards restores a state of a few million instructions ago, over and over. Nearly all blocks
//! are in both states, and translating them anew would cost more than everything else. So the blocks of the state are
//! compared with those that exist, by their serial numbers, which are never used twice in one run: what is in both keeps
//! its host code and its links.

use super::cache::BlockId;
use super::checkpoint::{bad, BlockRecord, Place};
use super::engine::Engine;
use super::fetch::Mmu;
use crate::saved::{LoadError, Reader};

impl Engine {
    /// Turns the blocks that exist into those of a state of this engine. RAM is that state's already, and no vCPU is in
    /// a block.
    ///
    /// # Errors
    /// For a state of another engine.
    pub(super) fn rewind_blocks(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError> {
        let next = r.varint()?;
        let count = r.count("number of blocks", self.translator.capacity())?;
        let mut records: Vec<BlockRecord> = Vec::with_capacity(count);
        for _ in 0..count {
            let before = records.last().unwrap_or(&BlockRecord::START);
            records.push(BlockRecord::load(r, before)?);
        }
        // What goes makes room for what comes back in its place.
        let mut here = self.cache.blocks.live_by_serial().into_iter().peekable();
        let mut gone = Vec::new();
        for record in &records {
            while let Some((_, id)) = here.next_if(|&(serial, _)| serial < record.serial) {
                self.drop_block(id);
            }
            match here.next_if(|&(serial, _)| serial == record.serial) {
                Some((_, id)) => self.bring_back(id, record)?,
                None => gone.push(record),
            }
        }
        for (_, id) in here {
            self.drop_block(id);
        }
        for record in gone {
            self.put_back(record)?;
        }
        self.cache.blocks.set_next_serial(next);
        self.cache.forget_link();
        self.cache.settle();
        self.vcpus.mmus().for_each(Mmu::clear_jumps);
        Ok(())
    }

    /// Takes a block out that the state does not have.
    fn drop_block(&mut self, id: BlockId) {
        self.unreach(id);
        let pages = self.listed_pages(id);
        self.cache.remove(id, pages, false);
    }

    /// Gives a block that is in both states what the state knows of it.
    fn bring_back(&mut self, id: BlockId, record: &BlockRecord) -> Result<(), LoadError> {
        let block = self.cache.blocks.get(id);
        if Place::from(block) != record.place {
            return bad("block of another run", record.serial);
        }
        // Its code compares the bytes at every entry, or it does not.
        if block.stale.checked != record.stale.checked {
            self.strip_code(id);
        }
        let block = self.cache.blocks.get_mut(id);
        block.stale = record.stale;
        block.made = record.made;
        Ok(())
    }

    /// Adds a block that has been removed since.
    fn put_back(&mut self, record: &BlockRecord) -> Result<(), LoadError> {
        let place = &record.place;
        if self
            .cache
            .blocks
            .find(place.paddr, place.second, place.rip, place.mode)
            .is_some()
        {
            return bad("second block of one place", place.paddr);
        }
        let bytes = record.bytes.clone();
        let bytes = bytes.unwrap_or_else(|| self.source(place));
        self.insert_record(record, &bytes);
        Ok(())
    }

    /// Takes a block's host code away, and what leads to it. It is made again when the block is needed.
    pub(in crate::runtime) fn strip_code(&mut self, id: BlockId) {
        self.unreach(id);
        self.cache.strip(id);
    }
}
