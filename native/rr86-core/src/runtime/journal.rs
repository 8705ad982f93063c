//! A journal of what vCPUs do, for timelines: interrupts and exceptions with their returns, system calls, interprocessor
//! interrupts, console output, and probes, which note registers and memory before an instruction.
//!
//! Nothing stops for it, and it changes nothing: probes are hooks inside blocks, as a debugger's breakpoints are, and
//! all else is noted where a helper runs anyway.

use super::bus::Ipi;
use super::engine::Engine;
use super::vcpu::Vcpu;
use crate::cpu::interrupt::Event;
use crate::cpu::paging;
use crate::cpu::state::{gpr, CpuState};
use crate::memory::{PAGE_MASK, PAGE_SIZE};

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
    fn of(event: &Event) -> Self {
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
    pub(in crate::runtime) on: bool,
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

    fn push(&mut self, entry: Entry) {
        if self.entries.len() < CAPACITY {
            self.entries.push(entry);
        } else {
            self.left_out += 1;
        }
    }
}

impl Engine {
    /// Keeps a journal from now on, with these probes.
    pub fn keep_journal(&mut self, probes: Vec<Probe>) {
        let mut probes: Vec<(usize, Probe)> = probes.into_iter().enumerate().collect();
        probes.sort_by_key(|(number, probe)| (probe.rip, *number));
        self.observers.journal.on = true;
        // Hooked when the next run sets its stops.
        self.observers.journal.probes = probes;
        self.bus.note_ipis(true);
    }

    /// What was noted since the last call, and how many entries did not fit.
    pub fn take_journal(&mut self) -> (Vec<Entry>, u64) {
        let journal = &mut self.observers.journal;
        let left_out = std::mem::take(&mut journal.left_out);
        (std::mem::take(&mut journal.entries), left_out)
    }

    /// Notes what a vCPU does now.
    #[inline]
    pub(in crate::runtime) fn note(&mut self, vcpu: u8, noted: impl FnOnce() -> Noted) {
        if self.observers.journal.on {
            let (icount, time_ns) = (self.icount(), self.now());
            self.observers.journal.push(Entry {
                icount,
                time_ns,
                vcpu,
                noted: noted(),
            });
        }
    }

    /// Notes the delivery of an event that was due where `user` code ran.
    pub(in crate::runtime) fn note_delivery(
        &mut self,
        cpu: &CpuState,
        event: &Event,
        user: bool,
        from: u64,
    ) {
        if !self.observers.journal.on {
            return;
        }
        let vector = event.vector();
        let external = matches!(event, Event::External(_));
        let timer = external && self.bus.timer_vector(usize::from(cpu.id)) == Some(vector);
        self.note(cpu.id, || Noted::Delivered {
            cause: Cause::of(event),
            vector,
            timer,
            user,
            from,
            handler: cpu.rip,
            stack: cpu.gpr[gpr::RSP],
            accumulator: cpu.gpr[gpr::RAX],
            address: cpu.cr2,
        });
    }

    /// Notes the interprocessor interrupts that an access to a local APIC has sent.
    #[inline]
    pub(in crate::runtime) fn note_ipis(&mut self, vcpu: usize) {
        if self.observers.journal.on {
            for ipi in self.bus.take_ipis() {
                self.note(vcpu as u8, || Noted::Ipi(ipi));
            }
        }
    }

    /// Notes the console output that an access has added to what waited.
    #[inline]
    pub(in crate::runtime) fn note_output(&mut self, vcpu: usize, before: usize) {
        if self.observers.journal.on {
            let new = self.bus.console_waiting().get(before..).unwrap_or_default();
            for byte in new.to_vec() {
                self.note(vcpu as u8, || Noted::Output { byte });
            }
        }
    }

    /// Notes what the probes before the instruction at `rip` ask for. Whether nobody else waits there.
    pub(in crate::runtime) fn probe(&mut self, v: &Vcpu, rip: u64) -> bool {
        let moment = self.icount();
        if self.observers.journal.passed != Some(moment) {
            let probes = std::mem::take(&mut self.observers.journal.probes);
            let first = probes.partition_point(|(_, probe)| probe.rip < rip);
            for (number, probe) in &probes[first..] {
                if probe.rip != rip {
                    break;
                }
                self.observers.journal.passed = Some(moment);
                let bytes = self.fetched(&v.cpu, &probe.fetches);
                let number = *number;
                self.note(v.cpu.id, || Noted::Probe { number, bytes });
            }
            self.observers.journal.probes = probes;
        }
        self.stops.is_probe_only(rip)
    }

    fn fetched(&self, cpu: &CpuState, fetches: &[Fetch]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for fetch in fetches {
            let at = cpu.gpr[fetch.register & 15].wrapping_add_signed(fetch.offset);
            if fetch.length == 0 {
                bytes.extend_from_slice(&at.to_le_bytes());
            } else {
                let start = bytes.len();
                bytes.resize(start + fetch.length, 0);
                self.peek_linear(cpu, at, &mut bytes[start..]);
            }
        }
        bytes
    }

    /// Reads linear memory as a vCPU maps it, without any effect; what is not mapped stays as it is in `into`.
    fn peek_linear(&self, cpu: &CpuState, at: u64, into: &mut [u8]) {
        let ram = &self.memory.ram;
        let mut read = |paddr: u64, size: usize| {
            let mut bytes = [0; 8];
            ram.read(paddr, &mut bytes[..size]);
            u64::from_le_bytes(bytes)
        };
        let mut done = 0;
        while done < into.len() {
            let address = at.wrapping_add(done as u64);
            let room = (PAGE_SIZE - (address & PAGE_MASK)) as usize;
            let n = room.min(into.len() - done);
            let paddr = if cpu.paging() {
                paging::peek(cpu, &mut read, address)
            } else {
                Some(address)
            };
            if let Some(paddr) = paddr {
                ram.read(paddr, &mut into[done..done + n]);
            }
            done += n;
        }
    }
}
