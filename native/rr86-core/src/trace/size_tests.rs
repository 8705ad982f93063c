//! How large the trace of a whole boot is, and what a push costs.
//!
//! The events are made up, but after what was counted on a boot of a distribution kernel with four
//! vCPUs: their numbers, how pages recur, how blocks follow one another.

use std::path::Path;

use crate::trace::event::{Access, Block, Event, SliceEnd, Value};
use crate::trace::{Summary, TraceReader};
use crate::trace::{TraceWriter, NO_VCPU};

/// A small generator of pseudo-random numbers (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }

    fn percent(&mut self, p: u64) -> bool {
        self.below(100) < p
    }

    /// Small ranks are likely, with a tail up to `n`: about a Zipf distribution.
    fn rank(&mut self, n: u64) -> u64 {
        let bits = 64 - n.leading_zeros();
        let scale = self.below(u64::from(bits)) as u32;
        ((1u64 << scale) + self.below(1u64 << scale) - 1) % n
    }
}

const VCPUS: u64 = 4;
/// Pages that several vCPUs touch.
const SHARED: u64 = 6500;

struct Boot {
    random: Random,
    events: Vec<(u64, Event)>,
    now: u64,
    pages: Vec<u64>,
    owners: Vec<u8>,
    blocks: Vec<Block>,
    pc: [u64; VCPUS as usize],
}

impl Boot {
    fn new() -> Self {
        let mut random = Random(0x5eed);
        // Shared pages come in runs (per-vCPU areas, slabs, page tables, the page array).
        let mut page = 0x1000;
        let pages = (0..SHARED)
            .map(|_| {
                page += if random.percent(70) {
                    1
                } else {
                    random.below(600)
                };
                page
            })
            .collect();
        Boot {
            random,
            events: Vec::new(),
            now: 0,
            pages,
            owners: vec![NO_VCPU; SHARED as usize],
            blocks: Vec::new(),
            pc: [0xffff_ffff_8100_0000; 4],
        }
    }

    fn block(&mut self, at: u64, vcpu: u8) {
        let r = &mut self.random;
        let pc = &mut self.pc[usize::from(vcpu)];
        match r.below(10) {
            0..=5 => {}
            6 | 7 => *pc = pc.wrapping_add(r.below(400)),
            8 => *pc = 0xffff_ffff_8100_0000 + r.below(0x100_0000),
            _ => *pc = 0x40_0000 + r.below(0x10_0000),
        }
        let user = *pc < 0x8000_0000;
        let paddr = if user {
            // User pages lie anywhere; within a page the mapping is constant.
            ((*pc >> 12).wrapping_mul(0x9e37) & 0x1_ffff) << 12 | (*pc & 0xfff)
        } else {
            *pc - 0xffff_ffff_8000_0000 + 0x100_0000
        };
        let block = Block {
            id: self.blocks.len() as u64,
            vcpu,
            pc: *pc,
            paddr,
            len: 4 + r.rank(60) as u16,
            mode: if user { 0x33 } else { 0x30 },
            digest: r.next() as u32,
        };
        *pc += u64::from(block.len);
        self.blocks.push(block);
        self.events.push((at, Event::Fetch(block)));
        self.events.push((at, Event::Link(block)));
    }

    fn hand_off(&mut self, at: u64, to: u8) {
        let r = &mut self.random;
        // The shared set drifts slowly: what a phase of the boot works on.
        let phase = self.now / 100_000_000 * 300;
        let n = ((r.rank(SHARED) + if r.percent(50) { phase } else { 0 }) % SHARED) as usize;
        let write = r.percent(54);
        let lines = match r.below(10) {
            0..=2 => 0,
            3..=5 => 1 << r.below(64),
            6 => 0xf << r.below(60),
            7 => u64::MAX,
            _ => 1 << r.below(64) | 1 << r.below(64) | 1 << r.below(64),
        };
        let from = self.owners[n];
        if write {
            self.owners[n] = to;
        }
        let access = if write { Access::Write } else { Access::Read };
        self.events.push((
            at,
            Event::HandOff {
                page: self.pages[n],
                from,
                to,
                access,
                lines,
            },
        ));
    }

    fn slice(&mut self, n: u64) {
        let vcpu = self.random.below(VCPUS) as u8;
        let (instructions, stop) = match self.random.below(100) {
            0..=89 => (1 + self.random.below(10_000), SliceEnd::Quantum),
            90..=94 => (1 + self.random.rank(5_000), SliceEnd::Pause),
            95..=97 => (1 + self.random.rank(20_000), SliceEnd::Halt),
            98 => (1 + self.random.below(10_000), SliceEnd::Deadline),
            _ => (1 + self.random.below(200_000), SliceEnd::Quantum),
        };
        let start = self.now;
        let mut at = start;
        let mut some = |boot: &mut Boot, percent: u64, f: fn(&mut Boot, u64, u8)| {
            while boot.random.percent(percent) {
                at += boot.random.below(1 + (start + instructions - at) / 2);
                f(boot, at, vcpu);
            }
        };
        some(self, 40, Boot::hand_off);
        // Fetches come in bursts, where new code is reached.
        if n % 20 == 0 {
            some(self, 86, Boot::block);
        }
        some(self, 5, |boot, at, by| {
            if boot.blocks.is_empty() {
                return;
            }
            let recent = boot.random.rank(boot.blocks.len() as u64) as usize;
            let victim = boot.blocks[boot.blocks.len() - 1 - recent];
            let event = Event::Invalidate {
                id: victim.id,
                by,
                paddr: victim.paddr,
                len: 8,
                reason: 0,
            };
            boot.events.push((at, event));
        });
        some(self, 5, |boot, at, vcpu| {
            let page = boot.pages[boot.random.rank(SHARED) as usize];
            let value = boot.random.rank(1 << 40).to_le_bytes();
            let event = Event::CrossWrite {
                vcpu,
                paddr: (page << 12) + boot.random.below(512) * 8,
                value: Value::new(&value).expect("8 bytes"),
            };
            boot.events.push((at, event));
        });
        let event = Event::Slice {
            vcpu,
            instructions,
            stop,
        };
        self.events.push((start, event));
        self.now += instructions;
        if stop == SliceEnd::Halt && self.random.percent(70) {
            let to_ns = self.now + 4_000_000 + self.random.below(4096);
            self.events.push((self.now, Event::TimeSkip { to_ns }));
        }
        if n % 2000 == 0 {
            let list = (0..20)
                .map(|c| (format!("device{c}").into(), self.random.next()))
                .collect();
            self.events.push((self.now, Event::Digests { list }));
        }
    }
}

fn boot() -> Vec<(u64, Event)> {
    let mut boot = Boot::new();
    for n in 0..300_000 {
        boot.slice(n);
    }
    boot.events
}

fn record(path: &Path, events: &[(u64, Event)]) -> Summary {
    let mut writer = TraceWriter::create(path, b"", &[]).expect("a writer");
    for (icount, event) in events {
        writer.push(*icount, event).expect("a push");
    }
    writer.finish(b"").expect("a finish");
    TraceReader::open(path)
        .expect("a reader")
        .summary()
        .expect("a summary")
}

#[test]
fn a_whole_boot_takes_less_than_four_megabytes() {
    let dir = tempfile::tempdir().expect("a directory");
    let summary = record(&dir.path().join("boot.rr86"), &boot());
    assert!(summary.events > 700_000);
    assert!(summary.file_bytes < 4_000_000, "{summary:?}");
}

/// Prints the sizes by kind and the cost of a push; run it with `--ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
#[allow(clippy::disallowed_methods)] // Host time, to measure with; no guest runs here.
fn measure_a_boot() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("boot.rr86");
    let events = boot();
    let summary = record(&path, &events);
    for kind in &summary.kinds {
        println!(
            "{:12} {:7} events {:9} raw {:8} stored {:6.2} bytes each",
            kind.kind.name(),
            kind.events,
            kind.raw_bytes,
            kind.stored_bytes,
            kind.stored_bytes as f64 / kind.events as f64
        );
    }
    println!(
        "order {} frame {} chunks {}",
        summary.order_bytes, summary.frame_bytes, summary.chunks
    );
    println!(
        "{} events, {} raw, {} in the file",
        summary.events, summary.event_raw_bytes, summary.file_bytes
    );

    let mut builder = crate::trace::codec::ChunkBuilder::new();
    let start = std::time::Instant::now();
    for (icount, event) in &events {
        builder.push(*icount, event).expect("a push");
        if builder.is_full() {
            builder = crate::trace::codec::ChunkBuilder::new();
        }
    }
    println!(
        "encoding: {:.1} ns a push",
        start.elapsed().as_nanos() as f64 / events.len() as f64
    );
    let start = std::time::Instant::now();
    record(&path, &events);
    println!(
        "recording: {:.1} ns an event",
        start.elapsed().as_nanos() as f64 / events.len() as f64
    );
    let reader = TraceReader::open(&path).expect("a reader");
    let start = std::time::Instant::now();
    let mut read = 0usize;
    for n in 0..reader.chunk_count() {
        read += reader.chunk(n).expect("a chunk").len();
    }
    println!(
        "decoding: {:.1} ns an event",
        start.elapsed().as_nanos() as f64 / read as f64
    );
    for level in [1, 3, 6, 9] {
        let mut compressor = zstd::bulk::Compressor::new(level).expect("a compressor");
        let mut builder = crate::trace::codec::ChunkBuilder::new();
        let (mut total, mut time) = (0, std::time::Duration::ZERO);
        for (icount, event) in &events {
            builder.push(*icount, event).expect("a push");
            if builder.is_full() {
                let start = std::time::Instant::now();
                total += builder.to_chunk(0, &mut compressor).expect("a chunk").len();
                time += start.elapsed();
                builder = crate::trace::codec::ChunkBuilder::new();
            }
        }
        println!("level {level}: {total} bytes, {time:?}");
    }
}
