//! What a translation comes to: host code that can run anywhere, until it is placed.
//!
//! Two things in the code of a block depend on more than what was translated: the distance to the stubs and
//! the number of the block. Their places are kept, so that the code is the same whoever makes it, and whenever.

/// A block's number in the cache.
pub type BlockId = u32;

/// Slots that a block without a superblock has at most.
pub const OWN_SLOTS: usize = 2;

/// A patchable jump to another block.
#[derive(Clone, Copy, Debug, Default)]
pub struct Slot {
    /// rip of the target.
    pub target: u64,
    /// Offset of the rel32 in the block's code; `None` when the jump goes through the jump cache.
    pub patch: Option<u32>,
    /// Offset of the code that leaves to the dispatcher.
    pub exit: u32,
}

/// A host instruction that may raise a signal on the guest's behalf.
#[derive(Clone, Copy, Debug)]
pub struct Trap {
    pub start: u32,
    pub end: u32,
    pub site: u32,
}

/// Four bytes of code that depend on more than what was translated.
#[derive(Clone, Copy, Debug)]
pub struct Relocation {
    pub at: u32,
    pub what: Moved,
}

#[derive(Clone, Copy, Debug)]
pub enum Moved {
    /// A rel32 that leads to a stub; it is right for code at address 0.
    Stub,
    /// The number of the block.
    Block,
}

/// The code of a block. Until it is placed, it is a function of the request and the stubs alone.
#[derive(Clone, Debug, Default)]
pub struct Code {
    pub bytes: Vec<u8>,
    pub slots: Vec<Slot>,
    pub traps: Vec<Trap>,
    pub relocations: Vec<Relocation>,
    /// Offset of the block's ordinary code, behind its superblock.
    pub ordinary: usize,
    /// Offset of what seldom runs, which is behind everything else.
    pub split: usize,
}

impl Code {
    /// Makes it the code of the block `id`, to run at `address`.
    pub fn place(&mut self, id: u32, address: u64) {
        for Relocation { at, what } in self.relocations.drain(..) {
            let at = at as usize;
            let word = &mut self.bytes[at..at + 4];
            let value = match what {
                // Distances in the code buffer fit 32 bits, so it does not matter that addresses do not.
                Moved::Stub => {
                    let rel = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                    rel.wrapping_sub(address as u32)
                }
                Moved::Block => id,
            };
            word.copy_from_slice(&value.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::translate::block::translate;
    use crate::translate::decode::classify::shape::{self, Shape};
    use crate::translate::decode::offered::Offered;
    use crate::translate::lower::emitter::{Hooks, Request};
    use crate::translate::lower::stubs::Stubs;
    use crate::translate::mode::Mode;
    use crate::translate::scratch::Scratch;
    use crate::translate::shortcuts::Shortcuts;
    use iced_x86::{Decoder, DecoderOptions, Mnemonic};

    /// What a block that calls a helper calls, and the immediates that it stores, when it is placed.
    fn placed(id: u32, address: u64) -> (Vec<u64>, Vec<u32>) {
        let mode = Mode(0x08b2);
        let Shape::Block(insns) = shape::cut(
            &[0x0f, 0xa2, 0xc3],
            0x1000,
            mode,
            &Offered::default(),
            64,
            false,
        ) else {
            panic!("CPUID and RET are a block");
        };
        let stubs = Stubs {
            helper: 0x7f12_3456_0000,
            ..Stubs::default()
        };
        let hooks = Hooks::default();
        let request = Request {
            mode,
            insns: &insns,
            start: 0,
            stop: 1,
            hooks: &hooks,
            checked: false,
            tracking: true,
            shortcuts: Shortcuts::ALL,
            superblock: None,
        };
        let mut code = translate(request, stubs, &mut Scratch::default());
        code.place(id, address);
        let all: Vec<_> = Decoder::with_ip(64, &code.bytes, address, DecoderOptions::NONE)
            .into_iter()
            .collect();
        let calls = all.iter().filter(|i| i.mnemonic() == Mnemonic::Call);
        let stores = all
            .iter()
            .filter(|i| i.mnemonic() == Mnemonic::Mov && i.memory_size().size() == 4)
            .map(|i| i.immediate32());
        (
            calls.map(|i| i.near_branch_target()).collect(),
            stores.collect(),
        )
    }

    #[test]
    fn placed_code_calls_the_stubs_and_knows_its_block() {
        for (id, address) in [(7, 0x7f12_3400_0000), (0xdead_beef, 0x7f12_3777_7770)] {
            let (calls, stores) = placed(id, address);
            assert_eq!(calls, [0x7f12_3456_0000]);
            assert!(stores.contains(&id));
        }
    }
}
