//! What reaches one vCPU from outside while it runs alone: the inputs of its expansion, and the pages that others get.

use super::expansion::{ExpansionReader, Part};
use super::machine::Machine;
use crate::cpu::save::{self, RestoreError};
use crate::memory::pages::{HandOffKind, DEVICE};
use crate::memory::PAGE_SHIFT;
use crate::runtime::inputs::Inputs;
use crate::trace::{Access, TraceError, NO_VCPU};

/// The outside of a vCPU, interval by interval: an interval goes from one set of digests to the next.
pub(super) struct Foreign {
    vcpu: usize,
    expansion: ExpansionReader,
    /// Chunks of the expansion that are still to come, last first.
    parts: Vec<usize>,
    part: Part,
    /// The next change of the vCPU's state in this part.
    next_sync: usize,
    /// Points so far at which its state could have been changed from outside.
    syncs: u64,
    /// Hand-offs to others since its last slice.
    handed: Vec<Handed>,
}

/// A page that another agent got.
struct Handed {
    icount: u64,
    page: u64,
    to: u8,
    kind: HandOffKind,
}

impl Foreign {
    /// From power-on on.
    ///
    /// # Errors
    /// When the expansion is damaged.
    pub fn new(
        vcpu: usize,
        expansion: ExpansionReader,
        machine: &mut Machine,
    ) -> Result<Self, TraceError> {
        let mut parts = expansion.parts(vcpu as u8);
        parts.reverse();
        let mut foreign = Self {
            vcpu,
            expansion,
            parts,
            part: Part::default(),
            next_sync: 0,
            syncs: 0,
            handed: Vec::new(),
        };
        foreign.load(machine)?;
        Ok(foreign)
    }

    /// Gives the machine the inputs of the next interval.
    ///
    /// # Errors
    /// When the expansion is damaged.
    pub fn load(&mut self, machine: &mut Machine) -> Result<(), TraceError> {
        let pages = machine.engine.memory.ram.pages();
        let mut part = match self.parts.pop() {
            Some(n) => self.expansion.part(n, pages)?,
            None => Part::default(),
        };
        let inputs = std::mem::take(&mut part.inputs);
        let inputs = Inputs::Replayed(Box::new(inputs));
        machine.engine.set_inputs(inputs);
        self.part = part;
        self.next_sync = 0;
        Ok(())
    }

    /// Whether the vCPU has taken all inputs of the interval.
    pub fn all_taken(machine: &Machine) -> bool {
        match machine.engine.inputs() {
            Inputs::Replayed(inputs) => inputs.is_empty(),
            _ => true,
        }
    }

    /// Notes that an agent got a page.
    pub fn hand_off(&mut self, icount: u64, page: u64, to: u8, access: Access) {
        self.handed.push(Handed {
            icount,
            page,
            to: if to == NO_VCPU { DEVICE } else { to },
            kind: match access {
                Access::Read => HandOffKind::Read,
                Access::Write => HandOffKind::Write,
            },
        });
    }

    /// Takes the pages from the vCPU that others got before an instruction count.
    pub fn hand_over(&mut self, machine: &mut Machine, before: u64) {
        let count = self.handed.iter().take_while(|h| h.icount < before).count();
        for h in self.handed.drain(..count) {
            let engine = &mut machine.engine;
            if let Some(page) = engine.memory.ram.page_index(h.page << PAGE_SHIFT) {
                engine.lose_page(h.to, page, h.kind);
            }
        }
    }

    /// Brings the vCPU's state to what it became from outside.
    ///
    /// # Errors
    /// When what the log says cannot be done to the state.
    pub fn sync(&mut self, machine: &mut Machine) -> Result<(), RestoreError> {
        let index = self.syncs;
        self.syncs += 1;
        let next = self.part.syncs.get(self.next_sync);
        let Some(sync) = next.filter(|sync| sync.index == index) else {
            return Ok(());
        };
        self.next_sync += 1;
        let before = machine.engine.cpu(self.vcpu);
        let (mut bytes, semantics) = (save::save(before), before.semantics);
        for (offset, new) in &sync.changes {
            let at = usize::from(*offset);
            let (expected, found) = (bytes.len(), at + new.len());
            let place = bytes.get_mut(at..found);
            place
                .ok_or(RestoreError::Length { expected, found })?
                .copy_from_slice(new);
        }
        let cpu = save::restore(&bytes, semantics)?;
        if sync.init {
            machine.engine.init_vcpu(self.vcpu);
        }
        *machine.engine.cpu_mut(self.vcpu) = cpu;
        Ok(())
    }

    /// The next moment after `now` at which something reaches the vCPU inside its slice.
    pub fn next_stop(&self, machine: &Machine, now: u64) -> u64 {
        let Inputs::Replayed(inputs) = machine.engine.inputs() else {
            return u64::MAX;
        };
        let delivery = inputs
            .deliveries
            .iter()
            .map(|d| d.icount)
            .find(|&i| i > now);
        let handed = self.handed.first().map(|h| h.icount).filter(|&i| i > now);
        delivery.unwrap_or(u64::MAX).min(handed.unwrap_or(u64::MAX))
    }
}
