//! Random instruction sequences around a given form.
//!
//! Every form is built from its operand kinds. So that most accesses hit the arena, the generator knows
//! the value of each register as long as it can: initial values are chosen on demand while a register is
//! untouched, and `mov r64, imm64` reloads one that an instruction has changed. Branches go forward
//! only (or a LOOP to itself), so every sequence ends.

use std::collections::BTreeSet;

use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, FlowControl, Instruction, InstructionInfoFactory,
    Mnemonic, OpAccess, OpCodeOperandKind as K, OpKind, Register,
};

use crate::case::{layout, Case, Entry};
use crate::forms::{is_string, Family, Forms};
use crate::operands::{gpr, gpr_number, memory_access};
use crate::rng::{mix, Rng};
use crate::state;

/// Addresses that stand for "first instruction of item n" until the sequence is encoded.
const LABELS: u64 = 0x3000_0000;
const LABEL_STEP: u64 = 0x100;

/// Makes cases.
pub struct Generator {
    forms: Vec<Code>,
    /// Let instructions read flags that an earlier one left undefined.
    pub undefined_reads: bool,
    max_len: u64,
}

impl Generator {
    /// A generator for the forms of `families`; `only` narrows it to forms whose name contains the text.
    pub fn new(forms: &Forms, families: &BTreeSet<Family>, only: Option<&str>) -> Self {
        let forms = forms
            .offered
            .iter()
            .filter(|(_, family)| families.contains(family))
            .map(|&(code, _)| code)
            .filter(|code| {
                let wanted = only.unwrap_or("").to_lowercase();
                format!("{code:?}").to_lowercase().contains(&wanted)
            })
            .collect();
        Self {
            forms,
            undefined_reads: false,
            max_len: 16,
        }
    }

    /// The forms that cases are built from.
    pub fn forms(&self) -> &[Code] {
        &self.forms
    }

    /// Case number `index` of a run. Its first measure of coverage is form `index` modulo their number.
    /// `None` when there is no form to choose from.
    pub fn case(&self, seed: u64, index: u64) -> Option<Case> {
        if self.forms.is_empty() {
            return None;
        }
        let focus = self.forms[(index % self.forms.len() as u64) as usize];
        let case_seed = mix(seed ^ mix(index));
        let mut rng = Rng::new(case_seed);
        loop {
            let len = if rng.chance(40) {
                1
            } else {
                1 + rng.below(self.max_len)
            };
            let mut sequence = Sequence::new(&mut rng, self.undefined_reads, len as usize);
            let at = sequence.rng.below(len) as usize;
            for item in 0..len as usize {
                let code = if item == at {
                    focus
                } else {
                    sequence.rng.pick(&self.forms)
                };
                sequence.item(item, code);
            }
            if let Some(mut case) = sequence.finish() {
                case.seed = case_seed;
                return Some(case);
            }
        }
    }
}

/// A sequence under construction.
pub(crate) struct Sequence<'a> {
    pub(crate) rng: &'a mut Rng,
    pub(crate) entry: Entry,
    arena: Vec<u8>,
    pub(crate) faults: bool,
    undefined_reads: bool,
    code_address: u64,
    instructions: Vec<Instruction>,
    info: InstructionInfoFactory,
    /// Value of each register at this point, where it is known.
    pub(crate) known: [Option<u64>; 16],
    /// Initial value is settled: read by an instruction or placed.
    settled: [bool; 16],
    /// Registers that destinations should spare.
    pub(crate) spared: u16,
    undefined: u32,
    /// Flags that are undefined where the current branch may land.
    undefined_if_skipped: u32,
    /// First item that every path reaches again, while a branch may skip instructions.
    join: usize,
    /// Registers whose value depends on the path.
    unsure: u16,
    len: usize,
    current: usize,
    sub: u64,
}

impl<'a> Sequence<'a> {
    fn new(rng: &'a mut Rng, undefined_reads: bool, len: usize) -> Self {
        let faults = rng.chance(25);
        let entry = state::entry(rng, faults);
        let arena = state::arena(rng);
        // Often near the page boundary in the middle of the region, so that code crosses it.
        let offset = match rng.below(3) {
            0 => 0,
            1 => rng.below(0x1000),
            _ => 0x1000 - rng.below(60),
        };
        let spared = (1u16 << 4) | 1 << rng.below(16) | 1 << rng.below(16) | 1 << rng.below(16);
        let known = entry.gpr.map(Some);
        Self {
            rng,
            entry,
            arena,
            faults,
            undefined_reads,
            code_address: layout::CODE + offset,
            instructions: Vec::new(),
            info: InstructionInfoFactory::new(),
            known,
            settled: [false; 16],
            spared,
            undefined: 0,
            undefined_if_skipped: 0,
            join: 0,
            unsure: 0,
            len,
            current: 0,
            sub: 0,
        }
    }

    fn label(item: usize) -> u64 {
        LABELS + item as u64 * LABEL_STEP
    }

    /// Appends one instruction and follows its effect on what is known.
    pub(crate) fn emit(&mut self, mut instruction: Instruction) {
        instruction.set_next_ip(0);
        instruction.set_ip(Self::label(self.current) + self.sub);
        self.sub += 1;
        let info = self.info.info(&instruction);
        let mut written = 0u16;
        for used in info.used_registers() {
            let Some(number) = gpr_number(used.register()) else {
                continue;
            };
            self.settled[number] = true;
            if !matches!(used.access(), OpAccess::Read | OpAccess::CondRead) {
                written |= 1 << number;
            }
        }
        let stack = instruction.is_stack_instruction()
            && !matches!(instruction.mnemonic(), Mnemonic::Leave | Mnemonic::Enter);
        for number in 0..16 {
            if written & 1 << number != 0 {
                self.known[number] = match self.known[number] {
                    Some(rsp)
                        if number == 4 && stack && instruction.op0_register() != Register::RSP =>
                    {
                        Some(rsp.wrapping_add(instruction.stack_pointer_increment() as i64 as u64))
                    }
                    _ => None,
                };
            }
        }
        if instruction.mnemonic() == Mnemonic::Mov && instruction.op1_kind() == OpKind::Immediate64
        {
            if let Some(number) = gpr_number(instruction.op0_register()) {
                self.known[number] = Some(instruction.immediate64());
            }
        }
        if self.current < self.join {
            self.unsure |= written;
        }
        let defined =
            instruction.rflags_written() | instruction.rflags_cleared() | instruction.rflags_set();
        let by_count = matches!(instruction.op1_register(), Register::CL)
            || instruction.op_count() == 3 && instruction.op2_register() == Register::CL
            || instruction.has_rep_prefix()
            || instruction.has_repne_prefix();
        if !by_count {
            self.undefined &= !defined;
        }
        self.undefined |= instruction.rflags_undefined();
        if self.current < self.join {
            self.undefined_if_skipped |= self.undefined;
        }
        self.instructions.push(instruction);
    }

    /// Makes register `number` hold `value` at this point.
    pub(crate) fn set(&mut self, number: usize, value: u64) {
        if self.known[number] == Some(value) {
            self.settled[number] = true;
        } else if !self.settled[number] {
            self.entry.gpr[number] = value;
            self.known[number] = Some(value);
            self.settled[number] = true;
        } else if let Ok(mov) = Instruction::with2(Code::Mov_r64_imm64, gpr(8, number), value) {
            self.emit(mov);
        }
    }

    /// Makes rsp point into the stack area with room on both sides.
    fn prepare_stack(&mut self) {
        let area = layout::ARENA + layout::STACK.start as u64 + 0x400
            ..layout::ARENA + layout::STACK.end as u64 - 0x400;
        let fine = self.settled[4] && self.known[4].is_some_and(|rsp| area.contains(&rsp));
        if fine {
            return;
        }
        let mut rsp = area.start + self.rng.below((area.end - area.start) / 8) * 8;
        if self.rng.chance(15) {
            rsp += self.rng.below(8);
        }
        if self.faults && self.rng.chance(15) {
            // At the upper or lower end of a mapping.
            rsp = layout::ARENA + self.rng.pick(&[0x7000, 0x4000, 0x2ffc, 0x6ffc, 0x7004, 0]);
        }
        self.set(4, rsp);
    }

    /// Appends one form with what it needs before and after.
    fn item(&mut self, item: usize, code: Code) {
        self.current = item;
        self.sub = 0;
        if item >= self.join {
            for number in 0..16 {
                if self.unsure & 1 << number != 0 {
                    self.known[number] = None;
                }
            }
            self.unsure = 0;
            self.undefined |= self.undefined_if_skipped;
            self.undefined_if_skipped = 0;
        }
        // A label needs an instruction, and preparations must not be skipped by a branch to the form alone.
        for _ in 0..12 {
            if self.form(code) {
                return;
            }
        }
        if self.sub == 0 {
            self.emit(Instruction::with(Code::Nopd));
        }
    }

    /// The item that a branch from here goes to.
    fn target(&mut self) -> usize {
        let furthest = (self.len - self.current).min(3) as u64;
        let target = self.current + 1 + self.rng.below(furthest) as usize;
        self.join = self.join.max(target);
        target
    }

    // One match, an arm for each kind of form; it is long because they are many.
    fn form(&mut self, code: Code) -> bool {
        if code.rflags_read_hint() & self.undefined != 0 && !self.undefined_reads {
            // CMP defines every status flag again.
            let number = self.rng.below(16) as usize;
            if let Ok(cmp) = Instruction::with2(
                Code::Cmp_rm64_imm8,
                gpr(8, number),
                self.rng.below(128) as i32,
            ) {
                self.emit(cmp);
            }
        }
        let op = code.op_code();
        let mut instruction = Instruction::new();
        instruction.set_code(code);
        if instruction.is_stack_instruction() || matches!(code.mnemonic(), Mnemonic::Enter) {
            self.prepare_stack();
        }
        match code.mnemonic() {
            Mnemonic::Leave | Mnemonic::Enter => {
                let rbp = layout::ARENA + 0x5800 + self.rng.below(0x100) * 8;
                self.set(5, rbp);
            }
            Mnemonic::Div | Mnemonic::Idiv if self.rng.chance(75) => self.prepare_dividend(code),
            Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => {
                // The status flags and DF alone: TF or AC would change how the rest runs.
                let flags = self.rng.u64() as u32 & 0xcd5;
                let at = iced_x86::MemoryOperand::with_base(Register::RSP);
                if let Ok(mov) = Instruction::with2(Code::Mov_rm32_imm32, at, flags) {
                    self.emit(mov);
                }
            }
            Mnemonic::Xlatb => {
                let table = layout::ARENA + self.rng.below(0x1f00);
                self.set(3, table);
            }
            Mnemonic::Maskmovq | Mnemonic::Maskmovdqu => {
                let target = self.data_address(16, true, false);
                self.set(7, target);
            }
            _ => {}
        }
        if is_string(code) {
            return self.string(code);
        }
        match code.flow_control() {
            FlowControl::IndirectBranch | FlowControl::IndirectCall | FlowControl::Return => {
                return self.indirect(code)
            }
            _ => {}
        }
        let mut loops_to_itself = false;
        if code.loop_form() && self.rng.chance(70) {
            let count = self.rng.pick(&[0, 1, 2, 3, 1 << 32, 0x1_0000_0001]);
            self.set(1, count);
        }
        if code.loop_form() && code.mnemonic() == Mnemonic::Loop && self.rng.chance(20) {
            let count = 1 + self.rng.below(40);
            self.set(1, count);
            loops_to_itself = true;
        }
        // Bit strings: the offset register moves the address.
        let bit_string = matches!(
            code.mnemonic(),
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
        );
        let kinds = op.op_kinds();
        let memory_at = kinds.iter().position(|kind| may_be_memory(*kind));
        let use_memory = memory_at.is_some_and(|at| only_memory(kinds[at]) || self.rng.chance(50));
        let bit_memory = bit_string && use_memory && op.op_count() == 2 && !is_immediate(kinds[1]);
        if bit_memory {
            // Any of the registers that are set below reaches at most 512 bytes from the operand.
            let number = self.rng.below(16) as usize;
            if number == 4 {
                return false;
            }
            let offset = (self.rng.below(8192) as i64 - 4096) as u64;
            self.set(number, offset);
            let size = if kinds[1] == K::r16_reg {
                2
            } else if kinds[1] == K::r32_reg {
                4
            } else {
                8
            };
            instruction.set_op1_kind(OpKind::Register);
            instruction.set_op1_register(gpr(size, number));
        }
        let mut memory_index = None;
        for (index, &kind) in kinds.iter().enumerate() {
            if bit_memory && index == 1 {
                continue;
            }
            if Some(index) == memory_at && use_memory {
                memory_index = Some(index as u32);
                continue;
            }
            if is_branch(kind) {
                let target = if loops_to_itself {
                    Self::label(self.current) + self.sub
                } else {
                    let item = self.target();
                    Self::label(item)
                };
                instruction.set_op_kind(index as u32, OpKind::NearBranch64);
                instruction.set_near_branch64(target);
                continue;
            }
            if !self.operand(&mut instruction, index as u32, kind) {
                return false;
            }
        }
        if let Some(index) = memory_index {
            let write = !matches!(
                memory_access(&mut self.info, &instruction, index),
                OpAccess::None | OpAccess::Read | OpAccess::CondRead
            );
            self.memory(
                &mut instruction,
                index,
                kinds[index as usize],
                write,
                bit_memory,
            );
            if write && index == 0 && op.can_use_lock_prefix() && self.rng.chance(50) {
                instruction.set_has_lock_prefix(true);
            }
        }
        let branch = kinds.iter().any(|&kind| is_branch(kind));
        if !branch && !self.survives_encoding(&instruction) {
            return false;
        }
        self.before(&instruction);
        self.emit(instruction);
        self.after(&instruction);
        true
    }

    /// Sets rdx (and rax) so that the quotient often fits.
    fn prepare_dividend(&mut self, code: Code) {
        let high = if self.rng.chance(70) {
            self.rng.below(3)
        } else {
            u64::MAX
        };
        if matches!(code, Code::Div_rm8 | Code::Idiv_rm8) {
            let value = self.rng.below(0x800);
            self.set(0, value);
        } else {
            self.set(2, high);
        }
    }

    fn string(&mut self, code: Code) -> bool {
        let kinds = code.op_code().op_kinds();
        let narrow = self.rng.chance(20);
        let count = if self.rng.chance(80) {
            self.rng.below(40)
        } else {
            self.rng.below(600)
        };
        for &kind in kinds {
            let register = match kind {
                K::es_rDI => 7,
                K::seg_rSI => 6,
                _ => continue,
            };
            let mut address = self.data_address(64, register == 7, false);
            if narrow && self.rng.chance(30) {
                address |= self.rng.u64() << 32;
            }
            self.set(register, address);
        }
        let mut instruction = Instruction::new();
        instruction.set_code(code);
        for (index, &kind) in kinds.iter().enumerate() {
            let index = index as u32;
            match kind {
                K::es_rDI => instruction.set_op_kind(
                    index,
                    if narrow {
                        OpKind::MemoryESEDI
                    } else {
                        OpKind::MemoryESRDI
                    },
                ),
                K::seg_rSI => instruction.set_op_kind(
                    index,
                    if narrow {
                        OpKind::MemorySegESI
                    } else {
                        OpKind::MemorySegRSI
                    },
                ),
                _ => {
                    if !self.operand(&mut instruction, index, kind) {
                        return false;
                    }
                }
            }
        }
        if self.rng.chance(60) {
            self.set(1, count);
            let compares = matches!(
                instruction.op_code().mnemonic().to_string_lower().as_str(),
                "cmps" | "scas"
            );
            if compares && self.rng.chance(50) {
                instruction.set_has_repne_prefix(true);
            } else {
                instruction.set_has_rep_prefix(true);
            }
        }
        if !self.survives_encoding(&instruction) {
            return false;
        }
        self.emit(instruction);
        true
    }

    /// RET, and JMP and CALL through a register or memory, to a later item.
    fn indirect(&mut self, code: Code) -> bool {
        let number = self
            .rng
            .pick(&[0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        let register = gpr(8, number);
        let mut instruction = Instruction::new();
        instruction.set_code(code);
        let kinds = code.op_code().op_kinds();
        let returns = code.flow_control() == FlowControl::Return;
        let in_memory = !returns && self.rng.chance(50);
        if in_memory {
            self.memory(&mut instruction, 0, kinds[0], true, false);
        }
        let target = self.target();
        let label =
            iced_x86::MemoryOperand::with_base_displ(Register::RIP, Self::label(target) as i64);
        let Ok(lea) = Instruction::with2(Code::Lea_r64_m, register, label) else {
            return false;
        };
        if in_memory
            && (instruction.memory_base() == register || instruction.memory_index() == register)
        {
            return false;
        }
        self.emit(lea);
        if returns {
            let Ok(push) = Instruction::with1(Code::Push_r64, register) else {
                return false;
            };
            self.emit(push);
            if kinds.first() == Some(&K::imm16) {
                instruction.set_op0_kind(OpKind::Immediate16);
                instruction.set_immediate16(self.rng.below(64) as u16);
            }
        } else if in_memory {
            let mut store = instruction;
            store.set_code(Code::Mov_rm64_r64);
            store.set_op1_kind(OpKind::Register);
            store.set_op1_register(register);
            self.emit(store);
        } else {
            instruction.set_op0_kind(OpKind::Register);
            instruction.set_op0_register(register);
        }
        self.emit(instruction);
        true
    }

    /// Stores that make the operand of a control-register load meaningful. They leave flags alone.
    fn before(&mut self, instruction: &Instruction) {
        let faults = self.faults;
        let control = state::control_word(self.rng, faults);
        let mxcsr = state::mxcsr(self.rng, faults);
        match instruction.mnemonic() {
            Mnemonic::Fldcw | Mnemonic::Fldenv | Mnemonic::Frstor => {
                self.store(instruction, Code::Mov_rm16_imm16, 0, u32::from(control));
            }
            Mnemonic::Ldmxcsr => {
                let reserved = if faults && self.rng.chance(10) {
                    1 << 31
                } else {
                    0
                };
                self.store(instruction, Code::Mov_rm32_imm32, 0, mxcsr | reserved);
            }
            Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => {
                self.store(instruction, Code::Mov_rm16_imm16, 0, u32::from(control));
                self.store(instruction, Code::Mov_rm16_imm16, 2, 0);
                self.store(instruction, Code::Mov_rm32_imm32, 24, mxcsr);
            }
            _ => {}
        }
    }

    /// Clears what an x87 state image says about the last instruction (and MXCSR_MASK): that is
    /// the host's or the maker's, and is not compared.
    fn after(&mut self, instruction: &Instruction) {
        let fields: &[u64] = match instruction.code() {
            Code::Fnstenv_m28byte | Code::Fnsave_m108byte => &[12, 16, 20, 24],
            Code::Fnstenv_m14byte | Code::Fnsave_m94byte => &[6, 10],
            Code::Fxsave_m512byte | Code::Fxsave64_m512byte => &[8, 12, 16, 20, 28],
            _ => return,
        };
        for &field in fields {
            self.store(instruction, Code::Mov_rm32_imm32, field, 0);
        }
        if instruction.memory_size().size() == 512 {
            self.store(instruction, Code::Mov_rm16_imm16, 6, 0);
        }
    }

    fn store(&mut self, like: &Instruction, code: Code, offset: u64, value: u32) {
        let mut store = *like;
        store.set_code(code);
        store.set_memory_displacement64(like.memory_displacement64().wrapping_add(offset));
        if store.memory_displ_size() == 0 || store.memory_displ_size() == 1 {
            let narrow = store.memory_base().size() == 4 || store.memory_index().size() == 4;
            store.set_memory_displ_size(if narrow { 4 } else { 8 });
        }
        store.set_op0_kind(OpKind::Memory);
        if code == Code::Mov_rm16_imm16 {
            store.set_op1_kind(OpKind::Immediate16);
            store.set_immediate16(value as u16);
        } else {
            store.set_op1_kind(OpKind::Immediate32);
            store.set_immediate32(value);
        }
        self.emit(store);
    }

    /// Whether the instruction encodes, and decodes to the same form.
    fn survives_encoding(&self, instruction: &Instruction) -> bool {
        let mut encoder = Encoder::new(64);
        if encoder.encode(instruction, layout::CODE).is_err() {
            return false;
        }
        let bytes = encoder.take_buffer();
        let mut decoder = Decoder::with_ip(64, &bytes, layout::CODE, DecoderOptions::NONE);
        let decoded = decoder.decode();
        decoded.code() == instruction.code() && decoded.len() == bytes.len()
    }

    /// Encodes the sequence at its address. The length of an instruction does not depend on
    /// where it stands or branches to, so one pass finds the addresses and a second one encodes.
    /// (A block encoder would turn EIP-relative operands into RIP-relative ones.)
    fn encode(&self) -> Option<Vec<u8>> {
        let mut encoder = Encoder::new(64);
        let mut addresses = Vec::with_capacity(self.instructions.len());
        let mut address = self.code_address;
        for instruction in &self.instructions {
            let mut probe = *instruction;
            if probe.op_kind(0) == OpKind::NearBranch64 {
                probe.set_near_branch64(address);
            }
            addresses.push((instruction.ip(), address));
            address += encoder.encode(&probe, address).ok()? as u64;
        }
        let resolve = |label: u64| {
            let found = addresses.iter().find(|(known, _)| *known == label);
            found.map_or(label, |(_, address)| *address)
        };
        let mut encoder = Encoder::new(64);
        for (instruction, (_, address)) in self.instructions.iter().zip(&addresses) {
            let mut placed = *instruction;
            if placed.op_kind(0) == OpKind::NearBranch64 {
                placed.set_near_branch64(resolve(placed.near_branch64()));
            } else if placed.is_ip_rel_memory_operand() {
                placed.set_memory_displacement64(resolve(placed.memory_displacement64()));
            }
            encoder.encode(&placed, *address).ok()?;
        }
        Some(encoder.take_buffer())
    }

    fn finish(mut self) -> Option<Case> {
        self.current = self.len;
        self.sub = 0;
        self.emit(Instruction::with(Code::Hlt));
        let mut code = self.encode()?;
        code.pop();
        if code.len() > 1000 {
            return None;
        }
        Some(Case {
            seed: 0,
            code_address: self.code_address,
            code,
            entry: self.entry,
            arena: self.arena,
        })
    }
}

fn is_branch(kind: K) -> bool {
    matches!(kind, K::br64_1 | K::br64_4)
}

fn is_immediate(kind: K) -> bool {
    matches!(
        kind,
        K::imm8
            | K::imm8_const_1
            | K::imm8sex16
            | K::imm8sex32
            | K::imm8sex64
            | K::imm16
            | K::imm32
            | K::imm32sex64
            | K::imm64
    )
}

fn only_memory(kind: K) -> bool {
    matches!(kind, K::mem | K::mem_offs | K::mem_mib | K::mem_mpx)
}

fn may_be_memory(kind: K) -> bool {
    only_memory(kind)
        || matches!(
            kind,
            K::r8_or_mem
                | K::r16_or_mem
                | K::r32_or_mem
                | K::r64_or_mem
                | K::mm_or_mem
                | K::xmm_or_mem
        )
}

/// Questions about a form that iced answers for whole instructions only.
trait FormHints {
    fn rflags_read_hint(self) -> u32;
    fn loop_form(self) -> bool;
}

impl FormHints for Code {
    /// Flags that the form reads with any operands.
    fn rflags_read_hint(self) -> u32 {
        let mut instruction = Instruction::new();
        instruction.set_code(self);
        instruction.rflags_read()
    }

    fn loop_form(self) -> bool {
        matches!(
            self.mnemonic(),
            Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne | Mnemonic::Jrcxz | Mnemonic::Jecxz
        )
    }
}

/// Lower-case mnemonic without its size suffix.
trait MnemonicText {
    fn to_string_lower(self) -> String;
}

impl MnemonicText for Mnemonic {
    fn to_string_lower(self) -> String {
        let mut text = format!("{self:?}").to_lowercase();
        text.truncate(4);
        text
    }
}
