//! Steps of a block protocol that a vCPU has begun: whether it is switched out between them, and finishing them.

use super::coherence_state::Coherence;
use super::engine::Engine;
use super::progress::Progress;
use super::protocol::Protocol;
use super::vcpu::Vcpu;
use super::windows::{UnderWay, Window, WindowPolicy};
use xxhash_rust::xxh3::xxh3_64;

impl Engine {
    /// Whether to switch in a window that has been reached, with `left` instructions of the budget
    /// still unused. A budget that ends at a debugger's stop is not the slice's.
    #[inline]
    pub(in crate::runtime) fn switch_in(&mut self, window: Window, left: i64) -> bool {
        let left = left.saturating_add_unsigned(self.slice.beyond());
        self.windows.switch_in(window, left)
    }

    /// Whether the replayer has to stop in a fetch window at the end of the budget.
    #[inline]
    pub fn expects_fetch(&self) -> bool {
        self.slice.beyond() == 0 && self.windows.expects_fetch()
    }

    /// The window in which a recorded slice that is under way ends.
    pub fn expected_window(&self) -> Option<Window> {
        self.windows.expected()
    }

    /// Says who decides about windows.
    pub fn set_windows(&mut self, policy: WindowPolicy) {
        self.windows.set_policy(policy);
    }

    /// Says whether a switch could let anybody else run.
    pub fn open_windows(&mut self, open: bool) {
        self.windows.set_open(open);
    }

    /// Has blocks at a physical address whose bytes have been read, and that are not linked, be fetched
    /// anew.
    pub(in crate::runtime) fn forget_fetches(&mut self, paddr: u64) {
        for each in &mut self.progress {
            each.take_fetch_if(|f| f.paddr == paddr);
        }
    }

    /// Finishes what a vCPU had under way when it was switched out.
    pub(in crate::runtime) fn finish_steps(&mut self, v: &mut Vcpu) {
        let index = usize::from(v.cpu.id);
        if self.progress[index].under_way().is_empty() {
            return;
        }
        let UnderWay {
            fetched,
            uncommitted,
            unguard,
            unchecked,
        } = self.progress[index].take_steps();
        if let Some(store) = uncommitted {
            self.commit_late(v.cpu.id, &store);
        }
        if let Some(store) = unchecked {
            self.check_late(v.cpu.id, &store);
        }
        if let Some(unguard) = unguard {
            self.drop_guard(v.cpu.id, unguard);
        }
        if let Some(fetched) = fetched {
            if self.windows.take_refetch(self.cache.blocks.next_serial()) {
                self.forget_fetches(fetched.paddr);
            } else {
                self.link(v.cpu.id, &fetched);
            }
        }
    }

    /// The vCPU that stands inside a block which is in no table any more, if there is one: it runs on in it under
    /// protocols that let it.
    pub fn inside_removed(&self) -> Option<usize> {
        (0..self.progress.len()).find(|&n| {
            self.inside_block(n).is_some_and(|(serial, index)| {
                index != 0 && self.cache.blocks.with_serial(serial).is_none()
            })
        })
    }

    /// Follows another block protocol from now on, with no blocks. Of the steps that vCPUs have begun, those go with
    /// the blocks that they are about; a store that is not committed stays.
    pub fn change_protocol(&mut self, protocol: Protocol) {
        for each in &mut self.progress {
            each.forget_blocks();
        }
        self.flush_blocks(self.slice.vcpu());
        self.coherence = Coherence::new(protocol);
    }

    /// Whether any vCPU has something under way.
    pub fn has_under_way(&self) -> bool {
        self.progress
            .iter()
            .any(|each| !each.under_way().is_empty())
    }

    /// Digest of everything that is under way.
    pub fn windows_digest(&self) -> u64 {
        let mut text = String::new();
        for (n, steps) in self
            .progress
            .iter()
            .map(Progress::under_way)
            .enumerate()
            .filter(|(_, s)| !s.is_empty())
        {
            text += &format!("{n}: {steps:?}\n");
        }
        xxh3_64(text.as_bytes())
    }
}
