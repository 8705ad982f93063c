//! The replayer: a machine that is fed decisions and inputs from a trace, and compared with what the
//! recorder saw.

use crate::runtime::windows::WindowPolicy;
use std::collections::BTreeMap;
use std::path::Path;
use std::thread::available_parallelism;

use thiserror::Error;

use super::checkpointer::Checkpointer;
use super::checkpoints::CheckpointInfo;
use super::expand::Expander;
use super::expansion::ExpansionWriter;
use super::moment::KeptPages;
use super::reader::TraceReader;
use super::stream::EventStream;
use super::survey;
use crate::host_time::{Phase, Spent, Stopwatch};
use crate::memory::pages::DEVICE;
use crate::memory::PAGE_SHIFT;
use crate::record::{
    completed_line, observed_event, window, Event, SliceEnd, Stop, TraceError, CONSOLE, DEADLOCK,
    NO_VCPU,
};
use crate::runtime::engine::StopCause;
use crate::schedule::{CheckpointError, Conditions, Decision, Machine, SliceReport, Wait};

/// Instructions in a slice of a free run that the recording has no suggestion for.
const FREE_SLICE: u64 = 10_000;

/// The replay left the recorded path.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{component} differs at instruction {icount}, vCPU {vcpu}: {what}")]
pub struct Divergence {
    /// "schedule", "time", "ram", "cpu0", "blocks", a device, …
    pub component: String,
    pub icount: u64,
    pub vcpu: u8,
    pub what: String,
}

/// The lines that one agent wrote and another then got, by RAM page index.
fn shared_lines(
    trace: &TraceReader,
    machine: &Machine,
) -> Result<BTreeMap<usize, u64>, TraceError> {
    let ram = &machine.engine.ram;
    let all = survey::shared_lines(trace)?;
    Ok(all
        .into_iter()
        .filter_map(|(page, lines)| Some((ram.page_index(page << PAGE_SHIFT)?, lines)))
        .collect())
}

/// Why a replay cannot go on.
#[derive(Debug, Error)]
pub enum ReplayError {
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error(transparent)]
    Divergence(#[from] Divergence),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// How much of the machine's state a replay has found as recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    pub digests: u64,
    pub moments: u64,
}

/// What a replay goes on with.
enum Next {
    Slice(Decision),
    /// No vCPU will ever run again, or the trace is at its end.
    Nothing,
    /// Later: the call has lasted long enough.
    TimeUp,
}

pub struct Replayer {
    pub machine: Machine,
    pub(super) events: EventStream,
    verify: bool,
    /// Recorded observations of the slice that is about to run or under way.
    expected: Vec<(u64, Event)>,
    /// The slice under way: how many instructions it has in the recording.
    recorded: u64,
    console: Vec<u8>,
    /// As in the recorder: whether `run` comes back when a line of console output is complete.
    pub by_lines: bool,
    /// Digests that were compared and equal, and the moments at which they were.
    pub compared: Compared,
    pub vcpu: usize,
    pub slices: u64,
    finished: bool,
    /// The run has left the recording on purpose: see [`Replayer::set_free`].
    pub(super) free: bool,
    turn: usize,
    /// Where checkpoints go, if this replay makes them.
    pub(super) checkpointer: Option<Checkpointer>,
    /// RAM as it was at the last moment that was kept.
    pub(super) kept: Option<KeptPages>,
    expander: Option<Box<Expander>>,
}

impl Replayer {
    /// A replay of `events` on `machine`, which is set up as the recorder's was.
    pub fn new(mut machine: Machine, events: EventStream, verify: bool) -> Self {
        machine.cut_at_deadlines = false;
        machine.exact = true;
        Self {
            machine,
            events,
            verify,
            expected: Vec::new(),
            recorded: 0,
            console: Vec::new(),
            by_lines: false,
            compared: Compared::default(),
            vcpu: 0,
            slices: 0,
            finished: false,
            free: false,
            turn: 0,
            checkpointer: None,
            kept: None,
            expander: None,
        }
    }

    /// Makes an expansion of the trace on the way. Nothing must have run yet. With `stores`, the last stores
    /// to shared lines are kept too.
    ///
    /// # Errors
    /// When the file cannot be written or the trace cannot be read.
    pub fn expand(
        &mut self,
        trace: &TraceReader,
        path: &Path,
        stores: bool,
    ) -> Result<(), TraceError> {
        let writer = ExpansionWriter::create(path, trace, stores)?;
        let lines = stores
            .then(|| shared_lines(trace, &self.machine))
            .transpose()?;
        let expander = Expander::new(&mut self.machine, writer, lines);
        self.expander = Some(Box::new(expander));
        Ok(())
    }

    /// Closes the expansion, after the end of the trace has been reached.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish_expansion(&mut self) -> Result<(), TraceError> {
        match self.expander.take() {
            Some(expander) => expander.finish(&mut self.machine),
            None => Ok(()),
        }
    }

    /// A replay that begins at a checkpoint of its trace, on a machine of the same configuration.
    ///
    /// # Errors
    /// [`ReplayError`] when the checkpoint is damaged, or of another machine.
    pub fn from_checkpoint(
        mut machine: Machine,
        reader: &TraceReader,
        checkpoint: &CheckpointInfo,
        verify: bool,
    ) -> Result<Self, ReplayError> {
        machine.wipe();
        reader.checkpoint_pages(checkpoint, |page, bytes| {
            machine.set_page(page, bytes).map_err(ReplayError::from)
        })?;
        machine.restore(&reader.checkpoint_state(checkpoint)?)?;
        if machine.engine.icount() != checkpoint.icount {
            return Err(CheckpointError::Moment.into());
        }
        let events = reader.stream_for_replay(checkpoint.chunk);
        Ok(Self::new(machine, events, verify))
    }

    /// Console output since the last call.
    pub fn take_console(&mut self) -> Vec<u8> {
        self.console
            .extend(self.machine.board().take_serial_output());
        std::mem::take(&mut self.console)
    }

    /// Makes checkpoints from now on. The replay stands at power-on.
    ///
    /// # Errors
    /// When the machine has state that checkpoints do not hold.
    pub fn make_checkpoints(&mut self, checkpointer: Checkpointer) -> Result<(), CheckpointError> {
        self.machine.allow_checkpoints()?;
        self.checkpointer = Some(checkpointer);
        Ok(())
    }

    /// The checkpoints made so far, to be finished.
    pub fn take_checkpointer(&mut self) -> Option<Checkpointer> {
        self.checkpointer.take()
    }

    /// Goes on without the recording's authority, after the machine was changed: nothing is compared any
    /// more, and the recorded slices are only suggestions. Where one does not fit, and after the last,
    /// the vCPUs take turns.
    pub fn set_free(&mut self) {
        self.free = true;
        self.machine.engine.dismiss_oracle();
    }

    fn diverged(&self, component: &str, what: String) -> ReplayError {
        Divergence {
            component: component.to_string(),
            icount: self.machine.engine.icount(),
            vcpu: self.vcpu as u8,
            what,
        }
        .into()
    }

    /// Runs until a condition holds, the trace ends, or about `limit` instructions have retired.
    ///
    /// # Errors
    /// [`ReplayError`] when the trace is damaged or the machine does something else than recorded.
    pub fn run(&mut self, limit: u64, conditions: &mut Conditions) -> Result<Stop, ReplayError> {
        let watch = Stopwatch::start();
        self.machine.engine.patience.begin();
        conditions.arm(&mut self.machine);
        let stop = self.drive(limit, conditions);
        self.machine.engine.spent.whole += watch.read();
        stop
    }

    /// What the run has cost the host.
    pub fn spent(&self) -> Spent {
        let mut spent = self.machine.engine.spent;
        spent.add(Phase::Trace, self.events.waited());
        spent
    }

    /// Has the blocks that the trace tells of translated ahead. Not for the oracle, whose code is special; and
    /// not on a single processor, of which the thread would take more from the guest than it gives back.
    fn look_ahead(&mut self) {
        if let Some(guesses) = self.events.take_guesses() {
            let single = available_parallelism().is_ok_and(|n| n.get() == 1);
            if !single && self.machine.engine.oracle_mut().is_none() {
                self.machine.engine.translate_ahead(guesses);
            }
        }
    }

    fn drive(&mut self, limit: u64, conditions: &mut Conditions) -> Result<Stop, ReplayError> {
        self.look_ahead();
        let end = self.machine.engine.icount().saturating_add(limit);
        loop {
            if self.machine.engine.host_fault().is_some() {
                return Ok(Stop::Failed);
            }
            let report = if self.machine.inside_slice() {
                self.machine.resume()
            } else {
                if self.machine.engine.icount() >= end {
                    return Ok(Stop::Limit);
                }
                let next = if self.free {
                    self.suggested_slice()?
                } else {
                    self.next_slice()?
                };
                match next {
                    Next::Slice(decision) => self.machine.run_slice(decision),
                    Next::TimeUp => return Ok(Stop::TimeUp),
                    Next::Nothing => {
                        return Ok(match self.machine.ending() {
                            Some(ending) => Stop::Ended(ending),
                            None => Stop::End,
                        })
                    }
                }
            };
            match report {
                SliceReport::Done {
                    vcpu, instructions, ..
                } => {
                    self.slices += 1;
                    if let Some(expander) = &mut self.expander {
                        expander.after_slice(&self.machine, vcpu);
                    }
                    self.check_slice(vcpu, instructions)?;
                    let output = self.machine.board().take_serial_output();
                    self.console.extend_from_slice(&output);
                    if let Some(index) = conditions.console(&output) {
                        return Ok(Stop::Condition(index));
                    }
                    if self.by_lines && completed_line(&self.console, &mut self.machine) {
                        return Ok(Stop::Limit);
                    }
                }
                SliceReport::Failed => return Ok(Stop::Failed),
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

    /// Follows the trace up to the next slice.
    fn next_slice(&mut self) -> Result<Next, ReplayError> {
        if self.finished {
            return Ok(Next::Nothing);
        }
        loop {
            if self.machine.engine.patience.is_over() {
                return Ok(Next::TimeUp);
            }
            self.machine.engine.patience.step();
            let Some(next) = self.events.next() else {
                self.finished = true;
                return Ok(Next::Nothing);
            };
            let (icount, event) = next?;
            match event {
                Event::Slice {
                    vcpu,
                    instructions,
                    stop,
                } => {
                    let policy = WindowPolicy::Expect(window(stop));
                    self.machine.engine.set_windows(policy);
                    self.vcpu = usize::from(vcpu);
                    match self.machine.prepare() {
                        Wait::Ready => {}
                        other => {
                            let what = format!("the recording ran a slice here, but: {other:?}");
                            return Err(self.diverged("schedule", what));
                        }
                    }
                    if self.machine.runnable().get(self.vcpu) != Some(&true) {
                        let what = format!("vCPU {vcpu} cannot run here");
                        return Err(self.diverged("schedule", what));
                    }
                    if icount != self.machine.engine.icount() {
                        let what = format!("the recorded slice starts at {icount}");
                        return Err(self.diverged("schedule", what));
                    }
                    self.recorded = instructions;
                    if let Some(expander) = &mut self.expander {
                        expander.before_slice(&self.machine, self.vcpu);
                    }
                    return Ok(Next::Slice(Decision {
                        vcpu: self.vcpu,
                        // The instruction that shuts a vCPU down never retires.
                        budget: instructions.saturating_add((stop == SliceEnd::Shutdown).into()),
                    }));
                }
                Event::TimeSkip { to_ns } => match self.machine.prepare() {
                    Wait::Skipped(to) if to == to_ns => {}
                    // The recording ended here, after the last timers had fired.
                    Wait::Deadlock | Wait::Ended(_) if to_ns == self.machine.engine.now() => {}
                    other => {
                        let what = format!("recorded a jump to {to_ns} ns, replayed {other:?}");
                        return Err(self.diverged("time", what));
                    }
                },
                Event::Input {
                    source: CONSOLE,
                    bytes,
                } => self.machine.console_input(&bytes),
                Event::Input { .. } => {}
                Event::Digests { list } => {
                    if let Some(expander) = &mut self.expander {
                        expander.digests(&mut self.machine)?;
                    }
                    self.serve_unrecorded();
                    self.check_digests(&list)?;
                }
                Event::Stop { .. } => {}
                other => {
                    self.tell_oracle(icount, &other);
                    self.expected.push((icount, other));
                }
            }
        }
    }

    /// Before the last digests of an older trace: has timers fire that had in the recording, of which it
    /// does not tell when no vCPU could run any more.
    fn serve_unrecorded(&mut self) {
        let recorded = self.machine.semantics().last_timers_are_recorded();
        let next = self.events.upcoming();
        if !recorded && matches!(next, Some(Event::Stop { reason, .. }) if *reason == DEADLOCK) {
            self.machine.prepare();
        }
    }

    /// Reads a hand-off to the oracle, if one is asked.
    fn tell_oracle(&mut self, icount: u64, event: &Event) {
        if let (
            Some(oracle),
            &Event::HandOff {
                page, from, lines, ..
            },
        ) = (self.machine.engine.oracle_mut(), event)
        {
            let from = if from == NO_VCPU { DEVICE } else { from };
            oracle.read_log(icount, page, from, lines);
        }
    }

    /// A slice of a free run.
    fn suggested_slice(&mut self) -> Result<Next, ReplayError> {
        loop {
            if self.machine.engine.patience.is_over() {
                return Ok(Next::TimeUp);
            }
            self.machine.engine.patience.step();
            match self.machine.prepare() {
                Wait::Ready => break,
                Wait::Skipped(_) => {}
                Wait::Deadlock | Wait::Ended(_) => return Ok(Next::Nothing),
            }
        }
        let runnable = self.machine.runnable();
        for next in self.events.by_ref() {
            match next?.1 {
                Event::Slice {
                    vcpu,
                    instructions,
                    stop,
                } => {
                    if runnable.get(usize::from(vcpu)) != Some(&true) {
                        break;
                    }
                    self.machine
                        .engine
                        .set_windows(WindowPolicy::Expect(window(stop)));
                    self.vcpu = usize::from(vcpu);
                    return Ok(Next::Slice(Decision {
                        vcpu: self.vcpu,
                        budget: instructions,
                    }));
                }
                Event::Input {
                    source: CONSOLE,
                    bytes,
                } => self.machine.console_input(&bytes),
                _ => {}
            }
        }
        self.machine.engine.set_windows(WindowPolicy::Closed);
        let count = runnable.len();
        let next = (1..=count)
            .map(|step| (self.turn + step) % count)
            .find(|&v| runnable[v]);
        Ok(next.map_or(Next::Nothing, |vcpu| {
            self.turn = vcpu;
            self.vcpu = vcpu;
            Next::Slice(Decision {
                vcpu,
                budget: FREE_SLICE,
            })
        }))
    }

    fn check_slice(&mut self, vcpu: usize, instructions: u64) -> Result<(), ReplayError> {
        if self.free {
            self.machine.engine.observed.clear();
            return Ok(());
        }
        if instructions != self.recorded {
            let what = format!(
                "vCPU {vcpu} ran {instructions} instructions where {} were recorded",
                self.recorded
            );
            return Err(self.diverged("schedule", what));
        }
        let observed = std::mem::take(&mut self.machine.engine.observed);
        let expected = std::mem::take(&mut self.expected);
        if self.verify {
            let mut recorded = expected.iter();
            for (icount, o) in &observed {
                let got = (*icount, observed_event(o));
                let want = recorded.next();
                if want != Some(&got) {
                    return Err(self.mismatch(want, Some(&got)));
                }
            }
            if let Some(want) = recorded.next() {
                return Err(self.mismatch(Some(want), None));
            }
        }
        self.machine.engine.observed = observed;
        self.machine.engine.observed.clear();
        Ok(())
    }

    fn mismatch(&self, want: Option<&(u64, Event)>, got: Option<&(u64, Event)>) -> ReplayError {
        let kind = match want.or(got).map(|(_, e)| e) {
            Some(Event::HandOff { .. }) => "pages",
            _ => "blocks",
        };
        let show = |side: Option<&(u64, Event)>| {
            side.map_or("nothing".to_string(), |(at, e)| format!("{e:?} at {at}"))
        };
        let icount = [want, got].into_iter().flatten().map(|(at, _)| *at).min();
        Divergence {
            component: kind.to_string(),
            icount: icount.unwrap_or_else(|| self.machine.engine.icount()),
            vcpu: self.vcpu as u8,
            what: format!("recorded {}, replayed {}", show(want), show(got)),
        }
        .into()
    }

    fn check_digests(&mut self, list: &[(std::sync::Arc<str>, u64)]) -> Result<(), ReplayError> {
        if !self.verify && self.checkpointer.is_none() {
            return Ok(());
        }
        let digests = self.machine.digests();
        for (name, value) in digests.iter().filter(|_| self.verify) {
            match list.iter().find(|(n, _)| **n == **name) {
                Some((_, recorded)) if recorded == value => {}
                Some((_, recorded)) => {
                    let what = format!("digest {value:016x}, recorded {recorded:016x}");
                    return Err(self.diverged(name, what));
                }
                None => return Err(self.diverged(name, "no digest was recorded".to_string())),
            }
            self.compared.digests += 1;
        }
        self.compared.moments += u64::from(self.verify);
        if let (Some(copy), Some(chunks)) = (&mut self.checkpointer, self.events.between_chunks()) {
            copy.at_digests(&mut self.machine, chunks, &digests)?;
        }
        Ok(())
    }
}
