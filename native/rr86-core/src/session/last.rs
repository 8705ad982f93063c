//! Finding the last moment at which a condition holds: the way to go backwards is to run forwards, and to remember.

use super::conditions::Conditions;
use super::decisions::{Decisions, Stop};
use super::error::SessionError;
use super::run::Session;

/// Moments that one call finds at most. To find one takes some microseconds, most of them for nothing else.
const MOST: u32 = 4096;

/// A moment at which conditions held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    pub icount: u64,
    pub time_ns: u64,
    pub vcpu: usize,
    pub rip: u64,
    /// Their places in the list.
    pub met: Vec<usize>,
}

impl<D: Decisions> Session<D> {
    /// Runs until the condition at `end` in the list holds, or about `limit` instructions have retired, and notes in
    /// `last` where others did. Comes back with [`Stop::TimeUp`] after a while, to be called again.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_over(
        &mut self,
        limit: u64,
        end: usize,
        conditions: &mut Conditions,
        last: &mut Option<Hit>,
    ) -> Result<Stop, SessionError> {
        let until = self.decisions.progress(&self.machine).saturating_add(limit);
        for _ in 0..MOST {
            let left = until.saturating_sub(self.decisions.progress(&self.machine));
            let stop = self.run(left, conditions)?;
            match stop {
                Stop::Condition(met) if met != end => {
                    let engine = &self.machine.engine;
                    *last = Some(Hit {
                        icount: engine.icount(),
                        time_ns: engine.now(),
                        vcpu: self.vcpu,
                        rip: engine.cpu(self.vcpu).rip,
                        met: conditions.met().to_vec(),
                    });
                }
                other => return Ok(other),
            }
        }
        Ok(Stop::TimeUp)
    }
}
