//! Loops of one block, without checks.
//!
//! A block that jumps to its own start reads and writes, turn after turn, at addresses that stand still or
//! move by a constant. So when it comes back to its start, what the next turns will touch is known: it is
//! looked up once for each address, which gives the number of turns that stay in these pages, and the
//! budget limits it further. That many turns then run as the guest wrote them, with its flags in the
//! host's, no check but for the last turn, and one host register for each address. Nothing can take a page
//! away meanwhile, for nothing but copied instructions runs, and nothing can fault. All other turns, among
//! them those that cross into another page, run from the block's ordinary code. The lines that were
//! written are marked when the loop is left.
//!
//! Only the host's time tells one way from the other: the turns are paid for as those of the block are,
//! together when the loop is left, and the flags are then where blocks have them.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::asm::{self, cc, Reg, W32, W64};
use super::classify::{is_x87, needs_alignment, waits, Class};
use super::copy::{
    address_size, general_form, implicit_rax, is_high_byte, number, only_moves, sized, MemoryUse,
};
use super::emit::{Emitter, Flags, Stream};
use super::flags::{self, modified_flags, needs_flags};
use super::runs::{constant_change, Key};
use super::shortcuts::Shortcuts;
use super::site::AccessKind;
use super::vcpu::{at, HOST, LOOP_AREAS, LOOP_GROUPS, T0, T1};
use crate::memory::ram::LINE_SHIFT;
use crate::memory::PAGE_SIZE;

/// Most bytes between the first and the last byte of a turn's accesses around one address.
const REACH: i64 = 1024;
/// Most bytes that an address moves by in a turn; for one that is written, so that no line is left out.
const STRIDE: i64 = 512;
const STORE_STRIDE: i64 = 1 << LINE_SHIFT;
/// Turns without anything that moves.
const MANY: u64 = 1 << 20;
/// log2 of what a budget is taken for at most, and of what its reciprocal is scaled by.
const RECIPROCAL: u8 = 30;
/// Turns below which the fast code is not worth its entry.
const FEW: i32 = 4;
/// Bytes of a jump.
const JUMP_LENGTH: usize = 5;
/// What operands are aligned to that have to be.
const ALIGNMENT: i64 = 16;
/// Turns that make up for entering the fast code and leaving it. When the loop was over after fewer, or a page
/// was not at hand, so many turns go the ordinary way before it is tried again.
const WORTH: i32 = 8;
const PATIENCE: u8 = 32;
/// MXCSR with all exceptions masked has these bits (SDM vol. 1, section 10.2.3).
const MASKS: i32 = 0x1f80;

/// Accesses around one address.
struct Group {
    key: Key,
    /// The register that moves, with its scale, and by how many bytes the address moves in a turn.
    moving: Option<(Register, u8)>,
    step: i64,
    /// First byte, and the one behind the last, as seen from the key's registers at a turn's start.
    low: i64,
    high: i64,
    writes: bool,
    /// An operand that has to be aligned to 16 bytes lies there.
    aligned: Option<i64>,
    /// What is written, likewise.
    areas: Vec<(i64, i64)>,
    /// Holds the host address of `low`, less the moving register.
    host: Reg,
}

/// A loop that can run without checks.
pub(super) struct Loop {
    groups: Vec<Group>,
    /// Guest registers of memory that live in host registers meanwhile.
    lent: Vec<(usize, Reg)>,
    /// The turn's instructions on host operands, without its branch.
    ops: Vec<Instruction>,
    /// Before this one of them, which overwrites all flags, it is asked whether this turn is the last.
    ask: usize,
    clock: Clock,
    /// Something in it raises an exception if MXCSR lets it.
    raises: bool,
}

/// What counts the turns.
enum Clock {
    /// A guest register, by how much it moves in a turn, and by how much until it is asked.
    Register {
        guest: usize,
        step: i32,
        before: i32,
    },
    /// A host register that is left over, counting down.
    Host(Reg),
    /// A word of the vCPU, likewise.
    Word,
}

/// How a turn changes the guest's general-purpose registers.
#[derive(Default)]
struct Changes {
    /// By constants, so far; `None` where it is something else.
    by: [Option<i64>; 16],
    moved: [bool; 16],
}

impl Changes {
    fn of(emitter: &mut Emitter<'_>, insns: &[(Instruction, Class)]) -> Self {
        let mut all = Self {
            by: [Some(0); 16],
            moved: [false; 16],
        };
        for (index, (insn, _)) in insns.iter().enumerate() {
            let target = (insn.op_count() > 0 && insn.op0_kind() == OpKind::Register)
                .then(|| insn.op0_register());
            let by = target.and_then(|r| Some((r, constant_change(insn, r)?)));
            if let Some((register, by)) = by {
                let guest = number(register);
                all.moved[guest] = true;
                all.by[guest] = all.by[guest].and_then(|sum| sum.checked_add(by));
            }
            let own = by.map_or(0, |(register, _)| 1 << number(register));
            let others = emitter.bench.changes(index, insn) & !own;
            for (guest, by) in all.by.iter_mut().enumerate() {
                if others >> guest & 1 != 0 {
                    *by = None;
                }
            }
        }
        all
    }

    /// By how much a register of an address changes in a turn; `None` when nobody knows.
    fn step(&self, register: Register) -> Option<i64> {
        match register {
            Register::None => Some(0),
            _ => self.by[number(register)],
        }
    }

    fn moves(&self, register: Register) -> bool {
        register != Register::None && self.moved[number(register)]
    }
}

/// Adds what an instruction adds to a register.
fn advance(so_far: &mut [i64; 16], insn: &Instruction) -> Option<()> {
    if insn.op_count() > 0 && insn.op0_kind() == OpKind::Register {
        let register = insn.op0_register();
        if let Some(by) = constant_change(insn, register) {
            let sum = &mut so_far[number(register)];
            *sum = sum.checked_add(by)?;
        }
    }
    Some(())
}

/// Whether an instruction may be part of a fast turn, but for its operands.
fn is_plain(insn: &Instruction, class: Class) -> bool {
    use Mnemonic as M;
    let high_byte = (0..insn.op_count())
        .any(|i| insn.op_kind(i) == OpKind::Register && is_high_byte(insn.op_register(i)));
    let unusual = matches!(insn.mnemonic(), M::Ldmxcsr | M::Stmxcsr | M::Emms);
    match class {
        Class::Copy => !implicit_rax(&general_form(insn)) && !high_byte,
        Class::CopyFpu => !unusual && !is_x87(insn) && !waits(insn),
        Class::Lea => !insn.is_ip_rel_memory_operand(),
        Class::Nop => true,
        _ => false,
    }
}

impl Emitter<'_> {
    /// Looks whether the block is a loop that can run without checks.
    pub(super) fn plan_loop(&mut self) -> Option<Loop> {
        let request = &self.request;
        let (insns, mode) = (request.insns, request.mode);
        let (branch, class) = insns[insns.len() - 1];
        let whole = request.start == 0 && request.stop == insns.len();
        if class != Class::Branch
            || branch.near_branch_target() != insns[0].0.ip()
            || !whole
            || request.checked
            || !mode.code64()
            || mode.one()
            || !request.shortcuts.has(Shortcuts::LOOPS)
            || insns.iter().any(|(insn, _)| self.hooked(insn))
        {
            return None;
        }
        let turn = &insns[..insns.len() - 1];
        if !turn.iter().all(|(insn, class)| is_plain(insn, *class)) {
            return None;
        }
        let changes = Changes::of(self, turn);
        let mut groups = self.loop_groups(turn, &changes)?;
        let mut free = vec![asm::RAX, T0, T1];
        for group in &mut groups {
            group.host = free.pop()?;
        }
        let lent = Self::lend(turn, &groups, &mut free)?;
        let mut ops = Vec::new();
        let mut ask = None;
        let mut so_far = [0i64; 16];
        for (index, (insn, class)) in turn.iter().enumerate() {
            if *class == Class::Nop {
                continue;
            }
            let op = self.loop_op(index, *class, &groups, &lent)?;
            let flags = *class != Class::Lea && modified_flags(&op) == flags::STATUS;
            if flags && !needs_flags(&op) {
                ask = Some((ops.len(), so_far));
            }
            ops.push(op);
            advance(&mut so_far, insn)?;
        }
        let (ask, so_far) = ask?;
        let steady = (0..16).find(|&guest| {
            let here = HOST[guest].is_some() || lent.iter().any(|&(known, _)| known == guest);
            here && changes.moved[guest] && changes.by[guest].is_some_and(|by| by != 0)
        });
        let clock = match (free.pop(), steady) {
            (Some(host), _) => Clock::Host(host),
            (None, Some(guest)) => Clock::Register {
                guest,
                step: i32::try_from(changes.by[guest]?).ok()?,
                before: i32::try_from(so_far[guest]).ok()?,
            },
            (None, None) => Clock::Word,
        };
        let raises = turn
            .iter()
            .any(|(insn, class)| *class == Class::CopyFpu && !only_moves(insn));
        Some(Loop {
            groups,
            lent,
            ops,
            ask,
            clock,
            raises,
        })
    }

    /// The accesses of a turn by address, or `None` when one of them cannot be known in advance.
    fn loop_groups(
        &mut self,
        turn: &[(Instruction, Class)],
        changes: &Changes,
    ) -> Option<Vec<Group>> {
        let mut groups: Vec<Group> = Vec::new();
        let mut so_far = [0i64; 16];
        for (index, (insn, class)) in turn.iter().enumerate() {
            if matches!(class, Class::Copy | Class::CopyFpu) {
                match self.memory_use(index, insn) {
                    MemoryUse::None => {}
                    MemoryUse::Special => return None,
                    MemoryUse::Plain { size, kind } => {
                        let access = Self::loop_access(insn, size, kind, changes, &so_far)?;
                        match groups.iter_mut().find(|group| group.key == access.key) {
                            Some(group) => group.join(access)?,
                            None => groups.push(access),
                        }
                    }
                }
            }
            advance(&mut so_far, insn)?;
        }
        let areas: usize = groups.iter().map(|group| group.areas.len()).sum();
        if groups.len() > LOOP_GROUPS || areas > LOOP_AREAS {
            return None;
        }
        groups.iter_mut().for_each(Group::align);
        groups.iter().all(Group::is_possible).then_some(groups)
    }

    /// One access as a group of its own.
    fn loop_access(
        insn: &Instruction,
        size: usize,
        kind: AccessKind,
        changes: &Changes,
        so_far: &[i64; 16],
    ) -> Option<Group> {
        let segment = insn.memory_segment();
        if address_size(insn) != 8 || matches!(segment, Register::FS | Register::GS) {
            return None;
        }
        let (base, index, scale) = (
            insn.memory_base(),
            insn.memory_index(),
            insn.memory_index_scale(),
        );
        let (key, offset) = if insn.is_ip_rel_memory_operand() {
            let address = insn.ip_rel_memory_address();
            ((Register::None, Register::None, 1), address as i64)
        } else {
            ((base, index, scale), insn.memory_displacement64() as i64)
        };
        let (base, index, scale) = key;
        let moving = match (changes.moves(base), changes.moves(index)) {
            (false, false) => None,
            (true, false) => Some((base, 1)),
            (false, true) => Some((index, scale as u8)),
            (true, true) => return None,
        };
        changes.step(base)?;
        changes.step(index)?;
        let along = |by: i64, scale: u8| by.checked_mul(i64::from(scale));
        let (step, before) = match moving {
            Some((r, scale)) => (
                along(changes.step(r)?, scale)?,
                along(so_far[number(r)], scale)?,
            ),
            None => (0, 0),
        };
        let low = offset.checked_add(before)?;
        let high = low.checked_add(size as i64)?;
        Some(Group {
            key,
            moving,
            step,
            low,
            high,
            writes: kind.writes(),
            aligned: needs_alignment(insn).then_some(low),
            areas: if kind.writes() {
                vec![(low, high)]
            } else {
                Vec::new()
            },
            host: T0,
        })
    }

    /// Lends host registers to the guest's registers that a turn uses and that live in memory, first to those
    /// that addresses move with, which need one.
    fn lend(
        turn: &[(Instruction, Class)],
        groups: &[Group],
        free: &mut Vec<Reg>,
    ) -> Option<Vec<(usize, Reg)>> {
        let mut lent: Vec<(usize, Reg)> = Vec::new();
        let mut wanted: Vec<(usize, bool)> = groups
            .iter()
            .filter_map(|group| Some((number(group.moving?.0), true)))
            .collect();
        for (insn, class) in turn {
            let operands = (0..insn.op_count())
                .filter(|&i| insn.op_kind(i) == OpKind::Register)
                .map(|i| (insn.op_register(i), false));
            let address = [insn.memory_base(), insn.memory_index()];
            let address = address
                .into_iter()
                .filter(|_| *class == Class::Lea)
                .map(|register| (register, true));
            let all = operands.chain(address).filter(|(r, _)| r.is_gpr());
            wanted.extend(all.map(|(register, needed)| (number(register), needed)));
        }
        wanted.sort_by_key(|&(_, needed)| !needed);
        for (guest, needed) in wanted {
            if HOST[guest].is_some() || lent.iter().any(|&(known, _)| known == guest) {
                continue;
            }
            match free.pop() {
                Some(host) => lent.push((guest, host)),
                None if needed => return None,
                None => {}
            }
        }
        Some(lent)
    }

    /// An instruction of a turn on host operands.
    fn loop_op(
        &mut self,
        index: usize,
        class: Class,
        groups: &[Group],
        lent: &[(usize, Reg)],
    ) -> Option<Instruction> {
        let insn = &self.request.insns[index].0;
        let host_of = |register: Register| {
            let guest = number(register);
            let own = lent.iter().find(|(lent, _)| *lent == guest);
            own.map_or(HOST[guest], |&(_, host)| Some(host))
        };
        let mut op = general_form(insn);
        op.set_has_lock_prefix(false);
        op.set_has_xacquire_prefix(false);
        op.set_has_xrelease_prefix(false);
        op.set_segment_prefix(Register::None);
        let access = self.bench.operands(index, &op);
        let memory = (0..op.op_count()).any(|i| op.op_kind(i) == OpKind::Memory);
        if memory && class == Class::Lea {
            for (register, set) in [
                (
                    op.memory_base(),
                    Instruction::set_memory_base as fn(&mut Instruction, Register),
                ),
                (op.memory_index(), Instruction::set_memory_index),
            ] {
                if register != Register::None {
                    set(&mut op, sized(host_of(register)?, register.size()));
                }
            }
        } else if memory {
            let group = groups.iter().find(|group| group.is_for(insn))?;
            let own = if insn.is_ip_rel_memory_operand() {
                insn.ip_rel_memory_address()
            } else {
                insn.memory_displacement64()
            };
            let displacement = i32::try_from((own as i64).wrapping_sub(group.low)).ok()?;
            op.set_memory_base(sized(group.host, 8));
            op.set_memory_index(Register::None);
            op.set_memory_index_scale(1);
            if let Some((register, scale)) = group.moving {
                op.set_memory_index(sized(host_of(register)?, 8));
                op.set_memory_index_scale(u32::from(scale));
            }
            op.set_memory_displacement64(i64::from(displacement) as u64);
            op.set_memory_displ_size(u32::from(displacement != 0));
        }
        for i in 0..op.op_count() {
            if op.op_kind(i) != OpKind::Register || !op.op_register(i).is_gpr() {
                continue;
            }
            let register = op.op_register(i);
            match host_of(register) {
                Some(host) => op.set_op_register(i, sized(host, register.size())),
                None if memory || !self.in_vcpu(&mut op, i, access[i as usize]) => return None,
                None => {}
            }
        }
        Some(op)
    }

    /// Behind the budget's check at the head of a loop: tries the fast code where that may be worth it.
    /// Returns the jump to it.
    pub(super) fn try_loop(&mut self) -> usize {
        let patience = at::loop_patience(self.request.insns[0].0.ip());
        self.hot.gs(&[0x80], W32, Reg(5), patience); // sub byte
        self.hot.u8(1);
        self.hot.jcc(cc::S)
    }

    /// Emits the fast code behind the block, whose last jump is where its second slot is. `enter` is the jump
    /// that leads here; the ordinary code behind it is at `body`. At both, and in the end, flags are in AX.
    pub(super) fn emit_loop(&mut self, plan: &Loop, enter: usize, body: usize) {
        let insns = self.request.insns;
        let (branch, _) = insns[insns.len() - 1];
        let count = insns.len() as i32;
        let condition = branch.condition_code() as u8 - 1;
        let leave = self.hot.len() - JUMP_LENGTH;
        self.hot.patch_here(enter);
        self.flags = Flags::Ax;
        if insns.iter().any(|(_, class)| *class == Class::CopyFpu) {
            self.fpu_loaded = false;
            self.load_fpu();
        }
        let mut refused = Vec::new();
        let mut missed = Vec::new();
        self.hot.store(W64, asm::RAX, at::FLAGS_AX);
        if plan.raises {
            self.hot.gs(&[0x0f, 0xae], W32, Reg(3), at::SCRATCH); // stmxcsr
            self.hot.load(W32, T0, at::SCRATCH);
            self.hot.alu_imm(4, W32, T0, MASKS);
            self.hot.alu_imm(7, W32, T0, MASKS);
            refused.push(self.hot.jcc(cc::NE));
        }
        let mut limited = false;
        let mut area = 0;
        for (number, group) in plan.groups.iter().enumerate() {
            missed.push(self.find_group(group, number, &mut area, &mut refused));
            if group.step != 0 {
                self.limit_turns(group, limited);
                limited = true;
            }
        }
        self.count_turns(plan, count, limited, &mut refused);
        self.hot.load(W64, asm::RAX, at::FLAGS_AX);
        self.hot.restore_flags();
        for &(guest, host) in &plan.lent {
            self.hot.load(W64, host, at::gpr(guest));
        }
        for (number, group) in plan.groups.iter().enumerate() {
            self.hot.load(W64, group.host, at::loop_host(number));
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
        let patience = at::loop_patience(insns[0].0.ip());
        self.hot.gs_mov_imm8(patience, PATIENCE);
        for at in refused {
            self.hot.patch_here(at);
        }
        self.hot.load(W64, asm::RAX, at::FLAGS_AX);
        let back = self.hot.jmp();
        self.hot.patch(back, body);
    }

    fn encode_all(&mut self, ops: &[Instruction]) {
        for op in ops {
            self.encode(op);
        }
    }

    /// Looks up the page of a group as it is at a turn's start, and notes what its host register will hold and
    /// where what it writes begins. Leaves RAX = offset of the group in its page. Returns the fixup of the jump
    /// for a page that is not at hand.
    fn find_group(
        &mut self,
        group: &Group,
        number: usize,
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
            let register = super::copy::number(register);
            match HOST[register] {
                Some(host) if scale == 1 => self.hot.rr(&[0x2b], W64, T0, host),
                _ => {
                    self.read_register(T1, register);
                    self.hot.shift_imm(4, T1, scale.trailing_zeros() as u8);
                    self.hot.rr(&[0x2b], W64, T0, T1);
                }
            }
        }
        self.hot.store(W64, T0, at::loop_host(number));
        missed
    }

    /// How many turns behind the first stay in the page of a group that RAX is the offset of; fewer than
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
            self.hot.gs(&[0x3b], W64, room, at::LOOP_TURNS);
            self.hot.jcc(cc::AE)
        });
        self.hot.store(W64, room, at::LOOP_TURNS);
        if let Some(more) = more {
            self.hot.patch_here(more);
        }
    }

    /// Finds out how many turns the pages and the budget allow, and sets the clock.
    fn count_turns(&mut self, plan: &Loop, count: i32, limited: bool, refused: &mut Vec<usize>) {
        self.hot.load(W64, T1, at::BUDGET);
        // The first turn has been paid for.
        self.hot.lea(T1, T1, count);
        self.hot.mov_imm(T0, (1 << RECIPROCAL) - 1);
        self.hot.rr(&[0x3b], W64, T1, T0);
        self.hot.rr(&[0x0f, 0x4f], W64, T1, T0); // cmovg
        self.hot.imul_imm(T1, (1 << RECIPROCAL) / count);
        self.hot.shift_imm(7, T1, RECIPROCAL);
        if limited {
            self.hot.load(W64, T0, at::LOOP_TURNS);
            self.hot.lea(T0, T0, 1);
        } else {
            self.hot.mov_imm(T0, MANY);
        }
        self.hot.rr(&[0x3b], W64, T1, T0);
        self.hot.rr(&[0x0f, 0x4c], W64, T0, T1); // cmovl
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

    /// Asks the clock, and jumps in the last turn. Flags change.
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

    /// Leaves the fast code behind a turn: pays for all of them and marks what was written. Afterwards flags
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
            let patience = at::loop_patience(self.request.insns[0].0.ip());
            self.hot.gs_mov_imm8(patience, PATIENCE);
            self.hot.patch_here(worth);
        }
        self.hot.imul_imm(T0, count);
        self.hot.alu_imm(5, W64, T0, count);
        self.hot.gs(&[0x29], W64, T0, at::BUDGET);
        self.mark_turns(plan);
    }

    /// Marks the lines from where the first turn wrote up to where the last one did.
    fn mark_turns(&mut self, plan: &Loop) {
        if !self.request.tracking {
            return;
        }
        for (area, number, group, (low, high)) in areas(plan) {
            let last = if group.step < 0 { low } else { high - 1 };
            // The moving register is a turn further.
            let displacement = (last - group.low - group.step) as i32;
            self.hot.load(W64, T0, at::loop_host(number));
            if let Some((register, scale)) = group.moving {
                self.read_register(T1, super::copy::number(register));
                self.hot
                    .mem(&[0x8d], W64, T0, Some(T0), Some((T1, scale)), displacement);
            } else {
                self.hot.lea(T0, T0, displacement);
            }
            self.hot.shift_imm(5, T0, LINE_SHIFT as u8);
            let (from, to) = if group.step < 0 { (T0, T1) } else { (T1, T0) };
            self.hot.load(W64, T1, at::loop_mark(area));
            let next = self.hot.len();
            self.hot.mem(&[0xc6], W32, Reg(0), Some(from), None, 0);
            self.hot.u8(1);
            self.hot.alu_imm(0, W64, from, 1);
            self.hot.rr(&[0x3b], W64, from, to);
            let more = self.hot.jcc(cc::BE);
            self.hot.patch(more, next);
        }
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

impl Group {
    fn join(&mut self, other: Self) -> Option<()> {
        self.low = self.low.min(other.low);
        self.high = self.high.max(other.high);
        self.writes |= other.writes;
        // Of two that are aligned differently, one faults.
        if let (Some(one), Some(two)) = (self.aligned, other.aligned) {
            if (one - two) % ALIGNMENT != 0 {
                return None;
            }
        }
        self.aligned = self.aligned.or(other.aligned);
        for area in other.areas {
            self.areas.push(area);
            self.areas.sort_unstable();
            let mut merged: Vec<(i64, i64)> = Vec::new();
            for &(low, high) in &self.areas {
                match merged.last_mut() {
                    Some(last) if low <= last.1 => last.1 = last.1.max(high),
                    _ => merged.push((low, high)),
                }
            }
            self.areas = merged;
        }
        Some(())
    }

    /// Lets the group begin where an operand would be aligned if those that have to be are.
    fn align(&mut self) {
        if let Some(at) = self.aligned {
            self.low -= (at - self.low).rem_euclid(ALIGNMENT);
        }
    }

    fn is_for(&self, insn: &Instruction) -> bool {
        let key = if insn.is_ip_rel_memory_operand() {
            (Register::None, Register::None, 1)
        } else {
            (
                insn.memory_base(),
                insn.memory_index(),
                insn.memory_index_scale(),
            )
        };
        self.key == key
    }

    fn size(&self) -> usize {
        (self.high - self.low) as usize
    }

    /// Whether the turns of this group can be counted and its lines marked.
    fn is_possible(&self) -> bool {
        let stride = if self.writes { STORE_STRIDE } else { STRIDE };
        let absolute = self.key.0 == Register::None && self.key.1 == Register::None;
        self.high - self.low <= REACH
            && self.step.unsigned_abs() <= stride as u64
            && (self.aligned.is_none() || self.step % ALIGNMENT == 0)
            && (absolute || i32::try_from(self.low).is_ok())
    }
}
