//! A superblock before it is code, and what is kept about it while it is written.

use iced_x86::{Instruction, Mnemonic};

use crate::translate::code::{BlockId, Slot};
use crate::translate::decode::classify::Class;
use crate::translate::encode::asm::{Reg, Width};

/// A block of a superblock.
pub struct Member {
    pub id: BlockId,
    pub insns: Vec<(Instruction, Class)>,
}

/// The blocks of a superblock, in their order.
pub struct Superblock {
    pub(in crate::translate) members: Vec<Member>,
    /// Their instructions: what is not parted by a branch is one piece.
    pub(in crate::translate) pieces: Vec<Piece>,
}

pub(in crate::translate) struct Piece {
    pub(in crate::translate) insns: Vec<(Instruction, Class)>,
    /// The member and the number of each instruction in it.
    pub(in crate::translate) places: Vec<(usize, usize)>,
}

impl Superblock {
    pub fn new(members: Vec<Member>) -> Self {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut parted = true;
        for (number, member) in members.iter().enumerate() {
            if parted {
                pieces.push(Piece {
                    insns: Vec::new(),
                    places: Vec::new(),
                });
            }
            if let Some(piece) = pieces.last_mut() {
                piece.insns.extend_from_slice(&member.insns);
                let places = (0..member.insns.len()).map(|index| (number, index));
                piece.places.extend(places);
            }
            parted = member.insns.last().is_some_and(|l| l.1 == Class::Branch);
        }
        Self { members, pieces }
    }

    /// Instructions from this member on.
    pub(in crate::translate) fn count(&self, from: usize) -> i32 {
        let members = self.members[from..].iter();
        members.map(|member| member.insns.len() as i32).sum()
    }
}

/// A jump for an access that needs Rust.
#[derive(Clone, Copy)]
pub(in crate::translate) struct Miss {
    pub(in crate::translate) fixup: usize,
    /// Where it comes from: the member, and the number of the instruction.
    pub(in crate::translate) member: usize,
    pub(in crate::translate) index: usize,
    /// Flags that have to be made again.
    pub(in crate::translate) deferred: Option<FlagSource>,
}

/// What an emitter knows while it writes a superblock, or the rest of one of its blocks.
#[derive(Default)]
pub(in crate::translate) struct Path {
    /// The block that is being written.
    pub(in crate::translate) id: BlockId,
    /// It is written as a part of the superblock; the number of the current instruction's block in it.
    pub(in crate::translate) whole: bool,
    pub(in crate::translate) member: usize,
    /// The rip of that block, the number of the current instruction in it, and how many there are.
    pub(in crate::translate) rip: u64,
    pub(in crate::translate) place: usize,
    pub(in crate::translate) length: usize,
    /// What the flags come from, and what they have to be made from again because they are nowhere.
    pub(in crate::translate) flag_source: Option<FlagSource>,
    pub(in crate::translate) deferred: Option<FlagSource>,
    pub(in crate::translate) misses: Vec<Miss>,
    /// The exits.
    pub(in crate::translate) slots: Vec<Slot>,
}

/// How to make an instruction's flags again once it has run.
#[derive(Clone, Copy)]
pub(in crate::translate) struct FlagSource {
    pub(in crate::translate) mnemonic: Mnemonic,
    pub(in crate::translate) width: Width,
    pub(in crate::translate) target: Reg,
    pub(in crate::translate) source: Source,
    /// Bits of the guest's registers that this takes.
    pub(in crate::translate) registers: u16,
}

#[derive(Clone, Copy)]
pub(in crate::translate) enum Source {
    Register(Reg),
    Immediate(i32),
}
