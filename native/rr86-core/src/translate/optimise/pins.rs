//! Which accesses look for their page in a pin (`memory::tlb::Pin`) before they look in the table.
//!
//! The stack has one pin. The others are for blocks that jump to their own start: there, an access whose
//! base or index moves by a constant at each iteration goes through a page from one end to the other, and one that
//! is indexed with a byte goes to a small table. Elsewhere
//! a pin would be the wrong page too often, which costs more than it saves.

use iced_x86::{Code, Mnemonic, OpAccess, OpKind, Register};

use crate::translate::decode::classify::Class;
use crate::translate::layout::{MmuIndex, PINS, PIN_MARGIN};
use crate::translate::lower::emitter::Emitter;
use crate::translate::optimise::runs::constant_change;
use crate::translate::plan::SelfLoop;
use crate::translate::shortcuts::Shortcuts;

impl Emitter<'_> {
    /// Looks whether the block is a loop, and what moves in it.
    pub(in crate::translate) fn find_self_loop(&mut self) {
        let insns = self.request.insns;
        let (last, class) = insns[insns.len() - 1];
        if class != Class::Branch
            || last.near_branch_target() != insns[0].0.ip()
            || !self.request.mode.code64()
            || !self.request.shortcuts.has(Shortcuts::PINS)
        {
            return;
        }
        let mut self_loop = SelfLoop::default();
        for (insn, _) in insns {
            let moved = (insn.op_count() > 0).then(|| insn.op0_register());
            let moved = moved.filter(|&r| constant_change(insn, r).is_some());
            if let Some(register) = moved {
                self_loop.moved.push(register);
            }
            for used in self.scratch.info.info(insn).used_registers() {
                let full = used.register().full_register();
                let written = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead);
                if written && full.is_gpr() && moved != Some(full) {
                    self_loop.changed.push(full);
                }
            }
        }
        self.self_loop = Some(self_loop);
    }

    /// Whether the index of the current instruction was made from a byte just before, as one into a small table.
    fn is_narrow(&self, index: Register) -> bool {
        let insns = &self.request.insns[..self.index];
        let made = insns.iter().rev().map(|(insn, _)| insn).find(|insn| {
            insn.op_count() > 0
                && insn.op0_kind() == OpKind::Register
                && insn.op0_register().full_register() == index
        });
        made.is_some_and(|insn| {
            insn.mnemonic() == Mnemonic::Movzx
                && insn.code() != Code::Movzx_r64_rm16
                && insn.code() != Code::Movzx_r32_rm16
        })
    }

    /// The pin for an access of so many bytes to the address in T0.
    pub(in crate::translate) fn pin_of(&mut self, size: usize) -> Option<usize> {
        let key = self.address_key.take()?;
        let fits = size as u64 <= PIN_MARGIN;
        if !fits
            || self.request.mode.mmu() == MmuIndex::SupervisorAc
            || !self.request.mode.code64()
            || !self.request.shortcuts.has(Shortcuts::PINS)
        {
            return None;
        }
        let (base, index, _) = key;
        if (base, index) == (Register::RSP, Register::None) {
            return Some(0);
        }
        let self_loop = self.self_loop.as_mut()?;
        if let Some(at) = self_loop.keys.iter().position(|known| *known == key) {
            return Some(at + 1);
        }
        let moves = self_loop.moved.contains(&base) || self_loop.moved.contains(&index);
        let changes = self_loop.changed.contains(&base) || self_loop.changed.contains(&index);
        let steady = base != Register::None
            && !self_loop.moved.contains(&base)
            && !self_loop.changed.contains(&base);
        let small = steady && self.is_narrow(index);
        let self_loop = self.self_loop.as_mut()?;
        if !(moves && !changes || small) || self_loop.keys.len() + 1 >= PINS {
            return None;
        }
        self_loop.keys.push(key);
        Some(self_loop.keys.len())
    }
}
