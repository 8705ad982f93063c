//! The slice that is running: its budget, and why it is to come back to the dispatcher.

use crate::cpu::state::CpuState;
use crate::host_time::CallLimit;
use crate::translate::layout::RunState;

/// Added to a budget to make the next block boundary come back to the dispatcher.
const EXIT_REQUEST: i64 = 1 << 40;

/// Instructions that a run is given at a time, so that code that needs nothing from the dispatcher comes back
/// to look at the clock. Most slices are shorter.
const PORTION: u64 = 200_000;

/// State of the running slice.
#[derive(Default)]
pub(in crate::runtime) struct Slice {
    /// Instruction count at which it began.
    start: u64,
    /// The running vCPU.
    vcpu: u8,
    /// What the slice has left after the running budget.
    beyond: u64,
    /// The part of it that this run may still use.
    reserve: u64,
    /// Instructions by which the budget was raised for the block that runs.
    lent: i64,
    /// What an exit request has taken from the budget for the time being; 0 if there is none.
    exit_request: i64,
    /// The request follows from the machine's state, and not only from the host's time.
    exit_due: bool,
    /// When a run comes back to its caller.
    call_limit: CallLimit,
    /// The last run ended because its time was up, and nothing has happened since.
    time_up: bool,
    /// A fault was delivered since code was last entered.
    faulted: bool,
    /// Moment of the last fault that did not count as an instruction.
    faulted_at: Option<u64>,
}

impl Slice {
    /// A slice begins at this instruction count.
    #[inline]
    pub fn begin(&mut self, icount: u64) {
        self.start = icount;
    }

    /// Instruction count at which it began.
    #[inline]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Begins a run of a vCPU, of `budget` instructions and so many of the slice behind them. `divisible`: it may be
    /// given its budget in portions. Tells whether it goes on just where the last run's time was up.
    #[inline]
    pub fn begin_run(
        &mut self,
        (cpu, run): (&CpuState, &mut RunState),
        icount: u64,
        (budget, beyond): (u64, u64),
        divisible: bool,
    ) -> bool {
        let portion = if divisible {
            budget.min(PORTION)
        } else {
            budget
        };
        run.budget = portion as i64;
        run.icount_base = icount as i64 + portion as i64;
        self.reserve = budget - portion;
        self.beyond = beyond + self.reserve;
        run.pause_below = run.pause_below.saturating_sub_unsigned(self.reserve);
        self.lent = 0;
        self.vcpu = cpu.id;
        std::mem::take(&mut self.time_up)
    }

    /// Gives a run more of what its slice allows, if not even a longest block of `block` instructions is sure to fit.
    #[inline]
    pub fn refill(&mut self, run: &mut RunState, block: usize) {
        if self.reserve > 0 && run.budget < block as i64 {
            self.take_portion(run);
        }
    }

    fn take_portion(&mut self, run: &mut RunState) {
        let more = self.reserve.min(PORTION);
        self.reserve -= more;
        self.beyond -= more;
        run.budget += more as i64;
        run.icount_base += more as i64;
        if run.pause_below != i64::MIN {
            run.pause_below += more as i64;
        }
        self.call_limit.look();
    }

    /// The vCPU that runs, or on whose behalf memory is written.
    #[inline]
    pub fn vcpu(&self) -> u8 {
        self.vcpu
    }

    /// Says on whose behalf memory is written.
    #[inline]
    pub fn set_vcpu(&mut self, vcpu: u8) {
        self.vcpu = vcpu;
    }

    /// What the slice has left after the running budget.
    #[inline]
    pub fn beyond(&self) -> u64 {
        self.beyond
    }

    // ---- the end of the call ---------------------------------------------------------------------

    /// When calls come back to their caller.
    #[inline]
    pub fn call_limit(&mut self) -> &mut CallLimit {
        &mut self.call_limit
    }

    /// Whether the call has lasted long enough; if so, the run ends here. If not, a step is counted.
    #[inline]
    pub fn ends_for_time(&mut self) -> bool {
        if self.call_limit.is_over() {
            self.time_up = true;
            return true;
        }
        self.call_limit.step();
        false
    }

    // ---- faults ----------------------------------------------------------------------------------

    /// Code is about to be entered.
    #[inline]
    pub fn begin_code(&mut self) {
        self.faulted = false;
    }

    /// A fault is delivered.
    #[inline]
    pub fn note_fault(&mut self) {
        self.faulted = true;
    }

    /// Whether a fault was delivered since code was last entered.
    #[inline]
    pub fn has_faulted(&self) -> bool {
        self.faulted
    }

    /// A fault is delivered at this moment that does not count as an instruction.
    #[inline]
    pub fn note_uncounted_fault(&mut self, icount: u64) {
        self.faulted_at = Some(icount);
    }

    /// Whether a fault that does not count as an instruction was the last thing that happened.
    #[inline]
    pub fn is_behind_fault(&self, icount: u64) -> bool {
        self.faulted_at == Some(icount)
    }

    /// Whether an instruction has retired in this slice, or a fault that belongs to it.
    #[inline]
    pub fn has_progressed(&self, icount: u64) -> bool {
        icount != self.start && !self.is_behind_fault(icount)
    }

    /// Moment of the last fault that did not count as an instruction, for a checkpoint.
    pub fn uncounted_fault(&self) -> Option<u64> {
        self.faulted_at
    }

    /// Stands between two slices, as a checkpoint has it; calls end as before.
    pub fn restore(&mut self, uncounted_fault: Option<u64>, vcpu: u8) {
        *self = Self {
            faulted_at: uncounted_fault,
            vcpu,
            call_limit: std::mem::take(&mut self.call_limit),
            ..Self::default()
        };
    }

    // ---- the budget ------------------------------------------------------------------------------

    /// Makes the running code come back at the next block boundary, because the machine's state says so.
    #[inline]
    pub fn request_exit(&mut self, run: &mut RunState) {
        self.exit_due = true;
        self.come_back(run);
    }

    /// Makes the code that is going to run come back after a block of so many instructions.
    #[inline]
    pub fn request_exit_after(&mut self, run: &mut RunState, instructions: i64) {
        self.exit_due = true;
        let more = run.budget - instructions;
        if more > 0 {
            self.hold_back(run, more);
        }
    }

    /// Makes the running code come back at the next block boundary, because the call has lasted long enough.
    #[inline]
    pub fn come_back(&mut self, run: &mut RunState) {
        self.hold_back(run, EXIT_REQUEST);
    }

    #[inline]
    fn hold_back(&mut self, run: &mut RunState, amount: i64) {
        if self.exit_request == 0 {
            self.exit_request = amount;
            run.budget -= amount;
            run.icount_base -= amount;
        }
    }

    /// The budget without an exit request.
    #[inline]
    pub fn plain_budget(&self, run: &RunState) -> i64 {
        run.budget + self.exit_request
    }

    /// The budget as far as the machine's state goes: an exit request for the host's time does not count.
    #[inline]
    pub fn budget_by_state(&self, run: &RunState) -> i64 {
        if self.exit_due {
            run.budget
        } else {
            self.plain_budget(run)
        }
    }

    /// Takes an exit request back.
    #[inline]
    pub fn clear_exit_request(&mut self, run: &mut RunState) {
        self.exit_due = false;
        let amount = std::mem::take(&mut self.exit_request);
        run.budget += amount;
        run.icount_base += amount;
    }

    /// Raises the budget, so that the first block of a slice runs.
    #[inline]
    pub fn lend(&mut self, run: &mut RunState, instructions: i64) {
        self.lent += instructions;
        run.budget += instructions;
        run.icount_base += instructions;
    }

    /// Takes back behind a block what the budget was raised by for it. The block may have ended early, and what it
    /// has left over is not the slice's.
    #[inline]
    pub fn take_back(&mut self, cpu: &CpuState, run: &mut RunState) {
        let lent = std::mem::take(&mut self.lent);
        // In version 1, what follows a fault is part of the slice.
        if cpu.semantics.faults_count() {
            run.budget -= lent;
            run.icount_base -= lent;
        }
    }
}
