//! Translating blocks before the guest gets to them, on a thread of its own.
//!
//! Whoever knows which blocks will come, as a replay does, gives *predictions*: number, address, mode and digest
//! of the bytes. The thread looks whether memory holds such bytes already, translates them, and puts the
//! code with the ready blocks, where the engine takes it instead of translating itself.
//!
//! Nothing depends on the thread. It only reads guest RAM, and may see anything there while the guest runs;
//! but code is a pure function of the bytes and of what else is compared here, and the engine uses it only for
//! a block whose bytes it has fetched itself and found to be the same. A prediction that is wrong, or comes too
//! late, costs nothing but the thread's time, and is not waited for.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use crate::memory::ram::RamReader;
use crate::memory::{PAGE_MASK, PAGE_SIZE};
use crate::runtime::cache::Block;
use crate::runtime::codebuf::Mapping;
use crate::translate::block;
use crate::translate::code::Code;
use crate::translate::decode::classify::shape::{self, Shape};
use crate::translate::decode::offered::Offered;
use crate::translate::lower::emitter::{Hooks, Request};
use crate::translate::lower::stubs::Stubs;
use crate::translate::mode::Mode;
use crate::translate::scratch::Scratch;
use crate::translate::shortcuts::Shortcuts;

/// Blocks that may be ready and not taken yet.
const READY_BLOCKS: usize = 4096;
/// Predictions whose bytes are looked for all the time. The others are looked for once in `FAR` rounds: most of
/// them are of code that the guest has not loaded yet.
const NEAR: usize = 256;
const FAR: u32 = 16;
/// How long to leave the processor alone when there is nothing to do.
const REST: Duration = Duration::from_millis(1);
/// Bytes of the code buffer for which memory is taken from the host at once.
const STEP: usize = 1 << 20;
/// Most blocks that are left to the engine because it will be there first.
const LEAD: u64 = 256;

/// A block that will probably be made.
#[derive(Clone, Copy, Debug)]
pub struct Prediction {
    /// Serial number of the block.
    pub serial: u64,
    /// Linear address of its first instruction.
    pub linear: u64,
    pub paddr: u64,
    pub len: u16,
    pub mode: u32,
    /// Of its bytes, as in [`crate::runtime::observers::Observed`].
    pub digest: u32,
}

impl Prediction {
    /// Whether this module deals with it. Where code does not start at linear address 0, the prediction does not
    /// tell the rip; and of a block in two pages, it tells only one.
    fn is_plain(&self) -> bool {
        let mode = Mode(self.mode);
        let room = PAGE_SIZE - (self.paddr & PAGE_MASK);
        mode.is_possible()
            && mode.code_flat()
            && (mode.code64() || self.linear >> 32 == 0)
            && (1..=room).contains(&u64::from(self.len))
            && self.paddr & PAGE_MASK == self.linear & PAGE_MASK
    }
}

/// What all translations of one thread have in common.
#[derive(Clone, Copy)]
pub(in crate::runtime) struct Settings {
    pub stubs: Stubs,
    pub tracking: bool,
    pub shortcuts: Shortcuts,
    pub offered: Offered,
    /// Most instructions in a block.
    pub limit: usize,
}

/// A block that was translated ahead.
pub(in crate::runtime) struct Translation {
    pub serial: u64,
    pub paddr: u64,
    pub rip: u64,
    pub mode: Mode,
    pub bytes: Vec<u8>,
    /// Instructions.
    pub count: u8,
    /// The block ends here whatever bytes follow.
    pub closed: bool,
    pub code: Code,
}

struct ReadyBlocks {
    /// A translation lies at its serial number modulo the size, until the thread has another for the place. Used
    /// ones come back: the thread has made them, so freeing them costs it least.
    places: Vec<Mutex<Option<Box<Translation>>>>,
    /// How much of the code buffer is in use.
    used: AtomicUsize,
    /// Serial number of the next block that the engine will ask for.
    next: AtomicU64,
    stop: AtomicBool,
}

impl ReadyBlocks {
    fn new(next: u64) -> Self {
        Self {
            places: (0..READY_BLOCKS).map(|_| Mutex::new(None)).collect(),
            used: AtomicUsize::new(0),
            next: AtomicU64::new(next),
            stop: AtomicBool::new(false),
        }
    }

    fn put(&self, translation: Box<Translation>) {
        let place = &self.places[translation.serial as usize % READY_BLOCKS];
        // Whoever held it when they panicked has left a whole value.
        let mut place = place.lock().unwrap_or_else(|e| e.into_inner());
        let old = place.replace(translation);
        drop(place);
        drop(old);
    }

    /// What lies there for a block. Never waits.
    fn take(&self, serial: u64) -> Option<Box<Translation>> {
        let mut place = self.places[serial as usize % READY_BLOCKS]
            .try_lock()
            .ok()?;
        place.take_if(|t| t.serial == serial)
    }

    /// Puts what has been used back. Its code has been placed, and can be placed once only: should its block need
    /// code again, this is not for it.
    fn give_back(&self, mut used: Box<Translation>) {
        let index = used.serial as usize % READY_BLOCKS;
        used.serial = u64::MAX;
        if let Ok(mut place) = self.places[index].try_lock() {
            place.get_or_insert(used);
        }
    }
}

/// The thread, as the engine knows it.
pub(in crate::runtime) struct Ahead {
    ready: Arc<ReadyBlocks>,
    settings: Settings,
    thread: JoinHandle<()>,
    /// What was taken of the ready blocks last.
    taken: Option<Box<Translation>>,
}

impl Ahead {
    /// Starts the thread; `None` if the host has none to give. `next` is the number of the next block. Code goes to
    /// `mapping`, of which so many bytes are in use.
    pub fn start(
        predictions: impl Iterator<Item = Option<Prediction>> + Send + 'static,
        settings: Settings,
        next: u64,
        ram: RamReader,
        (mapping, used): (Mapping, usize),
    ) -> Option<Self> {
        let ready = Arc::new(ReadyBlocks::new(next));
        let worker = Worker {
            predictions,
            ram,
            mapping,
            populated: used,
            settings,
            ready: ready.clone(),
            waiting: VecDeque::new(),
            held: None,
        };
        let thread = std::thread::Builder::new().name("rr86-ahead".into());
        thread.spawn(|| worker.run()).ok().map(|thread| Self {
            ready,
            settings,
            thread,
            taken: None,
        })
    }

    /// Whether its code is what these settings give.
    pub fn suits(&self, tracking: bool, shortcuts: Shortcuts, offered: Offered) -> bool {
        self.settings.tracking == tracking
            && self.settings.shortcuts == shortcuts
            && self.settings.offered == offered
    }

    /// Takes the translation of a block.
    pub fn take(&mut self, block: &Block) -> Option<Box<Translation>> {
        self.look(block.serial)?;
        self.taken.take_if(|t| t.is_of(block))
    }

    /// Takes back a translation whose code has been placed, so that so many bytes of the buffer are in use.
    pub fn give_back(&self, made: Box<Translation>, used: usize) {
        self.ready.used.store(used, Ordering::Relaxed);
        self.ready.give_back(made);
    }

    /// What there is for the block with this number, which is being made.
    pub fn look(&mut self, serial: u64) -> Option<&Translation> {
        if self.taken.as_ref().is_none_or(|t| t.serial != serial) {
            self.ready.next.store(serial + 1, Ordering::Relaxed);
            self.taken = self.ready.take(serial);
        }
        self.taken.as_deref().filter(|t| t.serial == serial)
    }

    pub fn stop(self) {
        self.ready.stop.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        // A panic over there has nothing to say about the guest.
        let _ = self.thread.join();
    }
}

/// Decodes and translates what a prediction is about, if these are its bytes.
fn translate(
    prediction: &Prediction,
    bytes: &[u8],
    settings: &Settings,
    scratch: &mut Scratch,
) -> Option<Translation> {
    let (rip, mode, limit) = (prediction.linear, Mode(prediction.mode), settings.limit);
    // With something else behind them, the bytes are the same block only if it ends by itself.
    let followed = [bytes, &[0x90; 15]].concat();
    let cut = |bytes: &[u8]| match shape::cut(bytes, rip, mode, &settings.offered, limit, false) {
        Shape::Block(insns) => {
            let len: usize = insns.iter().map(|(i, _)| i.len().max(1)).sum();
            Some((insns, len))
        }
        Shape::Crosses => None,
    };
    let (mut insns, mut len) = cut(&followed)?;
    let closed = len == bytes.len();
    if !closed {
        (insns, len) = cut(bytes)?;
    }
    if len != bytes.len() {
        return None;
    }
    let request = Request {
        mode,
        insns: &insns,
        start: 0,
        stop: insns.len(),
        hooks: &Hooks::default(),
        checked: false,
        tracking: settings.tracking,
        shortcuts: settings.shortcuts,
        superblock: None,
    };
    Some(Translation {
        serial: prediction.serial,
        paddr: prediction.paddr,
        rip,
        mode,
        bytes: bytes.to_vec(),
        count: insns.len() as u8,
        closed,
        code: block::translate(request, settings.stubs, scratch),
    })
}

/// The thread's side.
struct Worker<G> {
    predictions: G,
    ram: RamReader,
    /// Where code goes, and up to where the host has given memory for it.
    mapping: Mapping,
    populated: usize,
    settings: Settings,
    ready: Arc<ReadyBlocks>,
    /// Predictions that have not come true yet, in the order of their numbers.
    waiting: VecDeque<Prediction>,
    /// The next one, when it has to wait for a free place.
    held: Option<Prediction>,
}

impl<G: Iterator<Item = Option<Prediction>>> Worker<G> {
    fn run(mut self) {
        let mut scratch = Scratch::new(self.settings.offered);
        let mut bytes = [0; PAGE_SIZE as usize];
        let mut round = 0u32;
        let mut lead = 0;
        while !self.ready.stop.load(Ordering::Relaxed) {
            let next = self.ready.next.load(Ordering::Relaxed);
            while self.waiting.front().is_some_and(|g| g.serial < next) {
                self.waiting.pop_front();
            }
            self.make_room();
            let new = self.waiting.len();
            if !self.collect(next) && self.waiting.is_empty() {
                return;
            }
            round = round.wrapping_add(1);
            let all = round % FAR == 0;
            let mut done = false;
            for n in (0..self.waiting.len()).filter(|&n| all || n < NEAR || n >= new) {
                let prediction = self.waiting[n];
                let here = &mut bytes[..usize::from(prediction.len)];
                let next = self.ready.next.load(Ordering::Relaxed);
                if prediction.serial < next + lead
                    || !self.ram.read(prediction.paddr, here)
                    || xxh3_64(here) as u32 != prediction.digest
                {
                    continue;
                }
                if let Some(made) = translate(&prediction, here, &self.settings, &mut scratch) {
                    self.ready.put(Box::new(made));
                }
                // Running neck and neck with the engine would be of no use.
                lead = if prediction.serial < self.ready.next.load(Ordering::Relaxed) {
                    (2 * lead + 8).min(LEAD)
                } else {
                    lead.saturating_sub(1)
                };
                // No other bytes will have this digest.
                self.waiting[n].len = 0;
                done = true;
            }
            self.waiting.retain(|g| g.len != 0);
            if !done {
                std::thread::park_timeout(REST);
            }
        }
    }

    /// Takes memory for the next code from the host.
    fn make_room(&mut self) {
        // What lies before `used` has its memory already.
        let used = self.ready.used.load(Ordering::Relaxed);
        self.populated = self.populated.max(used);
        if self.populated < used + STEP {
            self.mapping.populate(self.populated, STEP);
            self.populated += STEP;
        }
    }

    /// Takes predictions for which there is a free place. Tells whether there can be more.
    fn collect(&mut self, next: u64) -> bool {
        loop {
            let prediction = match self.held.take() {
                Some(prediction) => prediction,
                None => match self.predictions.next() {
                    Some(Some(prediction)) => prediction,
                    Some(None) => return true,
                    None => return false,
                },
            };
            if prediction.serial >= next.saturating_add(READY_BLOCKS as u64) {
                self.held = Some(prediction);
                return true;
            }
            if prediction.serial >= next && prediction.is_plain() {
                self.waiting.push_back(prediction);
            }
        }
    }
}

impl Translation {
    /// Whether the code is what the block's would be.
    fn is_of(&self, block: &Block) -> bool {
        self.rip == block.rip
            && self.mode == block.mode
            && self.count == block.count
            && *self.bytes == *block.bytes
    }
}

#[cfg(test)]
#[path = "ahead_tests.rs"]
mod tests;
