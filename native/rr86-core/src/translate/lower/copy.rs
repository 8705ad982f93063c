//! Copied instructions: the guest's instruction, re-encoded with the host registers that stand for
//! its operands and with its memory operand at the checked host address.
//!
//! Guest registers that live in memory, and AH, CH, DH, BH (which cannot be encoded together with
//! most host registers), pass through temporaries. Everything around the copy leaves flags alone.

use iced_x86::{Code, Instruction, Mnemonic, OpAccess, OpCodeOperandKind, OpKind, Register};

use crate::translate::decode::flags::{modified_flags, needs_flags};
use crate::translate::decode::operands::{
    address_size, general_form, implicit_rax, in_host, is_bit_test, is_high_byte, kind_of,
    may_trap, memory_bytes, number, segment_index, sized, source_first, takes_words, MemoryUse,
};
use crate::translate::encode::asm::{self, Reg, W16, W32, W64};
use crate::translate::encode::instruction;
use crate::translate::layout::{at, GUEST_RAX, HOST, T0, T1};
use crate::translate::lower::access::{Access, Sum};
use crate::translate::lower::emitter::Emitter;
use crate::translate::lower::streams::Flags;
use crate::translate::shortcuts::Shortcuts;
use crate::translate::site::AccessKind;

/// A guest register that passes through a temporary.
struct Passing {
    guest: Register,
    temp: Reg,
    written: bool,
}

/// Which temporaries are free.
struct Temporaries {
    t0: bool,
    t1: bool,
}

impl Temporaries {
    fn take(&mut self) -> Option<Reg> {
        let free = [(&mut self.t0, T0), (&mut self.t1, T1)];
        let (free, register) = free.into_iter().find(|(free, _)| **free)?;
        *free = false;
        Some(register)
    }
}

impl Emitter<'_> {
    /// Emits a copied instruction.
    pub(in crate::translate) fn copy(&mut self, insn: &Instruction) {
        let mut op = general_form(insn);
        if self.exchange_with_memory(insn, &op) {
            return;
        }
        op.set_has_lock_prefix(false);
        op.set_has_xacquire_prefix(false);
        op.set_has_xrelease_prefix(false);
        op.set_segment_prefix(Register::None);
        let access = self.scratch.operands(self.index, &op);
        let modified = modified_flags(&op);
        let needs_flags = needs_flags(&op);
        let fpu = matches!(
            self.request.insns[self.index].1,
            crate::translate::decode::classify::Class::CopyFpu
        );

        let memory = (0..op.op_count()).find(|&i| op.op_kind(i) == OpKind::Memory);
        let bit_offset = memory.is_some() && is_bit_test(&op) && op.op1_kind() == OpKind::Register;
        let pending =
            memory.and_then(|i| self.memory_operand(insn, &mut op, access[i as usize], bit_offset));

        let wrap = implicit_rax(&op);
        let mut free = Temporaries {
            t0: memory.is_none() && self.run.is_none(),
            t1: true,
        };
        if bit_offset {
            self.masked_bit_offset(&mut op, &mut free);
        }
        let skip = if bit_offset { Some(1) } else { None };
        let passing = self.register_operands(&mut op, &access, skip, wrap, &mut free);

        if needs_flags {
            self.flags_to_host();
        }
        if wrap {
            if !needs_flags && modified == 0 {
                self.free_rax();
            }
            self.hot.mov_rr(W64, asm::RAX, GUEST_RAX);
            self.flags = if needs_flags || modified == 0 {
                Flags::Host
            } else {
                self.flags
            };
        }
        let before = self.flags;
        let start = self.hot.len();
        self.encode(&op);
        if may_trap(&op, fpu) {
            self.note_trap(start, before);
        }
        if wrap && !matches!(op.mnemonic(), Mnemonic::Cwd | Mnemonic::Cdq | Mnemonic::Cqo) {
            self.hot.mov_rr(W64, GUEST_RAX, asm::RAX);
        }
        self.write_back(&passing);
        if modified != 0 || wrap {
            self.flags = Flags::Host;
        }
        if let Some(access) = pending {
            self.end_access(access);
        }
    }

    /// Makes the memory operand one at a host address. What is to be done behind the instruction is returned, unless a
    /// run of accesses sees to it.
    fn memory_operand(
        &mut self,
        insn: &Instruction,
        op: &mut Instruction,
        access: OpAccess,
        bit_offset: bool,
    ) -> Option<Access> {
        let size = memory_bytes(op);
        let kind = kind_of(op, access);
        let mut pending = None;
        let mut sum = Sum::Whole;
        let displacement = self.run_displacement();
        if let Some(displacement) = displacement {
            self.mark_in_run(displacement, size, kind);
        } else {
            self.address_of(insn, size, kind, bit_offset.then(|| op.op1_register()));
            let stack = insn.memory_segment() == Register::SS;
            // The other temporary must be free, too.
            let bare = (0..op.op_count()).all(|i| {
                let register = op.op_register(i);
                op.op_kind(i) != OpKind::Register
                    || !register.is_gpr()
                    || !is_high_byte(register) && HOST[number(register)].is_some()
            });
            if bare
                && kind == AccessKind::Read
                && !bit_offset
                && self.request.shortcuts.has(Shortcuts::APART)
            {
                sum = Sum::Apart;
            }
            pending = Some(self.begin_access_at(size, kind, stack, sum));
        }
        let displacement = displacement.unwrap_or(0);
        op.set_memory_base(Register::R10);
        op.set_memory_index(match sum {
            Sum::Whole => Register::None,
            Sum::Apart => Register::R11,
        });
        op.set_memory_index_scale(1);
        op.set_memory_displacement64(i64::from(displacement) as u64);
        op.set_memory_displ_size(u32::from(displacement != 0));
        pending
    }

    /// Puts host registers in the place of the guest's. Those that live in the vCPU, and the high bytes, pass through
    /// temporaries, which are returned.
    fn register_operands(
        &mut self,
        op: &mut Instruction,
        access: &[OpAccess; 5],
        skip: Option<u32>,
        wrap: bool,
        free: &mut Temporaries,
    ) -> Vec<Passing> {
        let in_memory = (0..op.op_count()).any(|i| op.op_kind(i) == OpKind::Memory);
        let mut passing: Vec<Passing> = Vec::new();
        for i in 0..op.op_count() {
            if op.op_kind(i) != OpKind::Register || !op.op_register(i).is_gpr() {
                continue;
            }
            let register = op.op_register(i);
            if skip == Some(i) {
                continue;
            }
            let guest = number(register);
            let high = is_high_byte(register);
            let writes = !matches!(access[i as usize], OpAccess::Read | OpAccess::CondRead);
            // A later operand may read what this one only writes.
            let reads = (0..op.op_count()).any(|j| {
                op.op_kind(j) == OpKind::Register
                    && op.op_register(j).full_register() == register.full_register()
                    && access[j as usize] != OpAccess::Write
            }) || matches!(op.mnemonic(), Mnemonic::Bsf | Mnemonic::Bsr);
            if op.code() == Code::Fnstsw_AX || op.code() == Code::Fstsw_AX {
                continue;
            }
            if let Some(host) = HOST[guest].filter(|_| !high) {
                let host = if wrap && guest == 0 { asm::RAX } else { host };
                op.set_op_register(i, sized(host, register.size()));
                continue;
            }
            if !in_memory && !high && self.in_vcpu(op, i, access[i as usize]) {
                continue;
            }
            let known = passing.iter().position(|p| {
                p.guest == register || (!high && !is_high_byte(p.guest) && number(p.guest) == guest)
            });
            let at = known.unwrap_or_else(|| {
                let temp = match free.take() {
                    Some(temp) => temp,
                    None => {
                        assert!(!wrap, "an instruction needs too many temporaries: {op:?}");
                        self.free_rax();
                        asm::RAX
                    }
                };
                // A write of 8 or 16 bits merges with what the register holds.
                if reads || register.size() < 4 {
                    if high {
                        let host = if wrap && guest == 0 {
                            None
                        } else {
                            HOST[guest]
                        };
                        let host = host.unwrap_or(asm::RAX);
                        if wrap && guest == 0 {
                            self.hot.rorx(W64, temp, GUEST_RAX, 8);
                        } else {
                            self.hot.rorx(W64, temp, host, 8);
                        }
                    } else {
                        self.hot.load(W64, temp, at::gpr(guest));
                    }
                }
                passing.push(Passing {
                    guest: register,
                    temp,
                    written: false,
                });
                passing.len() - 1
            });
            passing[at].written |= writes;
            op.set_op_register(i, sized(passing[at].temp, register.size()));
        }
        passing
    }

    /// Stores the temporaries that were written where they come from.
    fn write_back(&mut self, passing: &[Passing]) {
        for p in passing {
            if !p.written {
                continue;
            }
            let guest = number(p.guest);
            if is_high_byte(p.guest) {
                let host = HOST[guest].expect("registers with a high byte live in host registers");
                self.hot.rorx(W64, host, host, 8);
                self.hot.rr(&[0x8a], W32, host, p.temp);
                self.hot.rorx(W64, host, host, 56);
            } else {
                self.hot.store(W64, p.temp, at::gpr(guest));
            }
        }
    }

    /// Makes the operand `i`, a guest register that lives in memory, that word itself.
    pub(in crate::translate) fn in_vcpu(
        &mut self,
        op: &mut Instruction,
        i: u32,
        access: OpAccess,
    ) -> bool {
        use OpCodeOperandKind as K;
        let register = op.op_register(i);
        if i == 1 && op.op_count() == 2 && op.op0_kind() == OpKind::Register {
            op.set_code(source_first(op.code()));
        }
        let others = (0..op.op_count()).any(|j| {
            j != i
                && (op.op_kind(j) == OpKind::Memory
                    || op.op_kind(j) == OpKind::Register
                        && op.op_register(j).full_register() == register.full_register())
        });
        let replaceable = matches!(
            op.op_code().op_kind(i),
            K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem
        );
        // A write of 32 bits clears the upper half of a register.
        let reads = access == OpAccess::Read || register.size() != 4;
        let known = matches!(
            access,
            OpAccess::Read | OpAccess::Write | OpAccess::ReadWrite
        );
        if others
            || !replaceable
            || !reads
            || !known
            || !takes_words(op)
            || !self.request.shortcuts.has(Shortcuts::WORDS)
            || !self.request.shortcuts.has(Shortcuts::FRAME)
        {
            return false;
        }
        let word = at::gpr(number(register)) - at::FRAME;
        op.set_op_kind(i, OpKind::Memory);
        op.set_memory_base(Register::RSP);
        op.set_memory_index(Register::None);
        op.set_memory_index_scale(1);
        op.set_memory_displacement64(word as u64);
        op.set_memory_displ_size(1);
        true
    }

    /// How an instruction that would be copied uses memory.
    pub(in crate::translate) fn memory_use(
        &mut self,
        index: usize,
        insn: &Instruction,
    ) -> MemoryUse {
        let op = general_form(insn);
        let memory = (0..op.op_count()).find(|&i| op.op_kind(i) == OpKind::Memory);
        // Those with RAX or a bit offset need temporaries of their own.
        if implicit_rax(&op) {
            return MemoryUse::Special;
        }
        let Some(i) = memory else {
            return MemoryUse::None;
        };
        let register = op.op_count() > 1 && op.op1_kind() == OpKind::Register;
        if op.mnemonic() == Mnemonic::Xchg || is_bit_test(&op) && register {
            return MemoryUse::Special;
        }
        let access = self.scratch.operands(index, &op);
        MemoryUse::Plain {
            size: memory_bytes(&op),
            kind: kind_of(&op, access[i as usize]),
        }
    }

    /// Encodes an instruction whose operands are all host operands.
    pub(in crate::translate) fn encode(&mut self, op: &Instruction) {
        if instruction::common(&mut self.hot, op) {
            return;
        }
        let encoder = &mut self.scratch.encoder;
        match encoder.encode(op, 0) {
            Ok(_) => {
                let mut bytes = encoder.take_buffer();
                self.hot.raw(&bytes);
                bytes.clear();
                encoder.set_buffer(bytes);
            }
            Err(e) => unreachable!("a rewritten instruction always encodes: {op:?}: {e}"),
        }
    }

    /// XCHG with memory, without the bus lock that the host would take: nothing else runs.
    fn exchange_with_memory(&mut self, insn: &Instruction, op: &Instruction) -> bool {
        if op.mnemonic() != Mnemonic::Xchg || op.op0_kind() != OpKind::Memory {
            return false;
        }
        let register = op.op1_register();
        let size = register.size();
        if is_high_byte(register) {
            return false;
        }
        self.address_of(insn, size, AccessKind::Modify, None);
        let access = self.begin_access(
            size,
            AccessKind::Modify,
            insn.memory_segment() == Register::SS,
        );
        let guest = number(register);
        // The old value goes through RAX, so the flags must not be in AX alone.
        self.free_rax();
        let (load, store): (&[u8], &[u8]) = if size == 1 {
            (&[0x8a], &[0x88])
        } else {
            (&[0x8b], &[0x89])
        };
        let width = match size {
            2 => W16,
            8 => W64,
            _ => W32,
        };
        let host = HOST[guest].unwrap_or(T1);
        if HOST[guest].is_none() {
            self.hot.load(W64, T1, at::gpr(guest));
        }
        self.hot.mem(load, width, asm::RAX, Some(T0), None, 0);
        // SPL, BPL, SIL and DIL need a REX prefix; T0 as the base brings one.
        self.hot.mem(store, width, host, Some(T0), None, 0);
        if size == 1 {
            self.hot.u8(0x40 | (host.0 >> 3) << 2);
            self.hot.raw(&[0x8a, 0xc0 | (host.0 & 7) << 3]);
        } else {
            self.hot.rr(&[0x8b], width, host, asm::RAX);
        }
        if HOST[guest].is_none() {
            self.hot.store(W64, T1, at::gpr(guest));
        }
        self.end_access(access);
        true
    }

    fn masked_bit_offset(&mut self, op: &mut Instruction, free: &mut Temporaries) {
        let register = op.op1_register();
        let bits = register.size() as i32 * 8;
        let temp = free.take().expect("a bit test with memory leaves T1 free");
        self.read_register(temp, number(register));
        self.hot.alu_imm(4, W32, temp, bits - 1);
        op.set_op1_register(sized(temp, register.size()));
    }

    /// Copies a guest register, whole, into a temporary.
    pub(in crate::translate) fn read_register(&mut self, to: Reg, guest: usize) {
        match HOST[guest] {
            Some(host) => self.hot.mov_rr(W64, to, host),
            None => self.hot.load(W64, to, at::gpr(guest)),
        }
    }

    /// Emits the linear address of `insn`'s memory operand into T0. For bit tests with a register,
    /// the whole part of the bit offset moves the address.
    pub(in crate::translate) fn address_of(
        &mut self,
        insn: &Instruction,
        size: usize,
        kind: AccessKind,
        bit_offset: Option<Register>,
    ) {
        self.offset_of(insn, T0);
        if let Some(register) = bit_offset {
            self.free_host_flags();
            let guest = number(register);
            self.read_register(T1, guest);
            let (extend, shift, scale): (Option<&[u8]>, u8, u8) = match register.size() {
                2 => (Some(&[0x0f, 0xbf]), 4, 2),
                4 => (Some(&[0x63]), 5, 4),
                _ => (None, 6, 8),
            };
            if let Some(op) = extend {
                self.hot.rr(op, W64, T1, T1);
            }
            self.hot.raw(&[0x49, 0xc1, 0xfb, shift]); // sar r11, shift
            let width = if address_size(insn) == 8 { W64 } else { W32 };
            self.hot
                .mem(&[0x8d], width, T0, Some(T0), Some((T1, scale)), 0);
            if address_size(insn) == 2 {
                self.hot.rr(&[0x0f, 0xb7], W32, T0, T0);
            }
        }
        self.segment(segment_index(insn.memory_segment()), size, kind);
        let flat = !matches!(insn.memory_segment(), Register::FS | Register::GS);
        self.address_key =
            (flat && bit_offset.is_none() && !insn.is_ip_rel_memory_operand()).then(|| {
                let (base, index) = (insn.memory_base(), insn.memory_index());
                (base, index, insn.memory_index_scale())
            });
    }

    /// Emits the linear address of `insn`'s memory operand plus `adjust` into T0.
    pub(in crate::translate) fn address_after(
        &mut self,
        insn: &Instruction,
        adjust: i32,
        size: usize,
        kind: AccessKind,
    ) {
        self.offset_of(insn, T0);
        if adjust != 0 {
            let width = if address_size(insn) == 8 { W64 } else { W32 };
            self.hot.mem(&[0x8d], width, T0, Some(T0), None, adjust);
        }
        self.segment(segment_index(insn.memory_segment()), size, kind);
    }

    /// Emits the offset of `insn`'s memory operand into `to`, before segmentation. Flags are untouched.
    pub(in crate::translate) fn offset_of(&mut self, insn: &Instruction, to: Reg) {
        if insn.is_ip_rel_memory_operand() {
            self.hot.mov_imm(to, insn.ip_rel_memory_address());
            return;
        }
        let size = address_size(insn);
        let base = insn.memory_base();
        let index = insn.memory_index();
        let disp = insn.memory_displacement64();
        if base == Register::None && index == Register::None {
            self.hot
                .mov_imm(to, if size == 8 { disp } else { disp & 0xffff_ffff });
            return;
        }
        let spare = if to == T0 { T1 } else { T0 };
        let base = (base != Register::None).then(|| {
            HOST[number(base)].unwrap_or_else(|| {
                self.hot.load(W64, to, at::gpr(number(base)));
                to
            })
        });
        let index = (index != Register::None).then(|| {
            let host = HOST[number(index)].unwrap_or_else(|| {
                self.hot.load(W64, spare, at::gpr(number(index)));
                spare
            });
            (host, insn.memory_index_scale() as u8)
        });
        let width = if size == 8 { W64 } else { W32 };
        match (base, index) {
            (Some(base), None) if disp == 0 => self.hot.mov_rr(width, to, base),
            _ => self.hot.mem(&[0x8d], width, to, base, index, disp as i32),
        }
        if size == 2 {
            self.hot.rr(&[0x0f, 0xb7], W32, to, to);
        }
    }

    /// LEA: an address computed and not accessed.
    pub(in crate::translate) fn lea(&mut self, insn: &Instruction) {
        let register = insn.op0_register();
        let guest = number(register);
        if let (true, Some(host)) = (self.quick_lea(insn), HOST[guest]) {
            let wide = register.size() == 8 && address_size(insn) == 8;
            let base = (insn.memory_base() != Register::None).then(|| insn.memory_base());
            let index = (insn.memory_index() != Register::None).then(|| insn.memory_index());
            let host_of = |r: Register| HOST[number(r)].expect("a quick LEA has host registers");
            self.hot.mem(
                &[0x8d],
                if wide { W64 } else { W32 },
                host,
                base.map(host_of),
                index.map(|r| (host_of(r), insn.memory_index_scale() as u8)),
                insn.memory_displacement64() as i32,
            );
            return;
        }
        if let (8, 8, Some(host)) = (register.size(), address_size(insn), HOST[guest]) {
            if insn.is_ip_rel_memory_operand() {
                self.hot.mov_imm(host, insn.ip_rel_memory_address());
                return;
            }
            let (base, index) = (insn.memory_base(), insn.memory_index());
            // A base that lives in memory comes into the target first.
            let kept = index == Register::None || HOST[number(index)] != Some(host);
            if (base, index) != (Register::None, Register::None) && (kept || in_host(base)) {
                let displacement = insn.memory_displacement64() as i32;
                self.lea_of(host, base, index, insn.memory_index_scale(), displacement);
                return;
            }
        }
        self.offset_of(insn, T0);
        self.write_register(guest, register.size(), T0);
    }

    /// `to` = base + index * scale + displacement, in 64 bits. Flags are untouched; T0 and T1 change.
    pub(in crate::translate) fn lea_of(
        &mut self,
        to: Reg,
        base: Register,
        index: Register,
        scale: u32,
        displacement: i32,
    ) {
        let spare = if to == T0 { T1 } else { T0 };
        let place = |e: &mut Self, register: Register, spare: Reg| {
            (register != Register::None).then(|| {
                HOST[number(register)].unwrap_or_else(|| {
                    e.hot.load(W64, spare, at::gpr(number(register)));
                    spare
                })
            })
        };
        let base = place(self, base, to);
        let index = place(self, index, spare).map(|index| (index, scale as u8));
        match (base, index) {
            (Some(base), None) => self.hot.lea(to, base, displacement),
            _ => self.hot.mem(&[0x8d], W64, to, base, index, displacement),
        }
    }

    /// Moves a temporary into a guest register with the merging rules of its size; T1 may change.
    pub(in crate::translate) fn write_register(&mut self, guest: usize, size: usize, from: Reg) {
        let host = HOST[guest];
        match size {
            8 => match host {
                Some(host) => self.hot.mov_rr(W64, host, from),
                None => self.hot.store(W64, from, at::gpr(guest)),
            },
            4 => match host {
                Some(host) => self.hot.rr(&[0x8b], W32, host, from),
                None => {
                    self.hot.rr(&[0x8b], W32, from, from);
                    self.hot.store(W64, from, at::gpr(guest));
                }
            },
            _ => match host {
                Some(host) => self.hot.rr(&[0x8b], W16, host, from),
                None => self.hot.store(W16, from, at::gpr(guest)),
            },
        }
    }

    /// CLD and STD change the stored RFLAGS only; the host's direction flag stays clear.
    pub(in crate::translate) fn direction(&mut self, insn: &Instruction) {
        self.free_host_flags();
        // The direction flag is bit 2 of the second byte.
        if insn.mnemonic() == Mnemonic::Cld {
            self.hot.gs(&[0x80], W32, Reg(4), at::RFLAGS + 1);
            self.hot.u8(!4);
        } else {
            self.hot.gs(&[0x80], W32, Reg(1), at::RFLAGS + 1);
            self.hot.u8(4);
        }
    }

    /// Ends an access after emitting one load or store of T1 at its address.
    pub(in crate::translate) fn move_t1(&mut self, access: Access, size: usize, store: bool) {
        let width = match size {
            2 => W16,
            8 => W64,
            _ => W32,
        };
        self.hot.mem(
            &[if store { 0x89 } else { 0x8b }],
            width,
            T1,
            Some(T0),
            None,
            0,
        );
        self.end_access(access);
    }
}
