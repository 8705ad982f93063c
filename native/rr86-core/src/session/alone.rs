//! One vCPU alone: its own slices, with what devices answered it, the interrupts that it got, and what the others had
//! written, at the moments at which it could see that.
//!
//! The others' slices are skipped, so the work is that of one vCPU. The rest of the machine does not
//! exist: RAM is as this vCPU has seen it, and only its own digests are compared.

mod sessions;

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::decisions::{Decisions, Next, Stop};
use super::error::{Fact, SessionError};
use super::foreign::Foreign;
use super::machine::Machine;
use super::slice::{Decision, Finished, SliceReport, SliceStop, Slices};
use super::verify::Position;
use crate::cpu::save;
use crate::cpu::state::Activity;
use crate::host_time::HostTime;
use crate::runtime::dispatch::{RunEnd, Span};
use crate::runtime::inputs::InputDivergence;
use crate::trace::{Event, EventStream, SliceEnd};

/// No run has so many instructions: at a billion a second it would take a century.
const FARTHEST: u64 = 1 << 62;

/// Decisions of a trace for one vCPU, and its inputs from the trace's expansion.
pub struct Alone {
    vcpu: usize,
    /// Instructions that this vCPU has retired.
    instructions: u64,
    position: Position,
    events: EventStream,
    foreign: Foreign,
    /// Its slice that is under way, or was the last.
    slice: Bounds,
    verify: bool,
    finished: bool,
}

/// A recorded slice.
#[derive(Clone, Copy)]
struct Bounds {
    start: u64,
    end: u64,
    stop: SliceEnd,
}

impl Alone {
    fn name(&self) -> String {
        format!("cpu{}", self.vcpu)
    }

    fn diverged(&self, component: &str, icount: u64, expected: Fact, found: Fact) -> SessionError {
        self.position.diverged(component, icount, expected, found)
    }

    /// Where a recorded slice ends; no run gets to what only a forged trace can say.
    fn end_of(&self, start: u64, instructions: u64) -> Result<u64, SessionError> {
        let end = start
            .checked_add(instructions)
            .filter(|&end| end < FARTHEST);
        end.ok_or_else(|| {
            let expected = Fact::Instructions(instructions);
            self.diverged("schedule", start, expected, Fact::Nothing)
        })
    }

    /// Follows one event of the trace.
    fn follow(
        &mut self,
        machine: &mut Machine,
        icount: u64,
        event: Event,
    ) -> Result<Next, SessionError> {
        match event {
            Event::Slice {
                vcpu,
                instructions,
                stop,
            } => {
                self.position.decisions += 1;
                let end = self.end_of(icount, instructions)?;
                if usize::from(vcpu) == self.vcpu {
                    let start = icount;
                    self.slice = Bounds { start, end, stop };
                    return self.begin_slice(machine).map(Next::Slice);
                }
                machine.engine.set_icount(end);
                self.foreign.hand_over(machine, u64::MAX);
            }
            Event::TimeSkip { to_ns } => {
                let engine = &mut machine.engine;
                engine.jump_to(to_ns);
            }
            Event::HandOff {
                page, to, access, ..
            } if usize::from(to) != self.vcpu => {
                self.foreign.hand_off(icount, page, to, access);
            }
            Event::Digests { list } => {
                self.sync(machine)?;
                self.check(machine, &list)?;
                self.foreign.load(machine)?;
            }
            _ => {}
        }
        Ok(Next::More)
    }

    fn begin_slice(&mut self, machine: &mut Machine) -> Result<Decision, SessionError> {
        let Bounds { start, end, .. } = self.slice;
        // What happened inside this slice can only be a device's.
        self.foreign.hand_over(machine, start);
        machine.engine.set_icount(start);
        machine.engine.begin_slice();
        self.sync(machine)?;
        Ok(Decision {
            vcpu: self.vcpu,
            budget: end - start,
        })
    }

    fn sync(&mut self, machine: &mut Machine) -> Result<(), SessionError> {
        let synced = self.foreign.sync(machine);
        synced.map_err(|error| {
            let icount = machine.engine.icount();
            self.diverged(&self.name(), icount, Fact::Nothing, Fact::State(error))
        })
    }

    /// The vCPU did something else with its inputs than was logged.
    fn other_input(&self, icount: u64, what: InputDivergence) -> SessionError {
        let (expected, found) = match what {
            InputDivergence::Answer => (Fact::Nothing, Fact::Question),
            InputDivergence::Page { logged, found } => {
                let logged = logged.map_or(Fact::Nothing, |(at, page)| Fact::Acquired(at, page));
                (logged, Fact::Acquired(icount, found))
            }
        };
        self.diverged(&self.name(), icount, expected, found)
    }

    /// Runs a slice in stretches, each up to the next interrupt or to the next page that a device gets.
    fn run_slice(&mut self, machine: &mut Machine) -> Result<SliceReport, SessionError> {
        let Bounds { start, end, stop } = self.slice;
        // The instruction that shuts a vCPU down never retires.
        let more = u64::from(stop == SliceEnd::Shutdown);
        let asked = machine.semantics().interrupts_before_slice_ends();
        let halts = matches!(stop, SliceEnd::Halt | SliceEnd::Exit);
        let vcpu = self.vcpu;
        loop {
            let now = machine.engine.icount();
            self.foreign.hand_over(machine, now + 1);
            let next = self.foreign.next_stop(machine, now).min(end);
            let left = end - now;
            let budget = (next - now) + if next == end { more } else { 0 };
            if budget == 0 && left == 0 && !asked {
                break;
            }
            let span = Span {
                budget,
                exact: true,
                beyond: 0,
                fitting: false,
                start,
            };
            let (count, ended) = machine.engine.run(vcpu, span);
            machine.engine.observers.forget_events();
            self.instructions += count;
            if let Some((icount, what)) = machine.engine.take_divergence() {
                return Err(self.other_input(icount, what));
            }
            let now = machine.engine.icount();
            let mut over = true;
            match ended {
                RunEnd::HostFault => return Ok(SliceReport::Failed),
                RunEnd::TripleFault => break,
                RunEnd::TimeUp => return Ok(SliceReport::TimeUp),
                // An interrupt woke it at once.
                RunEnd::Halt if now < end || asked && !halts => {
                    machine.engine.cpu_mut(vcpu).activity = Activity::Active;
                    over = !asked;
                }
                RunEnd::Pause if asked => over = false,
                RunEnd::Budget | RunEnd::Pause | RunEnd::Halt => {}
                other => {
                    let found = Fact::Stopped(other);
                    return Err(self.diverged("schedule", now, Fact::SliceEnd(end), found));
                }
            }
            if now >= end && over {
                break;
            }
            if count == 0 && budget > 0 && ended == RunEnd::Budget {
                let (expected, found) = (Fact::SliceEnd(end), Fact::SliceEnd(now));
                return Err(self.diverged("schedule", now, expected, found));
            }
        }
        Ok(SliceReport::Done(Finished {
            vcpu,
            start,
            instructions: machine.engine.icount() - start,
            stop: SliceStop::Quantum,
        }))
    }

    /// Whether the vCPU has taken all of its inputs, and is as recorded.
    fn check(&self, machine: &Machine, list: &[(Arc<str>, u64)]) -> Result<(), SessionError> {
        let icount = machine.engine.icount();
        let name = self.name();
        if !Foreign::all_taken(machine) {
            return Err(self.diverged(&name, icount, Fact::Inputs, Fact::Nothing));
        }
        if !self.verify {
            return Ok(());
        }
        let value = xxh3_64(&save::save(machine.engine.cpu(self.vcpu)));
        self.position.check_digest(icount, list, &name, value)
    }
}

impl Decisions for Alone {
    fn slices(&self) -> Slices {
        Slices::Recorded
    }

    fn over(&self, _machine: &Machine) -> Option<Stop> {
        self.finished.then_some(Stop::End)
    }

    fn next(&mut self, machine: &mut Machine) -> Result<Next, SessionError> {
        match self.events.next() {
            Some(next) => {
                let (icount, event) = next?;
                self.follow(machine, icount, event)
            }
            None => {
                self.finished = true;
                Ok(Next::More)
            }
        }
    }

    fn begin(
        &mut self,
        machine: &mut Machine,
        _decision: Decision,
    ) -> Result<SliceReport, SessionError> {
        self.run_slice(machine)
    }

    fn resume(&mut self, machine: &mut Machine) -> Result<SliceReport, SessionError> {
        self.run_slice(machine)
    }

    fn done(&mut self, machine: &mut Machine, slice: &Finished) -> Result<(), SessionError> {
        let now = slice.start + slice.instructions;
        if now != self.slice.end {
            let expected = Fact::SliceEnd(self.slice.end);
            return Err(self.diverged("schedule", now, expected, Fact::SliceEnd(now)));
        }
        self.foreign.hand_over(machine, u64::MAX);
        Ok(())
    }

    fn progress(&self, _machine: &Machine) -> u64 {
        self.instructions
    }

    fn waited(&self) -> HostTime {
        self.events.waited()
    }
}
