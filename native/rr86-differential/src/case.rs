//! What is run: a case (code, entry state, arena) and its outcome, and the contract of whoever runs it.
//!
//! A case is plain 64-bit user-mode code at fixed linear addresses. Its code is followed by `hlt`
//! (and the whole code region is filled with `hlt`): in user mode that raises #GP(0), so the case has
//! ended normally exactly when #GP is raised with rip = [`Case::end`]. Any other exception is the
//! case's outcome, with the state as it was when the exception was raised.

use thiserror::Error;

/// The address space of a case.
pub mod layout {
    /// Code region: readable and executable by user code, not writable, filled with `hlt`.
    pub const CODE: u64 = 0x1000_0000;
    /// Bytes of the code region.
    pub const CODE_SIZE: usize = 0x2000;
    /// Data arena; its last page and page [`GUARD_PAGES`] are not mapped. Never executable.
    pub const ARENA: u64 = 0x2000_0000;
    /// Bytes of the arena, guard pages included.
    pub const ARENA_SIZE: usize = 0x8000;
    pub const PAGE: usize = 0x1000;
    /// Index of the page that is mapped read-only.
    pub const READ_ONLY_PAGE: usize = 2;
    /// Indices of the pages that are not mapped; their bytes in an arena image are zero.
    pub const GUARD_PAGES: [usize; 2] = [3, 7];
    /// The stack area within the arena, as offsets.
    pub const STACK: std::ops::Range<usize> = 0x5000..0x7000;

    /// Whether the arena page at `index` is mapped.
    pub const fn mapped(index: usize) -> bool {
        index != GUARD_PAGES[0] && index != GUARD_PAGES[1]
    }
}

/// RFLAGS bits that a case sets and compares: the status flags and DF.
pub const FLAG_MASK: u64 = 0xcd5;

/// Bytes of the FXSAVE image that carry state; what follows is reserved or left to software.
pub const FXSAVE_USED: usize = 416;

/// General-purpose registers in encoding order (rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8–r15).
pub type Gprs = [u64; 16];

/// The registers with which a case starts. rip is [`Case::code_address`].
#[repr(C)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub gpr: Gprs,
    /// Bits of [`FLAG_MASK`]; the others are those of ordinary user code (IF and bit 1 set).
    pub rflags: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    /// FXSAVE64 image (SDM vol. 1, table 10-2). FIP, FDP and FOP are zero.
    pub fxsave: [u8; 512],
}

/// One program to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The seed that generates it again, 0 for one that was written or reduced.
    pub seed: u64,
    /// Where `code` starts, within the code region; may cross its middle page boundary.
    pub code_address: u64,
    /// The instructions, without the `hlt` that follows them.
    pub code: Vec<u8>,
    pub entry: Entry,
    /// Image of the arena, [`layout::ARENA_SIZE`] bytes.
    pub arena: Vec<u8>,
}

impl Case {
    /// The address of the final `hlt`.
    pub fn end(&self) -> u64 {
        self.code_address.wrapping_add(self.code.len() as u64)
    }
}

/// An exception, as the handler sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub vector: u8,
    /// Zero for a vector without an error code.
    pub error_code: u64,
    /// The faulting linear address for #PF, zero for others.
    pub cr2: u64,
}

/// The state at the end of a case or at its fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub gpr: Gprs,
    /// [`Case::end`], or the rip that the exception pushed.
    pub rip: u64,
    /// Bits of [`FLAG_MASK`].
    pub rflags: u64,
    /// FXSAVE64 image; only the first [`FXSAVE_USED`] bytes count, the others are zero.
    pub fxsave: [u8; 512],
    pub arena: Vec<u8>,
    /// `None` for a case that reached its end.
    pub fault: Option<Fault>,
}

/// Why a subject could not give an outcome.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SubjectError {
    #[error("the case ended the process that ran it (status {0:#x})")]
    Killed(i32),
    #[error("the case did not end in time")]
    TimedOut,
    #[error("the case does not fit: {0}")]
    Malformed(&'static str),
    #[error("{what}: {source}")]
    Host {
        what: &'static str,
        source: ErrorText,
    },
    #[error("{0}")]
    Other(String),
}

/// A system error, kept as text so that outcomes stay comparable.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct ErrorText(pub String);

impl SubjectError {
    /// The last system error, with what was tried.
    pub fn last(what: &'static str) -> Self {
        Self::Host {
            what,
            source: ErrorText(std::io::Error::last_os_error().to_string()),
        }
    }
}

/// Something that runs cases: the host CPU, or an engine to be compared with it.
///
/// To plug in an engine: map [`layout::CODE`] (user, read, execute) and [`layout::ARENA`] (user; see
/// the page constants), fill the code region with 0xf4 and copy the case's code, copy the arena image, load
/// [`Entry`] at CPL 3 with IF set, CR0.NE = 1, CR0.AM = 0 or RFLAGS.AC = 0, CR4.OSFXSR and OSXMMEXCPT set, run
/// until the first exception, and build the outcome from the state that the exception would deliver: rip of the faulting
/// instruction (of the following one for #BP), registers, error code and, for #PF, CR2. #GP with rip = [`Case::end`] is the normal
/// end (`fault: None`).
pub trait Subject {
    /// Runs one case from its entry state. Nothing of earlier cases may show.
    fn run(&mut self, case: &Case) -> Result<Outcome, SubjectError>;

    /// Runs several cases; worth overriding where switching costs.
    fn run_batch(&mut self, cases: &[Case]) -> Vec<Result<Outcome, SubjectError>> {
        cases.iter().map(|case| self.run(case)).collect()
    }
}

/// Makes an outcome of what an exception delivered: recognises the normal end, drops what does not count.
pub fn outcome_of_exception(
    case: &Case,
    gpr: Gprs,
    rip: u64,
    rflags: u64,
    mut fxsave: [u8; 512],
    arena: Vec<u8>,
    fault: Fault,
) -> Outcome {
    fxsave[FXSAVE_USED..].fill(0);
    let ended = fault.vector == 13 && rip == case.end();
    let has_code = matches!(fault.vector, 8 | 10..=14 | 17);
    let fault = Fault {
        vector: fault.vector,
        error_code: if has_code { fault.error_code } else { 0 },
        cr2: if fault.vector == 14 { fault.cr2 } else { 0 },
    };
    Outcome {
        gpr,
        rip,
        rflags: rflags & FLAG_MASK,
        fxsave,
        arena,
        fault: (!ended).then_some(fault),
    }
}
