//! Replays one vCPU alone: its own slices, with what devices answered it, the interrupts that it got,
//! and what the others had written, at the moments at which it could see that.
//!
//! The others' slices are skipped, so the work is that of one vCPU. The rest of the machine does not
//! exist: RAM is as this vCPU has seen it, and only its own digests are compared.

use std::path::Path;

use super::expansion::{ExpansionReader, Part};
use super::replayer::{Divergence, ReplayError};
use super::stream::EventStream;
use super::TraceReader;
use crate::cpu::save;
use crate::cpu::semantics::Semantics;
use crate::cpu::state::Activity;
use crate::host_time::{Phase, Spent, Stopwatch};
use crate::memory::pages::{HandOffKind, DEVICE};
use crate::memory::PAGE_SHIFT;
use crate::record::{Access, Event, SliceEnd, Stop, TraceError, NO_VCPU};
use crate::runtime::dispatch::{RunEnd, Span};
use crate::runtime::inputs::Inputs;
use crate::schedule::Machine;

/// No run has so many instructions: at a billion a second it would take a century.
const FARTHEST: u64 = 1 << 62;

pub struct Solo {
    pub machine: Machine,
    pub vcpu: usize,
    /// Instructions that this vCPU has retired.
    pub instructions: u64,
    pub slices: u64,
    events: EventStream,
    expansion: ExpansionReader,
    /// Chunks of the expansion that are still to come, last first.
    parts: Vec<usize>,
    part: Part,
    next_sync: usize,
    syncs: u64,
    /// Hand-offs to others since the last slice.
    handed: Vec<Handed>,
    verify: bool,
    finished: bool,
    /// The last call's time was up inside a slice, which is kept here to go on with.
    inside: bool,
    under_way: Option<(u64, Event)>,
}

/// A page that somebody else got.
struct Handed {
    icount: u64,
    page: u64,
    to: u8,
    kind: HandOffKind,
}

impl Solo {
    /// A replay of one vCPU of a trace on `machine`, which is set up as the recorder's was.
    ///
    /// # Errors
    /// When the expansion is missing (`Malformed`) or damaged.
    pub fn new(
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
        machine.cut_at_deadlines = false;
        machine.exact = true;
        machine.engine.inputs = Inputs::Played(Box::default());
        let mut solo = Self {
            machine,
            vcpu,
            instructions: 0,
            slices: 0,
            events: trace.stream(),
            expansion,
            parts,
            part: Part::default(),
            next_sync: 0,
            syncs: 0,
            handed: Vec::new(),
            verify,
            finished: false,
            inside: false,
            under_way: None,
        };
        solo.load()?;
        Ok(solo)
    }

    /// Takes the next interval's inputs from the expansion.
    fn load(&mut self) -> Result<(), TraceError> {
        let pages = self.machine.engine.ram.pages();
        let mut part = match self.parts.pop() {
            Some(n) => self.expansion.part(n, pages)?,
            None => Part::default(),
        };
        let tape = std::mem::take(&mut part.tape);
        self.machine.engine.inputs = Inputs::Played(Box::new(tape));
        self.part = part;
        self.next_sync = 0;
        Ok(())
    }

    fn diverged(&self, component: &str, icount: u64, what: String) -> ReplayError {
        Divergence {
            component: component.to_string(),
            icount,
            vcpu: self.vcpu as u8,
            what,
        }
        .into()
    }

    /// Where a recorded slice ends; no run gets to what only a forged trace can say.
    fn end_of(&self, start: u64, instructions: u64) -> Result<u64, ReplayError> {
        let end = start
            .checked_add(instructions)
            .filter(|&end| end < FARTHEST);
        end.ok_or_else(|| {
            let what = format!("a slice of {instructions} instructions was recorded");
            self.diverged("schedule", start, what)
        })
    }

    fn semantics(&self) -> Semantics {
        self.machine.engine.cpu(self.vcpu).semantics
    }

    fn own(&self) -> String {
        format!("cpu{}", self.vcpu)
    }

    /// Runs to the end of the trace, or until about `limit` of the vCPU's instructions have retired.
    ///
    /// # Errors
    /// When the trace or its expansion is damaged, or the vCPU does something else than recorded.
    pub fn run(&mut self, limit: u64) -> Result<Stop, ReplayError> {
        let watch = Stopwatch::start();
        self.machine.engine.patience.begin();
        let stop = self.drive(limit);
        self.machine.engine.spent.whole += watch.read();
        stop
    }

    /// What the run has cost the host.
    pub fn spent(&self) -> Spent {
        let mut spent = self.machine.engine.spent;
        spent.add(Phase::Trace, self.events.waited());
        spent
    }

    fn drive(&mut self, limit: u64) -> Result<Stop, ReplayError> {
        let end = self.instructions.saturating_add(limit);
        while !self.finished {
            if self.machine.engine.host_fault().is_some() {
                return Ok(Stop::Failed);
            }
            if self.instructions >= end {
                return Ok(Stop::Limit);
            }
            if self.machine.engine.patience.is_over() {
                return Ok(Stop::TimeUp);
            }
            self.machine.engine.patience.step();
            let next = match self.under_way.take() {
                Some(next) => Some(Ok(next)),
                None => self.events.next(),
            };
            match next {
                None => self.finished = true,
                Some(next) => {
                    let (icount, event) = next?;
                    let slice = matches!(event, Event::Slice { .. }).then(|| event.clone());
                    self.follow(icount, event)?;
                    if self.inside {
                        self.under_way = slice.map(|event| (icount, event));
                    }
                }
            }
        }
        Ok(Stop::End)
    }

    fn follow(&mut self, icount: u64, event: Event) -> Result<(), ReplayError> {
        match event {
            Event::Slice {
                vcpu,
                instructions,
                stop,
            } if usize::from(vcpu) == self.vcpu => self.slice(icount, instructions, stop)?,
            Event::Slice { instructions, .. } => {
                let end = self.end_of(icount, instructions)?;
                self.machine.engine.set_icount(end);
                self.hand_over(u64::MAX);
            }
            Event::TimeSkip { to_ns } => {
                let engine = &mut self.machine.engine;
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
                self.sync()?;
                self.check(&list)?;
                self.load()?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Lets others have the pages that they got before an instruction count.
    fn hand_over(&mut self, before: u64) {
        let count = self.handed.iter().take_while(|h| h.icount < before).count();
        for h in self.handed.drain(..count) {
            let engine = &mut self.machine.engine;
            if let Some(page) = engine.ram.page_index(h.page << PAGE_SHIFT) {
                engine.lose_page(h.to, page, h.kind);
            }
        }
    }

    /// Brings the vCPU's state to what it became from outside.
    fn sync(&mut self) -> Result<(), ReplayError> {
        let index = self.syncs;
        self.syncs += 1;
        let Some(sync) = self.part.syncs.get(self.next_sync) else {
            return Ok(());
        };
        if sync.index != index {
            return Ok(());
        }
        self.next_sync += 1;
        let icount = self.machine.engine.icount();
        let mut bytes = save::save(self.machine.engine.cpu(self.vcpu));
        for (offset, new) in &sync.changes {
            let at = usize::from(*offset);
            let Some(place) = bytes.get_mut(at..at + new.len()) else {
                let what = "its state has other parts than the log's".to_string();
                return Err(self.diverged(&self.own(), icount, what));
            };
            place.copy_from_slice(new);
        }
        let semantics = self.semantics();
        let cpu = save::restore(&bytes, semantics)
            .map_err(|error| self.diverged(&self.own(), icount, error.to_string()))?;
        let engine = &mut self.machine.engine;
        if sync.init {
            engine.init_vcpu(self.vcpu);
        }
        *engine.cpu_mut(self.vcpu) = cpu;
        Ok(())
    }

    /// Runs a slice in stretches, each up to the next interrupt or to the next page that a device gets.
    fn slice(&mut self, start: u64, instructions: u64, stop: SliceEnd) -> Result<(), ReplayError> {
        // The instruction that shuts a vCPU down never retires.
        let more = (stop == SliceEnd::Shutdown).into();
        let asked = self.semantics().interrupts_before_slice_ends();
        let halts = matches!(stop, SliceEnd::Halt | SliceEnd::Exit);
        if !std::mem::take(&mut self.inside) {
            // What happened inside this slice can only be a device's.
            self.hand_over(start);
            self.machine.engine.set_icount(start);
            self.machine.engine.begin_slice();
            self.sync()?;
        }
        let end = self.end_of(start, instructions)?;
        let vcpu = self.vcpu;
        loop {
            let now = self.machine.engine.icount();
            self.hand_over(now + 1);
            let next = self.next_stop(now).min(end);
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
            let (count, ended) = self.machine.engine.run(vcpu, span);
            self.machine.engine.observed.clear();
            self.instructions += count;
            if let Some((icount, what)) = self.machine.engine.take_astray() {
                return Err(self.diverged(&self.own(), icount, what));
            }
            let now = self.machine.engine.icount();
            let mut over = true;
            match ended {
                RunEnd::HostFault => return Ok(()),
                RunEnd::TripleFault => break,
                RunEnd::TimeUp => {
                    self.inside = true;
                    return Ok(());
                }
                // An interrupt woke it at once.
                RunEnd::Halt if now < end || asked && !halts => {
                    self.machine.engine.cpu_mut(vcpu).activity = Activity::Active;
                    over = !asked;
                }
                RunEnd::Pause if asked => over = false,
                RunEnd::Budget | RunEnd::Pause | RunEnd::Halt => {}
                other => {
                    let what = format!("it stopped inside a slice: {other:?}");
                    return Err(self.diverged("schedule", now, what));
                }
            }
            if now >= end && over {
                break;
            }
            if count == 0 && budget > 0 && ended == RunEnd::Budget {
                let what = format!("it ran nothing of a slice that goes on to {end}");
                return Err(self.diverged("schedule", now, what));
            }
        }
        let now = self.machine.engine.icount();
        if now != end {
            let what = format!("its slice ended at {now}, recorded {end}");
            return Err(self.diverged("schedule", now, what));
        }
        self.hand_over(u64::MAX);
        self.slices += 1;
        Ok(())
    }

    /// The next moment after `now` at which something reaches the vCPU inside its slice.
    fn next_stop(&self, now: u64) -> u64 {
        let Inputs::Played(tape) = &self.machine.engine.inputs else {
            return u64::MAX;
        };
        let delivery = tape.deliveries.iter().map(|d| d.icount).find(|&i| i > now);
        let handed = self.handed.first().map(|h| h.icount).filter(|&i| i > now);
        delivery.unwrap_or(u64::MAX).min(handed.unwrap_or(u64::MAX))
    }

    fn check(&mut self, list: &[(std::sync::Arc<str>, u64)]) -> Result<(), ReplayError> {
        let icount = self.machine.engine.icount();
        let unused = match &self.machine.engine.inputs {
            Inputs::Played(tape) => !tape.is_empty(),
            _ => false,
        };
        if unused {
            let what = "it has not taken all of its inputs".to_string();
            return Err(self.diverged(&self.own(), icount, what));
        }
        if !self.verify {
            return Ok(());
        }
        let name = self.own();
        let value = xxhash_rust::xxh3::xxh3_64(&save::save(self.machine.engine.cpu(self.vcpu)));
        match list.iter().find(|(n, _)| **n == *name) {
            Some((_, recorded)) if *recorded == value => Ok(()),
            Some((_, recorded)) => {
                let what = format!("digest {value:016x}, recorded {recorded:016x}");
                Err(self.diverged(&name, icount, what))
            }
            None => Err(self.diverged(&name, icount, "no digest was recorded".to_string())),
        }
    }
}
