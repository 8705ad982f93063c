//! One vCPU alone: its own slices, with what devices answered it, the interrupts that it got, and what the others had
//! written, at the moments at which it could see that.
//!
//! The others' slices are skipped, so the work is that of one vCPU. The rest of the machine does not
//! exist: RAM is as this vCPU has seen it, and only its own digests are compared.

use std::path::Path;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::decisions::{Decisions, Next, Stop};
use super::error::{Divergence, Fact, SessionError};
use super::expansion::{ExpansionReader, Part};
use super::machine::Machine;
use super::run::Session;
use super::slice::{Decision, Finished, SliceReport, SliceStop, Slices};
use crate::cpu::save;
use crate::cpu::state::Activity;
use crate::host_time::HostTime;
use crate::memory::pages::{HandOffKind, DEVICE};
use crate::memory::PAGE_SHIFT;
use crate::runtime::dispatch::{RunEnd, Span};
use crate::runtime::inputs::Inputs;
use crate::trace::{Access, Event, EventStream, SliceEnd, TraceError, TraceReader, NO_VCPU};

/// No run has so many instructions: at a billion a second it would take a century.
const FARTHEST: u64 = 1 << 62;

/// Decisions of a trace for one vCPU, and its inputs from the trace's expansion.
pub struct Alone {
    vcpu: usize,
    /// Instructions that this vCPU has retired.
    instructions: u64,
    /// Slices of the trace that have begun, of any vCPU.
    decisions: u64,
    events: EventStream,
    inputs: Recorded,
    /// Hand-offs to others since the last slice.
    handed: Vec<Handed>,
    /// Its slice that is under way, or was the last.
    slice: Bounds,
    verify: bool,
    finished: bool,
}

/// What reached the vCPU from outside, interval by interval.
struct Recorded {
    expansion: ExpansionReader,
    /// Chunks of the expansion that are still to come, last first.
    parts: Vec<usize>,
    part: Part,
    /// The next change of its state in this part.
    next_sync: usize,
    /// Points so far at which its state could have been changed from outside.
    syncs: u64,
}

/// A page that another agent got.
struct Handed {
    icount: u64,
    page: u64,
    to: u8,
    kind: HandOffKind,
}

/// A recorded slice.
#[derive(Clone, Copy)]
struct Bounds {
    start: u64,
    end: u64,
    stop: SliceEnd,
}

impl Recorded {
    /// Takes the next interval's inputs from the expansion.
    fn load(&mut self, machine: &mut Machine) -> Result<(), TraceError> {
        let pages = machine.engine.ram.pages();
        let mut part = match self.parts.pop() {
            Some(n) => self.expansion.part(n, pages)?,
            None => Part::default(),
        };
        let tape = std::mem::take(&mut part.tape);
        machine.engine.inputs = Inputs::Played(Box::new(tape));
        self.part = part;
        self.next_sync = 0;
        Ok(())
    }
}

impl Alone {
    fn name(&self) -> String {
        format!("cpu{}", self.vcpu)
    }

    fn diverged(&self, component: &str, icount: u64, expected: Fact, found: Fact) -> SessionError {
        Box::new(Divergence {
            component: component.to_string(),
            decision: self.decisions,
            icount,
            vcpu: self.vcpu as u8,
            expected,
            found,
        })
        .into()
    }

    /// Something that the log does not have, in words.
    fn astray(&self, component: &str, icount: u64, what: impl Into<String>) -> SessionError {
        self.diverged(component, icount, Fact::Nothing, Fact::Told(what.into()))
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
                self.decisions += 1;
                let end = self.end_of(icount, instructions)?;
                if usize::from(vcpu) == self.vcpu {
                    let start = icount;
                    self.slice = Bounds { start, end, stop };
                    return self.begin_slice(machine).map(Next::Slice);
                }
                machine.engine.set_icount(end);
                self.hand_over(machine, u64::MAX);
            }
            Event::TimeSkip { to_ns } => {
                let engine = &mut machine.engine;
                engine.skipped_ns = to_ns.saturating_sub(engine.icount());
            }
            Event::HandOff {
                page, to, access, ..
            } if usize::from(to) != self.vcpu => self.handed.push(Handed {
                icount,
                page,
                to: if to == NO_VCPU { DEVICE } else { to },
                kind: match access {
                    Access::Read => HandOffKind::Read,
                    Access::Write => HandOffKind::Write,
                },
            }),
            Event::Digests { list } => {
                self.sync(machine)?;
                self.check(machine, &list)?;
                self.inputs.load(machine)?;
            }
            _ => {}
        }
        Ok(Next::More)
    }

    fn begin_slice(&mut self, machine: &mut Machine) -> Result<Decision, SessionError> {
        let Bounds { start, end, .. } = self.slice;
        // What happened inside this slice can only be a device's.
        self.hand_over(machine, start);
        machine.engine.set_icount(start);
        machine.engine.begin_slice();
        self.sync(machine)?;
        Ok(Decision {
            vcpu: self.vcpu,
            budget: end - start,
        })
    }

    /// Lets others have the pages that they got before an instruction count.
    fn hand_over(&mut self, machine: &mut Machine, before: u64) {
        let count = self.handed.iter().take_while(|h| h.icount < before).count();
        for h in self.handed.drain(..count) {
            let engine = &mut machine.engine;
            if let Some(page) = engine.ram.page_index(h.page << PAGE_SHIFT) {
                engine.lose_page(h.to, page, h.kind);
            }
        }
    }

    /// Brings the vCPU's state to what it became from outside.
    fn sync(&mut self, machine: &mut Machine) -> Result<(), SessionError> {
        let icount = machine.engine.icount();
        let index = self.inputs.syncs;
        self.inputs.syncs += 1;
        let next = self.inputs.part.syncs.get(self.inputs.next_sync);
        let Some(sync) = next.filter(|sync| sync.index == index) else {
            return Ok(());
        };
        self.inputs.next_sync += 1;
        let before = machine.engine.cpu(self.vcpu);
        let (mut bytes, semantics) = (save::save(before), before.semantics);
        for (offset, new) in &sync.changes {
            let at = usize::from(*offset);
            let Some(place) = bytes.get_mut(at..at + new.len()) else {
                let what = "a state with other parts than the log's";
                return Err(self.astray(&self.name(), icount, what));
            };
            place.copy_from_slice(new);
        }
        let cpu = save::restore(&bytes, semantics)
            .map_err(|error| self.astray(&self.name(), icount, error.to_string()))?;
        if sync.init {
            machine.engine.init_vcpu(self.vcpu);
        }
        *machine.engine.cpu_mut(self.vcpu) = cpu;
        Ok(())
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
            self.hand_over(machine, now + 1);
            let next = self.next_stop(machine, now).min(end);
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
            machine.engine.observed.clear();
            self.instructions += count;
            if let Some((icount, what)) = machine.engine.take_astray() {
                return Err(self.astray(&self.name(), icount, what));
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
                    let what = format!("a stop inside the slice: {other:?}");
                    return Err(self.astray("schedule", now, what));
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

    /// The next moment after `now` at which something reaches the vCPU inside its slice.
    fn next_stop(&self, machine: &Machine, now: u64) -> u64 {
        let Inputs::Played(tape) = &machine.engine.inputs else {
            return u64::MAX;
        };
        let delivery = tape.deliveries.iter().map(|d| d.icount).find(|&i| i > now);
        let handed = self.handed.first().map(|h| h.icount).filter(|&i| i > now);
        delivery.unwrap_or(u64::MAX).min(handed.unwrap_or(u64::MAX))
    }

    /// Whether the vCPU has taken all of its inputs, and is as recorded.
    fn check(&self, machine: &Machine, list: &[(Arc<str>, u64)]) -> Result<(), SessionError> {
        let icount = machine.engine.icount();
        let name = self.name();
        let unused = match &machine.engine.inputs {
            Inputs::Played(tape) => !tape.is_empty(),
            _ => false,
        };
        if unused {
            let expected = Fact::Told("inputs that it has not taken".to_string());
            return Err(self.diverged(&name, icount, expected, Fact::Nothing));
        }
        if !self.verify {
            return Ok(());
        }
        let value = xxh3_64(&save::save(machine.engine.cpu(self.vcpu)));
        let recorded = list.iter().find(|(n, _)| **n == *name).map(|(_, d)| *d);
        if recorded == Some(value) {
            return Ok(());
        }
        let expected = recorded.map_or(Fact::Nothing, Fact::Digest);
        Err(self.diverged(&name, icount, expected, Fact::Digest(value)))
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
        self.hand_over(machine, u64::MAX);
        Ok(())
    }

    fn progress(&self, _machine: &Machine) -> u64 {
        self.instructions
    }

    fn waited(&self) -> HostTime {
        self.events.waited()
    }
}

impl Session<Alone> {
    /// A replay of one vCPU of a trace on `machine`, which is set up as the recorder's was.
    ///
    /// # Errors
    /// When the expansion is missing (`Malformed`) or damaged.
    pub fn alone(
        mut machine: Machine,
        trace: &TraceReader,
        expansion: &Path,
        vcpu: usize,
        verify: bool,
    ) -> Result<Self, TraceError> {
        let expansion = ExpansionReader::open(expansion, trace)?.ok_or(TraceError::Malformed {
            chunk: 0,
            offset: 0,
            why: "there is no whole expansion of this trace",
        })?;
        let mut parts = expansion.parts(vcpu as u8);
        parts.reverse();
        let mut inputs = Recorded {
            expansion,
            parts,
            part: Part::default(),
            next_sync: 0,
            syncs: 0,
        };
        inputs.load(&mut machine)?;
        let alone = Alone {
            vcpu,
            instructions: 0,
            decisions: 0,
            events: trace.stream(),
            inputs,
            handed: Vec::new(),
            slice: Bounds {
                start: 0,
                end: 0,
                stop: SliceEnd::Quantum,
            },
            verify,
            finished: false,
        };
        let mut session = Self::start(machine, alone);
        session.vcpu = vcpu;
        Ok(session)
    }

    /// Instructions that the vCPU has retired.
    pub fn instructions(&self) -> u64 {
        self.decisions.instructions
    }
}
