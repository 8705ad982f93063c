//! The slice that is running: its budget, and why it is to come back to the dispatcher.

use crate::cpu::interrupt::Event;
use crate::host_time::CallLimit;
use crate::translate::layout::RunState;

/// Added to a budget to make the next block boundary come back to the dispatcher.
const EXIT_REQUEST: i64 = 1 << 40;

/// How to go on after a helper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// With the instruction at rip.
    Next,
    Pause,
    Halt,
    /// Deliver this, which returns to that address.
    Event(Event, u64),
}

/// State of the running slice, and of the instruction that a helper carries out.
pub struct Slice {
    /// Instruction count at which it began.
    pub start: u64,
    /// The running vCPU.
    pub(in crate::runtime) vcpu: u8,
    /// What the slice has left after the running budget.
    pub(in crate::runtime) beyond: u64,
    /// The part of it that this run may still use.
    pub(in crate::runtime) reserve: u64,
    /// Instructions by which the budget was raised for the block that runs.
    pub(in crate::runtime) lent: i64,
    /// What an exit request has taken from the budget for the time being; 0 if there is none.
    pub(in crate::runtime) exit_request: i64,
    /// The request follows from the machine's state, and not only from the host's time.
    pub(in crate::runtime) exit_due: bool,
    /// When a run comes back to its caller.
    pub call_limit: CallLimit,
    /// The last run ended because its time was up, and nothing has happened since.
    pub(in crate::runtime) time_up: bool,
    /// A fault was delivered since code was last entered.
    pub(in crate::runtime) faulted: bool,
    /// Moment of the last fault that did not count as an instruction.
    pub(in crate::runtime) faulted_at: Option<u64>,
    /// What a helper that ends its block wants next.
    pub(in crate::runtime) flow: Flow,
    /// A helper's store hit the running block or a watchpoint, or is in a window.
    pub(in crate::runtime) helper_stop: bool,
    /// What is left of the budget after the running iteration of a string instruction, whose store is the
    /// last thing that it does: the vCPU may be switched out in a window of that store.
    pub(in crate::runtime) string_left: Option<i64>,
    /// The last access was kept off the fast path only because its page is watched.
    pub(in crate::runtime) plain: bool,
}

impl Default for Slice {
    fn default() -> Self {
        Self {
            start: 0,
            vcpu: 0,
            beyond: 0,
            reserve: 0,
            lent: 0,
            exit_request: 0,
            exit_due: false,
            call_limit: CallLimit::default(),
            time_up: false,
            faulted: false,
            faulted_at: None,
            flow: Flow::Next,
            helper_stop: false,
            string_left: None,
            plain: false,
        }
    }
}

impl Slice {
    /// Makes the running code come back at the next block boundary, because the machine's state says so.
    #[inline]
    pub(in crate::runtime) fn request_exit(&mut self, run: &mut RunState) {
        self.exit_due = true;
        self.come_back(run);
    }

    /// Makes the code that is going to run come back after a block of so many instructions.
    pub(in crate::runtime) fn request_exit_after(&mut self, run: &mut RunState, instructions: i64) {
        self.exit_due = true;
        let more = run.budget - instructions;
        if more > 0 {
            self.hold_back(run, more);
        }
    }

    /// Makes the running code come back at the next block boundary, because the call has lasted long enough.
    #[inline]
    pub(in crate::runtime) fn come_back(&mut self, run: &mut RunState) {
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
    pub(in crate::runtime) fn plain_budget(&self, run: &RunState) -> i64 {
        run.budget + self.exit_request
    }

    /// Takes an exit request back.
    #[inline]
    pub(in crate::runtime) fn clear_exit_request(&mut self, run: &mut RunState) {
        self.exit_due = false;
        let amount = std::mem::take(&mut self.exit_request);
        run.budget += amount;
        run.icount_base += amount;
    }

    /// Raises the budget, so that the first block of a slice runs.
    #[inline]
    pub(in crate::runtime) fn lend(&mut self, run: &mut RunState, instructions: i64) {
        self.lent += instructions;
        run.budget += instructions;
        run.icount_base += instructions;
    }
}
