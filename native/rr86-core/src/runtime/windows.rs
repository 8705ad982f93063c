//! Windows: steps of a block protocol between which another vCPU may run.
//!
//! A vCPU that is switched out inside such a step keeps it as state of its own, and finishes it when
//! it runs again, before anything else. Whether to switch is a decision like any other: the recorder
//! draws it, the replayer knows it.

use crate::memory::tlb::MmuIndex;
use crate::runtime::engine::Engine;
use crate::runtime::vcpu::Vcpu;
use crate::translate::mode::Mode;
use xxhash_rust::xxh3::xxh3_64;

/// The windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// The block's bytes have been read; it is not linked, its page not guarded for it.
    Fetch,
    /// The store has been checked; its data is not in memory.
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

/// What a vCPU has under way.
#[derive(Clone, Debug, Default)]
pub struct UnderWay {
    pub fetched: Option<Fetched>,
    pub uncommitted: Option<Uncommitted>,
    pub unguard: Option<Unguard>,
}

impl UnderWay {
    pub fn is_empty(&self) -> bool {
        self.fetched.is_none() && self.uncommitted.is_none() && self.unguard.is_none()
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

impl Engine {
    /// Whether to switch in a window that has been reached, with `left` instructions of the budget
    /// still unused. A budget that ends at a debugger's stop is not the slice's.
    pub(in crate::runtime) fn switch_in(&mut self, window: Window, left: i64) -> bool {
        let left = left.saturating_add_unsigned(self.beyond);
        match &mut self.windows {
            WindowPolicy::Closed => false,
            WindowPolicy::Expect(expected) => {
                if *expected == Some(window) && left == 0 {
                    *expected = None;
                    true
                } else {
                    false
                }
            }
            policy => self.windows_open && policy.draw(window),
        }
    }

    /// Whether the replayer has to stop in a fetch window at the end of the budget.
    pub fn expects_fetch(&self) -> bool {
        self.beyond == 0 && matches!(self.windows, WindowPolicy::Expect(Some(Window::Fetch)))
    }

    /// Says who decides about windows.
    pub fn set_windows(&mut self, policy: WindowPolicy) {
        self.windows = policy;
    }

    /// Says whether a switch could let anybody else run.
    pub fn open_windows(&mut self, open: bool) {
        self.windows_open = open;
    }

    /// Has blocks at a physical address whose bytes have been read, and that are not linked, be fetched
    /// anew.
    pub(in crate::runtime) fn forget_fetches(&mut self, paddr: u64) {
        for steps in &mut self.under_way {
            if steps.fetched.as_ref().is_some_and(|f| f.paddr == paddr) {
                steps.fetched = None;
            }
        }
    }

    /// Finishes what a vCPU had under way when it was switched out.
    pub(in crate::runtime) fn finish_steps(&mut self, v: &mut Vcpu) {
        let index = usize::from(v.cpu.id);
        if self.under_way[index].is_empty() {
            return;
        }
        let UnderWay {
            fetched,
            uncommitted,
            unguard,
        } = std::mem::take(&mut self.under_way[index]);
        if let Some(store) = uncommitted {
            self.commit_late(v.cpu.id, &store);
        }
        if let Some(unguard) = unguard {
            self.drop_guard(v.cpu.id, unguard);
        }
        if let Some(fetched) = fetched {
            if self.refetched == Some(self.blocks.next_serial()) {
                self.refetched = None;
                self.forget_fetches(fetched.paddr);
            } else {
                self.link(v.cpu.id, &fetched);
            }
        }
    }

    /// Whether any vCPU has something under way.
    pub fn has_under_way(&self) -> bool {
        self.under_way.iter().any(|steps| !steps.is_empty())
    }

    /// Digest of everything that is under way.
    pub fn windows_digest(&self) -> u64 {
        let mut text = String::new();
        for (n, steps) in self
            .under_way
            .iter()
            .enumerate()
            .filter(|(_, s)| !s.is_empty())
        {
            text += &format!("{n}: {steps:?}\n");
        }
        xxh3_64(text.as_bytes())
    }
}
