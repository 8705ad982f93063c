//! A minimal assembler for the code that surrounds copied instructions.
//!
//! It writes bytes straight into a vector: the templates of the memory check and of block exits are
//! fixed, so nothing needs to be searched or matched. Copied instructions go through iced's encoder
//! instead. State of the running vCPU is addressed through the GS base, which costs no register.

/// A host register by its encoding number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reg(pub u8);

pub const RAX: Reg = Reg(0);
pub const RCX: Reg = Reg(1);
pub const RDX: Reg = Reg(2);
pub const RBX: Reg = Reg(3);
pub const RSP: Reg = Reg(4);
pub const RBP: Reg = Reg(5);
pub const RSI: Reg = Reg(6);
pub const RDI: Reg = Reg(7);
pub const R8: Reg = Reg(8);
pub const R9: Reg = Reg(9);
pub const R10: Reg = Reg(10);
pub const R11: Reg = Reg(11);
pub const R12: Reg = Reg(12);
pub const R13: Reg = Reg(13);
pub const R14: Reg = Reg(14);
pub const R15: Reg = Reg(15);

/// Operand size of an emitted instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    W16,
    W32,
    W64,
}
pub use Width::{W16, W32, W64};

/// Condition codes as in the low nibble of Jcc.
pub mod cc {
    pub const E: u8 = 4;
    pub const NE: u8 = 5;
    pub const AE: u8 = 3;
    pub const A: u8 = 7;
    pub const S: u8 = 8;
    pub const NS: u8 = 9;
    pub const BE: u8 = 6;
    pub const L: u8 = 12;
    pub const GE: u8 = 13;
    pub const G: u8 = 15;
}

/// The beginning of an instruction, up to eight bytes: prefixes, opcode, ModRM, SIB and a short displacement.
#[derive(Default)]
struct Word {
    bits: u64,
    /// In bits.
    len: u32,
}

impl Word {
    #[inline]
    fn u8(&mut self, b: u8) {
        self.bits |= u64::from(b) << self.len;
        self.len += 8;
    }

    #[inline]
    fn rex(&mut self, width: Width, reg: u8, index: u8, base: u8) {
        let w = if width == W64 { 8 } else { 0 };
        let rex = w | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3;
        if rex != 0 {
            self.u8(0x40 | rex);
        }
    }

    /// Prefixes and opcode.
    #[inline]
    fn start(&mut self, op: &[u8], width: Width, reg: u8, index: u8, base: u8) {
        if width == W16 {
            self.u8(0x66);
        }
        self.rex(width, reg, index, base);
        for &b in op {
            self.u8(b);
        }
    }

    /// The same with a segment prefix for GS.
    fn gs(&mut self, op: &[u8], width: Width, reg: u8, base: u8) {
        if width == W16 {
            self.u8(0x66);
        }
        self.u8(0x65);
        self.start(op, if width == W16 { W32 } else { width }, reg, 0, base);
    }
}

/// Code under construction.
#[derive(Default)]
pub struct Asm {
    pub bytes: Vec<u8>,
    /// The stack pointer lies this far above the GS base, so that the vCPU is reached through it.
    pub frame: Option<usize>,
}

impl Asm {
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn u8(&mut self, b: u8) {
        self.bytes.push(b);
    }

    pub fn raw(&mut self, b: &[u8]) {
        self.bytes.extend_from_slice(b);
    }

    pub fn u32(&mut self, v: u32) {
        self.raw(&v.to_le_bytes());
    }

    pub fn u64(&mut self, v: u64) {
        self.raw(&v.to_le_bytes());
    }

    /// Appends bytes that were put together in a register: one store of a constant length, and what is too
    /// much is cut off again.
    #[inline]
    fn put(&mut self, word: Word) {
        let end = self.bytes.len() + word.len as usize / 8;
        self.bytes.extend_from_slice(&word.bits.to_le_bytes());
        self.bytes.truncate(end);
    }

    /// `op reg, rm` between registers; `op` is a one-byte opcode (or two with a leading 0x0f).
    #[inline]
    pub fn rr(&mut self, op: &[u8], width: Width, reg: Reg, rm: Reg) {
        let mut word = Word::default();
        word.start(op, width, reg.0, 0, rm.0);
        word.u8(0xc0 | (reg.0 & 7) << 3 | rm.0 & 7);
        self.put(word);
    }

    /// `op reg, gs:[disp]`, or the same word through the stack pointer.
    #[inline]
    pub fn gs(&mut self, op: &[u8], width: Width, reg: Reg, disp: usize) {
        let mut word = Word::default();
        let reg3 = (reg.0 & 7) << 3;
        let Some(frame) = self.frame else {
            word.gs(op, width, reg.0, 0);
            word.u8(reg3 | 4);
            word.u8(0x25);
            self.put(word);
            self.u32(disp as u32);
            return;
        };
        // What `mem` would do for this base, without its questions.
        word.start(op, width, reg.0, 0, 0);
        let disp = disp as i32 - frame as i32;
        let mode = match i8::try_from(disp) {
            Ok(0) => 0,
            Ok(_) => 0x40,
            Err(_) => 0x80,
        };
        word.u8(mode | reg3 | 4);
        word.u8(0x24);
        if mode == 0x40 {
            word.u8(disp as u8);
        }
        self.put(word);
        if mode == 0x80 {
            self.u32(disp as u32);
        }
    }

    /// `op reg, gs:[index + disp]`, or the same through the stack pointer.
    pub fn gs_at(&mut self, op: &[u8], width: Width, reg: Reg, index: Reg, disp: usize) {
        assert!(index != RSP && index != R12, "needs a SIB byte");
        if let Some(frame) = self.frame {
            let disp = disp as i32 - frame as i32;
            self.mem(op, width, reg, Some(RSP), Some((index, 1)), disp);
            return;
        }
        let mut word = Word::default();
        word.gs(op, width, reg.0, index.0);
        word.u8(0x80 | (reg.0 & 7) << 3 | index.0 & 7);
        self.put(word);
        self.u32(disp as u32);
    }

    /// `op reg, gs:[index*8 + disp]`, or the same through the stack pointer.
    pub fn gs_scaled(&mut self, op: &[u8], width: Width, reg: Reg, index: Reg, disp: usize) {
        if let Some(frame) = self.frame {
            let disp = disp as i32 - frame as i32;
            self.mem(op, width, reg, Some(RSP), Some((index, 8)), disp);
        } else {
            self.u8(0x65);
            self.mem(op, width, reg, None, Some((index, 8)), disp as i32);
        }
    }

    /// `op reg, [base + index*scale + disp]`; `base` and `index` may be absent.
    pub fn mem(
        &mut self,
        op: &[u8],
        width: Width,
        reg: Reg,
        base: Option<Reg>,
        index: Option<(Reg, u8)>,
        disp: i32,
    ) {
        let mut word = Word::default();
        let index_number = index.map_or(0, |(r, _)| r.0);
        let base_number = base.map_or(0, |r| r.0);
        word.start(op, width, reg.0, index_number, base_number);
        let reg3 = (reg.0 & 7) << 3;
        let sib = |base: u8| {
            let (index, scale) = index.map_or((4, 0), |(r, s)| (r.0 & 7, s.trailing_zeros() as u8));
            scale << 6 | index << 3 | base
        };
        let Some(base) = base else {
            // No base: SIB with base 5 and a 32-bit displacement.
            word.u8(reg3 | 4);
            word.u8(sib(5));
            self.put(word);
            self.u32(disp as u32);
            return;
        };
        let small = i8::try_from(disp);
        let mode = match small {
            Ok(0) if base.0 & 7 != 5 => 0,
            Ok(_) => 0x40,
            Err(_) => 0x80,
        };
        match index {
            None if base.0 & 7 != 4 => word.u8(mode | reg3 | base.0 & 7),
            _ => {
                word.u8(mode | reg3 | 4);
                word.u8(sib(base.0 & 7));
            }
        }
        match small {
            Ok(_) if mode == 0 => self.put(word),
            Ok(short) => {
                word.u8(short as u8);
                self.put(word);
            }
            Err(_) => {
                self.put(word);
                self.u32(disp as u32);
            }
        }
    }

    pub fn mov_rr(&mut self, width: Width, dst: Reg, src: Reg) {
        if dst != src || width != W64 {
            self.rr(&[0x8b], width, dst, src);
        }
    }

    /// `lea dst, [base + disp]`, or a move.
    pub fn lea(&mut self, dst: Reg, base: Reg, disp: i32) {
        match disp {
            0 => self.mov_rr(W64, dst, base),
            _ => self.mem(&[0x8d], W64, dst, Some(base), None, disp),
        }
    }

    pub fn load(&mut self, width: Width, dst: Reg, disp: usize) {
        self.gs(&[0x8b], width, dst, disp);
    }

    pub fn store(&mut self, width: Width, src: Reg, disp: usize) {
        self.gs(&[0x89], width, src, disp);
    }

    /// `mov reg, value` in the shortest form; leaves flags alone.
    pub fn mov_imm(&mut self, dst: Reg, value: u64) {
        let mut word = Word::default();
        if let Ok(v) = u32::try_from(value) {
            word.start(&[0xb8 | dst.0 & 7], W32, 0, 0, dst.0);
            self.put(word);
            self.u32(v);
        } else if i32::try_from(value as i64).is_ok() {
            word.start(&[0xc7, 0xc0 | dst.0 & 7], W64, 0, 0, dst.0);
            self.put(word);
            self.u32(value as u32);
        } else {
            word.start(&[0xb8 | dst.0 & 7], W64, 0, 0, dst.0);
            self.put(word);
            self.u64(value);
        }
    }

    /// `op reg, imm32` of the 0x81 group (`/ext`): 0 add, 4 and, 5 sub, 6 xor, 7 cmp.
    pub fn alu_imm(&mut self, ext: u8, width: Width, reg: Reg, imm: i32) {
        let mut word = Word::default();
        let modrm = 0xc0 | ext << 3 | reg.0 & 7;
        if let Ok(b) = i8::try_from(imm) {
            word.start(&[0x83, modrm, b as u8], width, 0, 0, reg.0);
            self.put(word);
        } else {
            word.start(&[0x81, modrm], width, 0, 0, reg.0);
            self.put(word);
            self.u32(imm as u32);
        }
    }

    /// `op reg, count` on 64 bits, of the 0xc1 group (`/ext`): 4 shl, 5 shr, 7 sar.
    pub fn shift_imm(&mut self, ext: u8, reg: Reg, count: u8) {
        let mut word = Word::default();
        word.start(
            &[0xc1, 0xc0 | ext << 3 | reg.0 & 7, count],
            W64,
            0,
            0,
            reg.0,
        );
        self.put(word);
    }

    /// `imul reg, reg, imm32` on 64 bits.
    pub fn imul_imm(&mut self, reg: Reg, imm: i32) {
        self.rr(&[0x69], W64, reg, reg);
        self.u32(imm as u32);
    }

    /// `op qword gs:[disp], imm` of the 0x81 group.
    pub fn gs_alu_imm(&mut self, ext: u8, width: Width, disp: usize, imm: i32) {
        let small = i8::try_from(imm);
        self.gs(
            &[if small.is_ok() { 0x83 } else { 0x81 }],
            width,
            Reg(ext),
            disp,
        );
        match small {
            Ok(b) => self.u8(b as u8),
            Err(_) => self.u32(imm as u32),
        }
    }

    /// `mov dword gs:[disp], imm32`.
    pub fn gs_mov_imm32(&mut self, disp: usize, imm: u32) {
        self.gs(&[0xc7], W32, Reg(0), disp);
        self.u32(imm);
    }

    /// `mov byte gs:[disp], imm8`.
    pub fn gs_mov_imm8(&mut self, disp: usize, imm: u8) {
        self.gs(&[0xc6], W32, Reg(0), disp);
        self.u8(imm);
    }

    /// `cmp byte gs:[disp], imm8`.
    pub fn gs_cmp_imm8(&mut self, disp: usize, imm: u8) {
        self.gs(&[0x80], W32, Reg(7), disp);
        self.u8(imm);
    }

    /// `rorx dst, src, count`: rotates without touching flags (BMI2).
    pub fn rorx(&mut self, width: Width, dst: Reg, src: Reg, count: u8) {
        let w = if width == W64 { 0x80 } else { 0 };
        self.raw(&[
            0xc4,
            (if dst.0 < 8 { 0x80 } else { 0 }) | 0x40 | (if src.0 < 8 { 0x20 } else { 0 }) | 3,
            w | 0x7b,
            0xf0,
            0xc0 | (dst.0 & 7) << 3 | src.0 & 7,
            count,
        ]);
    }

    /// `test reg, imm8` of the low byte.
    pub fn test_low(&mut self, reg: Reg, imm: u8) {
        // Without a prefix, numbers 4 to 7 would be the high bytes.
        self.raw(&[0x40 | reg.0 >> 3, 0xf6, 0xc0 | reg.0 & 7, imm]);
    }

    /// Saves the status flags in AX: LAHF, SETO AL.
    pub fn save_flags(&mut self) {
        self.raw(&[0x9f, 0x0f, 0x90, 0xc0]);
    }

    /// Restores the status flags from AX, leaving AX as it is: CMP AL, -127 overflows exactly when
    /// AL is 1, and SAHF sets the others.
    pub fn restore_flags(&mut self) {
        self.raw(&[0x3c, 0x81, 0x9e]);
    }

    /// `jcc rel32` with a displacement to be filled in; returns its position.
    pub fn jcc(&mut self, cond: u8) -> usize {
        self.raw(&[0x0f, 0x80 | cond, 0, 0, 0, 0]);
        self.len() - 4
    }

    /// `jmp rel32` with a displacement to be filled in; returns its position.
    pub fn jmp(&mut self) -> usize {
        self.raw(&[0xe9, 0, 0, 0, 0]);
        self.len() - 4
    }

    /// `call rel32` with a displacement to be filled in; returns its position.
    pub fn call(&mut self) -> usize {
        self.raw(&[0xe8, 0, 0, 0, 0]);
        self.len() - 4
    }

    /// Fills in the displacement at `at` so that it leads to `target` (both in this code).
    pub fn patch(&mut self, at: usize, target: usize) {
        let rel = target as i64 - (at as i64 + 4);
        self.bytes[at..at + 4].copy_from_slice(&(rel as i32).to_le_bytes());
    }

    /// Fills in the displacement at `at` to lead here.
    pub fn patch_here(&mut self, at: usize) {
        let here = self.len();
        self.patch(at, here);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};

    fn listing(f: impl FnOnce(&mut Asm)) -> Vec<String> {
        let mut asm = Asm::default();
        f(&mut asm);
        let mut formatter = IntelFormatter::new();
        Decoder::with_ip(64, &asm.bytes, 0x1000, DecoderOptions::NONE)
            .iter()
            .map(|i| {
                let mut s = String::new();
                formatter.format(&i, &mut s);
                s
            })
            .collect()
    }

    #[test]
    fn templates_disassemble_to_what_they_say() {
        let lines = listing(|a| {
            a.load(W64, R10, 0x40);
            a.gs_at(&[0x2b], W64, R10, R11, 0x1000);
            a.gs_scaled(&[0x3b], W64, R11, R10, 0x2000);
            a.rorx(W64, R11, R10, 7);
            a.alu_imm(4, W32, R11, 0x1ffe0);
            a.gs_alu_imm(5, W64, 0x80, 5);
            a.gs_mov_imm32(0x88, 7);
            a.mem(&[0x8d], W64, R10, Some(R13), Some((R12, 4)), 0);
            a.mem(&[0x8d], W64, R10, Some(RSP), None, -300);
            a.mem(&[0x8d], W32, R10, None, Some((RCX, 8)), 4);
            a.mov_imm(R10, 0xffff_ffff_8000_0000);
            a.mov_imm(R10, 0x1234_5678_9abc_def0);
            a.restore_flags();
            a.gs_cmp_imm8(0x90, 0);
        });
        assert_eq!(
            lines,
            [
                "mov r10,gs:[40h]",
                "sub r10,gs:[r11+1000h]",
                "cmp r11,gs:[r10*8+2000h]",
                "rorx r11,r10,7",
                "and r11d,1FFE0h",
                "sub qword ptr gs:[80h],5",
                "mov dword ptr gs:[88h],7",
                "lea r10,[r13+r12*4]",
                "lea r10,[rsp-12Ch]",
                "lea r10d,[rcx*8+4]",
                "mov r10,0FFFFFFFF80000000h",
                "mov r10,123456789ABCDEF0h",
                "cmp al,81h",
                "sahf",
                "cmp byte ptr gs:[90h],0",
            ]
        );
    }
}
