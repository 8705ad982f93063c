//! The emitter: the state of a block that is being translated, and what all families of instructions do with it.
//!
//! Status flags are tracked through the block: they are in the host's RFLAGS after a copied instruction wrote them, in
//! AX where emitted code needs RFLAGS for itself, or in both. At block boundaries they are in AX. So an exact RFLAGS
//! can be given at every fault, and a save costs two instructions, once per flag-writing instruction that is followed
//! by a memory access.

use iced_x86::{Instruction, Mnemonic};

use super::streams::{Fixup, Flags, Label, Stream};
use super::stubs::Stubs;
use crate::cpu::exception::vector;
use crate::translate::code::{Slot, Trap};
use crate::translate::decode::classify::Class;
use crate::translate::encode::asm::{self, cc, Asm, W64};
use crate::translate::layout::{at, Exit, T1};
use crate::translate::mode::Mode;
use crate::translate::path::{Path, Superblock};
use crate::translate::plan::{Key, Run, SelfLoop, SlowCopy};
use crate::translate::scratch::Scratch;
use crate::translate::shortcuts::Shortcuts;
use crate::translate::site::{AccessKind, Site};

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

    /// Whether an instruction that begins in these bytes may be one of them.
    pub fn touch(&self, rip: u64, len: usize) -> bool {
        let end = rip.saturating_add(len as u64);
        let next = self.rips.partition_point(|&at| at < rip);
        self.int3 || self.rips.get(next).is_some_and(|&at| at < end)
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

pub struct Emitter<'a> {
    pub(in crate::translate) hot: Asm,
    pub(in crate::translate) cold: Asm,
    pub(in crate::translate) fixups: Vec<Fixup>,
    /// Where the block's number goes.
    pub(in crate::translate) notes: Vec<(Stream, usize)>,
    pub(in crate::translate) slots: Vec<Slot>,
    pub(in crate::translate) traps: Vec<Trap>,
    pub(in crate::translate) request: Request<'a>,
    pub(in crate::translate) flags: Flags,
    pub(in crate::translate) index: usize,
    pub(in crate::translate) stubs: Stubs,
    pub(in crate::translate) scratch: &'a mut Scratch,
    pub(in crate::translate) fpu_loaded: bool,
    pub(in crate::translate) run: Option<Run>,
    pub(in crate::translate) slow_copies: Vec<SlowCopy>,
    /// The loop that the block is, if it is one.
    pub(in crate::translate) self_loop: Option<SelfLoop>,
    /// Where the way behind a branch that is not taken begins in the hot stream; flags are in AX there.
    pub(in crate::translate) fall_through: usize,
    /// What the address in T0 is made of.
    pub(in crate::translate) address_key: Option<Key>,
    /// The superblock that is being written, and what is known of it meanwhile.
    pub(in crate::translate) path: Option<Path>,
    pub(in crate::translate) outside: Option<Path>,
}

impl Emitter<'_> {
    /// Whether the debugger wants to be asked before an instruction.
    pub(in crate::translate) fn hooked(&self, insn: &Instruction) -> bool {
        let hooks = self.request.hooks;
        hooks.rips.binary_search(&insn.ip()).is_ok() || hooks.int3 && is_breakpoint(*insn)
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
        if self.flags != Flags::Host || !self.defer_flags() {
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
}
