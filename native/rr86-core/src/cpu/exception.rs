//! Exceptions and interrupts as values (SDM vol. 3A, chapter 6).

use thiserror::Error;

/// Vector numbers of the architectural exceptions (SDM vol. 3A, table 6-1).
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
}

/// DR6: debug registers were accessed under DR7.GD.
pub const DR6_BD: u64 = 1 << 13;
/// DR6: single-step.
pub const DR6_BS: u64 = 1 << 14;

/// An exception that an instruction raises. `cr2` is meaningful for #PF only; `dr6` holds the bits
/// to set in DR6 for #DB only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("exception {vector} (error code {error_code:?}, address {cr2:#x})")]
pub struct Exception {
    pub vector: u8,
    pub error_code: Option<u32>,
    pub cr2: u64,
    pub dr6: u64,
}

impl Exception {
    /// An exception without an error code.
    pub const fn new(vector: u8) -> Self {
        Self {
            vector,
            error_code: None,
            cr2: 0,
            dr6: 0,
        }
    }

    /// An exception with an error code (#TS, #NP, #SS, #GP: usually a selector).
    pub const fn with_code(vector: u8, code: u32) -> Self {
        Self {
            vector,
            error_code: Some(code),
            cr2: 0,
            dr6: 0,
        }
    }

    /// #GP(code).
    pub const fn gp(code: u32) -> Self {
        Self::with_code(vector::GP, code)
    }

    /// #UD.
    pub const fn ud() -> Self {
        Self::new(vector::UD)
    }

    /// #PF at `address` with a page-fault error code (SDM vol. 3A, section 4.7).
    pub const fn page_fault(address: u64, code: u32) -> Self {
        Self {
            vector: vector::PF,
            error_code: Some(code),
            cr2: address,
            dr6: 0,
        }
    }

    /// #TS(code).
    pub const fn ts(code: u32) -> Self {
        Self::with_code(vector::TS, code)
    }

    /// #NP(code).
    pub const fn np(code: u32) -> Self {
        Self::with_code(vector::NP, code)
    }

    /// #SS(code).
    pub const fn ss(code: u32) -> Self {
        Self::with_code(vector::SS, code)
    }

    /// #NM.
    pub const fn nm() -> Self {
        Self::new(vector::NM)
    }

    /// #DB with the bits that it sets in DR6.
    pub const fn db(dr6: u64) -> Self {
        Self {
            vector: vector::DB,
            error_code: None,
            cr2: 0,
            dr6,
        }
    }

    /// Whether the exception is contributory to a double fault (SDM vol. 3A, table 6-4).
    pub const fn is_contributory(&self) -> bool {
        matches!(
            self.vector,
            vector::DE | vector::TS | vector::NP | vector::SS | vector::GP
        )
    }

    /// Whether the exception is a fault, reported before its instruction, rather than a trap or
    /// abort. #DB is neither here: of its kinds, instruction breakpoints are faults and do not set
    /// RF in the saved image, and [`is_general_detect`](Self::is_general_detect) tells of the other.
    pub const fn is_fault(&self) -> bool {
        !matches!(
            self.vector,
            vector::DB | vector::NMI | vector::BP | vector::OF | vector::MC
        )
    }

    /// Whether this is the #DB, a fault, of an access to debug registers under DR7.GD.
    pub const fn is_general_detect(&self) -> bool {
        self.vector == vector::DB && self.dr6 & DR6_BD != 0
    }

    /// The same exception with the EXT bit (SDM vol. 3A, section 6.13) in its selector error code.
    /// Page faults have another kind of error code and stay as they are.
    #[must_use]
    pub const fn with_ext(mut self, ext: u32) -> Self {
        if self.vector != vector::PF {
            if let Some(code) = self.error_code {
                self.error_code = Some(code | ext);
            }
        }
        self
    }
}
