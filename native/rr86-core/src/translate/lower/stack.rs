//! PUSH, POP, CALL, RET and LEAVE: the instructions that access memory through RSP.
//!
//! The stack pointer moves together with the access: its update is part of the region that the slow
//! path repeats, so that a fault leaves it alone and a store that ends the block does not.

use iced_x86::{Instruction, OpKind, Register};

use crate::cpu::state::{gpr, sreg};
use crate::translate::decode::operands::{number, operand_size, segment_index};
use crate::translate::encode::asm::{Reg, W16, W32, W64};
use crate::translate::layout::{at, GUEST_RSP, HOST, T0, T1};
use crate::translate::lower::emitter::Emitter;
use crate::translate::site::AccessKind;

impl Emitter<'_> {
    /// T0 = linear address of the stack pointer plus `adjust`.
    fn stack_address(&mut self, adjust: i32, size: usize, kind: AccessKind) {
        let width = if self.request.mode.stack_size() == 8 {
            W64
        } else {
            W32
        };
        if adjust == 0 {
            self.hot.mov_rr(width, T0, GUEST_RSP);
        } else {
            self.hot
                .mem(&[0x8d], width, T0, Some(GUEST_RSP), None, adjust);
        }
        if self.request.mode.stack_size() == 2 {
            self.hot.rr(&[0x0f, 0xb7], W32, T0, T0);
        }
        self.segment(sreg::SS, size, kind);
        self.address_key = Some((Register::RSP, Register::None, 1));
    }

    /// Adds to the stack pointer in its current size, without touching flags or T1's value when the
    /// stack is 32 or 64 bits wide.
    fn move_stack(&mut self, by: i32) {
        if let Some(run) = &mut self.run {
            run.stack_shift += by;
            return;
        }
        match self.request.mode.stack_size() {
            8 => self
                .hot
                .mem(&[0x8d], W64, GUEST_RSP, Some(GUEST_RSP), None, by),
            4 => self
                .hot
                .mem(&[0x8d], W32, GUEST_RSP, Some(GUEST_RSP), None, by),
            _ => {
                self.hot.mem(&[0x8d], W32, T0, Some(GUEST_RSP), None, by);
                self.hot.rr(&[0x8b], W16, GUEST_RSP, T0);
            }
        }
    }

    /// Pushes T1 or a host register; flags and the source survive.
    pub(in crate::translate) fn push_register(
        &mut self,
        source: Reg,
        size: usize,
        load: Option<usize>,
    ) {
        let by = -(size as i32);
        let width = match size {
            2 => W16,
            4 => W32,
            _ => W64,
        };
        if let Some(displacement) = self.run_displacement() {
            self.mark_in_run(displacement, size, AccessKind::Write);
            if let Some(slot) = load {
                self.hot.load(W64, source, slot);
            }
            self.hot
                .mem(&[0x89], width, source, Some(T0), None, displacement);
            self.move_stack(by);
            return;
        }
        self.stack_address(by, size, AccessKind::Write);
        let access = self.begin_access(size, AccessKind::Write, true);
        if let Some(slot) = load {
            self.hot.load(W64, source, slot);
        }
        self.hot.mem(&[0x89], width, source, Some(T0), None, 0);
        self.move_stack(by);
        self.end_access(access);
    }

    /// Reads `size` bytes at the address in T0 into the scratch word.
    fn load_scratch(&mut self, size: usize, stack: bool) {
        let access = self.begin_access(size, AccessKind::Read, stack);
        self.move_t1(access, size, false);
        if size == 2 {
            self.hot.rr(&[0x0f, 0xb7], W32, T1, T1);
        }
        self.hot.store(W64, T1, at::SCRATCH);
    }

    pub(in crate::translate) fn push(&mut self, insn: &Instruction) {
        let size = operand_size(insn);
        match insn.op0_kind() {
            OpKind::Register => {
                let guest = number(insn.op0_register());
                match HOST[guest] {
                    Some(host) => self.push_register(host, size, None),
                    None => self.push_register(T1, size, Some(at::gpr(guest))),
                }
            }
            OpKind::Memory => {
                self.address_of(insn, size, AccessKind::Read, None);
                self.load_scratch(size, insn.memory_segment() == Register::SS);
                self.push_register(T1, size, Some(at::SCRATCH));
            }
            _ => {
                let value = insn.immediate(0);
                self.push_immediate(value, size, None);
            }
        }
    }

    /// Pushes a constant. `target` is where an indirect call leads, if the slow path has to note it.
    fn push_immediate(&mut self, value: u64, size: usize, target: Option<Reg>) {
        let by = -(size as i32);
        if let Some(displacement) = self.run_displacement() {
            self.mark_in_run(displacement, size, AccessKind::Write);
            self.store_immediate(value, size, displacement);
            self.move_stack(by);
            return;
        }
        self.stack_address(by, size, AccessKind::Write);
        let mut access = self.begin_access(size, AccessKind::Write, true);
        access.target = target;
        self.store_immediate(value, size, 0);
        self.move_stack(by);
        self.end_access(access);
    }

    /// Stores a constant at a displacement from the host address in T0; T1 changes.
    fn store_immediate(&mut self, value: u64, size: usize, displacement: i32) {
        let width = match size {
            2 => W16,
            4 => W32,
            _ => W64,
        };
        let hot = &mut self.hot;
        if size == 8 && i32::try_from(value as i64).is_ok() {
            hot.mem(&[0xc7], width, Reg(0), Some(T0), None, displacement);
            hot.u32(value as u32);
        } else {
            hot.mov_imm(T1, value);
            hot.mem(&[0x89], width, T1, Some(T0), None, displacement);
        }
    }

    pub(in crate::translate) fn pop(&mut self, insn: &Instruction) {
        let size = operand_size(insn);
        if let Some(displacement) = self.run_displacement() {
            let guest = number(insn.op0_register());
            match HOST[guest] {
                Some(host) if size == 8 && host != GUEST_RSP => {
                    self.hot
                        .mem(&[0x8b], W64, host, Some(T0), None, displacement);
                    self.move_stack(8);
                }
                _ => {
                    let width = if size == 2 { W16 } else { W64 };
                    self.hot
                        .mem(&[0x8b], width, T1, Some(T0), None, displacement);
                    self.move_stack(size as i32);
                    self.settle_stack();
                    self.write_register(guest, size, T1);
                }
            }
            return;
        }
        self.stack_address(0, size, AccessKind::Read);
        if insn.op0_kind() == OpKind::Register {
            let access = self.begin_access(size, AccessKind::Read, true);
            self.move_t1(access, size, false);
            self.move_stack(size as i32);
            self.write_register(number(insn.op0_register()), size, T1);
            return;
        }
        self.load_scratch(size, true);
        // The address is computed with the stack pointer after the pop.
        let adjust = if number_or_none(insn.memory_base()) == Some(gpr::RSP) {
            size as i32
        } else {
            0
        };
        self.address_after(insn, adjust, size, AccessKind::Write);
        let stack = segment_index(insn.memory_segment()) == sreg::SS;
        let access = self.begin_access(size, AccessKind::Write, stack);
        self.hot.load(W64, T1, at::SCRATCH);
        let width = match size {
            2 => W16,
            4 => W32,
            _ => W64,
        };
        self.hot.mem(&[0x89], width, T1, Some(T0), None, 0);
        self.move_stack(size as i32);
        self.end_access(access);
    }

    /// LEAVE: RSP = RBP, then POP RBP.
    pub(in crate::translate) fn leave_frame(&mut self, insn: &Instruction) {
        let size = operand_size_of_leave(insn);
        let stack = self.request.mode.stack_size();
        let frame = HOST[gpr::RBP].expect("RBP lives in a host register");
        self.hot
            .mov_rr(if stack == 8 { W64 } else { W32 }, T0, frame);
        if stack == 2 {
            self.hot.rr(&[0x0f, 0xb7], W32, T0, T0);
        }
        self.segment(sreg::SS, size, AccessKind::Read);
        let access = self.begin_access(size, AccessKind::Read, true);
        self.move_t1(access, size, false);
        match stack {
            8 => self
                .hot
                .mem(&[0x8d], W64, GUEST_RSP, Some(frame), None, size as i32),
            4 => self
                .hot
                .mem(&[0x8d], W32, GUEST_RSP, Some(frame), None, size as i32),
            _ => {
                self.hot
                    .mem(&[0x8d], W32, T0, Some(frame), None, size as i32);
                self.hot.rr(&[0x8b], W16, GUEST_RSP, T0);
            }
        }
        self.write_register(gpr::RBP, size, T1);
    }

    pub(in crate::translate) fn call(&mut self, insn: &Instruction) {
        self.call_push(insn);
        self.end_run();
        self.flags_to_ax();
        self.jump_to(insn.near_branch_target());
    }

    /// The part of a direct call that accesses memory.
    pub(in crate::translate) fn call_push(&mut self, insn: &Instruction) {
        self.push_immediate(insn.next_ip(), operand_size(insn), None);
    }

    /// Reads the target of an indirect jump or call, and says which host register holds it: the guest's own
    /// if it is there in full, or T1.
    fn target(&mut self, insn: &Instruction) -> Reg {
        let size = target_size(insn);
        if insn.op0_kind() == OpKind::Register {
            let guest = number(insn.op0_register());
            if let (Some(host), 8) = (HOST[guest], size) {
                return host;
            }
            self.read_register(T1, guest);
        } else {
            self.address_of(insn, size, AccessKind::Read, None);
            let stack = insn.memory_segment() == Register::SS;
            let access = self.begin_access(size, AccessKind::Read, stack);
            self.move_t1(access, size, false);
        }
        self.truncate_target(size);
        T1
    }

    fn truncate_target(&mut self, size: usize) {
        match size {
            2 => self.hot.rr(&[0x0f, 0xb7], W32, T1, T1),
            4 => self.hot.rr(&[0x8b], W32, T1, T1),
            _ => {}
        }
    }

    pub(in crate::translate) fn indirect_jump(&mut self, insn: &Instruction) {
        let target = self.target(insn);
        self.jump_indirect(target, 0);
    }

    pub(in crate::translate) fn indirect_call(&mut self, insn: &Instruction) {
        let target = self.target(insn);
        // The push changes T1, and the stack pointer; other registers can be asked later.
        let noted = target == T1 || target == GUEST_RSP;
        if noted {
            self.hot.store(W64, target, at::TARGET);
        }
        let later = (!noted).then_some(target);
        let size = operand_size(insn);
        if self.request.mode.code64() && self.asks_jump_cache() {
            self.prepare_call(target, noted);
            self.push_immediate(insn.next_ip(), size, later);
            self.hot.gs(&[0xff], W32, Reg(4), at::TARGET_CODE);
            return;
        }
        self.check_in_cold(target);
        self.push_immediate(insn.next_ip(), size, later);
        let target = later.unwrap_or_else(|| {
            self.hot.load(W64, T1, at::TARGET);
            T1
        });
        self.jump_indirect(target, 0);
    }

    pub(in crate::translate) fn ret(&mut self, insn: &Instruction) {
        let extra = if insn.op_count() == 1 {
            i32::from(insn.immediate16())
        } else {
            0
        };
        let size = operand_size(insn) - extra as usize;
        self.ret_load(insn);
        self.end_run();
        self.truncate_target(size);
        self.jump_indirect(T1, -(size as i32 + extra));
    }
}

impl Emitter<'_> {
    /// The part of a return that accesses memory: T1 = the return address.
    pub(in crate::translate) fn ret_load(&mut self, insn: &Instruction) {
        let extra = if insn.op_count() == 1 {
            i32::from(insn.immediate16())
        } else {
            0
        };
        let size = operand_size(insn) - extra as usize;
        if let Some(displacement) = self.run_displacement() {
            let width = if size == 2 { W16 } else { W64 };
            self.hot
                .mem(&[0x8b], width, T1, Some(T0), None, displacement);
        } else {
            self.stack_address(0, size, AccessKind::Read);
            let access = self.begin_access(size, AccessKind::Read, true);
            self.move_t1(access, size, false);
        }
        self.move_stack(size as i32 + extra);
    }
}

fn number_or_none(register: Register) -> Option<usize> {
    register.is_gpr().then(|| number(register))
}

/// Bytes of the instruction pointer that an indirect jump or call sets.
fn target_size(insn: &Instruction) -> usize {
    match insn.op0_kind() {
        OpKind::Register => insn.op0_register().size(),
        _ => insn.memory_size().size(),
    }
}

fn operand_size_of_leave(insn: &Instruction) -> usize {
    use iced_x86::Code;
    match insn.code() {
        Code::Leavew => 2,
        Code::Leaved => 4,
        _ => 8,
    }
}
