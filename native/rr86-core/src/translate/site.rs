//! Where in a block something happens, in 32 bits: emitted code passes it to slow paths and helpers
//! as an immediate, so that the fast path never has to keep an instruction pointer.

/// Kinds of memory access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    Read,
    Write,
    /// Read, then written.
    Modify,
}

impl AccessKind {
    pub fn writes(self) -> bool {
        self != Self::Read
    }
}

/// A place in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// Instructions of the block from this one on (this one included), 1 to 255.
    pub remaining: u8,
    /// Offset of the instruction in the block's bytes, below 8192.
    pub offset: u16,
    /// Size of the access in bytes up to 64, or the index of a helper's instruction.
    pub size: u8,
    pub kind: AccessKind,
    /// The access is made through SS, so that a non-canonical address is #SS and not #GP.
    pub stack: bool,
    /// At this point the status flags are in the host's RFLAGS and not in AX.
    pub host_flags: bool,
}

impl Site {
    pub fn pack(self) -> u32 {
        debug_assert!(self.offset < 1 << 13 && self.size < 128);
        u32::from(self.remaining)
            | u32::from(self.offset) << 8
            | u32::from(self.size) << 21
            | (self.kind as u32) << 28
            | u32::from(self.stack) << 30
            | u32::from(self.host_flags) << 31
    }

    pub fn unpack(bits: u32) -> Self {
        Self {
            remaining: bits as u8,
            offset: (bits >> 8 & 0x1fff) as u16,
            size: (bits >> 21 & 0x7f) as u8,
            kind: match bits >> 28 & 3 {
                0 => AccessKind::Read,
                1 => AccessKind::Write,
                _ => AccessKind::Modify,
            },
            stack: bits >> 30 & 1 != 0,
            host_flags: bits >> 31 != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_survives_packing() {
        let site = Site {
            remaining: 255,
            offset: 8191,
            size: 64,
            kind: AccessKind::Modify,
            stack: true,
            host_flags: false,
        };
        assert_eq!(Site::unpack(site.pack()), site);
    }
}
