//! What the debugger waits for, and where it has stopped the run.

use crate::translate::lower::emitter::Hooks;

/// The debugger's stops.
#[derive(Default)]
pub struct Stops {
    /// Instructions before which to stop.
    pub(in crate::runtime) hooks: Hooks,
    /// Those of the addresses at which somebody wants to stop; the rest are probes of the journal.
    pub(in crate::runtime) asked: Vec<u64>,
    /// Physical ranges (address, length) of which a write stops the run.
    pub(in crate::runtime) watches: Vec<(u64, u64)>,
    /// Physical ranges of which a read stops the run.
    pub(in crate::runtime) read_watches: Vec<(u64, u64)>,
    /// Interrupt vectors, a bit each.
    pub(in crate::runtime) vectors: [u64; 4],
    /// An OUT to this port.
    pub(in crate::runtime) port: Option<u16>,
    /// Before a stale block runs.
    pub(in crate::runtime) on_stale: bool,
    /// What has stopped the run and is not reported yet.
    pub(in crate::runtime) stopped: Option<StopCause>,
    /// The ranges that one event wrote: an interrupt's delivery makes several stores, for instance.
    pub(in crate::runtime) written: Vec<(u64, u64)>,
    /// The watched ranges that the access under way reads.
    pub(in crate::runtime) reads: Vec<(u64, u64)>,
    /// Moment before whose instruction to stop, when everything that comes between two instructions is done.
    pub(in crate::runtime) before: Option<u64>,
    /// Moment of a read that has already stopped the run.
    pub(in crate::runtime) passed_read: Option<u64>,
    /// Moment of a hook that has already stopped the run.
    pub(in crate::runtime) passed_hook: Option<u64>,
}

/// Why the engine stopped at the debugger's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// Before an instruction in `Hooks`.
    Hook,
    /// After an instruction wrote a watched range: this address on, and what `Engine::written` tells.
    Watch { paddr: u64 },
    /// Before an instruction of a block that reads a watched range; see `Engine::read`.
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
    /// Sets the interrupt vectors and the port.
    pub(in crate::runtime) fn set_events(&mut self, vectors: &[u8], port: Option<u16>) {
        self.port = port;
        self.vectors = [0; 4];
        for &vector in vectors {
            self.vectors[usize::from(vector >> 6)] |= 1 << (vector & 63);
        }
    }

    /// Whether no one wants to stop before an instruction that has a probe.
    pub(in crate::runtime) fn is_probe_only(&self, rip: u64) -> bool {
        !self.hooks.int3 && self.asked.binary_search(&rip).is_err()
    }

    /// Whether the first instruction of this vector's handler is waited for.
    #[inline]
    pub(in crate::runtime) fn waits_for(&self, vector: u8) -> bool {
        self.vectors[usize::from(vector >> 6)] >> (vector & 63) & 1 != 0
    }

    /// Whether a write of these bytes of RAM stops the run; if so, it is noted.
    #[inline]
    pub(in crate::runtime) fn watched(&mut self, paddr: u64, len: u64) -> bool {
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
    pub(in crate::runtime) fn note_read(&mut self, paddr: u64, len: u64) {
        let end = paddr.saturating_add(len);
        let mut watches = self.read_watches.iter();
        if watches.any(|&(at, size)| paddr < at.saturating_add(size) && at < end) {
            self.reads.push((paddr, len));
        }
    }

    /// After an instruction that a helper has carried out: the watched reads that it made stop the run.
    pub(in crate::runtime) fn stop_after_reads(&mut self) {
        let Some(&(paddr, _)) = self.reads.first() else {
            return;
        };
        if self.stopped.is_none() {
            self.written.clear();
            self.stopped = Some(StopCause::Watch { paddr });
        }
    }

    /// Forgets a stop that is not reported.
    pub(in crate::runtime) fn forget(&mut self) {
        self.stopped = None;
        self.passed_hook = None;
        self.passed_read = None;
        self.before = None;
        self.reads.clear();
    }
}
