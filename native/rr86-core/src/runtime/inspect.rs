//! Blocks as a debugger sees them, and the one thing it may do to them: remove a block that should not
//! be there any more.

use crate::cpu::paging;
use crate::runtime::cache::{Block, BlockId};
use crate::runtime::engine::Engine;
use crate::runtime::progress::Progress;

impl Engine {
    /// The block with this serial number, if it exists or can still be reached.
    pub fn block_with_serial(&self, serial: u64) -> Option<BlockId> {
        self.cache.with_serial(serial)
    }

    /// The block that a vCPU is in, or would enter next if it exists.
    pub fn current_block(&self, vcpu: usize) -> Option<BlockId> {
        if let Some(resume) = self.progress.get(vcpu).and_then(Progress::resume) {
            return Some(resume.block);
        }
        let cpu = self.cpu(vcpu);
        let mode = crate::translate::mode::Mode::of(cpu);
        let linear = if cpu.code64() {
            cpu.rip
        } else {
            cpu.rip
                .wrapping_add(cpu.seg[crate::cpu::state::sreg::CS].base)
                & 0xffff_ffff
        };
        let mut read = |paddr: u64, size: usize| {
            let mut bytes = [0; 8];
            self.memory.ram.read(paddr, &mut bytes[..size]);
            u64::from_le_bytes(bytes)
        };
        let paddr = if cpu.paging() {
            paging::peek(cpu, &mut read, linear)?
        } else {
            linear
        };
        self.cache.blocks.find(paddr, None, cpu.rip, mode)
    }

    /// Whether a vCPU's next instruction is another one in its block than in memory.
    pub fn executes_other_bytes(&self, vcpu: usize) -> bool {
        let Some(id) = self.current_block(vcpu) else {
            return false;
        };
        let block = self.cache.blocks.get(id);
        let offset = self.cpu(vcpu).rip.wrapping_sub(block.rip) as usize;
        if offset > block.bytes.len() {
            return false;
        }
        let insn = self.translator.instruction_in(block, offset);
        !self.holds(id, offset, insn.len())
    }

    /// Whether memory holds these bytes of a block.
    pub(in crate::runtime) fn holds(&self, id: BlockId, offset: usize, length: usize) -> bool {
        let block = self.cache.blocks.get(id);
        let range = offset..(offset + length).min(block.bytes.len());
        self.memory_of(block).get(range.clone()) == block.bytes.get(range)
    }

    /// What memory holds now where a block came from.
    pub fn memory_of(&self, block: &Block) -> Vec<u8> {
        let mut bytes = vec![0; block.bytes.len()];
        let mut done = 0;
        for (at, len) in block.ranges() {
            self.memory
                .ram
                .read(at, &mut bytes[done..done + len as usize]);
            done += len as usize;
        }
        bytes
    }

    /// Moment at which a vCPU was last serialised: by an interrupt, or by an instruction that does so
    /// (SDM vol. 3A, section 9.3).
    pub fn serialised_at(&self, vcpu: usize) -> Option<u64> {
        self.progress.get(vcpu)?.serialised_at()
    }

    /// Removes a block as if a write to it had been noticed. The run is not the recorded one any more.
    pub fn invalidate_serial(&mut self, serial: u64) -> bool {
        let Some(id) = self.block_with_serial(serial) else {
            return false;
        };
        let pages = self.listed_pages(id);
        self.cache.forget_block(id, pages);
        // Other vCPUs may hold the same bytes already.
        let paddr = self.cache.blocks.get(id).paddr;
        self.forget_fetches(paddr);
        for each in &mut self.progress {
            each.leave_removed(id);
        }
        // No chain and no cache leads anywhere now.
        self.drop_code();
        true
    }

    /// Lets the bytes that a vCPU fetched at a moment, for the block with this serial number, be fetched anew
    /// instead of being linked. If they are under way, they are dropped now, and the vCPU looks again when it
    /// runs; otherwise when they are about to be linked.
    pub fn refetch(&mut self, serial: u64, vcpu: usize, fetched: u64) {
        let progress = self.progress.get_mut(vcpu);
        let taken = progress.and_then(|each| each.take_fetch_if(|f| f.icount == fetched));
        match taken {
            Some(fetched) => self.forget_fetches(fetched.paddr),
            None => self.windows.refetch(serial),
        }
    }
}
