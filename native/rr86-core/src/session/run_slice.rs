//! Carrying out a slice: the engine runs one vCPU, and comes back for everything that is not its own.

use super::machine::Machine;
use super::slice::{Decision, Ending, Finished, Slice, SliceReport, SliceStop, Slices};
use crate::cpu::state::Activity;
use crate::runtime::dispatch::{RunEnd, Span};
use crate::runtime::stops::StopCause;

/// Instructions that a slice has before PAUSE gives way: vCPUs that wait for each other, or for the
/// time, would otherwise take turns at every PAUSE, with a decision for each.
const SPIN: u64 = 1_000;

/// How far the engine got.
struct Stretch {
    /// Why it came back; `None` where there was nothing to run.
    end: Option<RunEnd>,
    /// It was to go no further than the debugger's stop by instruction count.
    exact: bool,
}

impl Machine {
    /// Starts a slice and runs it to its end or to a stop.
    pub fn run_slice(&mut self, decision: Decision) -> SliceReport {
        let now = self.engine.now();
        let mut slice = Slice {
            vcpu: decision.vcpu,
            start: self.engine.icount(),
            left: decision.budget,
            stop: SliceStop::Quantum,
        };
        self.cut(&mut slice, now);
        self.engine.begin_slice();
        self.slice = Some(slice);
        self.resume()
    }

    /// Shortens a slice so that it ends at the next timer.
    fn cut(&mut self, slice: &mut Slice, now: u64) {
        if self.slices == Slices::Recorded {
            return;
        }
        if let Some(at) = self.board().next_deadline() {
            let until = at.saturating_sub(now).max(1);
            if until < slice.left {
                slice.left = until;
                slice.stop = SliceStop::Deadline;
            }
        }
    }

    /// Goes on with a slice that was stopped inside.
    ///
    /// # Panics
    /// If no slice is under way.
    pub fn resume(&mut self) -> SliceReport {
        let mut slice = self.slice.take().expect("a slice is under way");
        loop {
            let Stretch { end, exact } = self.stretch(&mut slice);
            let failed = end == Some(RunEnd::HostFault);
            if exact && !failed && self.stop_at == Some(self.engine.icount()) {
                // The moment has come, whatever else has; the slice goes on from here.
                self.stop_at = None;
                self.slice = Some(slice);
                // With the slice used up to a block's end, going on would look for interrupts anew.
                let over = slice.left == 0 && self.engine.inside_block(slice.vcpu).is_none();
                self.after_stop = end.filter(|&e| e != RunEnd::Budget || over);
                return SliceReport::Stopped(StopCause::Moment);
            }
            let Some(end) = end else { continue };
            if let Some(report) = self.serve_end(&mut slice, end) {
                return report;
            }
            // Whether the decision had instructions left that the next block did not fit is not recorded. So
            // what comes between two blocks is looked for at every end of a slice: the engine is asked once
            // more, and says that the budget is used up.
            let asked = self.semantics().interrupts_before_slice_ends();
            // A recorded fetch window comes after all that the slice counts.
            if slice.left == 0 && !asked && !self.engine.expects_fetch() {
                return self.finished(&slice, slice.stop);
            }
        }
    }

    /// Runs the slice's vCPU up to the slice's end, to the debugger's stop by instruction count, or to where the
    /// engine needs the machine.
    fn stretch(&mut self, slice: &mut Slice) -> Stretch {
        let before = self.engine.icount();
        let (budget, exact) = match self.stop_at {
            Some(at) if at >= before && at - before <= slice.left => (at - before, true),
            _ => (slice.left, false),
        };
        let (count, end) = match self.after_stop.take() {
            Some(end) => (0, Some(end)),
            None if exact && budget == 0 => (0, None),
            None => {
                let recorded = self.slices == Slices::Recorded;
                let span = Span {
                    budget,
                    exact: exact || recorded,
                    beyond: slice.left.saturating_sub(budget),
                    fitting: !recorded,
                    start: slice.start,
                };
                let others = self.others_can_run(slice.vcpu);
                // In terms of the slice, not of this call.
                let below = (budget + (before - slice.start)) as i64 - SPIN as i64 + 1;
                let yields = !recorded && others;
                self.engine
                    .set_pause_below(slice.vcpu, if yields { below } else { i64::MIN });
                self.engine.open_windows(others);
                let (count, end) = self.engine.run(slice.vcpu, span);
                (count, Some(end))
            }
        };
        slice.left = slice.left.saturating_sub(count);
        Stretch { end, exact }
    }

    /// Does what the engine came back for. A report, if the slice is over or stops here.
    fn serve_end(&mut self, slice: &mut Slice, end: RunEnd) -> Option<SliceReport> {
        match end {
            RunEnd::Budget => return Some(self.finished(slice, slice.stop)),
            RunEnd::Pause => {
                let spun = self.engine.icount() - slice.start >= SPIN;
                let new = self.slices == Slices::New;
                let yields = new && spun && self.others_can_run(slice.vcpu);
                if slice.left == 0 || yields {
                    slice.left = 0;
                    slice.stop = SliceStop::Pause;
                }
            }
            RunEnd::Halt | RunEnd::Signals if !self.serve(true) => {
                self.slice = Some(*slice);
                self.after_stop = Some(end);
                return Some(SliceReport::TimeUp);
            }
            RunEnd::Halt => {
                if let Some(ending) = self.ending {
                    return Some(self.finished(slice, SliceStop::Ended(ending)));
                }
                if !self.wake(slice.vcpu) {
                    return Some(self.finished(slice, SliceStop::Halt));
                }
            }
            RunEnd::Signals => {
                if let Some(ending) = self.ending {
                    return Some(self.finished(slice, SliceStop::Ended(ending)));
                }
                if self.engine.cpu(slice.vcpu).activity != Activity::Active {
                    return Some(self.finished(slice, SliceStop::Halt));
                }
                let now = self.engine.now();
                self.cut(slice, now);
            }
            RunEnd::Stopped(cause) => {
                self.slice = Some(*slice);
                return Some(SliceReport::Stopped(cause));
            }
            RunEnd::HostFault => return Some(SliceReport::Failed),
            RunEnd::TimeUp => {
                self.slice = Some(*slice);
                return Some(SliceReport::TimeUp);
            }
            RunEnd::Window(window) => {
                return Some(self.finished(slice, SliceStop::Window(window)));
            }
            RunEnd::TripleFault => {
                let ending = Ending::TripleFault { vcpu: slice.vcpu };
                self.ending = Some(ending);
                return Some(self.finished(slice, SliceStop::Ended(ending)));
            }
        }
        None
    }

    fn finished(&self, slice: &Slice, stop: SliceStop) -> SliceReport {
        SliceReport::Done(Finished {
            vcpu: slice.vcpu,
            start: slice.start,
            instructions: self.engine.icount() - slice.start,
            stop,
        })
    }
}
