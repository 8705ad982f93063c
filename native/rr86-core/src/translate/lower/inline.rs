//! Emitted code for system instructions that a kernel executes by the hundred thousand. Each does
//! exactly what its helper in `execute` does, in the cases where that is simple; the helper has the
//! rest.

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use crate::cpu::state::{Cr4, RFlags, STATUS_FLAGS};
use crate::translate::decode::classify::{repeated, Class};
use crate::translate::decode::operands::number;
use crate::translate::encode::asm::{self, Reg, W32, W64};
use crate::translate::layout::{at, GUEST_RAX, T0, T1};
use crate::translate::lower::emitter::Emitter;

/// Instructions that end their block and mostly go on with the next one, so that their helper comes back
/// when they do: moves, fills and searches of memory that are done, and reads of ports.
pub fn falls_through(insn: &Instruction) -> bool {
    insn.mnemonic() == M::In
        || insn.is_string_instruction()
            && repeated(insn)
            && !matches!(
                insn.mnemonic(),
                M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd
            )
}

impl Emitter<'_> {
    /// Emits a helper instruction inline if there is code for it.
    pub(in crate::translate) fn inline(&mut self, insn: &Instruction) -> bool {
        let mode = self.request.mode;
        debug_assert_eq!(self.request.insns[self.index].1, Class::Helper);
        match insn.mnemonic() {
            M::Rdtsc if mode.tsc() => self.rdtsc(),
            M::Rdtscp if mode.tsc() => {
                self.rdtsc();
                self.hot.load(W32, asm::RCX, at::TSC_AUX);
            }
            M::Cli if mode.ring0() => self.cli(),
            M::Swapgs if mode.ring0() && mode.code64() => self.swapgs(),
            M::Pushfq if mode.ring0() && mode.code64() => self.pushfq(),
            M::Mov
                if mode.code64()
                    && insn.op0_kind() == OpKind::Register
                    && insn.op0_register().size() >= 4
                    && insn.op1_register().is_segment_register() =>
            {
                self.hot.gs(
                    &[0x0f, 0xb7],
                    W32,
                    T0,
                    at::selector(insn.op1_register().number()),
                );
                self.write_register(number(insn.op0_register()), 8, T0);
            }
            _ => return false,
        }
        true
    }

    /// The same for one that ends its block.
    pub(in crate::translate) fn inline_end(&mut self, insn: &Instruction) -> bool {
        let mode = self.request.mode;
        match insn.mnemonic() {
            M::Pause => self.pause(insn),
            M::Stac | M::Clac if mode.ring0() && mode.code64() && !mode.one() => {
                self.alignment_check(insn, insn.mnemonic() == M::Stac);
            }
            _ if falls_through(insn) => {
                self.call_helper(true);
                self.jump_to(insn.next_ip());
            }
            _ => return false,
        }
        true
    }

    /// STAC and CLAC change which pages may be touched, so the next block is one of another mode.
    fn alignment_check(&mut self, insn: &Instruction, on: bool) {
        self.free_host_flags();
        // CR4.SMAP is bit 5 of the third byte. Without it, the mode stays, and the helper looks whether
        // there are such instructions at all.
        self.hot.gs(&[0xf6], W32, Reg(0), at::CR4 + 2);
        self.hot.u8((Cr4::SMAP.bits() >> 16) as u8);
        let smap = self.hot.jcc(asm::cc::NE);
        self.helper(true);
        self.hot.patch_here(smap);
        // AC is bit 2 of the third byte.
        let bit = (RFlags::AC.bits() >> 16) as u8;
        let (ext, operand) = if on { (1, bit) } else { (4, !bit) };
        self.hot.gs(&[0x80], W32, Reg(ext), at::RFLAGS + 2);
        self.hot.u8(operand);
        let mode = self.request.mode.with_ac(on);
        self.hot.mov_imm(T0, mode.key());
        self.hot.store(W64, T0, at::JUMP_KEY);
        self.jump_in_mode(insn.next_ip(), mode);
    }

    fn swapgs(&mut self) {
        use crate::cpu::state::sreg;
        let base = at::segment_base(sreg::GS);
        self.hot.load(W64, T0, base);
        self.hot.load(W64, T1, at::KERNEL_GS_BASE);
        self.hot.store(W64, T0, at::KERNEL_GS_BASE);
        self.hot.store(W64, T1, base);
    }

    /// PAUSE goes on with the next block unless the scheduler wants to know.
    fn pause(&mut self, insn: &Instruction) {
        self.free_host_flags();
        self.hot.load(W64, T0, at::BUDGET);
        self.hot.gs(&[0x3b], W64, T0, at::PAUSE_BELOW);
        let quiet = self.hot.jcc(asm::cc::GE);
        self.helper(true);
        self.hot.patch_here(quiet);
        self.jump_to(insn.next_ip());
    }

    /// The TSC is the instruction count up to here, plus an offset.
    fn rdtsc(&mut self) {
        self.free_host_flags();
        let remaining = i32::from(self.site().remaining);
        self.hot.load(W64, T0, at::ICOUNT_BASE);
        self.hot.gs(&[0x2b], W64, T0, at::BUDGET);
        self.hot.gs(&[0x03], W64, T0, at::TSC_OFFSET);
        self.hot.alu_imm(5, W64, T0, remaining);
        self.hot.rr(&[0x8b], W32, GUEST_RAX, T0);
        self.hot.rorx(W64, T0, T0, 32);
        self.hot.rr(&[0x8b], W32, asm::RDX, T0);
    }

    fn cli(&mut self) {
        self.free_host_flags();
        // IF is bit 1 of the second byte.
        self.hot.gs(&[0x80], W32, Reg(4), at::RFLAGS + 1);
        self.hot.u8(!(RFlags::IF.bits() >> 8) as u8);
    }

    /// The image of RFLAGS is put together from its stored part and the status flags in AX.
    fn pushfq(&mut self) {
        self.free_host_flags();
        let kept = !(STATUS_FLAGS | RFlags::RF.bits() | RFlags::VM.bits()) as i32;
        self.hot.load(W64, T0, at::RFLAGS);
        self.hot.alu_imm(4, W64, T0, kept);
        self.hot.rorx(W32, T1, asm::RAX, 8);
        self.hot.alu_imm(4, W32, T1, 0xd5);
        self.hot.rr(&[0x0b], W64, T0, T1);
        self.hot.rr(&[0x8b], W32, T1, asm::RAX);
        self.hot.alu_imm(4, W32, T1, 1);
        self.hot.raw(&[0x41, 0xc1, 0xe3, 11]); // shl r11d, 11
        self.hot.rr(&[0x0b], W64, T0, T1);
        self.hot.store(W64, T0, at::SCRATCH);
        self.push_register(T1, 8, Some(at::SCRATCH));
    }
}
