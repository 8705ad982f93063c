//! Windows: steps of a block protocol between which another vCPU may run.
//!
//! A vCPU that is switched out inside such a step keeps it as state of its own, and finishes it when
//! it runs again, before anything else. Whether to switch is a decision like any other: the recorder
//! draws it, the replayer knows it.

use super::protocol::Source;
use crate::memory::tlb::MmuIndex;
use crate::memory::{PAGE_MASK, PAGE_SIZE};
use crate::translate::mode::Mode;
use std::fmt;

/// The windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// The block's bytes have been read; it is not linked, its page not guarded for it.
    Fetch,
    /// One of the two steps of a store has been made: the check, or under protocols that commit
    /// first, the commit.
    Store,
    /// The store has emptied the page; its guard has not been dropped.
    Unguard,
}

/// Source bytes that have been read for a block.
#[derive(Clone, Debug)]
pub struct Fetched {
    pub rip: u64,
    pub linear: u64,
    pub paddr: u64,
    pub second: Option<u64>,
    pub mode: Mode,
    pub bytes: Vec<u8>,
    pub count: u8,
    /// Moment of the fetch.
    pub icount: u64,
}

impl Fetched {
    /// The physical ranges of the bytes, one for each page.
    pub fn ranges(&self) -> [Option<(u64, u64)>; 2] {
        let len = self.bytes.len() as u64;
        let here = len.min(PAGE_SIZE - (self.paddr & PAGE_MASK));
        let next = self.second.map(|at| (at, len - here));
        [Some((self.paddr, here)), next]
    }
}

/// A store that has been checked and not committed.
#[derive(Clone, Debug)]
pub struct Uncommitted {
    pub paddr: u64,
    pub linear: u64,
    pub mmu: MmuIndex,
    pub data: Vec<u8>,
    /// The check left no block on the page.
    pub emptied: bool,
}

/// A guard that is about to be dropped.
#[derive(Clone, Copy, Debug)]
pub struct Unguard {
    pub linear: u64,
    pub mmu: MmuIndex,
    pub page: usize,
}

/// A store whose data is in memory, and that has not been checked.
#[derive(Clone, Copy, Debug)]
pub struct Unchecked {
    pub paddr: u64,
    pub linear: u64,
    pub mmu: MmuIndex,
    pub len: usize,
    pub source: Source,
}

/// What a vCPU has under way.
#[derive(Clone, Default)]
pub struct UnderWay {
    pub fetched: Option<Fetched>,
    pub uncommitted: Option<Uncommitted>,
    pub unguard: Option<Unguard>,
    /// Under protocols that commit first.
    pub unchecked: Option<Unchecked>,
}

impl fmt::Debug for UnderWay {
    /// Digests are made of this text, so what only some protocols have is there only if they have it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("UnderWay");
        text.field("fetched", &self.fetched)
            .field("uncommitted", &self.uncommitted)
            .field("unguard", &self.unguard);
        if self.unchecked.is_some() {
            text.field("unchecked", &self.unchecked);
        }
        text.finish()
    }
}

impl UnderWay {
    pub fn is_empty(&self) -> bool {
        self.fetched.is_none()
            && self.uncommitted.is_none()
            && self.unguard.is_none()
            && self.unchecked.is_none()
    }
}

/// Who decides about switching in a window.
#[derive(Clone, Debug)]
pub enum WindowPolicy {
    /// Never.
    Closed,
    /// With a probability of `bias` in 65,536 between fetch and link, drawn from `state`. A store's
    /// windows are the shorter ones by far (docs/block-protocols.md), and are drawn 256 times as rarely.
    Draw { state: u64, bias: u32 },
    /// Where the recording did: in this window, at the end of the budget.
    Expect(Option<Window>),
}

impl WindowPolicy {
    fn draw(&mut self, window: Window) -> bool {
        match self {
            Self::Draw { state, bias } => {
                *state = state
                    .wrapping_mul(0x5851_f42d_4c95_7f2d)
                    .wrapping_add(0x1405_7b7e_f767_814f);
                let bias = match window {
                    Window::Fetch => *bias,
                    Window::Store | Window::Unguard => *bias >> 8,
                };
                ((*state >> 40) as u32 & 0xffff) < bias
            }
            _ => false,
        }
    }
}

/// Who decides about the windows of this machine, and which one is reached.
pub(in crate::runtime) struct Windows {
    policy: WindowPolicy,
    /// Whether a switch could let anybody else run.
    open: bool,
    /// The window in which the running vCPU is to be switched out.
    entered: Option<Window>,
    /// Serial number of a block whose bytes are to be fetched anew.
    refetched: Option<u64>,
}

impl Default for Windows {
    fn default() -> Self {
        Self {
            policy: WindowPolicy::Closed,
            open: false,
            entered: None,
            refetched: None,
        }
    }
}

impl Windows {
    pub fn set_policy(&mut self, policy: WindowPolicy) {
        self.policy = policy;
    }

    pub fn set_open(&mut self, open: bool) {
        self.open = open;
    }

    /// Whether to switch in a window that has been reached, with `left` instructions of the slice still unused.
    #[inline]
    pub fn switch_in(&mut self, window: Window, left: i64) -> bool {
        match &mut self.policy {
            WindowPolicy::Closed => false,
            WindowPolicy::Expect(expected) => {
                if *expected == Some(window) && left == 0 {
                    *expected = None;
                    true
                } else {
                    false
                }
            }
            policy => self.open && policy.draw(window),
        }
    }

    /// The window in which a recorded slice that is under way ends.
    pub fn expected(&self) -> Option<Window> {
        match self.policy {
            WindowPolicy::Expect(window) => window,
            _ => None,
        }
    }

    /// Whether the recording has a switch in a fetch window at the end of the budget.
    #[inline]
    pub fn expects_fetch(&self) -> bool {
        matches!(self.policy, WindowPolicy::Expect(Some(Window::Fetch)))
    }

    /// The running vCPU is to be switched out in this window.
    #[inline]
    pub fn enter(&mut self, window: Window) {
        self.entered = Some(window);
    }

    /// Whether the running vCPU is to be switched out.
    #[inline]
    pub fn is_entered(&self) -> bool {
        self.entered.is_some()
    }

    /// The window in which the running vCPU is to be switched out, once.
    #[inline]
    pub fn take_entered(&mut self) -> Option<Window> {
        self.entered.take()
    }

    /// Has the bytes of the block with this serial number fetched anew when they are about to be linked.
    pub fn refetch(&mut self, serial: u64) {
        self.refetched = Some(serial);
    }

    /// Whether the bytes of the block with this serial number are to be fetched anew; said once.
    pub fn take_refetch(&mut self, serial: u64) -> bool {
        self.refetched.take_if(|asked| *asked == serial).is_some()
    }

    /// Forgets the window that was reached, and what is to be fetched anew.
    pub fn forget(&mut self) {
        self.entered = None;
        self.refetched = None;
    }
}
