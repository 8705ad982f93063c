//! Sessions that record: beginning one, its trace, its input, and its end.

use super::{Names, Recording};
use crate::contents::Contents;
use crate::host_time::{Cadence, HostTime, Stopwatch};
use crate::session::checkpoint::CheckpointError;
use crate::session::checkpointer::write_checkpoint;
use crate::session::conditions::Conditions;
use crate::session::error::SessionError;
use crate::session::machine::Machine;
use crate::session::run::Session;
use crate::session::scheduler::Scheduler;
use crate::trace::{Event, TraceError, TraceWriter};
use std::path::Path;

impl Session<Recording> {
    /// A run of a machine at power-on, without a trace so far.
    pub fn record(machine: Machine, scheduler: Scheduler) -> Self {
        Self::start(
            machine,
            Recording {
                scheduler,
                writer: None,
                cadence: Cadence::default(),
                closed_bytes: 0,
                closed_waiting: HostTime::default(),
                names: Names::default(),
                next_digest: 0,
                checkpoints: None,
                input: Vec::new(),
                suggestions: None,
                began: None,
            },
        )
    }

    /// Starts a trace. That of a branch begins with a checkpoint of the machine as it is now.
    ///
    /// # Errors
    /// When the file cannot be written, or the machine has state that checkpoints do not hold.
    pub fn record_to(
        &mut self,
        path: &Path,
        header: &[u8],
        images: &[(String, Contents)],
    ) -> Result<(), SessionError> {
        let writer = if self.decisions.began.is_none() {
            TraceWriter::create(path, header, images)?
        } else {
            // In this order: pages count as changed if they were not zero at the last digests.
            let digests = self.machine.digests();
            self.machine.allow_checkpoints()?;
            let mut writer = TraceWriter::create_at_checkpoint(path, header, images)?;
            write_checkpoint(&mut self.machine, &mut writer, &digests)?;
            writer
        };
        self.decisions.writer = Some(writer);
        Ok(())
    }

    /// Puts a checkpoint into the trace at the first slice boundary after every so many instructions. In a branch,
    /// after `record_to`; otherwise before.
    ///
    /// # Errors
    /// When the machine has state that checkpoints do not hold.
    pub fn set_checkpoints(&mut self, every: u64) -> Result<(), CheckpointError> {
        if !self.decisions.has_trace() {
            self.machine.allow_checkpoints()?;
        }
        let every = every.max(1);
        let next = self.machine.engine.icount().saturating_add(every);
        self.decisions.checkpoints = Some((every, next));
        Ok(())
    }

    /// The scheduler as it is now: one that would decide from here on as this one will.
    pub fn scheduler(&self) -> Scheduler {
        self.decisions.scheduler.clone()
    }

    /// Bytes in the trace file.
    pub fn trace_bytes(&self) -> u64 {
        let writer = self.decisions.writer.as_ref();
        writer.map_or(self.decisions.closed_bytes, TraceWriter::bytes_written)
    }

    /// Queues bytes for the console; they arrive at the next slice boundary.
    pub fn console_input(&mut self, data: &[u8]) {
        self.decisions.input.extend_from_slice(data);
    }

    /// Why the trace has no side file, if it should have one; see [`TraceWriter::keep`].
    pub fn without_tail(&self) -> Option<&TraceError> {
        self.decisions.writer.as_ref()?.without_tail()
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
    ) -> Result<(), SessionError> {
        while self.inside_slice() {
            self.run(0, &mut Conditions::default())?;
        }
        let watch = Stopwatch::start();
        let stop = Event::Stop {
            vcpu: self.vcpu as u8,
            reason,
            code,
            detail: detail.to_string(),
        };
        let closed = self.close(&stop, footer);
        self.machine.engine.observers.spend_call(watch.read());
        Ok(closed?)
    }

    fn close(&mut self, stop: &Event, footer: &[u8]) -> Result<(), TraceError> {
        let (machine, recording) = (&mut self.machine, &mut self.decisions);
        let icount = if machine.engine.host_fault().is_some() {
            // What the unfinished slice has done is not in the trace.
            machine.engine.slice_start()
        } else {
            let icount = machine.engine.icount();
            if recording.writer.is_some() {
                let digests = recording.names.event(machine.digests());
                recording.push(icount, &digests)?;
            }
            icount
        };
        recording.push(icount, stop)?;
        if let Some(writer) = recording.writer.take() {
            recording.closed_waiting = writer.waited();
            let watch = Stopwatch::start();
            recording.closed_bytes = writer.finish(footer)?;
            recording.closed_waiting += watch.read();
        }
        Ok(())
    }
}
