//! Messages between interrupt sources and local APICs: who is meant, and what arrives.

/// Delivery modes of the ICR, of I/O APIC entries and of MSIs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// To every APIC that matches.
    Fixed,
    /// To the one that matches and has the lowest processor priority.
    LowestPriority,
    /// System management interrupt: this board has no SMM, so it is dropped.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up IPI with the page number of the real-mode code.
    StartUp,
    /// Take the vector from the 8259 pair. The pair reaches processors through LINT0 only, so such
    /// messages are dropped.
    ExtInt,
}

impl Delivery {
    /// The three bits.
    #[must_use]
    pub fn bits(self) -> u8 {
        match self {
            Self::Fixed => 0,
            Self::LowestPriority => 1,
            Self::Smi => 2,
            Self::Nmi => 4,
            Self::Init => 5,
            Self::StartUp => 6,
            Self::ExtInt => 7,
        }
    }

    /// Decodes the three bits; the reserved encoding gives `None`.
    #[must_use]
    pub fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            7 => Self::ExtInt,
            _ => return None,
        })
    }
}

/// Whom a message addresses. All ones means everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// An APIC ID.
    Physical(u32),
    /// A set of logical IDs.
    Logical(u32),
}

impl Destination {
    /// A 32-bit (x2APIC) destination.
    #[must_use]
    pub fn new(id: u32, logical: bool) -> Self {
        if logical {
            Self::Logical(id)
        } else {
            Self::Physical(id)
        }
    }

    /// An 8-bit destination, where 0xff is the broadcast.
    #[must_use]
    pub fn from_byte(id: u8, logical: bool) -> Self {
        match id {
            0xff => Self::new(u32::MAX, logical),
            id => Self::new(u32::from(id), logical),
        }
    }
}

/// One interrupt message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Whom it addresses.
    pub destination: Destination,
    /// What arrives.
    pub delivery: Delivery,
    /// Vector, or page number of a start-up IPI.
    pub vector: u8,
    /// The source keeps its line asserted until it is served, and wants the EOI.
    pub level_triggered: bool,
    /// APIC ID that is left out (the "all excluding self" shorthand).
    pub except: Option<u32>,
}

/// Decodes a write to the MSI window at 0xfee00000 (SDM volume 3, 11.11).
#[must_use]
pub fn msi(address: u64, data: u32) -> Option<Message> {
    Some(Message {
        destination: Destination::from_byte((address >> 12) as u8, address & 4 != 0),
        delivery: Delivery::from_bits(data >> 8)?,
        vector: data as u8,
        level_triggered: data & 0x8000 != 0,
        except: None,
    })
}
