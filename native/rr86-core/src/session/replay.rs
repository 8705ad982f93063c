//! Replaying: decisions and inputs come from a trace, and what the machine does is compared with what the recorder
//! saw.

use std::path::Path;
use std::sync::Arc;

use super::ahead::translate_ahead;
use super::checkpoint::CheckpointError;
use super::checkpointer::Checkpointer;
use super::decisions::{Decisions, Next, Stop};
use super::error::{Fact, SessionError};
use super::expander::Expander;
use super::machine::Machine;
use super::observe;
use super::run::Session;
use super::slice::{Decision, Finished, Slices, Wait};
use super::snapshot::{Snapshot, SnapshotPages};
use super::verify::Position;
use crate::host_time::HostTime;
use crate::memory::pages::DEVICE;
use crate::runtime::windows::WindowPolicy;
use crate::trace::event::Kind;
use crate::trace::{CheckpointInfo, Event, EventStream, SliceEnd, TraceReader};
use crate::trace::{TraceError, CONSOLE, DEADLOCK, NO_VCPU};

/// How much of the machine's state a replay has found as recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    pub digests: u64,
    pub moments: u64,
}

/// Decisions of a trace, and what else it says of the run.
pub struct Replay {
    events: EventStream,
    verify: bool,
    /// Recorded observations of the slice that is about to run or under way.
    observations: Vec<(u64, Event)>,
    position: Position,
    /// How many instructions the last slice that was read has in the recording.
    instructions: u64,
    /// Digests that were compared and equal, and the moments at which they were.
    pub compared: Compared,
    finished: bool,
    /// Where checkpoints go, if this replay makes them.
    checkpointer: Option<Checkpointer>,
    /// RAM as it was at the last snapshot.
    last_snapshot: Option<SnapshotPages>,
    expander: Option<Box<Expander>>,
}

impl Replay {
    pub(super) fn of(events: EventStream, decisions: u64, verify: bool) -> Self {
        Self {
            events,
            verify,
            observations: Vec::new(),
            position: Position { decisions, vcpu: 0 },
            instructions: 0,
            compared: Compared::default(),
            finished: false,
            checkpointer: None,
            last_snapshot: None,
            expander: None,
        }
    }

    /// What the trace says of the rest of the run.
    pub(super) fn into_events(self) -> EventStream {
        self.events
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
                self.position.vcpu = vcpu;
                self.position.decisions += 1;
                self.instructions = instructions;
                return self.begin_slice(machine, icount, stop).map(Next::Slice);
            }
            Event::TimeSkip { to_ns } => match machine.prepare() {
                Wait::Skipped(to) if to == to_ns => {}
                // The recording ended here, after the last timers had fired.
                Wait::Deadlock | Wait::Ended(_) if to_ns == machine.engine.now() => {}
                other => {
                    let (expected, found) = (Fact::Jump(to_ns), Fact::Wait(other));
                    return Err(self.diverged(machine, "time", expected, found));
                }
            },
            Event::Input { source, bytes } => {
                if source == CONSOLE {
                    machine.console_input(&bytes);
                }
            }
            Event::Digests { list } => {
                if let Some(expander) = &mut self.expander {
                    expander.digests(machine)?;
                }
                self.serve_unrecorded(machine);
                self.check_digests(machine, &list)?;
            }
            Event::Stop { .. } => {}
            other => {
                tell_oracle(machine, icount, &other);
                self.observations.push((icount, other));
            }
        }
        Ok(Next::More)
    }

    /// Whether the slice that was just read can run here.
    fn begin_slice(
        &mut self,
        machine: &mut Machine,
        icount: u64,
        stop: SliceEnd,
    ) -> Result<Decision, SessionError> {
        let window = observe::window(stop);
        machine.engine.set_windows(WindowPolicy::Expect(window));
        let vcpu = usize::from(self.position.vcpu);
        match machine.prepare() {
            Wait::Ready => {}
            other => {
                let (expected, found) = (Fact::Wait(Wait::Ready), Fact::Wait(other));
                return Err(self.diverged(machine, "schedule", expected, found));
            }
        }
        if machine.runnable().get(vcpu) != Some(&true) {
            let can = |runnable| Fact::Runnable { vcpu, runnable };
            return Err(self.diverged(machine, "schedule", can(true), can(false)));
        }
        let now = machine.engine.icount();
        if icount != now {
            let (expected, found) = (Fact::SliceStart(icount), Fact::SliceStart(now));
            return Err(self.diverged(machine, "schedule", expected, found));
        }
        if let Some(expander) = &mut self.expander {
            expander.before_slice(machine, vcpu);
        }
        // The instruction that shuts a vCPU down never retires.
        let more = u64::from(stop == SliceEnd::Shutdown);
        let budget = self.instructions.saturating_add(more);
        Ok(Decision { vcpu, budget })
    }

    /// Before the last digests of an older trace: has timers fire that had in the recording, of which it
    /// does not tell when no vCPU could run any more.
    fn serve_unrecorded(&mut self, machine: &mut Machine) {
        let recorded = machine.semantics().last_timers_are_recorded();
        let next = self.events.upcoming();
        if !recorded && matches!(next, Some(Event::Stop { reason, .. }) if *reason == DEADLOCK) {
            machine.prepare();
        }
    }

    fn diverged(
        &self,
        machine: &Machine,
        component: &str,
        expected: Fact,
        found: Fact,
    ) -> SessionError {
        let icount = machine.engine.icount();
        self.position.diverged(component, icount, expected, found)
    }

    /// Compares what the engine has observed in a slice with what was recorded of it.
    fn check_observations(&mut self, machine: &mut Machine) -> Result<(), SessionError> {
        let recorded = std::mem::take(&mut self.observations);
        if self.verify {
            let observed = &machine.engine.observers.events;
            self.position.check_observations(&recorded, observed)?;
        }
        machine.engine.observers.events.clear();
        Ok(())
    }

    fn check_digests(
        &mut self,
        machine: &mut Machine,
        list: &[(Arc<str>, u64)],
    ) -> Result<(), SessionError> {
        if !self.verify && self.checkpointer.is_none() {
            return Ok(());
        }
        let digests = machine.digests();
        if self.verify {
            let icount = machine.engine.icount();
            for (name, value) in &digests {
                self.position.check_digest(icount, list, name, *value)?;
                self.compared.digests += 1;
            }
            self.compared.moments += 1;
        }
        if let (Some(copy), Some(chunks)) = (&mut self.checkpointer, self.events.between_chunks()) {
            copy.at_digests(machine, chunks, &digests)?;
        }
        Ok(())
    }
}

/// Reads a hand-off to the oracle, if one is asked.
fn tell_oracle(machine: &mut Machine, icount: u64, event: &Event) {
    if let (
        Some(oracle),
        &Event::HandOff {
            page, from, lines, ..
        },
    ) = (machine.engine.oracle_mut(), event)
    {
        let from = if from == NO_VCPU { DEVICE } else { from };
        oracle.read_log(icount, page, from, lines);
    }
}

impl Decisions for Replay {
    fn slices(&self) -> Slices {
        Slices::Recorded
    }

    /// A machine that has ended is not enough: the trace has digests of its end.
    fn over(&self, machine: &Machine) -> Option<Stop> {
        self.finished
            .then(|| machine.ending().map_or(Stop::End, Stop::Ended))
    }

    fn next(&mut self, machine: &mut Machine) -> Result<Next, SessionError> {
        translate_ahead(machine, &mut self.events);
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

    fn done(&mut self, machine: &mut Machine, slice: &Finished) -> Result<(), SessionError> {
        if let Some(expander) = &mut self.expander {
            expander.after_slice(machine, slice.vcpu);
        }
        if slice.instructions != self.instructions {
            let expected = Fact::Instructions(self.instructions);
            let found = Fact::Instructions(slice.instructions);
            return Err(self.diverged(machine, "schedule", expected, found));
        }
        self.check_observations(machine)
    }

    fn position(&self) -> Option<(usize, usize)> {
        Some(self.events.position())
    }

    fn waited(&self) -> HostTime {
        self.events.waited()
    }
}

impl Machine {
    /// Brings a machine to a checkpoint of a trace.
    ///
    /// # Errors
    /// [`SessionError`] when the checkpoint is damaged, or of another machine; then this one must not run.
    pub(super) fn restore_from(
        &mut self,
        reader: &TraceReader,
        checkpoint: &CheckpointInfo,
    ) -> Result<(), SessionError> {
        self.wipe();
        reader.checkpoint_pages(checkpoint, |page, bytes| {
            self.set_page(page, bytes).map_err(SessionError::from)
        })?;
        self.restore(&reader.checkpoint_state(checkpoint)?)?;
        if self.engine.icount() != checkpoint.icount {
            return Err(CheckpointError::Moment.into());
        }
        Ok(())
    }
}

impl Session<Replay> {
    /// A replay of `events` on a machine at power-on, which is set up as the recorder's was.
    pub fn replay(machine: Machine, events: EventStream, verify: bool) -> Self {
        Self::start(machine, Replay::of(events, 0, verify))
    }

    /// A replay from where the trace begins, on a machine at power-on, which is set up as the recorder's was.
    ///
    /// # Errors
    /// [`SessionError`] when the trace begins at a checkpoint, and that is damaged or of another machine.
    pub fn from_beginning(
        machine: Machine,
        reader: &TraceReader,
        verify: bool,
    ) -> Result<Self, SessionError> {
        match reader.beginning()? {
            Some(first) => Self::from_checkpoint(machine, reader, &first, verify),
            None => Ok(Self::replay(machine, reader.stream_for_replay(0), verify)),
        }
    }

    /// A replay that begins at a checkpoint of its trace, on a machine of the same configuration.
    ///
    /// # Errors
    /// [`SessionError`] when the checkpoint is damaged, or of another machine.
    pub fn from_checkpoint(
        mut machine: Machine,
        reader: &TraceReader,
        checkpoint: &CheckpointInfo,
        verify: bool,
    ) -> Result<Self, SessionError> {
        machine.restore_from(reader, checkpoint)?;
        let mut decisions = 0;
        for n in 0..checkpoint.chunk {
            decisions += u64::from(reader.count_of(n, Kind::SLICE)?);
        }
        let events = reader.stream_for_replay(checkpoint.chunk);
        Ok(Self::start(machine, Replay::of(events, decisions, verify)))
    }

    /// A replay that begins at a snapshot, on a machine of the same configuration.
    ///
    /// # Errors
    /// [`SessionError`] for a snapshot of another machine, and when the trace cannot be read.
    pub fn from_snapshot(
        mut machine: Machine,
        snapshot: &Snapshot,
        verify: bool,
    ) -> Result<Self, SessionError> {
        snapshot.restore(&mut machine)?;
        let events = snapshot.events()?.ok_or(CheckpointError::Moment)?;
        let replay = Replay::of(events, snapshot.decisions, verify);
        Ok(Self::start(machine, replay))
    }

    /// Takes a snapshot, for other sessions of the same trace to begin at.
    ///
    /// # Errors
    /// Inside a slice, and for machines with state that checkpoints do not hold.
    pub fn snapshot(&mut self, reader: &TraceReader) -> Result<Snapshot, CheckpointError> {
        if self.inside_slice() {
            let why = "the replay does not stand between two recorded slices";
            return Err(CheckpointError::Impossible(why));
        }
        let replay = &mut self.decisions;
        // Both ask the machine which pages changed since they last did.
        if replay.checkpointer.is_some() {
            let why = "the replay makes checkpoints for a trace";
            return Err(CheckpointError::Impossible(why));
        }
        if replay.last_snapshot.is_none() {
            self.machine.allow_checkpoints()?;
        }
        let last = replay.last_snapshot.get_or_insert_default();
        let machine = &mut self.machine;
        Ok(Snapshot::of(
            machine,
            last,
            reader,
            &replay.events,
            replay.position.decisions,
        ))
    }

    /// Goes back, or forward, to a snapshot of this replay, or of another one of the trace.
    ///
    /// # Errors
    /// [`SessionError`] for a snapshot of another machine, after which the session must not be used, when the trace cannot
    /// be read, and for a replay that makes checkpoints or an expansion.
    pub fn rewind(&mut self, snapshot: &Snapshot) -> Result<(), SessionError> {
        let replay = &mut self.decisions;
        if replay.checkpointer.is_some() || replay.expander.is_some() {
            let why = "the replay makes something that needs all of it";
            return Err(CheckpointError::Impossible(why).into());
        }
        if replay.last_snapshot.is_none() {
            self.machine.allow_checkpoints()?;
        }
        let mut kept = replay.last_snapshot.take().unwrap_or_default();
        self.machine.engine.end_ahead();
        self.machine.engine.dismiss_oracle();
        snapshot.rewind(&mut self.machine, &mut kept)?;
        let events = snapshot.events()?.ok_or(CheckpointError::Moment)?;
        let mut replay = Replay::of(events, snapshot.decisions, replay.verify);
        replay.compared = self.decisions.compared;
        replay.last_snapshot = Some(kept);
        self.decisions = replay;
        self.stand_between_slices();
        Ok(())
    }

    /// Makes checkpoints from now on. The replay stands where the trace begins.
    ///
    /// # Errors
    /// When the machine has state that checkpoints do not hold.
    pub fn make_checkpoints(&mut self, checkpointer: Checkpointer) -> Result<(), CheckpointError> {
        self.machine.allow_checkpoints()?;
        if checkpointer.begins_with_pages() {
            self.machine.take_changed_pages();
        }
        self.decisions.checkpointer = Some(checkpointer);
        Ok(())
    }

    /// The checkpoints made so far, to be finished.
    pub fn take_checkpointer(&mut self) -> Option<Checkpointer> {
        self.decisions.checkpointer.take()
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
        let expander = Expander::create(&mut self.machine, trace, path, stores)?;
        self.decisions.expander = Some(Box::new(expander));
        Ok(())
    }

    /// Closes the expansion, after the end of the trace has been reached.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish_expansion(&mut self) -> Result<(), TraceError> {
        match self.decisions.expander.take() {
            Some(expander) => expander.finish(&mut self.machine),
            None => Ok(()),
        }
    }
}
