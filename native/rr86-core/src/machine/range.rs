//! Address ranges of devices, as devices declare them.

use std::borrow::Cow;

/// Which address space a range lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// I/O ports.
    Ports,
    /// Physical memory that is not RAM.
    Memory,
}

/// Which accesses a range takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Single bytes. The bridge splits a wide access to ports into bytes at rising addresses.
    Bytes,
    /// Any width, if the access lies wholly in the range.
    Within,
    /// Any width, if the access begins in the range.
    Beginning,
    /// Like `Within`; the accesses are PCI configuration cycles, which the bus carries to functions.
    Configuration,
}

/// Which of several ranges at the same address answers: the one with the lowest rank, and of two with the same rank
/// that of the device which comes first on the board.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Ports of the chipset that no movable range can cover.
    Fixed,
    /// Ranges that the chipset decodes.
    Chipset,
    /// What is left goes to the ISA bus.
    Isa,
    /// Base address registers and devices that were plugged in. They cover nothing of the board's own.
    Plugged,
}

/// A range of addresses at which a device answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    pub space: Space,
    pub base: u64,
    /// Length in bytes; a range of length 0 is none.
    pub length: u64,
    /// The device's own number for it.
    pub region: u8,
    pub takes: Takes,
    pub rank: Rank,
    /// Reading changes nothing on the board, so nothing has to be looked at afterwards.
    pub quiet: bool,
    /// Another device answers, which this one, a bridge, decodes addresses for.
    pub answers: Option<Cow<'static, str>>,
    /// Only this processor sees the range.
    pub seen_by: Option<usize>,
}

impl Range {
    /// A range that takes accesses of any width.
    #[must_use]
    pub fn new(space: Space, base: u64, length: u64, region: u8) -> Self {
        Self {
            space,
            base,
            length,
            region,
            takes: Takes::Within,
            rank: Rank::Chipset,
            quiet: false,
            answers: None,
            seen_by: None,
        }
    }

    /// Ports that take accesses of any width.
    #[must_use]
    pub fn ports(base: u16, length: u16, region: u8) -> Self {
        Self::new(Space::Ports, base.into(), length.into(), region)
    }

    /// Ports of a device on the byte-wide ISA bus.
    #[must_use]
    pub fn isa(base: u16, length: u16, region: u8) -> Self {
        Self {
            takes: Takes::Bytes,
            rank: Rank::Isa,
            ..Self::ports(base, length, region)
        }
    }

    /// Physical memory.
    #[must_use]
    pub fn memory(base: u64, length: u64, region: u8) -> Self {
        Self::new(Space::Memory, base, length, region)
    }

    #[must_use]
    pub fn taking(self, takes: Takes) -> Self {
        Self { takes, ..self }
    }

    #[must_use]
    pub fn ranked(self, rank: Rank) -> Self {
        Self { rank, ..self }
    }

    /// Reading changes nothing on the board.
    #[must_use]
    pub fn quiet(self) -> Self {
        Self {
            quiet: true,
            ..self
        }
    }

    /// The device `name` answers.
    #[must_use]
    pub fn answered_by(self, name: &'static str) -> Self {
        Self {
            answers: Some(Cow::Borrowed(name)),
            ..self
        }
    }

    /// Only processor `vcpu` sees the range.
    #[must_use]
    pub fn seen_by(self, vcpu: usize) -> Self {
        Self {
            seen_by: Some(vcpu),
            ..self
        }
    }

    /// The last address, if there is one.
    #[must_use]
    pub fn last(&self) -> Option<u64> {
        self.base.checked_add(self.length.checked_sub(1)?)
    }
}
