//! Turns a decoded block into host code.
//!
//! Two streams are written: the hot one, which runs when nothing special happens, and the cold one behind it with the
//! slow paths. The families of instructions in `lower` write what each instruction becomes, and `optimise` what several
//! of them have in common.

use iced_x86::Instruction;

use super::code::{Code, Moved, Relocation, Slot, OWN_SLOTS};
use super::decode::classify::Class;
use super::encode::asm::{cc, Asm, W64};
use super::layout::{at, Exit, T1};
use super::lower::emitter::{Emitter, Request};
use super::lower::streams::{Flags, Label, Stream, COLD};
use super::lower::stubs::Stubs;
use super::scratch::Scratch;
use super::shortcuts::Shortcuts;

/// Translates a block.
pub fn translate(request: Request<'_>, stubs: Stubs, scratch: &mut Scratch) -> Code {
    use std::mem::take;
    let code = |bytes| Asm {
        frame: request.shortcuts.has(Shortcuts::FRAME).then_some(at::FRAME),
        bytes,
    };
    scratch.begin(request.insns.len());
    let mut e = Emitter {
        hot: code(take(&mut scratch.hot)),
        cold: code(take(&mut scratch.cold)),
        fixups: take(&mut scratch.fixups),
        notes: take(&mut scratch.notes),
        slots: take(&mut scratch.slots),
        traps: take(&mut scratch.traps),
        flags: Flags::Ax,
        index: request.start,
        request,
        stubs,
        fpu_loaded: false,
        run: None,
        slow_copies: take(&mut scratch.slow_copies),
        self_loop: None,
        fall_through: 0,
        address_key: None,
        path: None,
        outside: None,
        scratch,
    };
    let superblock = e.request.superblock;
    if let Some(superblock) = superblock {
        e.superblock(superblock);
    }
    let ordinary = e.hot.len();
    e.block();
    if let Some(superblock) = superblock {
        e.rests(superblock);
    }
    let mut code = e.finish();
    code.ordinary = ordinary;
    code
}

impl Emitter<'_> {
    fn block(&mut self) {
        let Request {
            insns, start, stop, ..
        } = self.request;
        let count = (stop - start) as i32;
        self.hot.gs_alu_imm(5, W64, at::BUDGET, count);
        let over_budget = self.hot.jcc(cc::S);
        let back = self.cold.len();
        self.fixups
            .push((Stream::Hot, over_budget, Label::Cold(back)));
        self.cold.gs_alu_imm(0, W64, at::BUDGET, count);
        let rip = insns[start].0.ip();
        Self::store_rip(&mut self.cold, rip);
        self.leave(Stream::Cold, Exit::Budget);
        if self.request.checked {
            self.note_block(Stream::Hot);
            self.index = start;
            let site = self.site();
            self.hot.mov_imm(T1, u64::from(site.pack()));
            self.call_stub(Stream::Hot, self.stubs.entered);
        }
        let fast = self.plan_loop();
        let enter = fast.as_ref().map(|_| self.try_loop());
        let body = self.hot.len();
        self.find_self_loop();
        for (index, &(insn, class)) in insns.iter().enumerate().take(stop).skip(start) {
            self.index = index;
            self.scratch.starts.push(self.hot.len() as u32);
            if self.hooked(&insn) {
                self.hook();
            }
            self.planted(&insn);
            self.begin_run();
            self.settle_stack_for(&insn, class);
            self.instruction(&insn, class);
            self.end_run();
        }
        if stop < insns.len() {
            self.flags_to_ax();
            Self::store_rip(&mut self.hot, insns[stop].0.ip());
            self.leave(Stream::Hot, Exit::Partial);
        } else if !insns[stop - 1].1.ends_block() {
            self.flags_to_ax();
            let next = insns[stop - 1].0.next_ip();
            self.jump_to(next);
        }
        if let (Some(fast), Some(enter)) = (&fast, enter) {
            self.emit_loop(fast, enter, body);
        }
        self.emit_slow_copies();
    }

    /// Code that fails, if it is to be planted here.
    fn planted(&mut self, insn: &Instruction) {
        if let Some((rip, code)) = &self.scratch.planted {
            if *rip == insn.ip() {
                self.hot.raw(code);
            }
        }
    }

    pub(in crate::translate) fn instruction(&mut self, insn: &Instruction, class: Class) {
        match class {
            Class::Nop => {}
            Class::Copy => self.copy(insn),
            Class::CopyFpu => {
                self.load_fpu();
                self.copy(insn);
            }
            Class::Lea => self.lea(insn),
            Class::Push => self.push(insn),
            Class::Pop => self.pop(insn),
            Class::Leave => self.leave_frame(insn),
            Class::Direction => self.direction(insn),
            Class::Jump => {
                self.flags_to_ax();
                self.jump_to(insn.near_branch_target());
            }
            Class::Branch => self.branch(insn),
            Class::CountBranch => self.count_branch(insn),
            Class::Call => self.call(insn),
            Class::IndirectJump => self.indirect_jump(insn),
            Class::IndirectCall => self.indirect_call(insn),
            Class::Return => self.ret(insn),
            Class::Helper => {
                if !self.inline(insn) {
                    self.helper(false);
                }
            }
            Class::HelperEnd if self.inline_end(insn) => {}
            Class::HelperEnd | Class::Raise(_) => self.helper(true),
        }
    }

    fn hook(&mut self) {
        self.free_host_flags();
        self.note_block(Stream::Hot);
        let site = self.site();
        self.hot.mov_imm(T1, u64::from(site.pack()));
        self.call_stub(Stream::Hot, self.stubs.hook);
        self.fpu_loaded = false;
    }

    fn finish(mut self) -> Code {
        let split = self.hot.len();
        let exits = self.path_slots();
        if !exits.is_empty() {
            // Behind the places of the block's own.
            self.slots.resize(OWN_SLOTS, Slot::default());
        }
        for mut slot in exits {
            if let Some(patch) = &mut slot.patch {
                if *patch & COLD != 0 {
                    *patch = (*patch & !COLD) + split as u32;
                }
            }
            self.slots.push(slot);
        }
        let resolve = |s: Stream, p: usize| match s {
            Stream::Hot => p,
            Stream::Cold => p + split,
        };
        let mut bytes = std::mem::take(&mut self.scratch.bytes);
        bytes.clear();
        bytes.reserve(split + self.cold.len());
        bytes.extend_from_slice(&self.hot.bytes);
        bytes.extend_from_slice(&self.cold.bytes);
        let moved = |at, what| Relocation {
            at: at as u32,
            what,
        };
        let mut relocations = std::mem::take(&mut self.scratch.relocations);
        relocations.clear();
        relocations.reserve(self.notes.len() + self.fixups.len());
        relocations.extend(
            self.notes
                .iter()
                .map(|&(stream, at)| moved(resolve(stream, at), Moved::Block)),
        );
        for (stream, at, label) in &self.fixups {
            let at = resolve(*stream, *at);
            let target = match *label {
                Label::Hot(p) => p as u64,
                Label::Cold(p) => (p + split) as u64,
                Label::Stub(a) => {
                    relocations.push(moved(at, Moved::Stub));
                    a
                }
            };
            let rel = target.wrapping_sub(at as u64 + 4) as u32;
            bytes[at..at + 4].copy_from_slice(&rel.to_le_bytes());
        }
        for slot in &mut self.slots {
            slot.exit += split as u32;
        }
        for trap in &mut self.traps {
            if trap.end & COLD != 0 {
                trap.start = (trap.start & !COLD) + split as u32;
                trap.end = (trap.end & !COLD) + split as u32;
            }
        }
        let code = Code {
            bytes,
            slots: self.slots.clone(),
            traps: self.traps.clone(),
            relocations,
            ordinary: 0,
            split,
        };
        self.give_back();
        code
    }

    /// Leaves the memory of all buffers for the next block.
    fn give_back(self) {
        fn emptied<T>(mut buffer: Vec<T>) -> Vec<T> {
            buffer.clear();
            buffer
        }
        let scratch = self.scratch;
        scratch.hot = emptied(self.hot.bytes);
        scratch.cold = emptied(self.cold.bytes);
        scratch.fixups = emptied(self.fixups);
        scratch.notes = emptied(self.notes);
        scratch.slots = emptied(self.slots);
        scratch.traps = emptied(self.traps);
        scratch.slow_copies = emptied(self.slow_copies);
    }
}
