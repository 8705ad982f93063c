//! A journal of what vCPUs do, for timelines: interrupts and exceptions with their returns, system calls, interprocessor
//! interrupts, console output, and probes, which note registers and memory before an instruction.
//!
//! Nothing stops for it, and it changes nothing: probes are hooks inside blocks, as a debugger's breakpoints are, and
//! all else is noted where a helper runs anyway.

use super::bus::Ipi;
use crate::cpu::interrupt::Event;

/// Most entries that are kept until somebody takes them.
const CAPACITY: usize = 1 << 20;

/// One thing that a probe notes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Number of a general register, as instructions have it.
    pub register: usize,
    /// Added to it.
    pub offset: i64,
    /// Bytes of memory there; with 0 the sum itself, as eight bytes.
    pub length: usize,
}

/// What to note before an instruction, on any vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub rip: u64,
    pub fetches: Vec<Fetch>,
}

/// Why a handler was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Exception,
    /// A maskable interrupt.
    Interrupt,
    Nmi,
    /// INT n, INT3, INTO or INT1.
    Software,
}

impl Cause {
    pub(in crate::runtime) fn of(event: &Event) -> Self {
        match event {
            Event::Exception(_) => Self::Exception,
            Event::External(_) => Self::Interrupt,
            Event::Nmi => Self::Nmi,
            Event::Software(_) | Event::Int3 | Event::Into | Event::Icebp => Self::Software,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Exception => "exception",
            Self::Interrupt => "interrupt",
            Self::Nmi => "nmi",
            Self::Software => "software",
        }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Noted {
    /// A handler was called. A fault during the call is not told from the event that led to it.
    Delivered {
        cause: Cause,
        vector: u8,
        /// It is an interrupt of the vCPU's own timer, to judge by the vector.
        timer: bool,
        /// The interrupted code ran at privilege level 3.
        user: bool,
        /// Where the handler returns to, and where it is.
        from: u64,
        handler: u64,
        /// Stack pointer and accumulator in the handler.
        stack: u64,
        accumulator: u64,
        /// CR2.
        address: u64,
    },
    /// IRET. `stack` is where its frame was.
    Returned {
        user: bool,
        rip: u64,
        stack: u64,
    },
    /// SYSCALL or SYSENTER, with the accumulator.
    SystemCall {
        number: u64,
        rip: u64,
    },
    /// SYSRET or SYSEXIT.
    SystemReturn {
        rip: u64,
    },
    Ipi(Ipi),
    /// A byte was sent to the serial console.
    Output {
        byte: u8,
    },
    /// A probe was passed: its number, and the bytes of its fetches, zeros where memory is not mapped.
    Probe {
        number: usize,
        bytes: Vec<u8>,
    },
}

/// A thing that happened, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub icount: u64,
    pub time_ns: u64,
    pub vcpu: u8,
    pub noted: Noted,
}

/// The journal, if one is kept.
#[derive(Debug, Default)]
pub struct Journal {
    on: bool,
    /// In the order of their addresses; each with its number.
    probes: Vec<(usize, Probe)>,
    entries: Vec<Entry>,
    /// Entries that did not fit.
    left_out: u64,
    /// Moment of the last probe: code that begins anew there passes it a second time.
    passed: Option<u64>,
}

impl Journal {
    /// Addresses of the probes, in order.
    pub(in crate::runtime) fn rips(&self) -> impl Iterator<Item = u64> + '_ {
        self.probes.iter().map(|(_, probe)| probe.rip)
    }

    /// Is kept from now on, with these probes.
    pub(in crate::runtime) fn begin(&mut self, probes: Vec<Probe>) {
        let mut probes: Vec<(usize, Probe)> = probes.into_iter().enumerate().collect();
        probes.sort_by_key(|(number, probe)| (probe.rip, *number));
        self.on = true;
        self.probes = probes;
    }

    #[inline]
    pub(in crate::runtime) fn is_on(&self) -> bool {
        self.on
    }

    /// The entries since this was last asked, and how many did not fit.
    pub(in crate::runtime) fn take(&mut self) -> (Vec<Entry>, u64) {
        let left_out = std::mem::take(&mut self.left_out);
        (std::mem::take(&mut self.entries), left_out)
    }

    /// The probes before the instruction at `rip`, with their numbers; none if they were passed at this moment already.
    pub(in crate::runtime) fn pass(&mut self, rip: u64, moment: u64) -> Vec<(usize, Vec<Fetch>)> {
        if self.passed == Some(moment) {
            return Vec::new();
        }
        let first = self.probes.partition_point(|(_, probe)| probe.rip < rip);
        let here = self.probes[first..].iter();
        let here = here.take_while(|(_, probe)| probe.rip == rip);
        let found: Vec<_> = here.map(|(n, probe)| (*n, probe.fetches.clone())).collect();
        if !found.is_empty() {
            self.passed = Some(moment);
        }
        found
    }

    pub(in crate::runtime) fn push(&mut self, entry: Entry) {
        if self.entries.len() < CAPACITY {
            self.entries.push(entry);
        } else {
            self.left_out += 1;
        }
    }
}
