//! What an instruction may use of the machine beside its vCPU's registers. Each family borrows what it needs: memory,
//! ports, the system registers that are not in the vCPU, or the slice that a repeated instruction runs in.

use crate::cpu::cpuid::CpuidTable;
use crate::cpu::effects::Effects;
use crate::cpu::exception::DR6_BS;
use crate::cpu::msr::index::APIC_BASE;
use crate::cpu::state::CpuState;
use crate::runtime::engine::Engine;
use crate::runtime::journal::Noted;
use crate::runtime::vcpu::UNSTEPPED;
use crate::runtime::view::View;
use crate::translate::layout::RunState;

/// The machine around a vCPU whose instruction a helper carries out.
pub(in crate::runtime) struct Machine<'a> {
    engine: &'a mut Engine,
    run: &'a mut RunState,
    debug_hits: &'a mut u64,
    vcpu: usize,
}

impl<'a> Machine<'a> {
    #[inline]
    pub fn new(
        engine: &'a mut Engine,
        vcpu: u8,
        run: &'a mut RunState,
        debug_hits: &'a mut u64,
    ) -> Self {
        Self {
            engine,
            run,
            debug_hits,
            vcpu: usize::from(vcpu),
        }
    }

    /// Linear memory, as the vCPU sees it.
    #[inline]
    pub fn memory(&mut self) -> View<'_> {
        let (vcpu, block) = (self.vcpu as u8, self.run.site_block);
        View::new(self.engine, vcpu, block, self.debug_hits)
    }

    #[inline]
    pub fn ports(&mut self) -> Ports<'_> {
        Ports {
            engine: self.engine,
            vcpu: self.vcpu,
        }
    }

    #[inline]
    pub fn system(&mut self) -> System<'_> {
        System {
            engine: self.engine,
            run: self.run,
            vcpu: self.vcpu,
        }
    }

    #[inline]
    pub fn repetition(&mut self) -> Repetition<'_> {
        Repetition {
            engine: self.engine,
            run: self.run,
            vcpu: self.vcpu as u8,
        }
    }

    /// Applies what the instruction changed to cached state.
    #[inline]
    pub fn apply(&mut self, effects: Effects) {
        self.engine.apply(self.vcpu as u8, effects);
    }

    /// Notes what the instruction does, in the journal.
    #[inline]
    pub fn note(&mut self, noted: impl FnOnce() -> Noted) {
        self.engine.note(self.vcpu as u8, noted);
    }

    /// A breakpoint instruction of so many bytes is executed.
    #[inline]
    pub fn note_int3(&mut self, length: usize) {
        self.engine.note_int3(self.vcpu as u8, length);
    }

    /// The instruction is single-stepped if TF is set behind it, whatever it was before.
    #[inline]
    pub fn step_by_flags_after(&mut self, trap: bool) {
        *self.debug_hits |= UNSTEPPED;
        if trap {
            *self.debug_hits |= DR6_BS;
        }
    }
}

/// I/O ports.
pub(in crate::runtime) struct Ports<'a> {
    engine: &'a mut Engine,
    vcpu: usize,
}

impl Ports<'_> {
    #[inline]
    pub fn read(&mut self, port: u16, size: usize) -> u32 {
        let clock = &self.engine.clock;
        self.engine.outside.io_read(self.vcpu, port, size, clock)
    }

    #[inline]
    pub fn write(&mut self, port: u16, size: usize, value: u32) {
        let clock = &self.engine.clock;
        let waiting = self.engine.outside.console_waiting().len();
        self.engine
            .outside
            .io_write(self.vcpu, port, size, value, clock);
        self.engine.note_output(self.vcpu, waiting);
        if self.engine.stops.output(port) {
            self.engine.instruction.stop();
        }
    }
}

/// System state that is not the vCPU's own: the CPU model, time, the local APIC, translations.
pub(in crate::runtime) struct System<'a> {
    engine: &'a mut Engine,
    run: &'a mut RunState,
    vcpu: usize,
}

impl<'a> System<'a> {
    /// The guest's CPU model.
    #[inline]
    pub fn model(self) -> &'a CpuidTable {
        self.engine.translator.model()
    }

    /// Virtual time in nanoseconds.
    #[inline]
    pub fn now(&self) -> u64 {
        self.engine.now()
    }

    /// Brings what translated code computes the TSC from up to date.
    #[inline]
    pub fn set_tsc_offset(&mut self, cpu: &CpuState) {
        self.engine.set_tsc_offset(cpu, self.run);
    }

    /// Whether the local APIC is enabled.
    #[inline]
    pub fn has_apic(&mut self) -> bool {
        let base = self.read_apic(APIC_BASE);
        base.is_some_and(|base| base >> 11 & 1 != 0)
    }

    /// An MSR of the local APIC; `None` is #GP.
    #[inline]
    pub fn read_apic(&mut self, msr: u32) -> Option<u64> {
        let clock = &self.engine.clock;
        self.engine.outside.apic_msr_read(self.vcpu, msr, clock)
    }

    /// Writes an MSR of the local APIC; `None` is #GP.
    #[inline]
    pub fn write_apic(&mut self, msr: u32, value: u64) -> Option<()> {
        let clock = &self.engine.clock;
        let written = self
            .engine
            .outside
            .apic_msr_write(self.vcpu, msr, value, clock);
        self.engine.note_ipis(self.vcpu);
        written
    }

    #[inline]
    pub fn cr8(&mut self) -> u8 {
        self.engine.outside.cr8(self.vcpu, &self.engine.clock)
    }

    #[inline]
    pub fn set_cr8(&mut self, value: u8) {
        self.engine.outside.set_cr8(self.vcpu, value);
    }

    /// Forgets the translations of the page that holds a linear address.
    #[inline]
    pub fn flush_page(&mut self, linear: u64) {
        let mmu = self.engine.vcpus.mmu_mut(self.vcpu);
        mmu.tlb.flush_page(linear);
        mmu.flush_fetch_page(linear);
    }
}

/// The slice that a repeated instruction runs in.
pub(in crate::runtime) struct Repetition<'a> {
    engine: &'a mut Engine,
    run: &'a mut RunState,
    vcpu: u8,
}

impl Repetition<'_> {
    /// How many iterations the budget allows. The block has paid for one instruction already. That the host's time is
    /// up does not count.
    #[inline]
    pub fn allowed(&self) -> u64 {
        let budget = self.engine.slice.budget_by_state(self.run);
        budget.max(0) as u64 + 1
    }

    /// Retired instructions of all vCPUs.
    #[inline]
    pub fn icount(&self) -> u64 {
        self.engine.icount()
    }

    /// An iteration begins at this moment.
    #[inline]
    pub fn set_icount(&mut self, icount: u64) {
        self.engine.set_icount(icount);
    }

    /// An iteration begins that may be its instruction's last step, with so much of the budget left behind it.
    #[inline]
    pub fn begin_iteration(&mut self, left: i64) {
        self.engine.instruction.begin_iteration(left);
    }

    #[inline]
    pub fn end_iteration(&mut self) {
        self.engine.instruction.end_iteration();
    }

    /// Whether no other iteration may follow now, because of what the last one did.
    #[inline]
    pub fn is_interrupted(&self) -> bool {
        self.engine.instruction.stops() || self.engine.outside.has_signals()
    }

    /// Counts a step that takes long. True when the call is over and coming back does not show.
    #[inline]
    pub fn is_time_up(&mut self, cpu: &CpuState) -> bool {
        self.engine.is_time_up(cpu)
    }

    /// Takes what iterations have cost from the budget.
    #[inline]
    pub fn pay(&mut self, instructions: u64) {
        self.run.budget -= instructions as i64;
    }

    /// The instruction is cut off. Unless the slice is over or the machine is wanted, only a debugger stops here, and
    /// the vCPU goes on inside the block. `early`: the budget allowed more.
    #[inline]
    pub fn cut_off(&mut self, early: bool) {
        let over = self.engine.windows.is_entered() || self.engine.outside.has_signals();
        if !over && (early || self.engine.slice.beyond() > 0) {
            self.engine.resume_repeated(self.vcpu, self.run.site_block);
        }
    }
}
