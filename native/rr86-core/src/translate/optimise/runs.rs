//! Runs: neighbouring instructions that access memory around the same address.
//!
//! A function saves registers with a row of pushes, and a structure's fields are read one after the
//! other. Where these lie in one page, one check is enough for all of them: between the first access of
//! a run and its last nothing but copied instructions runs, so nothing can take the page away. If the
//! check fails, because of what the page is or because the run crosses a page, the same instructions
//! run from a second copy behind the block, where each access is checked by itself.
//!
//! Accesses belong together if they use the same base and index, changed in between only by
//! constants, as a push changes RSP.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::translate::decode::classify::Class;
use crate::translate::decode::operands::operand_size;
use crate::translate::decode::operands::{address_size, in_host, only_moves, MemoryUse};
use crate::translate::layout::{GUEST_RSP, HOST, T0};
use crate::translate::lower::access::Sum;
use crate::translate::lower::emitter::Emitter;
use crate::translate::lower::streams::Flags;
use crate::translate::plan::{Key, Run, SlowCopy, Use};
use crate::translate::shortcuts::Shortcuts;
use crate::translate::site::AccessKind;

/// Most bytes between the first and the last byte of a run; more would cross pages too often.
const REACH: i64 = 512;
/// Bytes that share a mark.
const LINE: i64 = 1 << crate::translate::layout::LINE_SHIFT;

/// A constant that is added to a 64-bit register.
pub(in crate::translate) fn constant_change(insn: &Instruction, register: Register) -> Option<i64> {
    let own = insn.op_count() > 0
        && insn.op0_kind() == OpKind::Register
        && insn.op0_register() == register
        && register.size() == 8;
    let immediate = || {
        matches!(
            insn.op1_kind(),
            OpKind::Immediate8to64 | OpKind::Immediate32to64
        )
        .then(|| insn.immediate(1) as i64)
    };
    match insn.mnemonic() {
        Mnemonic::Add if own => immediate(),
        Mnemonic::Sub if own => immediate().and_then(i64::checked_neg),
        Mnemonic::Inc if own => Some(1),
        Mnemonic::Dec if own => Some(-1),
        Mnemonic::Lea
            if own && insn.memory_base() == register && insn.memory_index() == Register::None =>
        {
            Some(insn.memory_displacement64() as i64)
        }
        _ => None,
    }
}

impl Emitter<'_> {
    /// The memory access of an instruction that may be part of a run. `Err` when it may not, `Ok(None)` when
    /// it has no access and may lie between two.
    fn use_of(
        &mut self,
        index: usize,
        insn: &Instruction,
        class: Class,
    ) -> Result<Option<Use>, ()> {
        let stack = |offset: i64, size: usize, kind| Use {
            key: (Register::RSP, Register::None, 1),
            offset,
            size: size as i64,
            kind,
        };
        match class {
            // In a superblock something may follow a jump.
            Class::Nop | Class::Jump => Ok(None),
            Class::Push | Class::Call if insn.op0_kind() != OpKind::Memory => {
                let size = operand_size(insn);
                Ok(Some(stack(-(size as i64), size, AccessKind::Write)))
            }
            Class::Pop if insn.op0_kind() == OpKind::Register => {
                Ok(Some(stack(0, operand_size(insn), AccessKind::Read)))
            }
            Class::Return if insn.op_count() == 0 => {
                Ok(Some(stack(0, operand_size(insn), AccessKind::Read)))
            }
            Class::Lea if self.quick_lea(insn) => Ok(None),
            Class::Copy | Class::CopyFpu => match self.memory_use(index, insn) {
                MemoryUse::None => Ok(None),
                MemoryUse::Special => Err(()),
                MemoryUse::Plain { size, kind } => {
                    let segment = insn.memory_segment();
                    if address_size(insn) != 8 || matches!(segment, Register::FS | Register::GS) {
                        return Err(());
                    }
                    let (key, offset) = if insn.is_ip_rel_memory_operand() {
                        let address = insn.ip_rel_memory_address();
                        ((Register::None, Register::None, 1), address as i64)
                    } else {
                        let (base, index) = (insn.memory_base(), insn.memory_index());
                        let scale = insn.memory_index_scale();
                        ((base, index, scale), insn.memory_displacement64() as i64)
                    };
                    Ok(Some(Use {
                        key,
                        offset,
                        size: size as i64,
                        kind,
                    }))
                }
            },
            _ => Err(()),
        }
    }

    /// The same, found out once.
    fn known_use(
        &mut self,
        index: usize,
        insn: &Instruction,
        class: Class,
    ) -> Result<Option<Use>, ()> {
        if let Some(known) = *self.scratch.used(index) {
            return known;
        }
        let used = self.use_of(index, insn, class);
        *self.scratch.used(index) = Some(used);
        used
    }

    /// How much an instruction changes the base of a run, or `None` when that is not known.
    fn change_of(
        &mut self,
        number: usize,
        insn: &Instruction,
        class: Class,
        key: Key,
    ) -> Option<i64> {
        let (base, index, _) = key;
        match class {
            Class::Push | Class::Pop | Class::Call | Class::Return => {
                let target = (class == Class::Pop).then(|| insn.op0_register().full_register());
                if target.is_some_and(|t| t == base || t == index) {
                    return None;
                }
                return Some(if base == Register::RSP {
                    i64::from(insn.stack_pointer_increment())
                } else {
                    0
                });
            }
            _ => {}
        }
        if base != Register::None && base != index {
            if let Some(by) = constant_change(insn, base) {
                return Some(by);
            }
        }
        let changes = self.scratch.changes(number, insn);
        let changed = [base, index]
            .iter()
            .any(|r| *r != Register::None && changes >> r.number() & 1 != 0);
        (!changed).then_some(0)
    }

    /// Begins a run at the current instruction if there is one, with the check of its addresses.
    pub(in crate::translate) fn begin_run(&mut self) {
        if self.run.is_some()
            || !self.request.shortcuts.has(Shortcuts::RUNS)
            || !self.request.mode.code64()
        {
            return;
        }
        let mut offsets = std::mem::take(&mut self.scratch.offsets);
        let mut written = std::mem::take(&mut self.scratch.written);
        offsets.clear();
        written.clear();
        self.begin_run_with(&mut offsets, &mut written);
        self.scratch.offsets = offsets;
        self.scratch.written = written;
    }

    fn begin_run_with(&mut self, offsets: &mut Vec<Option<i64>>, written: &mut Vec<(i64, i64)>) {
        let insns = self.request.insns;
        let first = self.index;
        let (insn, class) = insns[first];
        let Ok(Some(head)) = self.known_use(first, &insn, class) else {
            return;
        };
        let key = head.key;
        let mut shift = 0i64;
        let (mut low, mut high) = (head.offset, head.offset);
        // Instructions up to the last access, and what is known when it is reached.
        let mut length = 0;
        let mut accesses = 0;
        let mut kind = AccessKind::Read;
        let mut traps = false;
        let mut trap_inside = false;
        for (index, &(insn, class)) in insns.iter().enumerate().take(self.request.stop).skip(first)
        {
            if index > first && self.hooked(&insn) {
                break;
            }
            let Ok(used) = self.known_use(index, &insn, class) else {
                break;
            };
            // DIV and IDIV are in no run.
            traps |= class == Class::CopyFpu && !only_moves(&insn);
            if let Some(used) = used {
                let at = used.offset.wrapping_add(shift);
                let Some(end) = at.checked_add(used.size) else {
                    break;
                };
                let (l, h) = (low.min(at), high.max(end));
                if used.key != key || h.checked_sub(l).is_none_or(|size| size > REACH) {
                    break;
                }
                (low, high) = (l, h);
                offsets.push(Some(at));
                length = offsets.len();
                accesses += 1;
                if used.kind.writes() {
                    kind = AccessKind::Modify;
                    written.push((at, end));
                }
                trap_inside = traps;
            } else {
                offsets.push(None);
            }
            match self.change_of(index, &insn, class, key) {
                Some(by) => shift = shift.wrapping_add(by),
                None => break,
            }
        }
        if accesses < 2 {
            return;
        }
        let displacement = |at: i64| (at - low) as i32;
        if !self.run_address(key, low) {
            return;
        }
        offsets.truncate(length);
        self.address_key = Some(key);
        let from = self.check_run((high - low) as usize, kind);
        let marked = !written.is_empty() && self.request.tracking && !trap_inside;
        if marked {
            written.sort_unstable();
            let mut areas: Vec<(i64, i64)> = Vec::new();
            for &mut (start, end) in written {
                match areas.last_mut() {
                    Some(last) if start <= last.1 => last.1 = last.1.max(end),
                    _ => areas.push((start, end)),
                }
            }
            for (start, end) in areas {
                let mut at = start;
                while end - at > LINE {
                    self.mark_line(displacement(at));
                    at += LINE;
                }
                let size = (end - at) as usize;
                self.mark_lines(displacement(at), size, size <= 8);
            }
        }
        let run = Run {
            displacements: offsets.iter().map(|at| at.map(displacement)).collect(),
            first,
            marked,
            stack_shift: 0,
        };
        let leaves = self.leaves_path(from);
        let second = (!leaves).then_some(SlowCopy {
            first,
            end: run.end(),
            from,
            fpu_loaded: self.fpu_loaded,
            back: 0,
            flags: Flags::Ax,
        });
        self.slow_copies.extend(second);
        self.address_key = None;
        self.run = Some(run);
    }

    /// T0 = the lowest address of a run. False if that takes more than one instruction to say.
    fn run_address(&mut self, key: Key, low: i64) -> bool {
        let (base, index, scale) = key;
        if base == Register::None && index == Register::None {
            self.hot.mov_imm(T0, low as u64);
            return true;
        }
        let Ok(low) = i32::try_from(low) else {
            return false;
        };
        self.lea_of(T0, base, index, scale, low);
        true
    }

    /// Checks the addresses of a run from T0 on, and makes T0 the host address. Returns the fixup of the
    /// jump to the second copy.
    fn check_run(&mut self, size: usize, kind: AccessKind) -> usize {
        self.free_host_flags();
        self.check_address(size, kind, Sum::Whole)
    }

    /// Brings the stack pointer up to date before an instruction of a run that may use it.
    pub(in crate::translate) fn settle_stack_for(&mut self, insn: &Instruction, class: Class) {
        let quiet = match class {
            Class::Push => {
                insn.op0_kind() != OpKind::Register
                    || insn.op0_register().full_register() != Register::RSP
            }
            Class::Pop | Class::Nop | Class::Call | Class::Return => true,
            _ => false,
        };
        if !quiet {
            self.settle_stack();
        }
    }

    pub(in crate::translate) fn settle_stack(&mut self) {
        let Some(run) = &mut self.run else { return };
        let by = std::mem::take(&mut run.stack_shift);
        if by != 0 {
            self.hot.lea(GUEST_RSP, GUEST_RSP, by);
        }
    }

    /// Where the current instruction's operand lies as seen from T0, in a run.
    pub(in crate::translate) fn run_displacement(&self) -> Option<i32> {
        let run = self.run.as_ref()?;
        *run.displacements.get(self.index.checked_sub(run.first)?)?
    }

    /// Marks the lines of an access of a run.
    pub(in crate::translate) fn mark_in_run(
        &mut self,
        displacement: i32,
        size: usize,
        kind: AccessKind,
    ) {
        let marked = self.run.as_ref().is_some_and(|run| run.marked);
        if kind.writes() && self.request.tracking && !marked {
            self.free_host_flags();
            let aligned = self.mostly_aligned(size);
            self.mark_lines(displacement, size, aligned);
        }
    }

    /// Ends the run behind the access of the current instruction, if it is its last.
    pub(in crate::translate) fn end_run(&mut self) {
        let Some(run) = &self.run else { return };
        if run.end() != self.index + 1 {
            return;
        }
        self.settle_stack();
        self.run = None;
        let (back, flags) = (self.hot.len(), self.flags);
        if self.path.is_some() {
            // Its second copy is the rest of the block.
            return;
        }
        let second = self
            .slow_copies
            .last_mut()
            .expect("a run has a second copy");
        second.back = back;
        second.flags = flags;
    }

    /// Emits the second copies of all runs, behind the block.
    pub(in crate::translate) fn emit_slow_copies(&mut self) {
        for second in std::mem::take(&mut self.slow_copies) {
            self.land(second.from);
            self.flags = Flags::Ax;
            self.fpu_loaded = second.fpu_loaded;
            for index in second.first..second.end {
                self.index = index;
                let (insn, class) = self.request.insns[index];
                match class {
                    Class::Call => self.call_push(&insn),
                    Class::Return => self.ret_load(&insn),
                    _ => self.instruction(&insn, class),
                }
            }
            match second.flags {
                Flags::Ax => self.flags_to_ax(),
                Flags::Host => self.flags_to_host(),
                Flags::Both => {
                    self.flags_to_ax();
                    self.flags_to_host();
                }
            }
            self.jump_back(second.back);
        }
    }

    /// LEA that needs no temporary.
    pub(in crate::translate) fn quick_lea(&self, insn: &Instruction) -> bool {
        let register = insn.op0_register();
        self.request.shortcuts.has(Shortcuts::RUNS)
            && register.size() >= 4
            && address_size(insn) >= 4
            && HOST[crate::translate::decode::operands::number(register)].is_some()
            && !insn.is_ip_rel_memory_operand()
            && in_host(insn.memory_base())
            && in_host(insn.memory_index())
            && (insn.memory_base() != Register::None || insn.memory_index() != Register::None)
    }
}
