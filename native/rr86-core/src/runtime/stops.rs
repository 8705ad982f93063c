//! What the debugger waits for, and where it has stopped the run.

use crate::translate::lower::emitter::Hooks;

/// The debugger's stops.
#[derive(Default)]
pub(in crate::runtime) struct Stops {
    /// Instructions before which to stop.
    hooks: Hooks,
    /// Those of the addresses at which somebody wants to stop; the rest are probes of the journal.
    asked: Vec<u64>,
    /// Physical ranges (address, length) of which a write stops the run.
    watches: Vec<(u64, u64)>,
    /// Physical ranges of which a read stops the run.
    read_watches: Vec<(u64, u64)>,
    /// Interrupt vectors, a bit each.
    vectors: [u64; 4],
    /// An OUT to this port.
    port: Option<u16>,
    /// Before a stale block runs.
    on_stale: bool,
    /// What has stopped the run and is not reported yet.
    stopped: Option<StopCause>,
    /// The ranges that one event wrote: an interrupt's delivery makes several stores, for instance.
    written: Vec<(u64, u64)>,
    /// The watched ranges that the access under way reads.
    reads: Vec<(u64, u64)>,
    /// Moment before whose instruction to stop, when everything that comes between two instructions is done.
    before: Option<u64>,
    /// That at which this was done last.
    passed_before: Option<u64>,
    /// Moment of an access that has already stopped the run.
    passed_read: Option<u64>,
    /// Moment of a hook that has already stopped the run.
    passed_hook: Option<u64>,
}

/// Why the engine stopped at the debugger's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// Before an instruction in `Hooks`.
    Hook,
    /// After an instruction wrote a watched range: this address on, and what `Engine::written` tells.
    Watch { paddr: u64 },
    /// Before an instruction that reads a watched range, or for which a page walk has written one; see `Engine::read`
    /// and `Engine::written`.
    Read,
    /// Before the instruction that was asked for.
    Before,
    /// Before the first instruction of an interrupt handler.
    Interrupt { vector: u8 },
    /// After an OUT to the watched port.
    Output,
    /// The instruction count was reached.
    Moment,
    /// Before a stale block runs.
    Stale,
}

impl Stops {
    // ---- what is waited for ----------------------------------------------------------------------

    /// The instructions before which to stop.
    #[inline]
    pub fn hooks(&self) -> &Hooks {
        &self.hooks
    }

    /// Sets the instructions before which to stop, and those that have probes; gives back the old ones, if they are
    /// others.
    pub fn replace_hooks(
        &mut self,
        mut hooks: Hooks,
        probes: impl Iterator<Item = u64>,
    ) -> Option<Hooks> {
        self.asked.clone_from(&hooks.rips);
        hooks.rips.extend(probes);
        hooks.rips.sort_unstable();
        hooks.rips.dedup();
        (hooks != self.hooks).then(|| std::mem::replace(&mut self.hooks, hooks))
    }

    /// The ranges of which a write stops the run.
    pub fn watches(&self) -> &[(u64, u64)] {
        &self.watches
    }

    /// Sets the ranges of which a write stops the run; gives back the old ones, if they are others.
    pub fn replace_watches(&mut self, watches: Vec<(u64, u64)>) -> Option<Vec<(u64, u64)>> {
        (watches != self.watches).then(|| std::mem::replace(&mut self.watches, watches))
    }

    /// Sets the ranges of which a read stops the run; gives back the old ones, if they are others.
    pub fn replace_read_watches(&mut self, watches: &[(u64, u64)]) -> Option<Vec<(u64, u64)>> {
        let other = watches != self.read_watches;
        other.then(|| std::mem::replace(&mut self.read_watches, watches.to_vec()))
    }

    /// Whether to stop before a stale block runs.
    pub fn set_on_stale(&mut self, stop: bool) {
        self.on_stale = stop;
    }

    /// Stops before the instruction at this moment, when everything that comes between two instructions is done.
    /// Not twice.
    pub fn set_before(&mut self, moment: Option<u64>) {
        self.before = moment.filter(|&at| self.passed_before != Some(at));
    }

    /// Sets the interrupt vectors and the port.
    pub fn set_events(&mut self, vectors: &[u8], port: Option<u16>) {
        self.port = port;
        self.vectors = [0; 4];
        for &vector in vectors {
            self.vectors[usize::from(vector >> 6)] |= 1 << (vector & 63);
        }
    }

    /// Whether no one wants to stop before an instruction that has a probe.
    pub fn is_probe_only(&self, rip: u64) -> bool {
        !self.hooks.int3 && self.asked.binary_search(&rip).is_err()
    }

    /// Whether an OUT to this port stops the run; if so, it is noted.
    #[inline]
    pub fn output(&mut self, port: u16) -> bool {
        let hit = self.port == Some(port);
        if hit {
            self.stopped = Some(StopCause::Output);
        }
        hit
    }

    /// Whether the first instruction of this vector's handler is waited for.
    #[inline]
    pub fn waits_for(&self, vector: u8) -> bool {
        self.vectors[usize::from(vector >> 6)] >> (vector & 63) & 1 != 0
    }

    /// Whether a write of these bytes of RAM stops the run; if so, it is noted.
    #[inline]
    pub fn watched(&mut self, paddr: u64, len: u64) -> bool {
        let end = paddr.saturating_add(len);
        let mut watches = self.watches.iter();
        let hit = watches.any(|&(at, size)| paddr < at.saturating_add(size) && at < end);
        if hit {
            if !matches!(self.stopped, Some(StopCause::Watch { .. })) {
                self.written.clear();
            }
            self.written.push((paddr, len));
            self.stopped = Some(StopCause::Watch { paddr });
        }
        hit
    }

    /// Notes that these bytes of RAM are read, as far as they are watched.
    pub fn note_read(&mut self, paddr: u64, len: u64) {
        let end = paddr.saturating_add(len);
        let mut watches = self.read_watches.iter();
        if watches.any(|&(at, size)| paddr < at.saturating_add(size) && at < end) {
            self.reads.push((paddr, len));
        }
    }

    /// After an instruction that a helper has carried out: the watched reads that it made stop the run.
    pub fn stop_after_reads(&mut self) {
        let Some(&(paddr, _)) = self.reads.first() else {
            return;
        };
        if self.stopped.is_none() {
            self.written.clear();
            self.stopped = Some(StopCause::Watch { paddr });
        }
    }

    // ---- what has stopped the run ----------------------------------------------------------------

    /// Stops before the instruction at this moment, of which a hook was reached; not twice.
    pub fn stop_at_hook(&mut self, moment: u64) -> bool {
        if self.has_passed(moment) {
            return false;
        }
        self.passed_hook = Some(moment);
        self.stopped = Some(StopCause::Hook);
        true
    }

    /// Whether the run has been stopped at this moment before, by a hook or otherwise.
    #[inline]
    pub fn has_passed(&self, moment: u64) -> bool {
        self.passed_hook == Some(moment)
    }

    /// Stops before a stale block runs, if that is asked; not twice.
    pub fn stop_at_stale(&mut self, moment: u64) -> bool {
        if !self.on_stale || self.has_passed(moment) {
            return false;
        }
        self.passed_hook = Some(moment);
        self.stopped = Some(StopCause::Stale);
        true
    }

    /// Whether the access under way reads watched ranges, or its page walk has written some.
    #[inline]
    pub fn concerns_access(&self) -> bool {
        !self.reads.is_empty() || self.has_written()
    }

    fn has_written(&self) -> bool {
        matches!(self.stopped, Some(StopCause::Watch { .. }))
    }

    /// What was written between two instructions, by the delivery of an interrupt, stops the run.
    #[inline]
    pub fn take_written(&mut self) -> Option<StopCause> {
        self.stopped
            .take_if(|cause| matches!(cause, StopCause::Watch { .. }))
    }

    /// Stops before an instruction that reads watched ranges, or whose page walks have written some; not twice.
    pub fn stop_before_access(&mut self, moment: u64) -> bool {
        if self.passed_read == Some(moment) {
            return false;
        }
        if !self.has_written() {
            self.written.clear();
        }
        self.passed_read = Some(moment);
        self.stopped = Some(StopCause::Read);
        true
    }

    /// Whether to stop before the instruction at this moment, which comes next; hooks do not stop there once more.
    #[inline]
    pub fn stops_before(&mut self, moment: u64) -> bool {
        let asked = self.before.take_if(|before| *before == moment).is_some();
        if asked {
            self.passed_before = Some(moment);
            self.passed_hook = Some(moment);
        }
        asked
    }

    /// Whether the last stop of that kind was before the instruction at this moment.
    pub fn has_stopped_before(&self, moment: u64) -> bool {
        self.passed_before == Some(moment)
    }

    /// Whether a stop is not reported yet.
    #[inline]
    pub fn is_stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// What has stopped the run and is not reported yet, once.
    #[inline]
    pub fn take_stop(&mut self) -> Option<StopCause> {
        self.stopped.take()
    }

    /// The ranges that the event wrote for which the run has stopped.
    pub fn written(&self) -> &[(u64, u64)] {
        &self.written
    }

    /// The watched ranges that the access under way reads, or that for which the run has stopped.
    #[inline]
    pub fn reads(&self) -> &[(u64, u64)] {
        &self.reads
    }

    /// An access begins.
    #[inline]
    pub fn begin_access(&mut self) {
        self.reads.clear();
    }

    /// Forgets a stop that is not reported.
    pub fn forget(&mut self) {
        self.stopped = None;
        self.passed_hook = None;
        self.passed_before = None;
        self.passed_read = None;
        self.before = None;
        self.reads.clear();
    }
}
