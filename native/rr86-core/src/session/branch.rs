//! Going live from a moment of a run: the whole machine there, for any number of runs that begin with it.
//!
//! The moment may lie inside a slice. A branch takes it for the end of that slice: where a debugger stops, all has
//! been done that comes before the next instruction, as at the end of a slice, and a vCPU that stands inside a block
//! goes on there. So what a branch does follows from the machine's state alone, and not from what was left of
//! a slice that it does not know.

use thiserror::Error;

use super::checkpoint::CheckpointError;
use super::decisions::Decisions;
use super::error::SessionError;
use super::machine::{Machine, MachineError};
use super::recording::Recording;
use super::run::Session;
use super::scheduler::Scheduler;
use super::slice::Decision;
use super::suggestions::{Rest, Suggestion, Suggestions};
use crate::memory::image::RamImage;
use crate::runtime::dispatch::RunEnd;
use crate::runtime::protocol::Protocol;
use crate::trace::{TraceError, TraceReader};

/// A moment from which no branch can begin, or a change that cannot be made there.
#[derive(Debug, Error)]
pub enum BranchError {
    #[error("the machine ends at this moment: nothing can follow")]
    Ended,
    #[error(
        "vCPU {0} is inside a block that a store of its own has removed, and runs on in it: a branch can begin where \
         it has left the block, some instructions later"
    )]
    InsideRemoved(usize),
    #[error("the memory of this moment cannot be kept: {0}")]
    Memory(#[from] std::io::Error),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error("this moment is not one of a replay, so there are no recorded slices to follow")]
    NoRecording,
    #[error("a branch is changed before it runs, and before its trace is begun")]
    Begun,
}

/// A whole machine at a moment. Those that begin with it share its memory until they write to it.
pub struct BranchPoint {
    pub icount: u64,
    /// vCPU of the slice under way, or of the last one.
    pub vcpu: usize,
    ram: RamImage,
    state: Vec<u8>,
    /// Of a moment of a replay, where the recording goes on.
    rest: Option<Rest>,
}

impl BranchPoint {
    /// Brings a machine of the same configuration to this moment.
    ///
    /// # Errors
    /// [`CheckpointError`] for a moment of another machine; then this one must not run.
    pub fn restore(&self, machine: &mut Machine) -> Result<(), CheckpointError> {
        machine.show(&self.ram)?;
        machine.restore(&self.state)
    }
}

impl Machine {
    /// What is left of a recorded slice that is under way.
    fn rest_of_slice(&self) -> Option<Suggestion> {
        let slice = self.slice.as_ref().filter(|slice| slice.left > 0)?;
        Some(Suggestion {
            decision: Decision {
                vcpu: slice.vcpu,
                budget: slice.left,
            },
            window: self.engine.expected_window(),
        })
    }
}

impl<D: Decisions> Session<D> {
    /// Keeps the machine as it is now, maybe inside a slice. Nothing about this session changes.
    ///
    /// # Errors
    /// [`BranchError`] where nothing can begin, and for machines with state that checkpoints do not hold.
    pub fn branch_point(&mut self) -> Result<BranchPoint, BranchError> {
        let machine = &mut self.machine;
        if let Some(why) = machine.engine.keeps_more() {
            return Err(CheckpointError::Impossible(why).into());
        }
        let shuts_down = machine.after_stop == Some(RunEnd::TripleFault);
        if machine.ending().is_some() || shuts_down || machine.engine.host_fault().is_some() {
            return Err(BranchError::Ended);
        }
        if let Some(vcpu) = machine.engine.inside_removed() {
            return Err(BranchError::InsideRemoved(vcpu));
        }
        let digests = machine.digests();
        let memory = &machine.engine.memory;
        let ram = RamImage::of(&memory.ram, memory.pages.present().collect())?;
        let state = machine.save(&digests);
        let position = self.decisions.position();
        let rest = position.map(|position| Rest {
            position,
            slice: machine.rest_of_slice(),
        });
        Ok(BranchPoint {
            icount: machine.engine.icount(),
            vcpu: self.vcpu,
            ram,
            state,
            rest,
        })
    }
}

impl Session<Recording> {
    /// A run that begins at a moment of another, on a machine of the same configuration, and without a trace so far.
    ///
    /// # Errors
    /// [`SessionError`] for a moment of another machine.
    pub fn branch(
        mut machine: Machine,
        point: &BranchPoint,
        scheduler: Scheduler,
    ) -> Result<Self, SessionError> {
        point.restore(&mut machine)?;
        let mut session = Self::record(machine, scheduler);
        session.vcpu = point.vcpu;
        session.decisions.began = Some(point.icount);
        Ok(session)
    }

    /// Has a branch do what the recording did from its moment on, as far as that fits. Where it does not, and after
    /// the recording's end, its own scheduler decides.
    ///
    /// # Errors
    /// [`BranchError`] when the branch has begun, its moment is not one of a replay, or the trace cannot be read.
    pub fn follow(&mut self, point: &BranchPoint, trace: &TraceReader) -> Result<(), BranchError> {
        self.before_it_begins()?;
        let rest = point.rest.ok_or(BranchError::NoRecording)?;
        self.decisions.suggestions = Some(Suggestions::new(trace, rest)?);
        Ok(())
    }

    /// Whether it began at a moment of another run, and not at power-on.
    pub fn is_branch(&self) -> bool {
        self.decisions.began.is_some()
    }

    /// The machine of a branch that has not begun yet, to be changed.
    fn before_it_begins(&mut self) -> Result<&mut Machine, BranchError> {
        let here = Some(self.machine.engine.icount());
        let untouched = self.slices == 0 && !self.inside_slice() && self.decisions.began == here;
        if untouched && !self.decisions.has_trace() {
            Ok(&mut self.machine)
        } else {
            Err(BranchError::Begun)
        }
    }

    /// Writes to RAM before the first instruction of a branch, as a device's DMA would.
    ///
    /// # Errors
    /// [`BranchError`] when part of the range is not RAM, or the branch has begun.
    pub fn change_memory(&mut self, paddr: u64, data: &[u8]) -> Result<(), BranchError> {
        let machine = self.before_it_begins()?;
        machine.load(paddr, data)?;
        // It belongs to the state that the branch begins with, and to no slice.
        machine.engine.observers.forget_events();
        Ok(())
    }

    /// Has a branch follow another block protocol. The cache of blocks is emptied: which pages are guarded and on
    /// which of them a block is listed is the old protocol's, and a block that is stale under the new one shall be the
    /// new one's fault.
    ///
    /// # Errors
    /// [`BranchError`] when the branch has begun.
    pub fn change_protocol(&mut self, protocol: Protocol) -> Result<(), BranchError> {
        let machine = self.before_it_begins()?;
        machine.engine.change_protocol(protocol);
        machine.engine.observers.forget_events();
        Ok(())
    }
}
