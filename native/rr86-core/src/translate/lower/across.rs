//! Accesses across the border of two pages, without Rust.
//!
//! Such an access is not special in itself: if both pages are in the TLB with the right that it needs, nothing
//! is about either (`memory::tlb`), and there is nothing to do but to put the bytes together. A stub does so in
//! the bounce buffer, as `slow` would, and makes the store from there when the instruction has run. Where a
//! tag is not there, it hands the access on to `slow`, as if it had not been asked. A page whose guard a block
//! protocol has dropped has its tag although it has code; `slow` has stores there checked all the same.
//!
//! So many bytes on both sides of the border are moved as an access may have, whatever its size. Those that it
//! does not touch are written back as they were: all vCPUs and devices run on one thread of the host, and
//! no other writes guest memory.

use crate::translate::encode::asm::{self, cc, Asm, Reg, W32, W64};
use crate::translate::layout::LINE_SHIFT;
use crate::translate::layout::{at, T0, T1};
use crate::translate::layout::{MmuIndex, ENTRY_SHIFT, TABLES, UNGUARDED};
use crate::translate::layout::{PAGE_SHIFT, PAGE_SIZE};
use crate::translate::site::AccessKind;

/// Most bytes of an access that a stub makes.
pub const MOST: usize = 16;
/// Where in the bounce buffer the border lies, so that data keep their alignment within 64 bytes.
const BORDER: usize = 64;

/// Host addresses of the stubs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Across {
    /// By table.
    reads: [u64; TABLES.len()],
    /// By table, without and with marks of the lines that are written.
    writes: [[u64; TABLES.len()]; 2],
}

impl Across {
    /// The stub that makes an access of up to [`MOST`] bytes possible. Called as `Stubs::access`, it gives what
    /// that gives.
    pub fn of(&self, mmu: MmuIndex, kind: AccessKind, tracking: bool) -> u64 {
        let by_table = if kind.writes() {
            &self.writes[usize::from(tracking)]
        } else {
            &self.reads
        };
        by_table[mmu as usize]
    }
}

/// Emits the stubs into code that begins at the host address `base`.
pub fn emit(a: &mut Asm, base: u64, slow: u64) -> Across {
    let mut stubs = Across::default();
    for tracking in [false, true] {
        let commit = base + a.len() as u64;
        store(a, tracking);
        for (table, stub) in stubs.writes[usize::from(tracking)].iter_mut().enumerate() {
            *stub = base + a.len() as u64;
            load(a, base, slow, table, Some(commit));
        }
    }
    for (table, stub) in stubs.reads.iter_mut().enumerate() {
        *stub = base + a.len() as u64;
        load(a, base, slow, table, None);
    }
    stubs
}

/// The bytes around the border, as offsets in the first page or the second and in the bounce buffer.
fn words() -> impl Iterator<Item = (usize, usize)> {
    (0..MOST).step_by(8).map(|n| (n, BORDER + n))
}

/// Puts what lies around the border into the bounce buffer. `commit` is what makes the store.
fn load(a: &mut Asm, base: u64, slow: u64, table: usize, commit: Option<u64>) {
    let field = |field| at::tlb(table, field);
    let tag = field(if commit.is_some() {
        at::TAG_WRITE
    } else {
        at::TAG_READ
    });
    let slot = asm::RCX;
    a.u8(0x51); // push rcx
    a.raw(&[0x41, 0x53]); // push r11
    let mut strangers = Vec::new();
    let mut look_up = |a: &mut Asm| {
        let mask = ((1i32 << TABLES[table].1) - 1) << ENTRY_SHIFT;
        a.rorx(W64, slot, T1, PAGE_SHIFT as u8 - ENTRY_SHIFT as u8);
        a.alu_imm(4, W32, slot, mask);
        a.gs_at(&[0x3b], W64, T1, slot, tag);
        strangers.push(a.jcc(cc::NE));
        if commit.is_some() {
            a.gs_at(&[0xf6], W32, Reg(0), slot, field(at::TLB_FLAGS)); // test byte
            a.u8(UNGUARDED as u8);
            strangers.push(a.jcc(cc::NE));
        }
        a.gs_at(&[0x8b], W64, slot, slot, field(at::TLB_HOST));
    };
    a.mov_rr(W64, T1, T0);
    a.alu_imm(4, W64, T1, -(PAGE_SIZE as i32));
    // The check of the access has failed, so if the first page is there, it leaves it.
    look_up(a);
    a.store(W64, slot, at::ACROSS_FIRST);
    a.alu_imm(0, W64, T1, PAGE_SIZE as i32);
    look_up(a);
    if commit.is_some() {
        a.store(W64, slot, at::ACROSS_SECOND);
    }
    for (offset, place) in words() {
        a.mem(&[0x8b], W64, T1, Some(slot), None, offset as i32);
        a.store(W64, T1, at::BOUNCE + place);
    }
    a.load(W64, slot, at::ACROSS_FIRST);
    for (offset, place) in words() {
        let offset = PAGE_SIZE as usize - MOST + offset;
        a.mem(&[0x8b], W64, T1, Some(slot), None, offset as i32);
        a.store(W64, T1, at::BOUNCE + place - MOST);
    }
    if let Some(commit) = commit {
        a.mov_imm(slot, commit);
        a.store(W64, slot, at::COMMIT);
    }
    a.alu_imm(4, W32, T0, BORDER as i32 - 1);
    a.gs(&[0x03], W64, T0, at::THIS);
    a.lea(T0, T0, at::BOUNCE as i32);
    a.alu_imm(0, W64, asm::RSP, 8);
    a.u8(0x59); // pop rcx
    a.mov_imm(T1, u64::from(commit.is_some()));
    a.u8(0xc3);
    for at in strangers {
        a.patch_here(at);
    }
    a.raw(&[0x41, 0x5b]); // pop r11
    a.u8(0x59); // pop rcx
    let at = a.jmp();
    a.patch(at, (slow - base) as usize);
}

/// Writes what lies around the border back. Changes no flags: they may be those of the instruction.
fn store(a: &mut Asm, tracking: bool) {
    let mark = |a: &mut Asm, line: usize| {
        if tracking {
            // The host address of a page, so that nothing is turned round.
            a.rorx(W64, T1, T0, LINE_SHIFT as u8);
            a.mem(&[0xc6], W32, Reg(0), Some(T1), None, line as i32);
            a.u8(1);
        }
    };
    a.load(W64, T0, at::ACROSS_FIRST);
    for (offset, place) in words() {
        let offset = PAGE_SIZE as usize - MOST + offset;
        a.load(W64, T1, at::BOUNCE + place - MOST);
        a.mem(&[0x89], W64, T1, Some(T0), None, offset as i32);
    }
    mark(a, (PAGE_SIZE as usize >> LINE_SHIFT) - 1);
    a.load(W64, T0, at::ACROSS_SECOND);
    for (offset, place) in words() {
        a.load(W64, T1, at::BOUNCE + place);
        a.mem(&[0x89], W64, T1, Some(T0), None, offset as i32);
    }
    mark(a, 0);
    a.u8(0xc3);
}
