//! What reaches a vCPU from outside of itself, live, logged or replayed (see `inputs`): the bus, and interrupts.

use super::bus::Bus;
use super::clock::Clock;
use super::inputs::{Delivery, InputDivergence, InputLog, InputRecorder, Inputs};
use crate::cpu::interrupt::Event;
use crate::cpu::state::CpuState;

/// The devices, and where vCPUs' inputs come from.
pub(in crate::runtime) struct Outside {
    bus: Box<dyn Bus>,
    inputs: Inputs,
    /// What a vCPU that runs alone did otherwise than logged, and when.
    diverged: Option<(u64, InputDivergence)>,
}

impl Outside {
    pub fn new(bus: Box<dyn Bus>) -> Self {
        Self {
            bus,
            inputs: Inputs::Live,
            diverged: None,
        }
    }

    pub fn bus(&mut self) -> &mut dyn Bus {
        self.bus.as_mut()
    }

    #[inline]
    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    pub fn set_inputs(&mut self, inputs: Inputs) {
        self.inputs = inputs;
    }

    /// Who logs inputs, if they are logged.
    #[inline]
    pub fn recorder(&mut self) -> Option<&mut InputRecorder> {
        match &mut self.inputs {
            Inputs::Logged(recorder) => Some(recorder),
            _ => None,
        }
    }

    /// The inputs that are replayed, if they are.
    #[inline]
    pub fn replayed(&mut self) -> Option<&mut InputLog> {
        match &mut self.inputs {
            Inputs::Replayed(log) => Some(log),
            _ => None,
        }
    }

    #[inline]
    fn is_replayed(&self) -> bool {
        matches!(self.inputs, Inputs::Replayed(_))
    }

    /// Notes that a vCPU that runs alone does something else than was logged.
    pub fn diverge(&mut self, icount: u64, what: InputDivergence) {
        self.diverged.get_or_insert((icount, what));
    }

    /// What a vCPU that runs alone did otherwise than logged, and when; once.
    pub fn take_divergence(&mut self) -> Option<(u64, InputDivergence)> {
        self.diverged.take()
    }

    // ---- the bus ---------------------------------------------------------------------------------

    fn answer(
        &mut self,
        vcpu: usize,
        clock: &Clock,
        live: impl FnOnce(&mut dyn Bus, u64) -> Option<u64>,
    ) -> Option<u64> {
        match &mut self.inputs {
            Inputs::Live => live(self.bus.as_mut(), clock.now()),
            Inputs::Logged(log) => {
                let answer = live(self.bus.as_mut(), clock.now());
                log.vcpus[vcpu].answers.push_back(answer);
                answer
            }
            Inputs::Replayed(log) => match log.answers.pop_front() {
                Some(answer) => answer,
                None => {
                    self.diverge(clock.icount(), InputDivergence::Answer);
                    Some(0)
                }
            },
        }
    }

    #[inline]
    pub fn io_read(&mut self, vcpu: usize, port: u16, size: usize, clock: &Clock) -> u32 {
        let answer = self.answer(vcpu, clock, |bus, now| {
            Some(bus.io_read(vcpu, port, size, now).into())
        });
        answer.unwrap_or(0) as u32
    }

    #[inline]
    pub fn io_write(&mut self, vcpu: usize, port: u16, size: usize, value: u32, clock: &Clock) {
        if !self.is_replayed() {
            self.bus.io_write(vcpu, port, size, value, clock.now());
        }
    }

    #[inline]
    pub fn mmio_read(&mut self, vcpu: usize, paddr: u64, size: usize, clock: &Clock) -> u64 {
        let answer = self.answer(vcpu, clock, |bus, now| {
            Some(bus.mmio_read(vcpu, paddr, size, now))
        });
        answer.unwrap_or(0)
    }

    #[inline]
    pub fn mmio_write(&mut self, vcpu: usize, paddr: u64, size: usize, value: u64, clock: &Clock) {
        if !self.is_replayed() {
            self.bus.mmio_write(vcpu, paddr, size, value, clock.now());
        }
    }

    /// `None` is #GP.
    pub fn apic_msr_read(&mut self, vcpu: usize, msr: u32, clock: &Clock) -> Option<u64> {
        self.answer(vcpu, clock, |bus, now| bus.apic_msr_read(vcpu, msr, now))
    }

    /// `None` is #GP.
    pub fn apic_msr_write(
        &mut self,
        vcpu: usize,
        msr: u32,
        value: u64,
        clock: &Clock,
    ) -> Option<()> {
        let written = self.answer(vcpu, clock, |bus, now| {
            bus.apic_msr_write(vcpu, msr, value, now).map(|()| 0)
        });
        written.map(|_| ())
    }

    pub fn cr8(&mut self, vcpu: usize, clock: &Clock) -> u8 {
        let answer = self.answer(vcpu, clock, |bus, _| Some(bus.cr8(vcpu).into()));
        answer.unwrap_or(0) as u8
    }

    pub fn set_cr8(&mut self, vcpu: usize, value: u8) {
        if !self.is_replayed() {
            self.bus.set_cr8(vcpu, value);
        }
    }

    // ---- interrupts ------------------------------------------------------------------------------

    /// Something waits for the machine.
    #[inline]
    pub fn has_signals(&self) -> bool {
        !self.is_replayed() && self.bus.has_signals()
    }

    /// A maskable interrupt could be delivered if RFLAGS.IF allowed. Of a replayed one, this is not known before
    /// its moment.
    #[inline]
    pub fn pending_interrupt(&self, vcpu: usize) -> bool {
        !self.is_replayed() && self.bus.pending_interrupt(vcpu)
    }

    /// The vector of the vCPU's own timer, if it has one.
    #[inline]
    pub fn timer_vector(&self, vcpu: usize) -> Option<u8> {
        self.bus.timer_vector(vcpu)
    }

    /// Bytes of console output that wait to be taken.
    #[inline]
    pub fn console_waiting(&self) -> &[u8] {
        self.bus.console_waiting()
    }

    /// The interrupt acknowledge cycle: the vector, or nothing when it went away.
    #[inline]
    pub fn acknowledge_interrupt(&mut self, vcpu: usize) -> Option<u8> {
        self.bus.acknowledge_interrupt(vcpu)
    }

    /// The interrupt or NMI that the log has for this moment.
    #[inline]
    pub fn replayed_delivery(&mut self, cpu: &CpuState, icount: u64) -> Option<Event> {
        let log = self.replayed()?;
        let due = log.deliveries.front()?;
        if due.icount != icount || due.rip != cpu.rip {
            return None;
        }
        let vector = due.vector;
        log.deliveries.pop_front();
        Some(vector.map_or(Event::Nmi, Event::External))
    }

    /// Logs a delivery that is about to be made.
    #[inline]
    pub fn log_delivery(&mut self, cpu: &CpuState, icount: u64, vector: Option<u8>) {
        if let Some(log) = self.recorder() {
            let rip = cpu.rip;
            let delivery = Delivery {
                icount,
                rip,
                vector,
            };
            log.vcpus[usize::from(cpu.id)]
                .deliveries
                .push_back(delivery);
        }
    }
}
