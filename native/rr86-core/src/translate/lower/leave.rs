//! Ways out of a block: jumps to a known place, which are linked or asked of the jump cache, and jumps,
//! calls and returns to what a register or memory says.

use super::jump_cache::ask_jump_cache;
use crate::translate::code::Slot;
use crate::translate::encode::asm::{cc, Reg, W32, W64};
use crate::translate::layout::PAGE_SHIFT;
use crate::translate::layout::{at, jump_index, Exit, GUEST_RSP, T0, T1};
use crate::translate::lower::emitter::Emitter;
use crate::translate::lower::streams::{Label, Stream};
use crate::translate::mode::Mode;

impl Emitter<'_> {
    /// Ends the block with a jump to a known rip; flags are in AX.
    pub(in crate::translate) fn jump_to(&mut self, target: u64) {
        if self.path.is_some() {
            let at = self.hot.jmp();
            self.path_exit(Stream::Hot, at, target);
            return;
        }
        let at = if self.goes_far(target) {
            self.jump_if_known(Stream::Hot, target, self.request.mode)
        } else {
            self.hot.jmp()
        };
        self.leave_for(at, target);
    }

    /// Whether a jump leads to another page. Its mapping may change, so the jump cache is asked, which is
    /// emptied then.
    fn goes_far(&self, target: u64) -> bool {
        let source = self.request.insns[0].0.ip();
        self.asks_jump_cache() && source >> PAGE_SHIFT != target >> PAGE_SHIFT
    }

    /// Jumps to a known rip in a mode if the jump cache has it; otherwise the jump that is returned does.
    pub(in crate::translate) fn jump_if_known(
        &mut self,
        stream: Stream,
        target: u64,
        mode: Mode,
    ) -> usize {
        let index = 8 * jump_index(target);
        let a = self.stream(stream);
        a.mov_imm(T0, target ^ mode.key());
        a.gs(&[0x3b], W64, T0, at::JUMP + index);
        let miss = a.jcc(cc::NE);
        a.gs(&[0xff], W32, Reg(4), at::JUMP_CODE + index);
        miss
    }

    /// Makes the jump at `at` in the hot stream one to `target`.
    pub(in crate::translate) fn slot(&mut self, at: usize, target: u64) {
        if self.path.is_some() {
            self.path_exit(Stream::Hot, at, target);
            return;
        }
        if self.goes_far(target) {
            self.fixups
                .push((Stream::Hot, at, Label::Cold(self.cold.len())));
            let miss = self.jump_if_known(Stream::Cold, target, self.request.mode);
            self.cold.patch_here(miss);
            self.leave_here_for(None, target);
        } else {
            self.leave_for(at, target);
        }
    }

    /// Lets the jump at `at` in the hot stream leave to the dispatcher, which is told where it leads.
    fn leave_for(&mut self, at: usize, target: u64) {
        self.fixups
            .push((Stream::Hot, at, Label::Cold(self.cold.len())));
        // After a single-instruction block the mode is another one, so the dispatcher goes on.
        let patched = self.asks_jump_cache() && !self.goes_far(target);
        self.leave_here_for(patched.then_some(at), target);
    }

    fn leave_here_for(&mut self, patch: Option<usize>, target: u64) {
        let number = self.slots.len() as u32;
        let exit = self.cold.len();
        self.cold.gs_mov_imm32(at::EXIT_SLOT, number);
        self.note_block(Stream::Cold);
        self.leave(Stream::Cold, Exit::Chain);
        self.slots.push(Slot {
            target,
            patch: patch.map(|at| at as u32),
            exit: exit as u32,
        });
    }

    /// Ends the block with a jump to a known rip in another mode; flags are in AX.
    pub(in crate::translate) fn jump_in_mode(&mut self, target: u64, mode: Mode) {
        let miss = self.jump_if_known(Stream::Hot, target, mode);
        self.fixups
            .push((Stream::Hot, miss, Label::Cold(self.cold.len())));
        Self::store_rip(&mut self.cold, target);
        self.leave(Stream::Cold, Exit::Lookup);
    }

    /// Lets, in the cold stream, the helper of the current instruction raise #GP(0) when the target in a temporary
    /// is not canonical: the instruction itself faults, not the fetch. The other temporary and flags change.
    /// `undo` is added to the stack pointer before.
    pub(in crate::translate) fn check_target(&mut self, target: Reg, undo: i32) {
        if !self.request.mode.code64() {
            return;
        }
        let cold = &mut self.cold;
        let other = if target == T0 { T1 } else { T0 };
        cold.mov_rr(W64, other, target);
        cold.shift_imm(4, other, 16);
        cold.shift_imm(7, other, 16);
        cold.rr(&[0x3b], W64, other, target);
        let fine = cold.jcc(cc::E);
        if undo != 0 {
            self.cold
                .mem(&[0x8d], W64, GUEST_RSP, Some(GUEST_RSP), None, undo);
        }
        self.note_block(Stream::Cold);
        let mut site = self.site();
        site.size = self.place().1 as u8;
        site.stack = true;
        self.cold.mov_imm(T1, u64::from(site.pack()));
        self.call_stub(Stream::Cold, self.stubs.helper);
        self.cold.patch_here(fine);
    }

    /// `check_target` for a register, between instructions of the hot stream.
    pub(in crate::translate) fn check_in_cold(&mut self, target: Reg) {
        if !self.request.mode.code64() {
            return;
        }
        self.free_host_flags();
        self.hot.mov_rr(W64, T1, target);
        let at = self.hot.jmp();
        self.fixups
            .push((Stream::Hot, at, Label::Cold(self.cold.len())));
        self.check_target(T1, 0);
        let back = self.cold.jmp();
        self.fixups
            .push((Stream::Cold, back, Label::Hot(self.hot.len())));
    }

    /// Whether code of this mode asks the jump cache where to go on.
    pub(in crate::translate) fn asks_jump_cache(&self) -> bool {
        self.request.mode.code_flat() && !self.request.mode.one()
    }

    /// Asks the jump cache for the rip in a register, which T0 is not. T0 becomes the index of its entry;
    /// where there is none, the cold stream goes on, with the rip in T1.
    pub(in crate::translate) fn ask_jump_cache(&mut self, target: Reg) {
        self.free_host_flags();
        let miss = ask_jump_cache(&mut self.hot, target);
        self.fixups
            .push((Stream::Hot, miss, Label::Cold(self.cold.len())));
        self.cold.gs(&[0x33], W64, T1, at::JUMP_KEY);
    }

    /// Ends the block with a jump to the rip in a register, which T0 is not; flags are in AX. `undo` takes the
    /// stack pointer back where the jump faults.
    pub(in crate::translate) fn jump_indirect(&mut self, target: Reg, undo: i32) {
        if self.asks_jump_cache() {
            self.ask_jump_cache(target);
            self.hot.gs_scaled(&[0xff], W32, Reg(4), T0, at::JUMP_CODE);
        } else {
            self.free_host_flags();
            self.hot.mov_rr(W64, T1, target);
            let at = self.hot.jmp();
            self.fixups
                .push((Stream::Hot, at, Label::Cold(self.cold.len())));
        }
        // What the jump cache knows has been fetched before.
        self.cold.store(W64, T1, at::RIP);
        self.check_target(T1, undo);
        self.leave(Stream::Cold, Exit::Lookup);
    }

    /// Lets an indirect call go on at the rip in a register, which T0 is not, when it has pushed: TARGET_CODE
    /// becomes what to jump to then. #GP(0) comes before the push. `noted` says that TARGET is the rip already.
    pub(in crate::translate) fn prepare_call(&mut self, target: Reg, noted: bool) {
        self.ask_jump_cache(target);
        if !noted {
            self.cold.store(W64, T1, at::TARGET);
        }
        self.check_target(T1, 0);
        self.cold.raw(&[0x4c, 0x8d, 0x15, 0, 0, 0, 0]); // lea r10, [rip + …]
        let at = self.cold.len() - 4;
        self.fixups
            .push((Stream::Cold, at, Label::Stub(self.stubs.lookup)));
        let back = self.cold.jmp();
        self.hot.gs_scaled(&[0x8b], W64, T0, T0, at::JUMP_CODE);
        self.fixups
            .push((Stream::Cold, back, Label::Hot(self.hot.len())));
        self.hot.store(W64, T0, at::TARGET_CODE);
    }
}
