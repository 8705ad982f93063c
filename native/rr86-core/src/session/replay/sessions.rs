//! Sessions that replay: where one begins, snapshots of it and the way back to them, and the checkpoints and expansions that
//! are made on the way.

use super::Replay;
use crate::session::checkpoint::CheckpointError;
use crate::session::checkpointer::Checkpointer;
use crate::session::error::SessionError;
use crate::session::expander::Expander;
use crate::session::machine::Machine;
use crate::session::run::Session;
use crate::session::snapshot::Snapshot;
use crate::trace::event::Kind;
use crate::trace::TraceError;
use crate::trace::{CheckpointInfo, EventStream, TraceReader};
use std::path::Path;

impl Machine {
    /// Brings a machine to a checkpoint of a trace.
    ///
    /// # Errors
    /// [`SessionError`] when the checkpoint is damaged, or of another machine; then this one must not run.
    pub(in crate::session) fn restore_from(
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
        let events = snapshot.events(false)?.ok_or(CheckpointError::Moment)?;
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

    /// Goes back, or forward, to a snapshot of this replay, or of another one of the trace. With `ahead`, blocks to come
    /// are translated before the guest gets to them, which is worth it where the replay goes on for a while.
    ///
    /// # Errors
    /// [`SessionError`] for a snapshot of another machine, after which the session must not be used, when the trace cannot
    /// be read, and for a replay that makes checkpoints or an expansion.
    pub fn rewind(&mut self, snapshot: &Snapshot, ahead: bool) -> Result<(), SessionError> {
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
        let events = snapshot.events(ahead)?.ok_or(CheckpointError::Moment)?;
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
