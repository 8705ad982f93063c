//! Loops of one block, without checks: which can be, and what they need. `loop_code` writes their code.
//!
//! A block that jumps to its own start reads and writes, iteration after iteration, at addresses that stand still or
//! move by a constant. So when it comes back to its start, what the next iterations will touch is known: it is
//! looked up once for each address, which gives the number of iterations that stay in these pages, and the
//! budget limits it further. That many iterations then run as the guest wrote them, with its flags in the
//! host's, no check but for the last iteration, and one host register for each address. Nothing can take a page
//! away meanwhile, for nothing but copied instructions runs, and nothing can fault. All other iterations, among
//! them those that cross into another page, run from the block's ordinary code. The lines that were
//! written are marked when the loop is left.
//!
//! Only the host's time tells one way from the other: the iterations are paid for as those of the block are,
//! together when the loop is left, and the flags are then where blocks have them.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::translate::decode::classify::{is_x87, needs_alignment, waits, Class};
use crate::translate::decode::flags::{self, modified_flags, needs_flags};
use crate::translate::decode::operands::{
    address_size, general_form, implicit_rax, is_high_byte, number, only_moves, sized, MemoryUse,
};
use crate::translate::encode::asm::{self, Reg};
use crate::translate::layout::LINE_SHIFT;
use crate::translate::layout::{HOST, LOOP_AREAS, LOOP_GROUPS, T0, T1};
use crate::translate::lower::emitter::Emitter;
use crate::translate::optimise::runs::constant_change;
use crate::translate::plan::Key;
use crate::translate::shortcuts::Shortcuts;
use crate::translate::site::AccessKind;

/// Most bytes between the first and the last byte of an iteration's accesses around one address.
const REACH: i64 = 1024;
/// Most bytes that an address moves by in an iteration; for one that is written, so that no line is left out.
const STRIDE: i64 = 512;
const STORE_STRIDE: i64 = 1 << LINE_SHIFT;
/// What operands are aligned to that have to be.
pub(in crate::translate) const ALIGNMENT: i64 = 16;
/// Accesses around one address.
pub(in crate::translate) struct Group {
    pub(in crate::translate) key: Key,
    /// The register that moves, with its scale, and by how many bytes the address moves in an iteration.
    pub(in crate::translate) moving: Option<(Register, u8)>,
    pub(in crate::translate) step: i64,
    /// First byte, and the one behind the last, as seen from the key's registers at an iteration's start.
    pub(in crate::translate) low: i64,
    pub(in crate::translate) high: i64,
    pub(in crate::translate) writes: bool,
    /// An operand that has to be aligned to 16 bytes lies there.
    pub(in crate::translate) aligned: Option<i64>,
    /// What is written, likewise.
    pub(in crate::translate) areas: Vec<(i64, i64)>,
    /// Holds the host address of `low`, less the moving register.
    pub(in crate::translate) host: Reg,
}

/// A loop that can run without checks.
pub(in crate::translate) struct Loop {
    pub(in crate::translate) groups: Vec<Group>,
    /// Guest registers of memory that live in host registers meanwhile.
    pub(in crate::translate) lent: Vec<(usize, Reg)>,
    /// The iteration's instructions on host operands, without its branch.
    pub(in crate::translate) ops: Vec<Instruction>,
    /// Before this one of them, which overwrites all flags, it is asked whether this iteration is the last.
    pub(in crate::translate) ask: usize,
    pub(in crate::translate) clock: Clock,
    /// Something in it raises an exception if MXCSR lets it.
    pub(in crate::translate) raises: bool,
}

/// What counts the iterations.
pub(in crate::translate) enum Clock {
    /// A guest register, by how much it moves in an iteration, and by how much until it is asked.
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

/// How an iteration changes the guest's general-purpose registers.
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
            let others = emitter.scratch.changes(index, insn) & !own;
            for (guest, by) in all.by.iter_mut().enumerate() {
                if others >> guest & 1 != 0 {
                    *by = None;
                }
            }
        }
        all
    }

    /// By how much a register of an address changes in an iteration; `None` when that is not known.
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

/// The registers of an instruction's address; none for one that is relative to rip.
fn key_of(insn: &Instruction) -> Key {
    if insn.is_ip_rel_memory_operand() {
        return (Register::None, Register::None, 1);
    }
    (
        insn.memory_base(),
        insn.memory_index(),
        insn.memory_index_scale(),
    )
}

/// What its address has besides these.
fn own_offset(insn: &Instruction) -> i64 {
    if insn.is_ip_rel_memory_operand() {
        insn.ip_rel_memory_address() as i64
    } else {
        insn.memory_displacement64() as i64
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

/// Whether an instruction may be part of a fast iteration, but for its operands.
fn is_plain(insn: &Instruction, class: Class) -> bool {
    use Mnemonic as M;
    let high_byte = (0..insn.op_count())
        .any(|i| insn.op_kind(i) == OpKind::Register && is_high_byte(insn.op_register(i)));
    let unusual = matches!(insn.mnemonic(), M::Stmxcsr | M::Emms);
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
    pub(in crate::translate) fn plan_loop(&mut self) -> Option<Loop> {
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
        let iteration = &insns[..insns.len() - 1];
        if !iteration.iter().all(|(insn, class)| is_plain(insn, *class)) {
            return None;
        }
        let changes = Changes::of(self, iteration);
        let mut groups = self.loop_groups(iteration, &changes)?;
        let mut free = vec![asm::RAX, T0, T1];
        for group in &mut groups {
            group.host = free.pop()?;
        }
        let lent = Self::lend(iteration, &groups, &mut free)?;
        let mut ops = Vec::new();
        let mut ask = None;
        let mut so_far = [0i64; 16];
        for (index, (insn, class)) in iteration.iter().enumerate() {
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
        let raises = iteration
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

    /// The accesses of an iteration by address, or `None` when one of them cannot be known in advance.
    fn loop_groups(
        &mut self,
        iteration: &[(Instruction, Class)],
        changes: &Changes,
    ) -> Option<Vec<Group>> {
        let mut groups: Vec<Group> = Vec::new();
        let mut so_far = [0i64; 16];
        for (index, (insn, class)) in iteration.iter().enumerate() {
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
        let key = key_of(insn);
        let (base, index, scale) = key;
        let offset = own_offset(insn);
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

    /// Lends host registers to the guest's registers that an iteration uses and that live in memory, first to those
    /// that addresses move with, which need one.
    fn lend(
        iteration: &[(Instruction, Class)],
        groups: &[Group],
        free: &mut Vec<Reg>,
    ) -> Option<Vec<(usize, Reg)>> {
        let mut lent: Vec<(usize, Reg)> = Vec::new();
        let mut wanted: Vec<(usize, bool)> = groups
            .iter()
            .filter_map(|group| Some((number(group.moving?.0), true)))
            .collect();
        for (insn, class) in iteration {
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

    /// An instruction of an iteration on host operands.
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
        let access = self.scratch.operands(index, &op);
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
            let displacement = i32::try_from(own_offset(insn).wrapping_sub(group.low)).ok()?;
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
        self.key == key_of(insn)
    }

    pub(in crate::translate) fn size(&self) -> usize {
        (self.high - self.low) as usize
    }

    /// Whether the iterations of this group can be counted and its lines marked.
    fn is_possible(&self) -> bool {
        let stride = if self.writes { STORE_STRIDE } else { STRIDE };
        let absolute = self.key.0 == Register::None && self.key.1 == Register::None;
        self.high - self.low <= REACH
            && self.step.unsigned_abs() <= stride as u64
            && (self.aligned.is_none() || self.step % ALIGNMENT == 0)
            && (absolute || i32::try_from(self.low).is_ok())
    }
}
