//! The vocabulary of a trace: what a recording says about a run.
//!
//! An event is pushed with the global count of retired instructions at which it happened; with
//! the vCPU inside the event this makes its moment. Kinds that come by the hundred thousand hold
//! no heap memory.

use std::fmt;
use std::sync::Arc;

/// "No vCPU" where an event names one: a device's DMA, a loader, a page without an owner.
pub const NO_VCPU: u8 = 0xff;
/// `Input.source` of the serial console.
pub const CONSOLE: u8 = 0;
/// `Stop.reason` of a machine that waits for ever.
pub const DEADLOCK: u8 = 8;

/// Why a slice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SliceEnd {
    /// The scheduler's instruction count was used up.
    Quantum,
    /// The vCPU executed PAUSE.
    Pause,
    /// The vCPU executed HLT (or MWAIT) and nothing was pending.
    Halt,
    /// A timer on virtual time was due.
    Deadline,
    /// The machine stopped: power-off, reset, triple fault, debug-exit, a stop condition.
    Exit,
    /// The vCPU was switched out between a block's fetch and its link.
    FetchWindow,
    /// The same, between a store's check and its commit.
    StoreWindow,
    /// The same, before the guard of an emptied page is dropped.
    UnguardWindow,
    /// The vCPU shut down (triple fault) in the instruction after those that are counted.
    Shutdown,
    /// A reason of a later format version; never one of the codes above.
    Other(u8),
}

impl SliceEnd {
    /// The number in the trace.
    pub fn code(self) -> u8 {
        match self {
            SliceEnd::Quantum => 0,
            SliceEnd::Pause => 1,
            SliceEnd::Halt => 2,
            SliceEnd::Deadline => 3,
            SliceEnd::Exit => 4,
            SliceEnd::FetchWindow => 5,
            SliceEnd::StoreWindow => 6,
            SliceEnd::UnguardWindow => 7,
            SliceEnd::Shutdown => 8,
            SliceEnd::Other(code) => code,
        }
    }

    /// The reason with this number.
    pub fn from_code(code: u8) -> Self {
        match code {
            0 => SliceEnd::Quantum,
            1 => SliceEnd::Pause,
            2 => SliceEnd::Halt,
            3 => SliceEnd::Deadline,
            4 => SliceEnd::Exit,
            5 => SliceEnd::FetchWindow,
            6 => SliceEnd::StoreWindow,
            7 => SliceEnd::UnguardWindow,
            8 => SliceEnd::Shutdown,
            other => SliceEnd::Other(other),
        }
    }
}

/// What the vCPU that gets a page needs it for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read or fetch: the page becomes shared.
    Read,
    /// Write: the page becomes the vCPU's own.
    Write,
}

/// A translation block as it was fetched or linked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// Number of the block; never used twice in a run.
    pub id: u64,
    pub vcpu: u8,
    /// Virtual address of the first instruction (with the segment base added).
    pub pc: u64,
    /// Physical address of the first source byte.
    pub paddr: u64,
    /// Source bytes.
    pub len: u16,
    /// The bits of vCPU state that the translation depends on.
    pub mode: u32,
    /// Digest of the source bytes as they were read.
    pub digest: u32,
}

/// Up to 64 bytes of a store's value.
#[derive(Clone, Copy)]
pub struct Value {
    len: u8,
    bytes: [u8; Value::MAX],
}

impl Value {
    /// The widest store, a 64-byte line.
    pub const MAX: usize = 64;

    /// The value with these bytes, lowest address first; `None` if there are more than 64.
    #[inline]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut value = Value {
            len: bytes.len() as u8,
            bytes: [0; Value::MAX],
        };
        value.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(value)
    }

    /// The bytes, lowest address first.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Value {}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x?}", self.as_bytes())
    }
}

/// One entry of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An interleaving decision: the vCPU ran so many instructions and stopped for this reason.
    /// Its moment is the slice's *start*, but it is pushed when the slice ends, after the events
    /// that happened inside it.
    Slice {
        vcpu: u8,
        instructions: u64,
        stop: SliceEnd,
    },
    /// Every vCPU was idle: virtual time jumped to this many nanoseconds since power-on.
    TimeSkip { to_ns: u64 },
    /// Input from outside reached the machine.
    Input { source: u8, bytes: Vec<u8> },
    /// Digests of the machine's components (RAM, each vCPU, each device, block cache).
    Digests { list: Vec<(Arc<str>, u64)> },
    /// A block's source bytes were read.
    Fetch(Block),
    /// A block entered the block cache. In the common case it equals the vCPU's latest fetch,
    /// and then costs next to nothing.
    Link(Block),
    /// A write removed a block. `paddr` and `len` are the write's; `by` may be [`NO_VCPU`].
    Invalidate {
        id: u64,
        by: u8,
        paddr: u64,
        len: u32,
        reason: u8,
    },
    /// The whole block cache was emptied.
    Flush { vcpu: u8, reason: u8 },
    /// A block no longer matches memory and is still there. `what`: 0 it never did since its link
    /// (born stale), 1 it was overwritten later (survived), 2 it was executed for the first time, 3 a
    /// breakpoint instruction of it was executed for the first time that memory did not hold.
    Stale { id: u64, vcpu: u8, what: u8 },
    /// A page changed hands. `from` may be [`NO_VCPU`]; bit n of `lines` says that the 64-byte
    /// line n was written since the page's last hand-off.
    HandOff {
        page: u64,
        from: u8,
        to: u8,
        access: Access,
        lines: u64,
    },
    /// A single store that another vCPU can see, with its value.
    CrossWrite { vcpu: u8, paddr: u64, value: Value },
    /// The run ended.
    Stop {
        vcpu: u8,
        reason: u8,
        code: u32,
        detail: String,
    },
}

/// A kind of event: the number that stands for it in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind(pub u8);

impl Kind {
    pub const SLICE: Kind = Kind(1);
    pub const TIME_SKIP: Kind = Kind(2);
    pub const INPUT: Kind = Kind(3);
    pub const DIGESTS: Kind = Kind(4);
    pub const FETCH: Kind = Kind(5);
    pub const LINK: Kind = Kind(6);
    pub const INVALIDATE: Kind = Kind(7);
    pub const FLUSH: Kind = Kind(8);
    pub const HAND_OFF: Kind = Kind(9);
    pub const CROSS_WRITE: Kind = Kind(10);
    pub const STOP: Kind = Kind(11);
    pub const STALE: Kind = Kind(12);
    /// One more than the highest kind of this version.
    pub const COUNT: usize = 13;

    /// The kind's name as users see it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::SLICE => "slice",
            Kind::TIME_SKIP => "time-skip",
            Kind::INPUT => "input",
            Kind::DIGESTS => "digests",
            Kind::FETCH => "fetch",
            Kind::LINK => "link",
            Kind::INVALIDATE => "invalidate",
            Kind::FLUSH => "flush",
            Kind::HAND_OFF => "hand-off",
            Kind::CROSS_WRITE => "cross-write",
            Kind::STOP => "stop",
            Kind::STALE => "stale",
            _ => "unknown",
        }
    }
}

impl Event {
    /// The kind of this event.
    pub fn kind(&self) -> Kind {
        match self {
            Event::Slice { .. } => Kind::SLICE,
            Event::TimeSkip { .. } => Kind::TIME_SKIP,
            Event::Input { .. } => Kind::INPUT,
            Event::Digests { .. } => Kind::DIGESTS,
            Event::Fetch(_) => Kind::FETCH,
            Event::Link(_) => Kind::LINK,
            Event::Invalidate { .. } => Kind::INVALIDATE,
            Event::Flush { .. } => Kind::FLUSH,
            Event::HandOff { .. } => Kind::HAND_OFF,
            Event::CrossWrite { .. } => Kind::CROSS_WRITE,
            Event::Stop { .. } => Kind::STOP,
            Event::Stale { .. } => Kind::STALE,
        }
    }

    /// The vCPU of the event's moment: who ran when it happened. [`NO_VCPU`] for events of the
    /// machine as a whole.
    pub fn vcpu(&self) -> u8 {
        match self {
            Event::Slice { vcpu, .. }
            | Event::Flush { vcpu, .. }
            | Event::Stale { vcpu, .. }
            | Event::CrossWrite { vcpu, .. }
            | Event::Stop { vcpu, .. }
            | Event::Invalidate { by: vcpu, .. }
            | Event::HandOff { to: vcpu, .. } => *vcpu,
            Event::Fetch(block) | Event::Link(block) => block.vcpu,
            Event::TimeSkip { .. } | Event::Input { .. } | Event::Digests { .. } => NO_VCPU,
        }
    }
}
