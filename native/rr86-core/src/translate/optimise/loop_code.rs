//! The fast code of loops of one block: how a plan of `loop_plan` becomes code.
//!
//! It has an entry, which looks up the pages and counts the iterations that they and the budget allow; the iteration; and
//! a way out, behind the iteration that ended the loop and behind the last one allowed.

use iced_x86::{Instruction, Register};

use crate::translate::decode::classify::Class;
use crate::translate::decode::operands::number;
use crate::translate::encode::asm::{self, cc, Reg, W32, W64};
use crate::translate::layout::LINE_SHIFT;
use crate::translate::layout::PAGE_SIZE;
use crate::translate::layout::{at, HOST, T0, T1};
use crate::translate::lower::emitter::Emitter;
use crate::translate::lower::streams::{Flags, Label, Stream};
use crate::translate::optimise::loop_plan::{Clock, Group, Loop, ALIGNMENT};
use crate::translate::site::AccessKind;

/// Turns without anything that moves.
const MANY: u64 = 1 << 20;
/// log2 of what a budget is taken for at most, and of what its reciprocal is scaled by.
const RECIPROCAL: u8 = 30;
/// Turns below which the fast code is not worth its entry.
const FEW: i32 = 4;
/// Turns that make up for entering the fast code and leaving it. When the loop was over after fewer, or a page
/// was not at hand, it is not tried for some iterations: each time for twice as many and one, up to so many.
const WORTH: i32 = 8;
const MOST_BACKOFF: i32 = 127;
/// Offset of MXCSR in an FXSAVE image (SDM vol. 1, table 10-2).
const MXCSR: usize = 24;
/// MXCSR with all exceptions masked has these bits (SDM vol. 1, section 10.2.3).
const MASKS: i32 = 0x1f80;

impl Emitter<'_> {
    /// Behind the budget's check at the head of a loop: tries the fast code where that may be worth it.
    /// Returns the jump to it.
    pub(in crate::translate) fn try_loop(&mut self) -> usize {
        let backoff = at::loop_backoff(self.request.insns[0].0.ip());
        self.hot.gs(&[0x80], W32, Reg(5), backoff); // sub byte
        self.hot.u8(1);
        self.hot.jcc(cc::S)
    }

    /// Emits the fast code behind the block. `enter` is the jump that leads here; the ordinary code behind it
    /// is at `body`. At both, and in the end, flags are in AX.
    pub(in crate::translate) fn emit_loop(&mut self, plan: &Loop, enter: usize, body: usize) {
        let insns = self.request.insns;
        let (branch, _) = insns[insns.len() - 1];
        let count = insns.len() as i32;
        let condition = branch.condition_code() as u8 - 1;
        let leave = self.fall_through;
        self.hot.patch_here(enter);
        self.flags = Flags::Ax;
        let mut refused = Vec::new();
        let mut missed = Vec::new();
        self.hot.store(W64, asm::RAX, at::FLAGS_AX);
        if plan.raises {
            self.read_mxcsr();
            self.hot.alu_imm(4, W32, T0, MASKS);
            self.hot.alu_imm(7, W32, T0, MASKS);
            refused.push(self.hot.jcc(cc::NE));
        }
        let mut limited = false;
        let mut area = 0;
        for (place, group) in plan.groups.iter().enumerate() {
            missed.push(self.find_group(group, place, &mut area, &mut refused));
            if group.step != 0 {
                self.limit_turns(group, limited);
                limited = true;
            }
        }
        self.count_turns(plan, count, limited, &mut refused);
        // Not before it is certain that the iterations run: that the FPU has been loaded shows in its state (the
        // last-instruction pointers), so it follows from the instructions that were executed, not from attempts.
        if insns.iter().any(|(_, class)| *class == Class::CopyFpu) {
            self.fpu_loaded = false;
            self.load_fpu();
        }
        self.hot.load(W64, asm::RAX, at::FLAGS_AX);
        self.hot.restore_flags();
        for &(guest, host) in &plan.lent {
            self.hot.load(W64, host, at::gpr(guest));
        }
        for (place, group) in plan.groups.iter().enumerate() {
            self.hot.load(W64, group.host, at::loop_host(place));
        }
        if let Clock::Host(host) = plan.clock {
            self.hot.load(W64, host, at::LOOP_LAST);
        }

        let top = self.hot.len();
        self.encode_all(&plan.ops[..plan.ask]);
        let last = self.ask_clock(plan);
        self.encode_all(&plan.ops[plan.ask..]);
        let again = self.hot.jcc(condition);
        self.hot.patch(again, top);
        let done = self.hot.len();
        self.leave_loop(plan, count, true);
        let out = self.hot.jmp();
        self.hot.patch(out, leave);

        self.hot.patch_here(last);
        self.encode_all(&plan.ops[plan.ask..]);
        let over = self.hot.jcc(condition ^ 1);
        self.hot.patch(over, done);
        self.leave_loop(plan, count, false);
        let next = self.hot.jmp();
        self.hot.patch(next, 0);

        for fixup in missed {
            self.land(fixup);
        }
        self.back_off();
        for at in refused {
            self.hot.patch_here(at);
        }
        self.hot.load(W64, asm::RAX, at::FLAGS_AX);
        let back = self.hot.jmp();
        self.hot.patch(back, body);
    }

    /// Reads the guest's MXCSR into T0, wherever it is. Flags change.
    fn read_mxcsr(&mut self) {
        self.hot.gs_cmp_imm8(at::FPU_LIVE, 0);
        let in_memory = self.hot.jcc(cc::E);
        self.hot.gs(&[0x0f, 0xae], W32, Reg(3), at::FPU + MXCSR); // stmxcsr
        self.hot.patch_here(in_memory);
        self.hot.load(W32, T0, at::FPU + MXCSR);
    }

    /// Has the loop go the ordinary way for a while. T1 and flags change.
    fn back_off(&mut self) {
        let loop_at = self.request.insns[0].0.ip();
        let failures = at::loop_failures(loop_at);
        self.hot.gs(&[0x0f, 0xb6], W32, T1, failures); // movzx
        self.hot.gs(&[0x88], W32, T1, at::loop_backoff(loop_at)); // mov byte
        self.hot.mem(&[0x8d], W32, T1, Some(T1), Some((T1, 1)), 1); // lea
        self.hot.alu_imm(4, W32, T1, MOST_BACKOFF);
        self.hot.gs(&[0x88], W32, T1, failures);
    }

    /// Has the loop be tried whenever it is come to.
    fn reset_backoff(&mut self) {
        let loop_at = self.request.insns[0].0.ip();
        self.hot.gs_mov_imm8(at::loop_backoff(loop_at), 0);
        self.hot.gs_mov_imm8(at::loop_failures(loop_at), 0);
    }

    fn encode_all(&mut self, ops: &[Instruction]) {
        for op in ops {
            self.encode(op);
        }
    }

    /// Looks up the page of a group as it is at an iteration's start, and notes what its host register will hold and
    /// where what it writes begins. Leaves RAX = offset of the group in its page. Returns the fixup of the jump
    /// for a page that is not at hand.
    fn find_group(
        &mut self,
        group: &Group,
        place: usize,
        area: &mut usize,
        refused: &mut Vec<usize>,
    ) -> usize {
        let (base, index, scale) = group.key;
        if (base, index) == (Register::None, Register::None) {
            self.hot.mov_imm(T0, group.low as u64);
        } else {
            self.lea_of(T0, base, index, scale, group.low as i32);
        }
        let kind = if group.writes {
            AccessKind::Modify
        } else {
            AccessKind::Read
        };
        let missed = self.check_in_table(Stream::Hot, group.size(), kind);
        if group.aligned.is_some() {
            self.hot.test_low(T0, ALIGNMENT as u8 - 1);
            refused.push(self.hot.jcc(cc::NE));
        }
        let host = self.host_field();
        self.hot.mov_rr(W64, asm::RAX, T0);
        self.hot.gs_at(&[0x03], W64, T0, T1, host);
        if self.request.tracking {
            for &(low, high) in &group.areas {
                // Where addresses fall, it begins with its last line.
                let first = if group.step < 0 { high - 1 } else { low };
                self.hot.lea(T1, T0, (first - group.low) as i32);
                self.hot.shift_imm(5, T1, LINE_SHIFT as u8);
                self.hot.store(W64, T1, at::loop_mark(*area));
                *area += 1;
            }
        }
        if let Some((register, scale)) = group.moving {
            let register = number(register);
            match HOST[register] {
                Some(host) if scale == 1 => self.hot.rr(&[0x2b], W64, T0, host),
                _ => {
                    self.read_register(T1, register);
                    self.hot.shift_imm(4, T1, scale.trailing_zeros() as u8);
                    self.hot.rr(&[0x2b], W64, T0, T1);
                }
            }
        }
        self.hot.store(W64, T0, at::loop_host(place));
        missed
    }

    /// How many iterations behind the first stay in the page of a group that RAX is the offset of; fewer than
    /// before, if they have been `limited` before.
    fn limit_turns(&mut self, group: &Group, limited: bool) {
        let mut room = asm::RAX;
        if group.step > 0 {
            self.hot.mov_imm(T0, PAGE_SIZE - group.size() as u64);
            self.hot.rr(&[0x2b], W64, T0, asm::RAX);
            room = T0;
        }
        let stride = group.step.unsigned_abs().next_power_of_two();
        self.hot.shift_imm(5, room, stride.trailing_zeros() as u8);
        let more = limited.then(|| {
            self.hot.gs(&[0x3b], W64, room, at::LOOP_ITERATIONS);
            self.hot.jcc(cc::AE)
        });
        self.hot.store(W64, room, at::LOOP_ITERATIONS);
        if let Some(more) = more {
            self.hot.patch_here(more);
        }
    }

    /// Finds out how many iterations the pages and the budget allow, and sets the clock.
    fn count_turns(&mut self, plan: &Loop, count: i32, limited: bool, refused: &mut Vec<usize>) {
        if limited {
            self.hot.load(W64, T0, at::LOOP_ITERATIONS);
            self.hot.lea(T0, T0, 1);
        } else {
            self.hot.mov_imm(T0, MANY);
        }
        // Mostly the budget suffices. The first iteration has been paid for.
        self.hot.rr(&[0x69], W64, T1, T0); // imul
        self.hot.u32(count as u32);
        self.hot.alu_imm(5, W64, T1, count);
        self.hot.gs(&[0x3b], W64, T1, at::BUDGET);
        let over_budget = self.hot.jcc(cc::G);
        let back = self.hot.len();
        self.budget_turns(over_budget, back, count);
        self.hot.alu_imm(7, W64, T0, FEW);
        refused.push(self.hot.jcc(cc::L));
        match plan.clock {
            Clock::Register {
                guest,
                step,
                before,
            } => {
                self.read_register(T1, guest);
                self.hot.store(W64, T1, at::LOOP_START);
                self.hot.lea(T0, T0, -1);
                self.hot.imul_imm(T0, step);
                self.hot.rr(&[0x03], W64, T0, T1);
                self.hot.lea(T0, T0, before);
            }
            Clock::Host(_) | Clock::Word => {
                self.hot.store(W64, T0, at::LOOP_START);
                self.hot.lea(T0, T0, -1);
            }
        }
        self.hot.store(W64, T0, at::LOOP_LAST);
    }

    /// Behind the jump `over_budget`: how many iterations the budget allows, in T0.
    fn budget_turns(&mut self, over_budget: usize, back: usize, count: i32) {
        let here = self.cold.len();
        self.fixups
            .push((Stream::Hot, over_budget, Label::Cold(here)));
        let a = &mut self.cold;
        a.load(W64, T0, at::BUDGET);
        a.lea(T0, T0, count);
        a.mov_imm(T1, (1 << RECIPROCAL) - 1);
        a.rr(&[0x3b], W64, T0, T1);
        a.rr(&[0x0f, 0x4f], W64, T0, T1); // cmovg
        a.imul_imm(T0, (1 << RECIPROCAL) / count);
        a.shift_imm(7, T0, RECIPROCAL);
        let at = a.jmp();
        self.fixups.push((Stream::Cold, at, Label::Hot(back)));
    }

    /// Asks the clock, and jumps in the last iteration. Flags change.
    fn ask_clock(&mut self, plan: &Loop) -> usize {
        match plan.clock {
            Clock::Register { guest, .. } => {
                let lent = plan.lent.iter().find(|(known, _)| *known == guest);
                let host = lent.map(|&(_, host)| host).or(HOST[guest]);
                let host = host.expect("a clock is in a host register");
                self.hot.gs(&[0x3b], W64, host, at::LOOP_LAST);
                self.hot.jcc(cc::E)
            }
            Clock::Host(host) => {
                self.hot.alu_imm(5, W64, host, 1);
                self.hot.jcc(cc::S)
            }
            Clock::Word => {
                self.hot.gs_alu_imm(5, W64, at::LOOP_LAST, 1);
                self.hot.jcc(cc::S)
            }
        }
    }

    /// Leaves the fast code behind an iteration: pays for all of them and marks what was written. Afterwards flags
    /// are in AX.
    fn leave_loop(&mut self, plan: &Loop, count: i32, over: bool) {
        for &(guest, host) in &plan.lent {
            self.hot.store(W64, host, at::gpr(guest));
        }
        if let Clock::Host(host) = plan.clock {
            self.hot.store(W64, host, at::LOOP_LAST);
        }
        self.hot.save_flags();
        if let Clock::Register { guest, step, .. } = plan.clock {
            self.read_register(T0, guest);
            self.hot.gs(&[0x2b], W64, T0, at::LOOP_START);
            let twos = step.trailing_zeros();
            if twos > 0 {
                self.hot.shift_imm(7, T0, twos as u8);
            }
            if step >> twos != 1 {
                self.hot.mov_imm(T1, inverse(i64::from(step >> twos)));
                self.hot.rr(&[0x0f, 0xaf], W64, T0, T1);
            }
        } else {
            self.hot.load(W64, T0, at::LOOP_START);
            self.hot.lea(T0, T0, -1);
            self.hot.gs(&[0x2b], W64, T0, at::LOOP_LAST);
        }
        if over {
            self.hot.alu_imm(7, W64, T0, WORTH);
            let worth = self.hot.jcc(cc::GE);
            self.back_off();
            let go_on = self.hot.jmp();
            self.hot.patch_here(worth);
            self.reset_backoff();
            self.hot.patch_here(go_on);
        } else {
            self.reset_backoff();
        }
        self.hot.imul_imm(T0, count);
        self.hot.alu_imm(5, W64, T0, count);
        self.hot.gs(&[0x29], W64, T0, at::BUDGET);
        self.mark_turns(plan);
    }

    /// Marks the lines from where the first iteration wrote up to where the last one did.
    fn mark_turns(&mut self, plan: &Loop) {
        if !self.request.tracking {
            return;
        }
        for (area, place, group, (low, high)) in areas(plan) {
            let last = if group.step < 0 { low } else { high - 1 };
            // The moving register is an iteration further.
            let displacement = (last - group.low - group.step) as i32;
            self.hot.load(W64, T0, at::loop_host(place));
            if let Some((register, scale)) = group.moving {
                self.read_register(T1, number(register));
                self.hot
                    .mem(&[0x8d], W64, T0, Some(T0), Some((T1, scale)), displacement);
            } else {
                self.hot.lea(T0, T0, displacement);
            }
            self.hot.shift_imm(5, T0, LINE_SHIFT as u8);
            let (from, to) = if group.step < 0 { (T0, T1) } else { (T1, T0) };
            self.hot.load(W64, T1, at::loop_mark(area));
            self.mark_between(from, to);
        }
    }

    /// Sets the marks from one place up to another and with it, four at a time while there are more. Both registers
    /// change.
    fn mark_between(&mut self, from: Reg, to: Reg) {
        let a = &mut self.hot;
        a.alu_imm(5, W64, to, 4);
        a.rr(&[0x3b], W64, from, to);
        let few = a.jcc(cc::A);
        let four = a.len();
        a.mem(&[0xc7], W32, Reg(0), Some(from), None, 0);
        a.u32(0x0101_0101);
        a.alu_imm(0, W64, from, 4);
        a.rr(&[0x3b], W64, from, to);
        let more = a.jcc(cc::BE);
        a.patch(more, four);
        a.patch_here(few);
        a.alu_imm(0, W64, to, 4);
        let one = a.len();
        a.mem(&[0xc6], W32, Reg(0), Some(from), None, 0);
        a.u8(1);
        a.alu_imm(0, W64, from, 1);
        a.rr(&[0x3b], W64, from, to);
        let more = a.jcc(cc::BE);
        a.patch(more, one);
    }
}

/// The number that an odd one has to be multiplied with to give 1, in 64 bits.
fn inverse(odd: i64) -> u64 {
    // Each step doubles the bits that are right; an odd number is its own inverse in three.
    (0..5).fold(odd, |x, _| {
        x.wrapping_mul(2i64.wrapping_sub(odd.wrapping_mul(x)))
    }) as u64
}

/// All areas that a loop writes: their number, and their group with its number.
fn areas(plan: &Loop) -> impl Iterator<Item = (usize, usize, &Group, (i64, i64))> {
    let groups = plan.groups.iter().enumerate();
    let all = groups.flat_map(|(number, group)| {
        let areas = group.areas.iter();
        areas.map(move |&area| (number, group, area))
    });
    all.enumerate()
        .map(|(n, (number, group, area))| (n, number, group, area))
}
