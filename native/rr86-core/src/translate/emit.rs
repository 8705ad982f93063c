//! Turns a decoded block into host code.
//!
//! Two streams are written: the hot one, which runs when nothing special happens, and the cold one
//! behind it with the slow paths. Status flags are tracked through the block: they are in the host's
//! RFLAGS after a copied instruction wrote them, in AX where emitted code needs RFLAGS for itself, or
//! in both. At block boundaries they are in AX. So an exact RFLAGS can be given at every fault, and a
//! save costs two instructions, once per flag-writing instruction that is followed by a memory access.

use iced_x86::{Instruction, Mnemonic};

use super::asm::{self, cc, Asm, Reg, W32, W64};
use super::classify::{needs_alignment, Class};
use super::code::{Code, Moved, Relocation, Slot, Trap};
use super::mode::Mode;
use super::pins::Circle;
use super::runs::{Key, Run, Second};
use super::shortcuts::Shortcuts;
use super::site::{AccessKind, Site};
use super::stubs::Stubs;
use super::superblock::{Path, Superblock};
use super::vcpu::{at, Exit, T0, T1};
use super::workbench::Workbench;
use crate::cpu::exception::vector;
use crate::memory::ram::LINE_SHIFT;
use crate::memory::tlb::{MmuIndex, ENTRY_SHIFT, PIN_LIMIT, TABLES};
use crate::memory::{PAGE_SHIFT, PAGE_SIZE};

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
pub(super) type Fixup = (Stream, usize, Label);

pub(super) enum Label {
    Hot(usize),
    Cold(usize),
    Stub(u64),
}

/// Which stream a position lies in.
#[derive(Clone, Copy)]
pub(super) enum Stream {
    Hot,
    Cold,
}

/// Where the host address of an access is added up.
#[derive(Clone, Copy)]
pub(super) enum Sum {
    /// In T0.
    Whole,
    /// In the operand of the instruction, from T0 and T1; for loads. Where the slow path has made T0 the whole
    /// address, it leaves 0 in T1.
    Apart,
}

/// A memory access whose instruction is being emitted.
pub struct Access {
    branch: usize,
    start: usize,
    kind: AccessKind,
    site: Site,
    /// Where an indirect call leads, if its push is the access and the slow path has to note it.
    pub(super) target: Option<Reg>,
}

pub struct Emitter<'a> {
    pub(super) hot: Asm,
    pub(super) cold: Asm,
    pub(super) fixups: Vec<Fixup>,
    /// Where the block's number goes.
    notes: Vec<(Stream, usize)>,
    pub(super) slots: Vec<Slot>,
    traps: Vec<Trap>,
    pub(super) request: Request<'a>,
    pub(super) flags: Flags,
    pub(super) index: usize,
    pub(super) stubs: Stubs,
    pub(super) bench: &'a mut Workbench,
    pub(super) fpu_loaded: bool,
    pub(super) run: Option<Run>,
    pub(super) seconds: Vec<Second>,
    /// The loop that the block is, if it is one.
    pub(super) circle: Option<Circle>,
    /// What the address in T0 is made of.
    pub(super) address_key: Option<Key>,
    /// The superblock that is being written, and what is known of it meanwhile.
    pub(super) path: Option<Path>,
    pub(super) outside: Option<Path>,
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
            if self.hooked(&insn) {
                self.hook();
            }
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
    pub(super) fn hooked(&self, insn: &Instruction) -> bool {
        let hooks = self.request.hooks;
        hooks.rips.binary_search(&insn.ip()).is_ok() || hooks.int3 && is_breakpoint(*insn)
    }

    pub(super) fn instruction(&mut self, insn: &Instruction, class: Class) {
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
    pub(super) fn site(&self) -> Site {
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
    pub(super) fn flags_to_ax(&mut self) {
        if self.flags == Flags::Host {
            self.hot.save_flags();
            self.flags = Flags::Both;
        }
    }

    /// Makes the host's RFLAGS hold the status flags.
    pub(super) fn flags_to_host(&mut self) {
        if self.flags == Flags::Ax {
            self.hot.restore_flags();
            self.flags = Flags::Both;
        }
    }

    /// Frees the host's RFLAGS for emitted code.
    pub(super) fn free_host_flags(&mut self) {
        if self.flags != Flags::Host || !self.lose_flags() {
            self.flags_to_ax();
        }
        self.flags = Flags::Ax;
    }

    /// Frees RAX for emitted code.
    pub(super) fn free_rax(&mut self) {
        self.flags_to_host();
        self.flags = Flags::Host;
    }

    // ---- streams ---------------------------------------------------------------------------------

    pub(super) fn stream(&mut self, stream: Stream) -> &mut Asm {
        match stream {
            Stream::Hot => &mut self.hot,
            Stream::Cold => &mut self.cold,
        }
    }

    pub(super) fn call_stub(&mut self, stream: Stream, target: u64) {
        let at = self.stream(stream).call();
        self.fixups.push((stream, at, Label::Stub(target)));
    }

    pub(super) fn store_rip(a: &mut Asm, rip: u64) {
        if i32::try_from(rip as i64).is_ok() {
            a.gs(&[0xc7], W64, asm::RAX, at::RIP);
            a.u32(rip as u32);
        } else {
            a.gs_mov_imm32(at::RIP, rip as u32);
            a.gs_mov_imm32(at::RIP + 4, (rip >> 32) as u32);
        }
    }

    pub(super) fn leave(&mut self, stream: Stream, exit: Exit) {
        let leave = self.stubs.leave;
        let a = self.stream(stream);
        a.gs_mov_imm32(at::EXIT, exit as u32);
        let at = a.jmp();
        self.fixups.push((stream, at, Label::Stub(leave)));
    }

    pub(super) fn note_block(&mut self, stream: Stream) {
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
    pub(super) fn helper(&mut self, ends: bool) {
        self.call_helper(ends);
        if ends {
            self.hot.raw(&[0x0f, 0x0b]);
        }
    }

    /// The same for a helper that may leave the block at its end, or come back.
    pub(super) fn call_helper(&mut self, ends: bool) {
        self.free_host_flags();
        self.note_block(Stream::Hot);
        let mut site = self.site();
        site.size = self.place().1 as u8;
        site.stack = ends;
        self.hot.mov_imm(T1, u64::from(site.pack()));
        self.call_stub(Stream::Hot, self.stubs.helper);
        self.fpu_loaded = false;
    }

    pub(super) fn load_fpu(&mut self) {
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

    // ---- memory ----------------------------------------------------------------------------------

    /// Adds a segment's base to the offset in T0, and checks it against the segment where its limit
    /// or rights could matter.
    pub(super) fn segment(&mut self, segment: usize, size: usize, kind: AccessKind) {
        use crate::cpu::state::sreg;
        let mode = self.request.mode;
        if mode.code64() {
            if segment >= sreg::FS {
                self.free_host_flags();
                self.hot.gs(&[0x03], W64, T0, at::segment_base(segment));
            }
            return;
        }
        let flat = match segment {
            sreg::CS => mode.code_flat() && !kind.writes() && mode.flat(),
            sreg::FS | sreg::GS => false,
            _ => mode.flat(),
        };
        if flat {
            return;
        }
        self.free_host_flags();
        self.note_block(Stream::Hot);
        self.hot.gs_mov_imm32(at::SITE, segment as u32);
        let mut site = self.site();
        site.size = size as u8;
        site.kind = kind;
        self.hot.mov_imm(T1, u64::from(site.pack()));
        self.call_stub(Stream::Hot, self.stubs.segment);
        // The stub's result is a 32-bit address with a mark above it.
        self.hot.mov_rr(W32, T0, T0);
    }

    /// Emits the check of an access to the linear address in T0. Afterwards T0 is the host address and
    /// the caller emits the instruction itself, position-independent, and calls `end_access`.
    pub(super) fn begin_access(&mut self, size: usize, kind: AccessKind, stack: bool) -> Access {
        self.begin_access_at(size, kind, stack, Sum::Whole)
    }

    /// The same, where the host address may be left for the instruction's operand to add up.
    pub(super) fn begin_access_at(
        &mut self,
        size: usize,
        kind: AccessKind,
        stack: bool,
        sum: Sum,
    ) -> Access {
        self.free_host_flags();
        let branch = self.check_address(size, kind, sum);
        if kind.writes() && self.request.tracking {
            let aligned = self.mostly_aligned(size);
            self.mark_lines(0, size, aligned);
        }
        let mut site = self.site();
        site.size = size as u8;
        site.kind = kind;
        site.stack = stack;
        Access {
            branch,
            start: self.hot.len(),
            kind,
            site,
            target: None,
        }
    }

    fn tag_of(&self, kind: AccessKind) -> usize {
        at::tlb(
            mmu_table(self.request.mode.mmu()),
            if kind.writes() {
                at::TAG_WRITE
            } else {
                at::TAG_READ
            },
        )
    }

    /// Makes the linear address in T0 the host address of `size` bytes, all in one page, or jumps; apart, T0 is
    /// the offset in the page and T1 the page. Returns
    /// the fixup of the jump; where it leads, T1 is what `tag_of` has to be added to.
    pub(super) fn check_address(&mut self, size: usize, kind: AccessKind, sum: Sum) -> usize {
        let pin = self.pin_of(size);
        let Some(pin) = pin else {
            let branch = self.check_in_table(Stream::Hot, size, kind);
            let host = self.host_field();
            match sum {
                Sum::Whole => self.hot.gs_at(&[0x03], W64, T0, T1, host),
                Sum::Apart => self.hot.gs_at(&[0x8b], W64, T1, T1, host),
            }
            return branch;
        };
        let table = mmu_table(self.request.mode.mmu());
        let field = |field| at::pin(table, pin, field);
        let limit = if kind.writes() {
            at::PIN_WRITE
        } else {
            at::PIN_READ
        };
        self.hot.gs(&[0x2b], W64, T0, field(at::PIN_TAG));
        self.hot.gs(&[0x3b], W64, T0, field(limit));
        let other = self.hot.jcc(cc::AE);
        match sum {
            Sum::Whole => self.hot.gs(&[0x03], W64, T0, field(at::PIN_HOST)),
            Sum::Apart => self.hot.load(W64, T1, field(at::PIN_HOST)),
        }
        let back = self.hot.len();
        self.fixups
            .push((Stream::Hot, other, Label::Cold(self.cold.len())));
        // Another page: what the table says of it goes into the pin.
        self.cold.gs(&[0x03], W64, T0, field(at::PIN_TAG));
        let branch = self.check_in_table(Stream::Cold, size, kind);
        let (tag, host) = (self.tag_of(kind), self.host_field());
        let cold = &mut self.cold;
        cold.store(W64, T0, at::PIN_OFFSET);
        cold.gs_at(&[0x8b], W64, T0, T1, tag);
        cold.store(W64, T0, field(at::PIN_TAG));
        cold.gs_at(&[0x8b], W64, T0, T1, host);
        cold.store(W64, T0, field(at::PIN_HOST));
        let limits = [
            (at::PIN_READ, PIN_LIMIT),
            (at::PIN_WRITE, if kind.writes() { PIN_LIMIT } else { 0 }),
        ];
        for (limit, value) in limits {
            cold.gs(&[0xc7], W64, Reg(0), field(limit));
            cold.u32(value as u32);
        }
        match sum {
            Sum::Whole => cold.gs(&[0x03], W64, T0, at::PIN_OFFSET),
            Sum::Apart => {
                cold.mov_rr(W64, T1, T0);
                cold.load(W64, T0, at::PIN_OFFSET);
            }
        }
        let at = cold.jmp();
        self.fixups.push((Stream::Cold, at, Label::Hot(back)));
        branch
    }

    pub(super) fn host_field(&self) -> usize {
        at::tlb(mmu_table(self.request.mode.mmu()), at::TLB_HOST)
    }

    /// Makes the linear address in T0 an offset in its page, with the scaled slot in T1, or jumps.
    pub(super) fn check_in_table(
        &mut self,
        stream: Stream,
        size: usize,
        kind: AccessKind,
    ) -> usize {
        let mmu = self.request.mode.mmu();
        let (_, bits) = TABLES[mmu as usize];
        let tag = self.tag_of(kind);
        let mask = ((1i32 << bits) - 1) << ENTRY_SHIFT;
        let a = self.stream(stream);
        a.rorx(W64, T1, T0, PAGE_SHIFT as u8 - ENTRY_SHIFT as u8);
        a.alu_imm(4, W32, T1, mask);
        a.gs_at(&[0x2b], W64, T0, T1, tag);
        a.alu_imm(7, W64, T0, PAGE_SIZE as i32 - size as i32);
        let branch = a.jcc(cc::A);
        self.fixups.push((stream, branch, Label::Hot(0)));
        self.fixups.len() - 1
    }

    /// Marks the line of the byte at this displacement from the host address in T0 as written
    /// (`GuestRam`). The slow path does so itself, because its store may go elsewhere.
    pub(super) fn mark_line(&mut self, displacement: i32) {
        self.hot.lea(T1, T0, displacement);
        Self::mark_t1(&mut self.hot);
    }

    fn mark_t1(a: &mut Asm) {
        a.shift_imm(5, T1, LINE_SHIFT as u8);
        a.mem(&[0xc6], asm::W32, Reg(0), Some(T1), None, 0);
        a.u8(1);
    }

    /// Whether the current instruction's operand is likely to be aligned: those of 16 bytes are, or it
    /// is one of the instructions for those that are not.
    pub(super) fn mostly_aligned(&self, size: usize) -> bool {
        size <= 8 || needs_alignment(&self.request.insns[self.index].0)
    }

    /// Marks the lines of up to 64 bytes, which are likely to be `aligned` to their size, or not.
    pub(super) fn mark_lines(&mut self, displacement: i32, size: usize, aligned: bool) {
        let last = displacement + size as i32 - 1;
        if size == 1 {
            self.mark_line(displacement);
        } else if aligned && size.is_power_of_two() && self.request.shortcuts.has(Shortcuts::MARKS)
        {
            // An aligned operand lies in one line.
            self.hot.lea(T1, T0, displacement);
            self.hot.test_low(T1, size as u8 - 1);
            let unaligned = self.hot.jcc(cc::NE);
            let back = self.hot.len();
            self.fixups
                .push((Stream::Hot, unaligned, Label::Cold(self.cold.len())));
            self.cold.lea(T1, T0, last);
            Self::mark_t1(&mut self.cold);
            self.cold.lea(T1, T0, displacement);
            let at = self.cold.jmp();
            self.fixups.push((Stream::Cold, at, Label::Hot(back)));
            Self::mark_t1(&mut self.hot);
        } else {
            self.mark_line(displacement);
            self.mark_line(last);
        }
    }

    /// A displacement at `at` whose target comes later.
    pub(super) fn fixup(&mut self, stream: Stream, at: usize) -> usize {
        self.fixups.push((stream, at, Label::Hot(0)));
        self.fixups.len() - 1
    }

    /// The place to which the jump of this fixup leads is here.
    pub(super) fn land(&mut self, fixup: usize) {
        self.fixups[fixup].2 = Label::Hot(self.hot.len());
    }

    /// A jump to a place earlier in the hot stream.
    pub(super) fn jump_back(&mut self, to: usize) {
        let at = self.hot.jmp();
        self.fixups.push((Stream::Hot, at, Label::Hot(to)));
    }

    /// Emits the slow path of an access whose instruction has just been emitted.
    pub(super) fn end_access(&mut self, access: Access) {
        let Access {
            branch,
            start,
            kind,
            site,
            target,
        } = access;
        if self.leaves_path(branch) {
            return;
        }
        let tag = self.tag_of(kind);
        let end = self.hot.len();
        self.fixups[branch].2 = Label::Cold(self.cold.len());
        if let Some(target) = target {
            self.cold.store(W64, target, at::TARGET);
        }
        self.cold.gs_at(&[0x03], W64, T0, T1, tag);
        self.note_block(Stream::Cold);
        self.cold.mov_imm(T1, u64::from(site.pack()));
        let tracking = self.request.tracking;
        let across = self.request.mode.code64()
            && usize::from(site.size) <= super::across::MOST
            && self.request.shortcuts.has(Shortcuts::ACROSS);
        let stub = if across {
            let mmu = self.request.mode.mmu();
            self.stubs.across.of(mmu, kind, tracking)
        } else {
            self.stubs.access
        };
        self.call_stub(Stream::Cold, stub);
        if !kind.writes() {
            let at = self.cold.jmp();
            self.fixups.push((Stream::Cold, at, Label::Hot(start)));
            return;
        }
        self.cold.rr(&[0x85], W32, T1, T1);
        let at = self.cold.jcc(cc::E);
        self.fixups.push((Stream::Cold, at, Label::Hot(start)));
        let copy_at = self.cold.len();
        self.cold.raw(&self.hot.bytes[start..end]);
        // Signals may come from the copy as well as from the original.
        let moved: Vec<Trap> = self
            .traps
            .iter()
            .filter(|t| t.end & COLD == 0 && t.start as usize >= start && t.end as usize <= end)
            .map(|t| {
                let shift = |p: u32| (p as usize - start + copy_at) as u32 | COLD;
                Trap {
                    start: shift(t.start),
                    end: shift(t.end),
                    site: t.site,
                }
            })
            .collect();
        self.traps.extend(moved);
        self.note_block(Stream::Cold);
        let mut done = site;
        done.host_flags = self.flags == Flags::Host;
        self.cold.mov_imm(T1, u64::from(done.pack()));
        if across {
            self.cold.gs(&[0xff], W32, Reg(2), at::COMMIT);
        } else {
            self.call_stub(Stream::Cold, self.stubs.commit);
        }
        let at = self.cold.jmp();
        self.fixups.push((Stream::Cold, at, Label::Hot(end)));
    }

    /// Notes that the host instruction emitted since `start` may raise a signal.
    pub(super) fn note_trap(&mut self, start: usize, before: Flags) {
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
pub(super) const COLD: u32 = 1 << 31;

fn mmu_table(mmu: MmuIndex) -> usize {
    mmu as usize
}
