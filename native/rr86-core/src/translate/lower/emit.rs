//! Turns a decoded block into host code.
//!
//! Two streams are written: the hot one, which runs when nothing special happens, and the cold one
//! behind it with the slow paths. Status flags are tracked through the block: they are in the host's
//! RFLAGS after a copied instruction wrote them, in AX where emitted code needs RFLAGS for itself, or
//! in both. At block boundaries they are in AX. So an exact RFLAGS can be given at every fault, and a
//! save costs two instructions, once per flag-writing instruction that is followed by a memory access.

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::exception::vector;
use crate::translate::code::{Code, Moved, Relocation, Slot, Trap};
use crate::translate::decode::classify::Class;
use crate::translate::encode::asm::{self, cc, Asm, W64};
use crate::translate::layout::{at, Exit, T1};
use crate::translate::lower::stubs::Stubs;
use crate::translate::mode::Mode;
use crate::translate::optimise::pins::Circle;
use crate::translate::optimise::runs::{Key, Run, Second};
use crate::translate::optimise::superblock::{Path, Superblock};
use crate::translate::shortcuts::Shortcuts;
use crate::translate::site::{AccessKind, Site};
use crate::translate::workbench::Workbench;

/// Where the status flags are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flags {
    Ax,
    Host,
    Both,
}

/// What to translate.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    pub mode: Mode,
    pub insns: &'a [(Instruction, Class)],
    /// First instruction to run; not 0 when a block is resumed inside.
    pub start: usize,
    /// Stop before this instruction; the block's length for all of it.
    pub stop: usize,
    /// Where the debugger wants to be asked.
    pub hooks: &'a Hooks,
    /// Compare the source with memory at entry.
    pub checked: bool,
    /// Mark the lines that stores write.
    pub tracking: bool,
    pub shortcuts: Shortcuts,
    /// What goes before it.
    pub superblock: Option<&'a Superblock>,
}

/// Instructions before which the debugger wants to be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    /// Sorted.
    pub rips: Vec<u64>,
    /// Every breakpoint instruction: INT3, and INT with vector 3.
    pub int3: bool,
}

impl Hooks {
    pub fn is_empty(&self) -> bool {
        self.rips.is_empty() && !self.int3
    }
}

/// CC, or CD 03.
fn is_breakpoint(insn: Instruction) -> bool {
    match insn.mnemonic() {
        Mnemonic::Int3 => true,
        Mnemonic::Int => insn.immediate8() == vector::BP,
        _ => false,
    }
}

/// A displacement that is filled in when both streams are done: where it lies, and where it leads.
pub(in crate::translate) type Fixup = (Stream, usize, Label);

pub(in crate::translate) enum Label {
    Hot(usize),
    Cold(usize),
    Stub(u64),
}

/// Which stream a position lies in.
#[derive(Clone, Copy)]
pub(in crate::translate) enum Stream {
    Hot,
    Cold,
}

pub struct Emitter<'a> {
    pub(in crate::translate) hot: Asm,
    pub(in crate::translate) cold: Asm,
    pub(in crate::translate) fixups: Vec<Fixup>,
    /// Where the block's number goes.
    notes: Vec<(Stream, usize)>,
    pub(in crate::translate) slots: Vec<Slot>,
    pub(in crate::translate) traps: Vec<Trap>,
    pub(in crate::translate) request: Request<'a>,
    pub(in crate::translate) flags: Flags,
    pub(in crate::translate) index: usize,
    pub(in crate::translate) stubs: Stubs,
    pub(in crate::translate) bench: &'a mut Workbench,
    pub(in crate::translate) fpu_loaded: bool,
    pub(in crate::translate) run: Option<Run>,
    pub(in crate::translate) seconds: Vec<Second>,
    /// The loop that the block is, if it is one.
    pub(in crate::translate) circle: Option<Circle>,
    /// Where the way behind a branch that is not taken begins in the hot stream; flags are in AX there.
    pub(in crate::translate) fall_through: usize,
    /// What the address in T0 is made of.
    pub(in crate::translate) address_key: Option<Key>,
    /// The superblock that is being written, and what is known of it meanwhile.
    pub(in crate::translate) path: Option<Path>,
    pub(in crate::translate) outside: Option<Path>,
}

/// Translates a block.
pub fn translate(request: Request<'_>, stubs: Stubs, bench: &mut Workbench) -> Code {
    use std::mem::take;
    let code = |bytes| Asm {
        frame: request.shortcuts.has(Shortcuts::FRAME).then_some(at::FRAME),
        bytes,
    };
    bench.begin(request.insns.len());
    let mut e = Emitter {
        hot: code(take(&mut bench.hot)),
        cold: code(take(&mut bench.cold)),
        fixups: take(&mut bench.fixups),
        notes: take(&mut bench.notes),
        slots: take(&mut bench.slots),
        traps: take(&mut bench.traps),
        flags: Flags::Ax,
        index: request.start,
        request,
        stubs,
        fpu_loaded: false,
        run: None,
        seconds: take(&mut bench.seconds),
        circle: None,
        fall_through: 0,
        address_key: None,
        path: None,
        outside: None,
        bench,
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
        let poor = self.hot.jcc(cc::S);
        let back = self.cold.len();
        self.fixups.push((Stream::Hot, poor, Label::Cold(back)));
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
        self.find_circle();
        for (index, &(insn, class)) in insns.iter().enumerate().take(stop).skip(start) {
            self.index = index;
            self.bench.starts.push(self.hot.len() as u32);
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
        self.second_copies();
    }

    /// Whether the debugger wants to be asked before an instruction.
    pub(in crate::translate) fn hooked(&self, insn: &Instruction) -> bool {
        let hooks = self.request.hooks;
        hooks.rips.binary_search(&insn.ip()).is_ok() || hooks.int3 && is_breakpoint(*insn)
    }

    /// Code that fails, if it is to be planted here.
    fn planted(&mut self, insn: &Instruction) {
        if let Some((rip, code)) = &self.bench.planted {
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

    /// The place of the current instruction.
    pub(in crate::translate) fn site(&self) -> Site {
        let (first, place, stop) = self.place();
        let rip = self.request.insns[self.index].0.ip();
        Site {
            remaining: (stop - place) as u8,
            offset: rip.wrapping_sub(first) as u16 & 0x1fff,
            size: 0,
            kind: AccessKind::Read,
            stack: false,
            host_flags: false,
        }
    }

    // ---- flags ---------------------------------------------------------------------------------

    /// Makes AX hold the status flags.
    pub(in crate::translate) fn flags_to_ax(&mut self) {
        if self.flags == Flags::Host {
            self.hot.save_flags();
            self.flags = Flags::Both;
        }
    }

    /// Makes the host's RFLAGS hold the status flags.
    pub(in crate::translate) fn flags_to_host(&mut self) {
        if self.flags == Flags::Ax {
            self.hot.restore_flags();
            self.flags = Flags::Both;
        }
    }

    /// Frees the host's RFLAGS for emitted code.
    pub(in crate::translate) fn free_host_flags(&mut self) {
        if self.flags != Flags::Host || !self.lose_flags() {
            self.flags_to_ax();
        }
        self.flags = Flags::Ax;
    }

    /// Frees RAX for emitted code.
    pub(in crate::translate) fn free_rax(&mut self) {
        self.flags_to_host();
        self.flags = Flags::Host;
    }

    // ---- streams ---------------------------------------------------------------------------------

    pub(in crate::translate) fn stream(&mut self, stream: Stream) -> &mut Asm {
        match stream {
            Stream::Hot => &mut self.hot,
            Stream::Cold => &mut self.cold,
        }
    }

    pub(in crate::translate) fn call_stub(&mut self, stream: Stream, target: u64) {
        let at = self.stream(stream).call();
        self.fixups.push((stream, at, Label::Stub(target)));
    }

    pub(in crate::translate) fn store_rip(a: &mut Asm, rip: u64) {
        if i32::try_from(rip as i64).is_ok() {
            a.gs(&[0xc7], W64, asm::RAX, at::RIP);
            a.u32(rip as u32);
        } else {
            a.gs_mov_imm32(at::RIP, rip as u32);
            a.gs_mov_imm32(at::RIP + 4, (rip >> 32) as u32);
        }
    }

    pub(in crate::translate) fn leave(&mut self, stream: Stream, exit: Exit) {
        let leave = self.stubs.leave;
        let a = self.stream(stream);
        a.gs_mov_imm32(at::EXIT, exit as u32);
        let at = a.jmp();
        self.fixups.push((stream, at, Label::Stub(leave)));
    }

    pub(in crate::translate) fn note_block(&mut self, stream: Stream) {
        if let Some(id) = self.path.as_ref().map(|path| path.id) {
            self.stream(stream).gs_mov_imm32(at::SITE_BLOCK, id);
            return;
        }
        let a = self.stream(stream);
        a.gs_mov_imm32(at::SITE_BLOCK, 0);
        let at = a.len() - 4;
        self.notes.push((stream, at));
    }

    fn hook(&mut self) {
        self.free_host_flags();
        self.note_block(Stream::Hot);
        let site = self.site();
        self.hot.mov_imm(T1, u64::from(site.pack()));
        self.call_stub(Stream::Hot, self.stubs.hook);
        self.fpu_loaded = false;
    }

    /// Calls the current instruction's helper. One that `ends` the block leaves, and is not come back from.
    pub(in crate::translate) fn helper(&mut self, ends: bool) {
        self.call_helper(ends);
        if ends {
            self.hot.raw(&[0x0f, 0x0b]);
        }
    }

    /// The same for a helper that may leave the block at its end, or come back.
    pub(in crate::translate) fn call_helper(&mut self, ends: bool) {
        self.free_host_flags();
        self.note_block(Stream::Hot);
        let mut site = self.site();
        site.size = self.place().1 as u8;
        site.stack = ends;
        self.hot.mov_imm(T1, u64::from(site.pack()));
        self.call_stub(Stream::Hot, self.stubs.helper);
        self.fpu_loaded = false;
    }

    pub(in crate::translate) fn load_fpu(&mut self) {
        if self.fpu_loaded {
            return;
        }
        self.fpu_loaded = true;
        self.free_host_flags();
        self.hot.gs_cmp_imm8(at::FPU_LIVE, 0);
        let absent = self.hot.jcc(cc::E);
        let back = self.hot.len();
        self.fixups
            .push((Stream::Hot, absent, Label::Cold(self.cold.len())));
        self.call_stub(Stream::Cold, self.stubs.fpu_load);
        let at = self.cold.jmp();
        self.fixups.push((Stream::Cold, at, Label::Hot(back)));
    }

    /// A displacement at `at` whose target comes later.
    pub(in crate::translate) fn fixup(&mut self, stream: Stream, at: usize) -> usize {
        self.fixups.push((stream, at, Label::Hot(0)));
        self.fixups.len() - 1
    }

    /// The place to which the jump of this fixup leads is here.
    pub(in crate::translate) fn land(&mut self, fixup: usize) {
        self.fixups[fixup].2 = Label::Hot(self.hot.len());
    }

    /// A jump to a place earlier in the hot stream.
    pub(in crate::translate) fn jump_back(&mut self, to: usize) {
        let at = self.hot.jmp();
        self.fixups.push((Stream::Hot, at, Label::Hot(to)));
    }

    /// Notes that the host instruction emitted since `start` may raise a signal.
    pub(in crate::translate) fn note_trap(&mut self, start: usize, before: Flags) {
        if self.path.is_some() {
            // What could is not in a superblock.
            return;
        }
        let mut site = self.site();
        site.host_flags = before == Flags::Host;
        let end = self.hot.len() as u32;
        self.traps.push(Trap {
            start: start as u32,
            end,
            site: site.pack(),
        });
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
        let mut bytes = std::mem::take(&mut self.bench.bytes);
        bytes.clear();
        bytes.reserve(split + self.cold.len());
        bytes.extend_from_slice(&self.hot.bytes);
        bytes.extend_from_slice(&self.cold.bytes);
        let moved = |at, what| Relocation {
            at: at as u32,
            what,
        };
        let mut relocations = std::mem::take(&mut self.bench.relocations);
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
        let bench = self.bench;
        bench.hot = emptied(self.hot.bytes);
        bench.cold = emptied(self.cold.bytes);
        bench.fixups = emptied(self.fixups);
        bench.notes = emptied(self.notes);
        bench.slots = emptied(self.slots);
        bench.traps = emptied(self.traps);
        bench.seconds = emptied(self.seconds);
    }
}

/// Slots that a block without a superblock has at most.
pub const OWN_SLOTS: usize = 2;

/// Marks a trap's position as one in the cold stream until both streams are joined.
pub(in crate::translate) const COLD: u32 = 1 << 31;
