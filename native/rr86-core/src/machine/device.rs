//! What a device is to the board: a state that can be saved, address ranges, lines, timers, DMA.
//!
//! A device's state is written as little-endian fields in a fixed order, without padding or tags, so
//! that equal states give equal bytes and a digest of the bytes is a digest of the device. Loading
//! checks every length and value: a damaged trace is an error, never a panic.
//!
//! Devices never call each other, nor the board. A device answers accesses, and the board looks at what has changed
//! after each of them: the levels of its lines, its next deadline, whether it waits for DMA. What is not a level goes
//! into the [`Outbox`]. Time comes in as an argument, in virtual nanoseconds; there is no other clock.

use std::any::Any;
use std::borrow::Cow;

use super::dma::DmaAccess;
use super::message::Message;
use super::range::Range;
use super::signal::Signal;
use crate::runtime::bus::Ipi;
pub use crate::saved::{LoadError, Reader, Writer};

/// A component with a complete, guest-visible state.
pub trait State {
    /// Writes the whole state.
    fn save(&self, w: &mut Writer);

    /// Replaces the whole state. After an error the component's state is unspecified but safe to use.
    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError>;
}

/// The state of a component as bytes.
#[must_use]
pub fn save_to_bytes<S: State + ?Sized>(component: &S) -> Vec<u8> {
    let mut writer = Writer::new();
    component.save(&mut writer);
    writer.into_bytes()
}

/// Loads a component from bytes, all of which must belong to it.
pub fn load_from_bytes<S: State + ?Sized>(
    component: &mut S,
    bytes: &[u8],
) -> Result<(), LoadError> {
    let mut reader = Reader::new(bytes);
    component.load(&mut reader)?;
    reader.finish()
}

/// Where and when an access meets a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Which of the device's ranges: the number that [`Device::ranges`] gave it.
    pub region: u8,
    /// Bytes from the range's base.
    pub offset: u64,
    /// 1, 2 or 4 for ports, 1, 2, 4 or 8 for memory.
    pub size: usize,
    /// Virtual time in nanoseconds.
    pub now: u64,
}

/// The interrupt lines that a device holds high.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lines {
    /// ISA lines, one bit each. They go to the 8259 pair and to the I/O APIC.
    pub isa: u16,
    /// ISA lines that this device cuts off from all others.
    pub cuts: u16,
    /// Pins of the I/O APIC, one bit each.
    pub pins: u32,
    /// The interrupt pin of a PCI function: device × 8 + function, and 0 for INTA to 3 for INTD.
    pub intx: Option<(u8, u8)>,
}

impl Lines {
    /// ISA line `line` at `level`.
    #[must_use]
    pub fn isa(line: u8, level: bool) -> Self {
        Self {
            isa: u16::from(level) << (line & 15),
            ..Self::default()
        }
    }

    /// All that either of two holds high.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            isa: self.isa | other.isa,
            cuts: self.cuts | other.cuts,
            pins: self.pins | other.pins,
            intx: self.intx.or(other.intx),
        }
    }
}

/// What devices ask of the board beyond the levels of their lines.
#[derive(Debug, Default)]
pub struct Outbox {
    /// For the machine, in order.
    pub signals: Vec<Signal>,
    /// Interrupt messages, which local APICs accept in order.
    pub messages: Vec<Message>,
    /// Of the messages, those that a vCPU has sent, if they are noted.
    pub sent: Vec<Message>,
    /// What became of them.
    pub ipis: Option<Vec<Ipi>>,
    /// A local APIC is done with this level-triggered vector.
    pub served: Option<u8>,
    /// A device's ranges may have changed.
    pub moved: bool,
}

/// A configuration cycle on the PCI root bus, one byte wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfigCycle {
    /// Device × 8 + function.
    pub devfn: u8,
    /// Offset into configuration space.
    pub register: usize,
}

/// A device of the board.
///
/// A method that is left out says that the device has nothing of the kind.
pub trait Device: State + Any + Send {
    /// The component's name in digests and checkpoints. It is unique on a board and never changes.
    fn name(&self) -> Cow<'static, str>;

    /// Back to the state after power-on. What is on its way from or to the host stays.
    fn reset(&mut self);

    /// The addresses at which it answers now. After a change it sets [`Outbox::moved`].
    fn ranges(&self) -> Vec<Range> {
        Vec::new()
    }

    /// Reads from one of its ranges.
    fn read(&mut self, at: Access, out: &mut Outbox) -> u64 {
        let _ = (at, out);
        u64::MAX
    }

    /// Writes to one of its ranges.
    fn write(&mut self, at: Access, value: u64, out: &mut Outbox) {
        let _ = (at, value, out);
    }

    /// The lines that it holds high.
    fn lines(&self) -> Lines {
        Lines::default()
    }

    /// Takes a pulse that an edge-triggered output gave, too short for [`Device::lines`].
    fn take_pulse(&mut self) -> Option<Lines> {
        None
    }

    // --- Time ---------------------------------------------------------------------------------

    /// When its state changes next by the passing of time alone.
    fn next_deadline(&self) -> Option<u64> {
        None
    }

    /// Does what is due at `deadline`, its own next one; the time is `now`, which may be later. The next
    /// deadline is later than `deadline`.
    fn advance(&mut self, deadline: u64, now: u64, out: &mut Outbox) {
        let _ = (deadline, now, out);
    }

    /// How its timers can be tried out while all vCPUs sleep. `None` says that they cannot: each of them counts as
    /// one that changes something.
    fn trial(&mut self) -> Option<&mut dyn Trial> {
        None
    }

    // --- DMA ----------------------------------------------------------------------------------

    /// Whether it waits for an access to guest memory.
    fn wants_dma(&self) -> bool {
        false
    }

    /// The access that it waits for.
    fn dma_access(&self) -> Option<DmaAccess> {
        None
    }

    /// The access has been made: the bytes read (none for a write), or `None` where there is no RAM.
    fn dma_done(&mut self, bytes: Option<&[u8]>, now: u64, out: &mut Outbox) {
        let _ = (bytes, now, out);
    }

    // --- PCI ----------------------------------------------------------------------------------

    /// For a bridge: the configuration cycle that a byte of a range of kind
    /// [`Takes::Configuration`](super::range::Takes) stands for. Bytes without one are the bridge's own.
    fn config_cycle(&self, region: u8, offset: u64) -> Option<ConfigCycle> {
        let _ = (region, offset);
        None
    }

    /// The PCI functions that it is: device × 8 + function of each.
    fn functions(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Reads a byte of a function's configuration space.
    fn config_read(&self, cycle: ConfigCycle) -> u8 {
        let _ = cycle;
        0xff
    }

    /// Writes a byte of a function's configuration space.
    fn config_write(&mut self, cycle: ConfigCycle, value: u8, now: u64, out: &mut Outbox) {
        let _ = (cycle, value, now, out);
    }
}

/// Timers whose firing shows in the device's lines and nowhere else, so that it can be tried and taken back.
pub trait Trial {
    /// The device as it is, to be put back after a trial.
    fn copy(&self) -> Box<dyn Device>;

    /// When each of its timers fires next, in a fixed order.
    fn deadlines(&self) -> Vec<Option<u64>>;

    /// Fires one of the timers, at its deadline.
    fn fire(&mut self, timer: usize, at: u64);

    /// How many firings bring the line back to the level that it had.
    fn firings(&self) -> usize {
        1
    }

    /// Lets time pass up to `until`, without the edges in between. Only a timer of which each firing is an edge of
    /// its own has to do something: the others catch up in one step.
    fn pass(&mut self, until: u64) {
        let _ = until;
    }
}
