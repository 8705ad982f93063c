//! Sessions of one vCPU alone: beginning one.

use super::{Alone, Bounds};
use crate::session::error::SessionError;
use crate::session::expansion::ExpansionReader;
use crate::session::foreign::Foreign;
use crate::session::machine::Machine;
use crate::session::run::Session;
use crate::session::verify::Position;
use crate::trace::{SliceEnd, TraceError, TraceReader};
use std::path::Path;

impl Session<Alone> {
    /// A replay of one vCPU of a trace on `machine`, which is set up as the recorder's was.
    ///
    /// # Errors
    /// When the expansion is missing (`Malformed`) or damaged, or the checkpoint at which the trace begins is.
    pub fn alone(
        mut machine: Machine,
        trace: &TraceReader,
        expansion: &Path,
        vcpu: usize,
        verify: bool,
    ) -> Result<Self, SessionError> {
        let expansion = ExpansionReader::open(expansion, trace)?.ok_or(TraceError::Malformed {
            chunk: 0,
            offset: 0,
            why: "there is no whole expansion of this trace",
        })?;
        if let Some(first) = trace.beginning()? {
            machine.restore_from(trace, &first)?;
        }
        let foreign = Foreign::new(vcpu, expansion, &mut machine)?;
        let position = Position {
            decisions: 0,
            vcpu: vcpu as u8,
        };
        let alone = Alone {
            vcpu,
            instructions: 0,
            position,
            events: trace.stream(),
            foreign,
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
