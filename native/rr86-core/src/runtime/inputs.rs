//! What reaches a vCPU from outside of itself: answers of devices, interrupts, and the bytes that others
//! have written.
//!
//! In an ordinary run these come from the bus and from RAM. A replay can *log* them, vCPU by vCPU, and
//! then one vCPU can be run alone, with its inputs *replayed* (`session::alone`). This works
//! because a page that others have written is never touched without being acquired first: whatever a
//! vCPU can see of the others has passed through [`Engine::acquire`].

use crate::runtime::guest_memory::GuestMemory;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::memory::pages::{HandOffKind, PageInfo, DEVICE, NO_AGENT};
use crate::memory::ram::GuestRam;
use crate::memory::PAGE_SIZE;
use crate::runtime::storelog::StoreLog;

type PageBytes = [u8; PAGE_SIZE as usize];

/// An interrupt or NMI that was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub icount: u64,
    /// Where the handler returns to: it tells the order of a fault and an interrupt at one moment.
    pub rip: u64,
    /// `None` is an NMI.
    pub vector: Option<u8>,
}

/// A page that a vCPU acquired, and what others had changed in it since it last could read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acquired {
    pub icount: u64,
    pub page: u32,
    pub write: bool,
    /// Offset in the page and new bytes.
    pub changes: Vec<(u16, Vec<u8>)>,
}

/// Inputs of one vCPU, each kind in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InputLog {
    /// What devices answered; a refused MSR access is `None`.
    pub answers: VecDeque<Option<u64>>,
    pub deliveries: VecDeque<Delivery>,
    pub acquired: VecDeque<Acquired>,
}

impl InputLog {
    pub fn is_empty(&self) -> bool {
        self.answers.is_empty() && self.deliveries.is_empty() && self.acquired.is_empty()
    }
}

/// Logs the inputs of all vCPUs.
#[derive(Default)]
pub struct InputRecorder {
    pub vcpus: Vec<InputLog>,
    /// RAM as it was when this began, where it was not zero.
    initial: BTreeMap<usize, Box<PageBytes>>,
    /// What vCPUs that can no longer read a page last saw of it.
    seen: BTreeMap<(usize, u8), Arc<PageBytes>>,
    /// The last stores to shared lines, if they are wanted.
    pub stores: Option<StoreLog>,
}

impl InputRecorder {
    /// Logs the inputs of `vcpus` vCPUs from now on.
    pub fn new(vcpus: usize, memory: &GuestMemory) -> Self {
        let copy = |page: usize| -> Box<PageBytes> {
            memory
                .ram
                .page(page)
                .to_vec()
                .try_into()
                .expect("a whole page")
        };
        let written = (0..memory.ram.pages()).filter(|&p| memory.pages.info[p].writer != NO_AGENT);
        Self {
            vcpus: vec![InputLog::default(); vcpus],
            initial: written.map(|page| (page, copy(page))).collect(),
            seen: BTreeMap::new(),
            stores: None,
        }
    }

    /// A page is about to change hands.
    pub(in crate::runtime) fn handed(
        &mut self,
        ram: &GuestRam,
        page: usize,
        before: PageInfo,
        agent: u8,
        kind: HandOffKind,
        icount: u64,
    ) {
        if let Some(stores) = &mut self.stores {
            // Until its owner changes, no other agent writes the page.
            if before.writer != agent || kind == HandOffKind::Read {
                stores.handed(page);
            }
        }
        let now: &PageBytes = ram.page(page).try_into().expect("a whole page");
        let readers = before.readers;
        if agent != DEVICE && before.writer != NO_AGENT {
            let mut changes = Vec::new();
            if readers >> agent & 1 == 0 {
                let zero = [0; PAGE_SIZE as usize];
                let seen = self.seen.remove(&(page, agent));
                let old = seen
                    .as_deref()
                    .or_else(|| self.initial.get(&page).map(|p| &**p))
                    .unwrap_or(&zero);
                changes = differences(old, now);
            }
            self.vcpus[usize::from(agent)].acquired.push_back(Acquired {
                icount,
                page: page as u32,
                write: kind == HandOffKind::Write,
                changes,
            });
        }
        if kind == HandOffKind::Write {
            let mut copy = None;
            for other in 0..self.vcpus.len() as u8 {
                if other != agent && readers >> other & 1 != 0 {
                    let copy = copy.get_or_insert_with(|| Arc::new(*now));
                    self.seen.insert((page, other), copy.clone());
                }
            }
        }
    }
}

/// Runs of bytes that differ; runs less than eight bytes apart are joined.
fn differences(old: &PageBytes, new: &PageBytes) -> Vec<(u16, Vec<u8>)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for at in (0..old.len()).step_by(8) {
        if old[at..at + 8] == new[at..at + 8] {
            continue;
        }
        for n in (at..at + 8).filter(|&n| old[n] != new[n]) {
            match runs.last_mut() {
                Some((_, end)) if n < *end + 8 => *end = n + 1,
                _ => runs.push((n, n + 1)),
            }
        }
    }
    runs.iter()
        .map(|&(start, end)| (start as u16, new[start..end].to_vec()))
        .collect()
}

/// A page of RAM that a vCPU acquires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acquisition {
    /// RAM page index.
    pub page: usize,
    pub write: bool,
}

impl Acquisition {
    pub(in crate::runtime) fn new(page: usize, write: bool) -> Self {
        Self { page, write }
    }
}

/// What a vCPU that runs alone did otherwise than logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputDivergence {
    /// It asked a device for more than was answered.
    Answer,
    /// It acquired a page where the log has another acquisition, at that moment, or none.
    Page {
        logged: Option<(u64, Acquisition)>,
        found: Acquisition,
    },
}

/// Where a vCPU's inputs come from.
#[derive(Default)]
pub enum Inputs {
    /// From the bus and from RAM.
    #[default]
    Live,
    /// The same, and they are logged.
    Logged(Box<InputRecorder>),
    /// From a log.
    Replayed(Box<InputLog>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_runs_that_join_when_close() {
        let old = [0; PAGE_SIZE as usize];
        let mut new = old;
        assert!(differences(&old, &new).is_empty());
        new[7] = 1;
        new[9] = 2;
        new[100] = 3;
        new[4095] = 4;
        assert_eq!(
            differences(&old, &new),
            [(7, vec![1, 0, 2]), (100, vec![3]), (4095, vec![4])]
        );
    }
}
