//! The recorder: a machine, a scheduler that decides, and a trace that keeps what was decided. Without
//! a trace it just runs the machine.

use std::path::Path;
use std::sync::Arc;

use super::event::Event;
use super::observe;
use super::{TraceError, TraceWriter};
use crate::contents::Contents;
use crate::host_time::{Cadence, HostTime, Phase, Spent, Stopwatch};
use crate::runtime::engine::StopCause;
use crate::runtime::windows::WindowPolicy;
use crate::schedule::{CheckpointError, Conditions, Ending, Machine, Scheduler, SliceReport, Wait};

/// Instructions between two sets of digests, and the most that a chunk covers.
pub const DIGEST_INTERVAL: u64 = 100_000_000;
/// `Input.source` of the serial console.
pub const CONSOLE: u8 = 0;

/// Why a run came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The condition with this index holds.
    Condition(usize),
    /// About as many instructions as asked for have run.
    Limit,
    /// The call has lasted long enough, maybe inside a slice; the next one goes on.
    TimeUp,
    /// The machine ended.
    Ended(Ending),
    /// The end of the replayed trace.
    End,
    /// Every vCPU waits, and nothing but input could wake one.
    Deadlock,
    /// Translated code failed on the host; see [`crate::runtime::engine::Engine::host_fault`].
    Failed,
}

/// Names of components, shared by all digest events of a trace.
#[derive(Default)]
pub struct Names(Vec<Arc<str>>);

impl Names {
    /// The digest event of a machine now.
    pub fn event(&mut self, digests: Vec<(String, u64)>) -> Event {
        let list = digests
            .into_iter()
            .map(|(name, value)| {
                let known = self.0.iter().find(|n| ***n == *name).cloned();
                let name = known.unwrap_or_else(|| {
                    let name: Arc<str> = name.into();
                    self.0.push(name.clone());
                    name
                });
                (name, value)
            })
            .collect();
        Event::Digests { list }
    }
}

/// Whether console output that waits to be taken, of which COM1 sent `serial`, has a whole line. Not when the machine has
/// ended: that is what the call comes back with.
pub(crate) fn completed_line(serial: &[u8], machine: &mut Machine) -> bool {
    machine.ending().is_none() && (serial.contains(&b'\n') || machine.board().has_debugcon_line())
}

/// Writes a checkpoint of a machine that stands between two slices, and whose digests these are.
pub(crate) fn write_checkpoint(
    machine: &mut Machine,
    writer: &mut TraceWriter,
    digests: &[(String, u64)],
) -> Result<(), TraceError> {
    let watch = Stopwatch::start();
    let waited = writer.waited();
    let state = machine.save(digests);
    let changed = machine.take_changed_pages();
    let ram = &machine.engine.ram;
    let pages = changed
        .into_iter()
        .map(|(page, zero)| (page, (!zero).then(|| ram.page(page))));
    let written = writer.checkpoint(machine.engine.icount(), &state, pages);
    let waiting = writer.waited().without(waited);
    let own = watch.read().without(waiting);
    machine.engine.spent.add(Phase::Checkpoints, own);
    written
}

pub struct Recorder {
    pub machine: Machine,
    scheduler: Scheduler,
    writer: Option<TraceWriter>,
    /// When the side file gets its next events.
    cadence: Cadence,
    /// Length of the trace once it is closed, and what waiting for that cost.
    closed_bytes: u64,
    closed_waiting: HostTime,
    names: Names,
    next_digest: u64,
    /// Instructions between two checkpoints, and the moment of the next.
    checkpoints: Option<(u64, u64)>,
    input: Vec<u8>,
    console: Vec<u8>,
    /// Whether `run` comes back with [`Stop::Limit`] after the slice in which the guest has completed a
    /// line of console output, so that somebody who reads it need not wait.
    pub by_lines: bool,
    /// vCPU of the last slice.
    pub vcpu: usize,
    pub slices: u64,
}

impl Recorder {
    pub fn new(machine: Machine, scheduler: Scheduler) -> Self {
        Self {
            machine,
            scheduler,
            writer: None,
            cadence: Cadence::default(),
            closed_bytes: 0,
            closed_waiting: HostTime::default(),
            names: Names::default(),
            next_digest: 0,
            checkpoints: None,
            input: Vec::new(),
            console: Vec::new(),
            by_lines: false,
            vcpu: 0,
            slices: 0,
        }
    }

    /// Switches vCPUs in the windows of the block protocol, with a probability of `bias` in 65,536 each.
    pub fn set_window_bias(&mut self, seed: u64, bias: u32) {
        let state = seed ^ 0xa5a5_5a5a_1234_5678;
        self.machine
            .engine
            .set_windows(WindowPolicy::Draw { state, bias });
    }

    /// Starts a trace.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn record_to(
        &mut self,
        path: &Path,
        header: &[u8],
        images: &[(String, Contents)],
    ) -> Result<(), TraceError> {
        self.writer = Some(TraceWriter::create(path, header, images)?);
        Ok(())
    }

    /// Puts a checkpoint into the trace at the first slice boundary after every so many instructions.
    ///
    /// # Errors
    /// When the machine has state that checkpoints do not hold.
    pub fn set_checkpoints(&mut self, every: u64) -> Result<(), CheckpointError> {
        self.machine.allow_checkpoints()?;
        let every = every.max(1);
        let next = self.machine.engine.icount().saturating_add(every);
        self.checkpoints = Some((every, next));
        Ok(())
    }

    /// Bytes in the trace file.
    pub fn trace_bytes(&self) -> u64 {
        self.writer
            .as_ref()
            .map_or(self.closed_bytes, TraceWriter::bytes_written)
    }

    /// What the run has cost the host.
    pub fn spent(&self) -> Spent {
        let mut spent = self.machine.engine.spent;
        let waited = self
            .writer
            .as_ref()
            .map_or(self.closed_waiting, TraceWriter::waited);
        spent.add(Phase::Trace, waited);
        spent
    }

    /// Queues bytes for the console; they arrive at the next slice boundary.
    pub fn console_input(&mut self, data: &[u8]) {
        self.input.extend_from_slice(data);
    }

    /// Console output since the last call.
    pub fn take_console(&mut self) -> Vec<u8> {
        self.console
            .extend(self.machine.board().take_serial_output());
        std::mem::take(&mut self.console)
    }

    fn push(&mut self, icount: u64, event: &Event) -> Result<(), TraceError> {
        match &mut self.writer {
            Some(writer) => writer.push(icount, event),
            None => Ok(()),
        }
    }

    /// Why the trace has no side file, if it should have one; see [`TraceWriter::keep`].
    pub fn without_tail(&self) -> Option<&TraceError> {
        self.writer.as_ref()?.without_tail()
    }

    fn keep(&mut self) -> Result<(), TraceError> {
        match &mut self.writer {
            Some(writer) => writer.keep(),
            None => Ok(()),
        }
    }

    fn push_digests(&mut self) -> Result<(), TraceError> {
        if self.writer.is_none() {
            return Ok(());
        }
        let digests = self.machine.digests();
        let event = self.names.event(digests);
        self.push(self.machine.engine.icount(), &event)
    }

    /// Digests, and a checkpoint if it is time for one. The chunk under way ends.
    fn take_stock(&mut self, icount: u64) -> Result<(), TraceError> {
        let Some(writer) = &mut self.writer else {
            return Ok(());
        };
        self.next_digest = icount + DIGEST_INTERVAL;
        let digests = self.machine.digests();
        writer.push(icount, &self.names.event(digests.clone()))?;
        match self.checkpoints {
            Some((every, next)) if icount >= next => {
                self.checkpoints = Some((every, icount.saturating_add(every)));
                write_checkpoint(&mut self.machine, writer, &digests)
            }
            _ => writer.seal(),
        }
    }

    fn drain(&mut self) -> Result<(), TraceError> {
        let observed = std::mem::take(&mut self.machine.engine.observed);
        if let Some(writer) = &mut self.writer {
            for (icount, o) in &observed {
                writer.push(*icount, &observe::event(o))?;
            }
        }
        // Keep the allocation.
        self.machine.engine.observed = observed;
        self.machine.engine.observed.clear();
        Ok(())
    }

    /// Runs until a condition holds, the machine ends, or about `limit` instructions have retired.
    ///
    /// # Errors
    /// When the trace cannot be written; the machine has stopped at a slice boundary.
    pub fn run(&mut self, limit: u64, conditions: &mut Conditions) -> Result<Stop, TraceError> {
        let watch = Stopwatch::start();
        self.machine.engine.patience.begin();
        conditions.arm(&mut self.machine);
        let stop = self.drive(limit, conditions);
        // Whoever called may take any time before the next call.
        let kept = self.keep();
        self.machine.engine.spent.whole += watch.read();
        kept.and(stop)
    }

    /// Says that what is due has been served although no slice and no jump of time follows, as a jump to
    /// where time is already: the timers that fired last have left their marks on the devices.
    fn note_last_timers(&mut self, icount: u64) -> Result<(), TraceError> {
        let to_ns = self.machine.engine.now();
        self.push(icount, &Event::TimeSkip { to_ns })
    }

    fn drive(&mut self, limit: u64, conditions: &mut Conditions) -> Result<Stop, TraceError> {
        let end = self.machine.engine.icount().saturating_add(limit);
        loop {
            if self.machine.engine.host_fault().is_some() {
                return Ok(Stop::Failed);
            }
            if self.cadence.due() {
                self.keep()?;
            }
            let report = if self.machine.inside_slice() {
                self.machine.resume()
            } else {
                if let Some(ending) = self.machine.ending() {
                    return Ok(Stop::Ended(ending));
                }
                let icount = self.machine.engine.icount();
                if icount >= end {
                    return Ok(Stop::Limit);
                }
                if self.machine.engine.patience.is_over() {
                    return Ok(Stop::TimeUp);
                }
                self.machine.engine.patience.step();
                let due = self.checkpoints.is_some_and(|(_, next)| icount >= next);
                if icount >= self.next_digest || due {
                    self.take_stock(icount)?;
                }
                if !self.input.is_empty() {
                    let bytes = std::mem::take(&mut self.input);
                    self.machine.console_input(&bytes);
                    self.push(
                        icount,
                        &Event::Input {
                            source: CONSOLE,
                            bytes,
                        },
                    )?;
                }
                let told = self.machine.semantics().last_timers_are_recorded();
                let due = told && self.machine.is_due();
                match self.machine.prepare() {
                    Wait::Ready => {}
                    Wait::Skipped(to_ns) => {
                        self.push(icount, &Event::TimeSkip { to_ns })?;
                        continue;
                    }
                    end @ (Wait::Deadlock | Wait::Ended(_)) => {
                        if due {
                            self.note_last_timers(icount)?;
                        }
                        return Ok(match end {
                            Wait::Ended(ending) => Stop::Ended(ending),
                            _ => Stop::Deadlock,
                        });
                    }
                }
                let decision = self.scheduler.next(&self.machine.runnable());
                self.vcpu = decision.vcpu;
                self.machine.run_slice(decision)
            };
            match report {
                SliceReport::Done {
                    vcpu,
                    start,
                    instructions,
                    stop,
                } => {
                    self.drain()?;
                    self.slices += 1;
                    self.scheduler.note(stop);
                    let stop = observe::slice_end(stop);
                    self.push(
                        start,
                        &Event::Slice {
                            vcpu: vcpu as u8,
                            instructions,
                            stop,
                        },
                    )?;
                    let output = self.machine.board().take_serial_output();
                    self.console.extend_from_slice(&output);
                    if let Some(index) = conditions.console(&output) {
                        return Ok(Stop::Condition(index));
                    }
                    if self.by_lines && completed_line(&self.console, &mut self.machine) {
                        return Ok(Stop::Limit);
                    }
                }
                SliceReport::Failed => {
                    // The trace ends with the slice before: what this one did cannot be decided upon again.
                    self.machine.engine.observed.clear();
                    return Ok(Stop::Failed);
                }
                SliceReport::Stopped(StopCause::Output) => {
                    let output = self.machine.board().take_serial_output();
                    self.console.extend_from_slice(&output);
                    if let Some(index) = conditions.console(&output) {
                        return Ok(Stop::Condition(index));
                    }
                }
                SliceReport::TimeUp => return Ok(Stop::TimeUp),
                SliceReport::Stopped(cause) => {
                    if let Some(index) = conditions.index_of(&self.machine, self.vcpu, cause) {
                        return Ok(Stop::Condition(index));
                    }
                }
            }
        }
    }

    /// Closes the trace: the final digests, the reason, the footer. A slice that a condition stopped runs to
    /// its end first, so that the recorded slices are those that were decided on, and a replay can reach
    /// the condition's moment and stop there too.
    ///
    /// # Errors
    /// When the trace cannot be written.
    pub fn finish(
        &mut self,
        reason: u8,
        code: u32,
        detail: &str,
        footer: &[u8],
    ) -> Result<(), TraceError> {
        while self.machine.inside_slice() {
            self.run(0, &mut Conditions::default())?;
        }
        let watch = Stopwatch::start();
        let closed = self.close(reason, code, detail, footer);
        self.machine.engine.spent.whole += watch.read();
        closed
    }

    fn close(
        &mut self,
        reason: u8,
        code: u32,
        detail: &str,
        footer: &[u8],
    ) -> Result<(), TraceError> {
        let icount = if self.machine.engine.host_fault().is_some() {
            // What the unfinished slice has done is not in the trace.
            self.machine.engine.slice_start
        } else {
            self.push_digests()?;
            self.machine.engine.icount()
        };
        let stop = Event::Stop {
            vcpu: self.vcpu as u8,
            reason,
            code,
            detail: detail.to_string(),
        };
        self.push(icount, &stop)?;
        if let Some(writer) = self.writer.take() {
            self.closed_waiting = writer.waited();
            let watch = Stopwatch::start();
            self.closed_bytes = writer.finish(footer)?;
            self.closed_waiting += watch.read();
        }
        Ok(())
    }
}
