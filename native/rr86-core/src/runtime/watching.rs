//! Telling observers: the oracle of every access, the write log of writes to what it watches.

use super::agent::Agent;
use super::cache::BlockId;
use super::engine::Engine;
use super::oracle::{Access, Oracle, Seen};
use super::storelog::StoreLog;
use super::vcpu::Vcpu;
use super::writelog::{Commit, Logged};
use crate::memory::pages::{PageFlags, DEVICE};
use crate::memory::{PAGE_MASK, PAGE_SHIFT, PAGE_SIZE};

impl Engine {
    /// Asks the oracle about everything that happens to memory from now on; before anything has.
    pub fn ask_oracle(&mut self) {
        self.observers.oracle = Some(Box::default());
        // Code that is there may do without the looks that are now to be taken.
        self.drop_code();
    }

    /// Sends the oracle away: what it has read of the log is no longer what will happen.
    pub fn dismiss_oracle(&mut self) {
        self.observers.oracle = None;
    }

    /// The oracle, if one is asked.
    pub fn oracle(&self) -> Option<&Oracle> {
        self.observers.oracle.as_deref()
    }

    /// The same, to be given hand-offs of the log.
    pub fn oracle_mut(&mut self) -> Option<&mut Oracle> {
        self.observers.oracle.as_deref_mut()
    }

    /// Physical address of a byte that is not zero, as RAM is at power-on, and that the oracle saw no agent
    /// write: it does not see everything then, and its verdict is worth nothing.
    pub fn unseen_by_oracle(&self) -> Option<u64> {
        let oracle = self.observers.oracle.as_deref()?;
        (0..self.memory.ram.pages()).find_map(|index| {
            let paddr = self.memory.ram.page_address(index);
            let written = |at: usize| oracle.saw_write(paddr + at as u64);
            let mut bytes = self.memory.ram.page(index).iter().enumerate();
            bytes
                .find(|&(at, &byte)| byte != 0 && !written(at))
                .map(|(at, _)| paddr + at as u64)
        })
    }

    /// Tells the oracle of an access.
    #[inline]
    pub(in crate::runtime) fn seen(&mut self, agent: u8, seen: Seen, paddr: u64, len: usize) {
        if self.observers.oracle.is_some() {
            self.tell_oracle(agent, seen, paddr, len);
        }
    }

    fn tell_oracle(&mut self, agent: u8, seen: Seen, paddr: u64, len: usize) {
        let Some(mut oracle) = self.observers.oracle.take() else {
            return;
        };
        let mut done = 0;
        while done < len {
            let at = paddr.wrapping_add(done as u64);
            let n = (len - done).min((PAGE_SIZE - (at & PAGE_MASK)) as usize);
            if self.memory.ram.page_index(at).is_some() {
                let access = Access {
                    agent,
                    seen,
                    paddr: at,
                    len: n,
                    icount: self.icount(),
                };
                let between = oracle.between();
                oracle.access(&access, || match agent {
                    DEVICE => None,
                    _ => between.or_else(|| self.position_rip()),
                });
            }
            done += n;
        }
        self.observers.oracle = Some(oracle);
    }

    /// Tells the oracle where the running vCPU stands, if not inside a block.
    #[inline]
    pub(in crate::runtime) fn stand_between(&mut self, rip: Option<u64>) {
        if let Some(oracle) = &mut self.observers.oracle {
            oracle.stand_between(rip);
        }
    }

    /// Tells the oracle of the entry of a block, at whose site the engine stands.
    pub(in crate::runtime) fn entered_block(&mut self, vcpu: &Vcpu, id: BlockId) {
        let block = self.cache.blocks.get(id);
        let ranges: Vec<(u64, u64)> = block.ranges().collect();
        for (at, len) in ranges {
            self.seen(vcpu.cpu.id, Seen::Fetch, at, len as usize);
        }
    }
}

impl Engine {
    /// Logs every write to these physical ranges (address, length) from now on; none ends the log.
    pub fn log_writes(&mut self, ranges: Vec<(u64, u64)>) {
        for (at, len) in self.observers.write_log.begin(ranges) {
            self.watch_pages(at, len, false);
        }
        self.watch_all();
    }

    /// The writes since the last call; `None` if there were too many.
    pub fn take_writes(&mut self) -> Option<Vec<Logged>> {
        self.observers.write_log.take()
    }

    /// Watches the pages of everything that is watched or logged.
    pub(in crate::runtime) fn watch_all(&mut self) {
        let ranges: Vec<(u64, u64)> = self
            .stops
            .watches()
            .iter()
            .chain(self.observers.write_log.ranges())
            .copied()
            .collect();
        for (at, len) in ranges {
            self.watch_pages(at, len, true);
        }
    }

    /// Takes the pages of a range off the fast path of stores, or lets them back.
    pub(in crate::runtime) fn watch_pages(&mut self, at: u64, len: u64, on: bool) {
        let last = at.saturating_add(len.max(1) - 1);
        for number in at >> PAGE_SHIFT..=last >> PAGE_SHIFT {
            let Some(page) = self.memory.ram.page_index(number << PAGE_SHIFT) else {
                continue;
            };
            self.memory.pages.info[page]
                .flags
                .set(PageFlags::WATCHED, on);
            self.vcpus.mmus().for_each(|mmu| mmu.tlb.protect_page(page));
        }
    }

    /// Takes the pages of ranges off the fast path altogether, or lets them back.
    pub(in crate::runtime) fn watch_reads(&mut self, ranges: &[(u64, u64)], on: bool) {
        for &(at, len) in ranges {
            let last = at.saturating_add(len.max(1) - 1);
            for number in at >> PAGE_SHIFT..=last >> PAGE_SHIFT {
                if let Some(page) = self.memory.ram.page_index(number << PAGE_SHIFT) {
                    let flags = &mut self.memory.pages.info[page].flags;
                    flags.set(PageFlags::READ_WATCHED, on);
                    self.vcpus.mmus().for_each(|mmu| mmu.tlb.revoke_page(page));
                }
            }
        }
    }

    /// Logs a write that is about to change memory.
    pub(in crate::runtime) fn log_write(&mut self, commit: &Commit, paddr: u64, data: &[u8]) {
        if !self.observers.write_log.wants(paddr, data.len() as u64) {
            return;
        }
        let mut old = vec![0; data.len()];
        self.memory.ram.read(paddr, &mut old);
        let now = self.icount();
        let (checked, rip) = match (commit.agent, commit.late) {
            (Agent::Device, _) => (now, None),
            (_, Some((checked, rip))) => (checked, Some(rip)),
            _ => (now, self.position_rip()),
        };
        self.observers.write_log.push(Logged {
            agent: commit.agent,
            checked,
            committed: now,
            rip,
            linear: commit.linear,
            paddr,
            old,
            new: data.to_vec(),
            passage: commit.passage,
        });
    }

    /// Logs the last stores to shared lines from now on.
    pub fn log_stores(&mut self, stores: StoreLog) {
        let Some(log) = self.outside.recorder() else {
            return;
        };
        for page in stores.pages() {
            self.memory.pages.info[page].flags |= PageFlags::LOGGED;
            self.vcpus.mmus().for_each(|mmu| mmu.tlb.protect_page(page));
        }
        log.stores = Some(stores);
    }

    /// Logs a store that is about to change a page of interest.
    pub(in crate::runtime) fn log_store(
        &mut self,
        commit: &Commit,
        page: usize,
        paddr: u64,
        data: &[u8],
    ) {
        let icount = self.icount();
        let rip = match commit.agent {
            Agent::Device => 0,
            Agent::Vcpu(_) => self.position_rip().unwrap_or(0),
        };
        let offset = (paddr % PAGE_SIZE) as usize;
        if let Some(log) = self.outside.recorder() {
            if let Some(stores) = &mut log.stores {
                let old = &self.memory.ram.page(page)[offset..offset + data.len()];
                stores.note(commit.agent, page, paddr, (icount, rip), old, data);
            }
        }
    }
}
