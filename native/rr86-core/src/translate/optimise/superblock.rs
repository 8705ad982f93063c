//! Superblocks: a path of linked blocks as one piece of host code.
//!
//! A superblock belongs to its first block, and stands before the block's ordinary code. It is for blocks that
//! run often, one after the other (`runtime::hotness` finds them): the budget is asked once for all of them, flags stay
//! in the host from one to the next, and what was a jump falls through. A branch that leaves the path, or a
//! budget that does not suffice for all of it, goes on in ordinary code.
//!
//! Nothing but copied instructions runs in it, until its last block: where an access needs Rust, the
//! superblock is left for a copy of the rest of that block, which begins with the same access and is as
//! ordinary as any block's code. So nothing can ask for an exit, take a page away or change a block while a
//! superblock runs, and its blocks begin and end, are paid for and are known to slow paths as always. Only
//! the host's time tells the difference.

use iced_x86::{Instruction, Mnemonic};

use crate::translate::code::BlockId;
use crate::translate::code::Slot;
use crate::translate::decode::classify::{self, is_x87, waits, Class};
use crate::translate::decode::operands::only_moves;
use crate::translate::encode::asm::{cc, W64};
use crate::translate::layout::PAGE_SHIFT;
use crate::translate::layout::{at, Exit};
use crate::translate::lower::emitter::Emitter;
use crate::translate::lower::streams::{Flags, Label, Stream, COLD};
use crate::translate::path::{Member, Miss, Path, Piece, Superblock};
use crate::translate::shortcuts::Shortcuts;

/// Whether an instruction can be part of a superblock: it runs as it is, and raises nothing once its
/// operand is there.
pub fn may_join(insn: &Instruction, class: Class) -> bool {
    use Mnemonic as M;
    match class {
        Class::Copy => !matches!(insn.mnemonic(), M::Div | M::Idiv | M::Cmpxchg16b),
        Class::CopyFpu => !is_x87(insn) && !waits(insn) && (only_moves(insn) || is_quiet(insn)),
        Class::Nop | Class::Lea | Class::Push | Class::Pop | Class::Leave => true,
        Class::Jump | Class::Branch | Class::Call => true,
        _ => false,
    }
}

/// The same for the last instruction of its last block.
pub fn may_end(insn: &Instruction, class: Class) -> bool {
    let indirect = matches!(
        class,
        Class::IndirectJump | Class::IndirectCall | Class::Return | Class::CountBranch
    );
    indirect || may_join(insn, class)
}

/// SSE instructions between registers that raise no exception.
fn is_quiet(insn: &Instruction) -> bool {
    use Mnemonic as M;
    !classify::has_memory(insn)
        && matches!(
            insn.mnemonic(),
            M::Movaps
                | M::Movapd
                | M::Movdqa
                | M::Xorps
                | M::Xorpd
                | M::Pxor
                | M::Por
                | M::Pand
                | M::Pandn
                | M::Andps
                | M::Andpd
                | M::Orps
                | M::Orpd
                | M::Pcmpeqb
                | M::Pcmpeqd
                | M::Pminub
                | M::Psubb
                | M::Pmovmskb
                | M::Unpcklps
                | M::Unpcklpd
                | M::Punpcklbw
                | M::Punpcklwd
                | M::Punpckldq
                | M::Punpcklqdq
                | M::Pshufd
                | M::Shufps
                | M::Paddd
                | M::Paddq
                | M::Psubd
                | M::Psubq
        )
}

impl<'a> Emitter<'a> {
    /// Writes a superblock. The block's ordinary code is to be written behind it.
    pub(in crate::translate) fn superblock(&mut self, superblock: &'a Superblock) {
        let total = superblock.count(0);
        self.hot.gs_alu_imm(5, W64, at::BUDGET, total);
        let over_budget = self.hot.jcc(cc::S);
        let back = self.cold.len();
        self.fixups
            .push((Stream::Hot, over_budget, Label::Cold(back)));
        self.cold.gs_alu_imm(0, W64, at::BUDGET, total);
        let ordinary = self.cold.jmp();
        let ordinary = self.fixup(Stream::Cold, ordinary);

        let request = self.request;
        self.path = Some(Path {
            whole: true,
            ..Path::default()
        });
        for piece in &superblock.pieces {
            self.piece(superblock, piece);
        }
        self.outside = self.path.take();
        self.land(ordinary);
        self.request = request;
        self.scratch.begin(request.insns.len());
        self.index = request.start;
        self.flags = Flags::Ax;
        self.fpu_loaded = false;
    }

    fn piece(&mut self, superblock: &'a Superblock, piece: &'a Piece) {
        self.begin_part(&piece.insns);
        for (index, &(insn, class)) in piece.insns.iter().enumerate() {
            let (member, place) = piece.places[index];
            self.index = index;
            if let Some(path) = &mut self.path {
                let block = &superblock.members[member];
                path.member = member;
                path.id = block.id;
                path.rip = block.insns[0].0.ip();
                path.place = place;
                path.length = block.insns.len();
            }
            self.begin_run();
            self.settle_stack_for(&insn, class);
            let next = superblock.members.get(member + 1);
            let last = place + 1 == superblock.members[member].insns.len();
            match next {
                Some(next) if last && class.ends_block() => {
                    self.go_on(superblock, &insn, class, next.insns[0].0.ip());
                }
                None if last && !class.ends_block() => {
                    self.instruction(&insn, class);
                    self.end_run();
                    self.flags_to_ax();
                    self.jump_to(insn.next_ip());
                }
                _ => self.instruction(&insn, class),
            }
            self.end_run();
            self.note_flag_source(&insn, class);
        }
    }

    fn begin_part(&mut self, insns: &'a [(Instruction, Class)]) {
        self.request.insns = insns;
        self.request.start = 0;
        self.request.stop = insns.len();
        self.scratch.begin(insns.len());
    }

    /// The end of a block that another one follows.
    fn go_on(&mut self, superblock: &Superblock, insn: &Instruction, class: Class, next: u64) {
        match class {
            Class::Branch => {
                self.flags_to_host();
                let condition = insn.condition_code() as u8 - 1;
                let taken = insn.near_branch_target();
                if taken != next {
                    let at = self.hot.jcc(condition);
                    self.leave_path(superblock, at, taken);
                } else if insn.next_ip() != next {
                    let at = self.hot.jcc(condition ^ 1);
                    self.leave_path(superblock, at, insn.next_ip());
                }
            }
            Class::Call => self.call_push(insn),
            _ => {}
        }
    }

    /// Makes the jump at `at` one that leaves the path behind the current block.
    fn leave_path(&mut self, superblock: &Superblock, at: usize, target: u64) {
        let here = self.cold.len();
        self.fixups.push((Stream::Hot, at, Label::Cold(here)));
        if self.flags == Flags::Host {
            self.cold.save_flags();
        }
        let member = self.path.as_ref().map_or(0, |path| path.member);
        let rest = superblock.count(member + 1);
        self.cold.gs_alu_imm(0, W64, at::BUDGET, rest);
        let at = self.cold.jmp();
        self.path_exit(Stream::Cold, at, target);
    }

    /// Makes the jump at `at` one to `target`, whose block is linked if it is there when the code is made;
    /// otherwise the jump cache is asked. Flags are in AX.
    pub(in crate::translate) fn path_exit(&mut self, stream: Stream, at: usize, target: u64) {
        let exit = self.cold.len();
        self.fixups.push((stream, at, Label::Cold(exit)));
        let miss = self.jump_if_known(Stream::Cold, target, self.request.mode);
        self.cold.patch_here(miss);
        Self::store_rip(&mut self.cold, target);
        self.leave(Stream::Cold, Exit::Lookup);
        let source = self.request.insns[0].0.ip();
        let same_page = source >> PAGE_SHIFT == target >> PAGE_SHIFT;
        let patch = at as u32
            | if matches!(stream, Stream::Cold) {
                COLD
            } else {
                0
            };
        if let Some(path) = &mut self.path {
            path.slots.push(Slot {
                target,
                patch: same_page.then_some(patch),
                exit: exit as u32,
            });
        }
    }

    /// The first rip of the current instruction's block, the number of the instruction, and that where the block's
    /// code ends.
    pub(in crate::translate) fn place(&self) -> (u64, usize, usize) {
        match &self.path {
            Some(path) if path.whole => (path.rip, path.place, path.length),
            _ => (self.request.insns[0].0.ip(), self.index, self.request.stop),
        }
    }

    /// Whether an access that needs Rust leaves a superblock; if so, the jump of this fixup does.
    pub(in crate::translate) fn leaves_path(&mut self, fixup: usize) -> bool {
        let index = self.index;
        match &mut self.path {
            Some(path) if path.whole => {
                path.misses.push(Miss {
                    fixup,
                    member: path.member,
                    index,
                    deferred: path.deferred,
                });
                true
            }
            _ => false,
        }
    }

    /// Writes what follows where the superblock was left: the rest of each block from such an access on.
    pub(in crate::translate) fn rests(&mut self, superblock: &'a Superblock) {
        let Some(mut path) = self.outside.take() else {
            return;
        };
        // From numbers in pieces to numbers in blocks.
        let mut misses = std::mem::take(&mut path.misses);
        for miss in &mut misses {
            let pieces = superblock.pieces.iter();
            let mut places = pieces.filter_map(|piece| piece.places.get(miss.index));
            let place = places.find(|(member, _)| *member == miss.member);
            miss.index = place.map_or(0, |&(_, place)| place);
        }
        misses.sort_by_key(|miss| miss.index);
        path.whole = false;
        (path.flag_source, path.deferred) = (None, None);
        let exits = path.slots.len();
        self.path = Some(path);
        self.self_loop = None;
        // A run could begin before the place where a rest is entered.
        self.request.shortcuts = self.request.shortcuts.less(Shortcuts::RUNS);
        let mut done: Vec<BlockId> = Vec::new();
        for member in &superblock.members {
            let id = member.id;
            if done.contains(&id) {
                continue;
            }
            done.push(id);
            let own = |miss: &&Miss| superblock.members[miss.member].id == id;
            let own: Vec<Miss> = misses.iter().filter(own).copied().collect();
            if !own.is_empty() {
                self.rest(superblock, member, &own);
            }
        }
        // Rests are not worth being linked.
        if let Some(path) = &mut self.path {
            path.slots.truncate(exits);
        }
        self.outside = self.path.take();
    }

    /// Writes a block from the first of these misses on, with an entry for each.
    fn rest(&mut self, superblock: &Superblock, member: &'a Member, misses: &[Miss]) {
        self.begin_part(&member.insns);
        if let Some(path) = &mut self.path {
            path.id = member.id;
        }
        let mut misses = misses.iter().peekable();
        let first = misses.peek().map_or(0, |miss| miss.index);
        for (index, &(insn, class)) in member.insns.iter().enumerate().skip(first) {
            self.index = index;
            if misses.peek().is_some_and(|miss| miss.index == index) {
                if index > first {
                    self.free_host_flags();
                }
                self.flags = Flags::Ax;
                self.fpu_loaded = false;
            }
            while let Some(miss) = misses.next_if(|miss| miss.index == index) {
                self.fixups[miss.fixup].2 = Label::Cold(self.cold.len());
                if let Some(flag_source) = &miss.deferred {
                    self.recompute_flags(flag_source);
                }
                let rest = superblock.count(miss.member + 1);
                self.cold.gs_alu_imm(0, W64, at::BUDGET, rest);
                let jump = self.cold.jmp();
                let here = self.hot.len();
                self.fixups.push((Stream::Cold, jump, Label::Hot(here)));
            }
            self.instruction(&insn, class);
        }
        let (last, class) = member.insns[member.insns.len() - 1];
        if !class.ends_block() {
            self.flags_to_ax();
            self.jump_to(last.next_ip());
        }
    }

    /// The exits of the superblock.
    pub(in crate::translate) fn path_slots(&mut self) -> Vec<Slot> {
        self.outside.take().map_or(Vec::new(), |path| path.slots)
    }
}
