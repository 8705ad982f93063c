//! Memory accesses of emitted code: the check that turns a linear address into a host address, the marks of lines
//! that are written, and the slow path behind the instruction.

use crate::translate::code::Trap;
use crate::translate::decode::classify::needs_alignment;
use crate::translate::encode::asm::{self, cc, Asm, Reg, W32, W64};
use crate::translate::layout::LINE_SHIFT;
use crate::translate::layout::{at, T0, T1};
use crate::translate::layout::{MmuIndex, ENTRY_SHIFT, PIN_LIMIT, TABLES};
use crate::translate::layout::{PAGE_SHIFT, PAGE_SIZE};
use crate::translate::lower::emitter::Emitter;
use crate::translate::lower::streams::{Flags, Label, Stream, COLD};
use crate::translate::shortcuts::Shortcuts;
use crate::translate::site::{AccessKind, Site};

/// Where the host address of an access is added up.
#[derive(Clone, Copy)]
pub(in crate::translate) enum Sum {
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
    pub(in crate::translate) target: Option<Reg>,
}

impl Emitter<'_> {
    /// Adds a segment's base to the offset in T0, and checks it against the segment where its limit
    /// or rights could matter.
    pub(in crate::translate) fn segment(&mut self, segment: usize, size: usize, kind: AccessKind) {
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
    pub(in crate::translate) fn begin_access(
        &mut self,
        size: usize,
        kind: AccessKind,
        stack: bool,
    ) -> Access {
        self.begin_access_at(size, kind, stack, Sum::Whole)
    }

    /// The same, where the host address may be left for the instruction's operand to add up.
    pub(in crate::translate) fn begin_access_at(
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
    pub(in crate::translate) fn check_address(
        &mut self,
        size: usize,
        kind: AccessKind,
        sum: Sum,
    ) -> usize {
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

    pub(in crate::translate) fn host_field(&self) -> usize {
        at::tlb(mmu_table(self.request.mode.mmu()), at::TLB_HOST)
    }

    /// Makes the linear address in T0 an offset in its page, with the scaled slot in T1, or jumps.
    pub(in crate::translate) fn check_in_table(
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
    pub(in crate::translate) fn mark_line(&mut self, displacement: i32) {
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
    pub(in crate::translate) fn mostly_aligned(&self, size: usize) -> bool {
        size <= 8 || needs_alignment(&self.request.insns[self.index].0)
    }

    /// Marks the lines of up to 64 bytes, which are likely to be `aligned` to their size, or not.
    pub(in crate::translate) fn mark_lines(
        &mut self,
        displacement: i32,
        size: usize,
        aligned: bool,
    ) {
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

    /// Emits the slow path of an access whose instruction has just been emitted.
    pub(in crate::translate) fn end_access(&mut self, access: Access) {
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
            && usize::from(site.size) <= crate::translate::lower::across::MOST
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
}

fn mmu_table(mmu: MmuIndex) -> usize {
    mmu as usize
}
