//! Interrupts and exceptions between two blocks: what is due, in which order, and how it is delivered.

use crate::cpu::exception::Exception;
use crate::cpu::interrupt::{self, Event};
use crate::cpu::state::{Activity, RFlags};
use crate::runtime::cache::NO_BLOCK;
use crate::runtime::dispatch::RunEnd;
use crate::runtime::engine::Engine;
use crate::runtime::flags::sync_flags;
use crate::runtime::stops::StopCause;
use crate::runtime::vcpu::Vcpu;
use crate::runtime::view::View;

impl Engine {
    /// Delivers an NMI or interrupt that is due.
    pub(in crate::runtime) fn interrupts(&mut self, v: &mut Vcpu) -> Option<RunEnd> {
        if v.cpu.shadow != 0 {
            return None;
        }
        let index = usize::from(v.cpu.id);
        // One at a time: after a stop right here, too, its handler's first block comes next.
        let now = self.icount();
        if self.progress[index].was_interrupted_at(now) {
            return None;
        }
        if let Some(event) = self.outside.replayed_delivery(&v.cpu, now) {
            self.progress[index].note_interrupt(now);
            return self.deliver(v, event);
        }
        if v.cpu.nmi_pending != 0 && v.cpu.nmi_blocked == 0 {
            v.cpu.nmi_pending = 0;
            self.outside.log_delivery(&v.cpu, now, None);
            self.progress[index].note_interrupt(now);
            return self.deliver(v, Event::Nmi);
        }
        if v.cpu.rflags & RFlags::IF.bits() == 0 || !self.outside.pending_interrupt(index) {
            return None;
        }
        let number = self.outside.acknowledge_interrupt(index)?;
        self.observers.stats.interrupts += 1;
        self.outside.log_delivery(&v.cpu, now, Some(number));
        self.progress[index].note_interrupt(now);
        let end = self.deliver(v, Event::External(number));
        if end.is_none() && self.stops.waits_for(number) {
            return Some(RunEnd::Stopped(StopCause::Interrupt { vector: number }));
        }
        end
    }

    /// Whether an interrupt or NMI that could be delivered waits for the block that comes next.
    #[inline]
    pub(in crate::runtime) fn waits_for_interrupt(&self, v: &Vcpu) -> bool {
        let index = usize::from(v.cpu.id);
        let open = v.cpu.rflags & RFlags::IF.bits() != 0;
        self.progress[index].was_interrupted_at(self.icount())
            && v.cpu.semantics.waiting_interrupts_come_next()
            && (open && self.outside.pending_interrupt(index)
                || v.cpu.nmi_pending != 0 && v.cpu.nmi_blocked == 0)
    }

    fn deliver(&mut self, v: &mut Vcpu, event: Event) -> Option<RunEnd> {
        let rip = v.cpu.rip;
        self.progress[usize::from(v.cpu.id)].note_serialised(self.clock.icount());
        self.deliver_at(v, event, rip);
        (v.cpu.activity == Activity::Shutdown).then_some(RunEnd::TripleFault)
    }

    /// Delivers a fault. It counts as an instruction: where each handler faults in its turn, there is nothing
    /// else that time, slices and limits could go by.
    pub(in crate::runtime) fn deliver_fault(&mut self, v: &mut Vcpu, exception: Exception) {
        self.slice.note_fault();
        let counts = v.cpu.semantics.faults_count();
        if !counts {
            self.slice.note_uncounted_fault(self.icount());
        }
        self.deliver_exception(v, exception);
        if counts && v.cpu.activity != Activity::Shutdown {
            v.run.budget -= 1;
            self.clock.note_boundary(&v.run);
        }
    }

    pub(in crate::runtime) fn deliver_exception(&mut self, v: &mut Vcpu, exception: Exception) {
        self.observers.stats.exceptions += 1;
        let rip = v.cpu.rip;
        self.deliver_at(v, Event::Exception(exception), rip);
    }

    pub(in crate::runtime) fn deliver_at(&mut self, v: &mut Vcpu, event: Event, return_rip: u64) {
        sync_flags(v);
        // The last block is over, and may be gone: what delivery writes hits no block that runs.
        v.run.site_block = NO_BLOCK;
        let user = v.cpu.cpl == 3;
        let (cpu, mut view) = View::of(v, self);
        match interrupt::deliver(cpu, &mut view, event, return_rip) {
            Ok(effects) => {
                self.apply(v.cpu.id, effects);
                self.note_delivery(&v.cpu, &event, user, return_rip);
            }
            Err(_) => v.cpu.activity = Activity::Shutdown,
        }
        v.run.flags_ax = crate::runtime::flags::flags_to_ax(v.cpu.rflags);
    }

    /// The guest's execution breakpoints (SDM vol. 3B, section 17.3.1.1). True when #DB was delivered.
    pub(in crate::runtime) fn execution_breakpoint(&mut self, v: &mut Vcpu) -> bool {
        if v.cpu.rflags & RFlags::RF.bits() != 0 {
            v.cpu.rflags &= !RFlags::RF.bits();
            return false;
        }
        let linear = self.fetch_address(v);
        let hits: u64 = (0..4)
            .filter(|n| {
                v.cpu.dr[7] >> (2 * n) & 3 != 0
                    && v.cpu.dr[7] >> (16 + 4 * n) & 3 == 0
                    && v.cpu.dr[*n] == linear
            })
            .map(|n| 1 << n)
            .sum();
        if hits == 0 {
            return false;
        }
        self.deliver_fault(v, Exception::db(hits));
        true
    }
}
