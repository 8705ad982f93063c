//! The decoders, each with files that reach it.

use std::path::{Path, PathBuf};

use rr86_core::host_time::{CallLimit, Limit};
use rr86_core::session::{
    CheckpointError, Conditions, ExpansionReader, Policy, Scheduler, Session, Wait,
};
use rr86_core::trace::event::Kind;
use rr86_core::trace::format::{ChunkKind, Codec, CHUNK_HEADER, FILE_HEADER};
use rr86_core::trace::tail::{self, Record, RECORD};
use rr86_core::trace::{survey, TraceError, TraceReader, TraceWriter};
use tempfile::TempDir;

use crate::files::{self, Chunk};
use crate::memory::peak_of;
use crate::mutate::{interesting, mutate, Rng};
use crate::sample;

/// What a reader may allocate at once besides a multiple of the file: one chunk of the largest size, packed and
/// unpacked, and its events.
const ROOM: usize = 80 << 20;
/// That multiple.
const MULTIPLE: usize = 64;
/// Instructions of the recordings to start from: how often is more than how much.
const SHORT: u64 = 400;
const LONG: u64 = 10_000;
/// Instructions that a hostile trace is replayed for.
const STEPS: u64 = 5000;

/// What an input is made for, and how many of 1,024 inputs.
pub const TARGETS: [(&str, usize); 12] = [
    ("frame", 98),
    ("chunk", 150),
    ("events", 260),
    ("index", 120),
    ("images", 80),
    ("checkpoint", 90),
    ("expansion", 100),
    ("side-file", 110),
    ("state", 10),
    ("replay", 2),
    ("beginning", 2),
    ("alone", 2),
];

/// A valid trace and what it is made of.
struct Source {
    file: Vec<u8>,
    /// Without the index.
    chunks: Vec<Chunk>,
    index: Vec<u8>,
}

impl Source {
    fn new(file: Vec<u8>) -> Self {
        let mut chunks = files::chunks(&file, FILE_HEADER);
        chunks.retain(|c| c.header.kind != ChunkKind::INDEX);
        let index = files::index(&chunks);
        Self {
            file,
            chunks,
            index,
        }
    }

    /// The place of a chunk of a kind.
    fn place(&self, rng: &mut Rng, kind: ChunkKind) -> Option<usize> {
        let of_kind = |n: &usize| self.chunks[*n].header.kind == kind;
        let places: Vec<usize> = (0..self.chunks.len()).filter(of_kind).collect();
        (!places.is_empty()).then(|| *rng.pick(&places))
    }
}

/// A checkpoint: the pages that are not zero, and the state.
struct Saved {
    protocol: &'static str,
    pages: Vec<(usize, Box<[u8; 4096]>)>,
    state: Vec<u8>,
}

/// Everything that inputs are made from, and a folder to put them in.
pub struct Targets {
    folder: TempDir,
    sources: Vec<Source>,
    /// The recording that the expansion and the side file belong to.
    own: Source,
    /// Traces that begin at a checkpoint, and their protocols.
    branches: Vec<(&'static str, Source)>,
    expansion: Vec<u8>,
    /// Its trace as a killed recorder left it, and the side file.
    killed: Vec<u8>,
    side: Vec<u8>,
    saved: Vec<Saved>,
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("a file that was just written")
}

impl Targets {
    /// Makes the valid files, and takes those in `traces` too.
    ///
    /// # Panics
    /// When a valid file cannot be made.
    pub fn new(traces: &[PathBuf]) -> Self {
        let memory = Path::new("/dev/shm");
        let folder = match tempfile::tempdir_in(memory) {
            Ok(folder) => folder,
            Err(_) => tempfile::tempdir().expect("a temporary directory"),
        };
        let (path, beside) = (folder.path().join("own.rr86"), folder.path().join("own.x"));
        sample::record(&path, "precise", LONG);
        let long = Source::new(read(&path));
        sample::record(&path, "qemu-7.2", SHORT);
        let mut sources = vec![Source::new(read(&path))];
        let mut saved = saved(&path, "qemu-7.2");
        sample::record(&path, "precise", SHORT);
        saved.extend(self::saved(&path, "precise"));
        sample::expand(&path, &beside);
        let (expansion, own) = (read(&beside), Source::new(read(&path)));
        sources.push(Source::new(own.file.clone()));
        sources.push(long);
        sources.extend(traces.iter().map(|path| Source::new(read(path))));
        let (killed, side) = killed(&path);
        let mut branches = Vec::new();
        for protocol in ["precise", "qemu-7.2"] {
            let branch = folder.path().join("branch.rr86");
            sample::record(&path, protocol, SHORT);
            sample::branch(&path, &branch, protocol, SHORT);
            let file = read(&branch);
            // They are small too.
            sources.insert(0, Source::new(file.clone()));
            branches.push((protocol, Source::new(file)));
        }
        Self {
            folder,
            sources,
            own,
            branches,
            expansion,
            killed,
            side,
            saved,
        }
    }

    /// Makes input `number` of a seed and reads it. Gives the target's name.
    ///
    /// # Panics
    /// When something is wrong with a decoder, which is what this is for.
    pub fn run(&mut self, seed: u64, number: u64, only: Option<&str>) -> &'static str {
        let rng = &mut Rng::new(seed, number);
        let mut draw = rng.below(1024);
        let drawn = TARGETS.iter().find(|(_, share)| {
            let found = draw < *share;
            draw = draw.saturating_sub(*share);
            found
        });
        let named = |only: &str| TARGETS.iter().find(|(name, _)| *name == only);
        let (name, _) = only.map_or(drawn, named).expect("a target");
        match *name {
            "frame" => self.frame(rng),
            "chunk" => self.chunk(rng),
            "events" => {
                let source = self.source(rng);
                let file = self.events(rng, source);
                self.examine(rng, &file);
            }
            "index" => self.index(rng),
            "images" => self.images(rng),
            "checkpoint" => self.checkpoint(rng),
            "expansion" => {
                self.damage_expansion(rng);
                self.read_expansion(rng);
            }
            "side-file" => self.side_file(rng),
            "state" => self.state(rng),
            "replay" => self.replay(rng),
            "beginning" => self.beginning(rng),
            _ => self.alone(rng),
        }
        name
    }

    /// A trace to start from: mostly one of the small ones, of which many can be read in the time of one of those
    /// that were given.
    fn source(&self, rng: &mut Rng) -> &Source {
        let small = &self.sources[..4];
        if rng.one_in(64) {
            rng.pick(&self.sources)
        } else {
            rng.pick(small)
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("input.rr86")
    }

    fn other(&self) -> PathBuf {
        self.folder.path().join("input.x")
    }

    /// Reads a trace as all of rr86 does, without running it.
    fn examine(&self, rng: &mut Rng, file: &[u8]) {
        let path = self.path();
        std::fs::write(&path, file).expect("room for an input");
        let thorough = rng.one_in(64);
        let (_, peak) = peak_of(|| examine(&path, thorough));
        assert!(
            peak <= ROOM + MULTIPLE * file.len(),
            "{peak} bytes were allocated for {}",
            file.len()
        );
    }

    /// Bytes anywhere, with or without checksums that fit.
    fn frame(&self, rng: &mut Rng) {
        let source = self.source(rng);
        let mut file = source.file.clone();
        mutate(rng, &mut file, &self.own.file);
        if !rng.one_in(3) {
            files::repair(&mut file);
        }
        self.examine(rng, &file);
    }

    /// Fields of a chunk's header.
    fn chunk(&self, rng: &mut Rng) {
        let source = self.source(rng);
        let mut chunks = source.chunks.clone();
        match rng.below(8) {
            0 => drop(chunks.remove(rng.below(chunks.len()))),
            1 => {
                let (a, b) = (rng.below(chunks.len()), rng.below(chunks.len()));
                chunks.swap(a, b);
            }
            2 => {
                let n = rng.below(chunks.len());
                let again = chunks[n].clone();
                chunks.insert(rng.below(chunks.len()), again);
            }
            _ => {
                let n = rng.below(chunks.len());
                let header = &mut chunks[n].header;
                let number = interesting(rng);
                match rng.below(7) {
                    0 => header.kind = ChunkKind(rng.below(10) as u8),
                    1 => header.raw_len = number as u32,
                    2 => header.events = number as u32,
                    3 => header.first_icount = number,
                    4 => header.last_icount = number,
                    5 => header.first_vcpu = number as u8,
                    _ => header.codec = *rng.pick(&[Codec::Stored, Codec::Zstd, Codec::Columns]),
                }
            }
        }
        if rng.one_in(2) {
            let index = files::index(&chunks);
            let file = files::finish(&chunks, &index, rng.one_in(2));
            return self.examine(rng, &file);
        }
        let mut file = files::cut(&chunks);
        if rng.one_in(2) {
            // Lengths that reach elsewhere; the header's own checksum fits.
            let starts: Vec<usize> = starts(&chunks);
            let at = *rng.pick(&starts);
            let field = *rng.pick(&[8, 16, 20, 24]);
            let number = interesting(rng) as u32;
            file[at + field..at + field + 4].copy_from_slice(&number.to_le_bytes());
            let crc = crc32c::crc32c(&file[at..at + 52]);
            file[at + 52..at + 56].copy_from_slice(&crc.to_le_bytes());
        }
        self.examine(rng, &file);
    }

    /// A trace with damaged columns and tables of an event chunk.
    fn events(&self, rng: &mut Rng, source: &Source) -> Vec<u8> {
        // The first two are what every trace needs; others would only take time.
        let mut chunks = source.chunks[..2].to_vec();
        let at = source.place(rng, ChunkKind::EVENTS).expect("events");
        let mut chunk = source.chunks[at].clone();
        let mut columns = chunk.columns();
        let keys: Vec<(u8, u8)> = columns.keys().copied().collect();
        for _ in 0..rng.below(3) {
            let key = *rng.pick(&keys);
            let other = columns[rng.pick(&keys)].clone();
            if let Some(column) = columns.get_mut(&key) {
                mutate(rng, column, &other);
            }
        }
        if rng.one_in(8) {
            columns.remove(rng.pick(&keys));
        }
        if rng.one_in(8) {
            let moved = columns.get(rng.pick(&keys)).cloned().unwrap_or_default();
            let place = (rng.below(16) as u8, rng.below(12) as u8);
            columns.insert(place, moved);
        }
        chunk = chunk.with_columns(&columns, rng.one_in(2));
        if rng.one_in(4) {
            mutate(rng, &mut chunk.table, &self.own.chunks[0].payload);
        }
        if rng.one_in(8) {
            mutate(rng, &mut chunk.payload, &self.own.file);
        }
        chunks.push(chunk);
        files::cut(&chunks)
    }

    fn index(&self, rng: &mut Rng) {
        let source = self.source(rng);
        let mut index = source.index.clone();
        mutate(rng, &mut index, &self.own.file);
        if rng.one_in(2) {
            // Entries whose checksums fit.
            let starts = entries(&source.chunks);
            let at = *rng.pick(&starts);
            if let Some(fixed) = index.get_mut(at + 8..at + 8 + CHUNK_HEADER) {
                let crc = crc32c::crc32c(&fixed[..52]);
                fixed[52..].copy_from_slice(&crc.to_le_bytes());
            }
        }
        let file = files::finish(&source.chunks, &index, rng.one_in(2));
        self.examine(rng, &file);
    }

    fn images(&self, rng: &mut Rng) {
        let source = self.source(rng);
        let mut chunks = source.chunks.clone();
        if rng.one_in(2) {
            let mut list = chunks[1].content();
            mutate(rng, &mut list, &self.own.file);
            chunks[1] = chunks[1].holding(&list, rng.one_in(2));
        } else if let Some(n) = source.place(rng, ChunkKind::IMAGE) {
            self.table_or_content(rng, &mut chunks[n]);
        }
        chunks.retain(|c| c.header.kind != ChunkKind::EVENTS);
        let file = files::cut(&chunks);
        self.examine(rng, &file);
    }

    fn table_or_content(&self, rng: &mut Rng, chunk: &mut Chunk) {
        if rng.one_in(2) {
            mutate(rng, &mut chunk.table, &self.own.file);
        } else {
            let mut content = chunk.content();
            mutate(rng, &mut content, &self.own.file);
            *chunk = chunk.holding(&content, rng.one_in(2));
        }
    }

    /// Tables of states and pages.
    fn checkpoint(&self, rng: &mut Rng) {
        let source = self.source(rng);
        let mut chunks = source.chunks.clone();
        for _ in 0..=rng.below(2) {
            let kind = *rng.pick(&[ChunkKind::CHECKPOINT, ChunkKind::PAGES]);
            if let Some(n) = source.place(rng, kind) {
                self.table_or_content(rng, &mut chunks[n]);
            }
        }
        chunks.retain(|c| c.header.kind != ChunkKind::IMAGE);
        let file = files::cut(&chunks);
        self.examine(rng, &file);
    }

    fn damage_expansion(&self, rng: &mut Rng) {
        const START: usize = 32;
        let mut chunks = files::chunks(&self.expansion, START);
        for _ in 0..=rng.below(2) {
            let n = rng.below(chunks.len());
            let mut content = chunks[n].content();
            mutate(rng, &mut content, &self.expansion);
            chunks[n] = chunks[n].holding(&content, rng.one_in(2));
            match rng.below(12) {
                0 => chunks[n].header.raw_len = interesting(rng) as u32,
                1 => chunks[n].header.kind = ChunkKind(32 + rng.below(4) as u8),
                2 => chunks[n].header.first_vcpu = interesting(rng) as u8,
                _ => {}
            }
        }
        let mut file = self.expansion[..START].to_vec();
        for (n, chunk) in chunks.iter().enumerate() {
            file.extend(chunk.bytes(n as u32));
        }
        if rng.one_in(16) {
            mutate(rng, &mut file, &self.own.file);
        }
        std::fs::write(self.other(), file).expect("room for an input");
        std::fs::write(self.path(), &self.own.file).expect("room for an input");
    }

    fn read_expansion(&self, rng: &mut Rng) {
        let (trace, path) = (self.path(), self.other());
        let len = self.own.file.len() + std::fs::metadata(&path).map_or(0, |m| m.len() as usize);
        let paddr = interesting(rng);
        let (_, peak) = peak_of(|| {
            let trace = TraceReader::open(&trace).expect("a valid trace");
            let Ok(Some(reader)) = ExpansionReader::open(&path, &trace) else {
                return;
            };
            for vcpu in 0..3 {
                for part in reader.parts(vcpu) {
                    let _ = reader.part(part, sample::PAGES);
                }
            }
            for (paddr, len) in [
                (paddr, 8),
                (0x20_0000, 4096),
                (u64::MAX, u64::MAX),
                (0, u64::MAX),
            ] {
                let _ = reader.stores(paddr, len);
            }
        });
        assert!(
            peak <= ROOM + MULTIPLE * len,
            "{peak} bytes were allocated for {len}"
        );
    }

    fn side_file(&self, rng: &mut Rng) {
        let mut side = self.side.clone();
        let mut records = Vec::new();
        let mut at = tail::FILE_HEADER;
        while let Some(Some(record)) = side
            .get(at..)
            .and_then(<[u8]>::first_chunk)
            .map(Record::parse)
        {
            let payload = side[at + RECORD..at + RECORD + record.len as usize].to_vec();
            at += RECORD + payload.len();
            records.push((record, payload));
        }
        if !records.is_empty() {
            for _ in 0..=rng.below(2) {
                let n = rng.below(records.len());
                let number = interesting(rng);
                let (record, payload) = &mut records[n];
                match rng.below(10) {
                    0 => record.chunk = number as u32,
                    1 => record.piece = number as u32,
                    2 => record.link = number,
                    3 => record.events = number as u32,
                    4 => record.ends = !record.ends,
                    5 => record.last.0 = number,
                    _ => mutate(rng, payload, &self.side),
                }
            }
            side.truncate(tail::FILE_HEADER);
            for (record, payload) in &records {
                side.extend(record.bytes(payload));
            }
        }
        if rng.one_in(4) {
            mutate(rng, &mut side, &self.own.file);
        }
        let beside = tail::beside(&self.path());
        std::fs::write(&beside, &side).expect("room for an input");
        self.examine(rng, &self.killed);
        std::fs::remove_file(&beside).expect("the side file that was written");
    }

    /// A checkpoint's state, restored and run.
    fn state(&self, rng: &mut Rng) {
        let saved = rng.pick(&self.saved);
        let mut state = saved.state.clone();
        let other = rng.pick(&self.saved);
        mutate(rng, &mut state, &other.state);
        let mut machine = sample::machine(saved.protocol);
        machine.allow_checkpoints().expect("checkpoints");
        machine.wipe();
        for (page, bytes) in &saved.pages {
            machine.set_page(*page, bytes).expect("a page");
        }
        let (restored, peak) = peak_of(|| machine.restore(&state));
        assert!(
            peak <= ROOM + MULTIPLE * state.len(),
            "{peak} bytes were allocated"
        );
        // Whoever forges a state gives it the digests that it needs.
        if matches!(restored, Ok(()) | Err(CheckpointError::Digest(_))) {
            let mut scheduler = Scheduler::new(Policy::Random, rng.next(), 40);
            for _ in 0..20 {
                if machine.prepare() != Wait::Ready {
                    break;
                }
                let decision = scheduler.next(&machine.runnable());
                machine.run_slice(decision);
            }
            machine.digests();
        }
    }

    /// Made-up events, followed by a replay.
    fn replay(&self, rng: &mut Rng) {
        let file = self.events(rng, &self.own);
        let path = self.path();
        std::fs::write(&path, file).expect("room for an input");
        let Ok(reader) = TraceReader::open(&path) else {
            return;
        };
        let mut machine = sample::machine("precise");
        // A slice of any length is a valid one, and some take years: the call comes back all the same.
        machine
            .engine
            .limit_calls(CallLimit::new(Limit::Steps(10_000)));
        let mut replayer = Session::replay(machine, reader.stream_for_replay(0), rng.one_in(2));
        let _ = replayer.run(STEPS, &mut Conditions::default());
    }

    /// A damaged checkpoint at which a trace begins, and a replay from there.
    fn beginning(&self, rng: &mut Rng) {
        let (protocol, source) = rng.pick(&self.branches);
        let mut chunks = source.chunks.clone();
        for _ in 0..=rng.below(2) {
            let kind = *rng.pick(&[ChunkKind::CHECKPOINT, ChunkKind::PAGES]);
            if let Some(n) = source.place(rng, kind) {
                self.table_or_content(rng, &mut chunks[n]);
            }
        }
        match rng.below(8) {
            0 => chunks.truncate(rng.below(chunks.len())),
            1 => drop(chunks.remove(rng.below(chunks.len()))),
            _ => {}
        }
        let path = self.path();
        std::fs::write(&path, files::cut(&chunks)).expect("room for an input");
        let Ok(reader) = TraceReader::open(&path) else {
            return;
        };
        let mut machine = sample::machine(protocol);
        machine
            .engine
            .limit_calls(CallLimit::new(Limit::Steps(10_000)));
        if let Ok(mut replay) = Session::from_beginning(machine, &reader, rng.one_in(2)) {
            let _ = replay.run(STEPS, &mut Conditions::default());
            let _ = replay.branch_point();
        }
    }

    /// Made-up inputs of a vCPU, followed by a replay of it alone.
    fn alone(&self, rng: &mut Rng) {
        self.damage_expansion(rng);
        let reader = TraceReader::open(&self.path()).expect("a valid trace");
        let machine = sample::machine("precise");
        let vcpu = rng.below(2);
        let alone = Session::alone(machine, &reader, &self.other(), vcpu, rng.one_in(2));
        if let Ok(mut alone) = alone {
            let _ = alone.run(STEPS, &mut Conditions::default());
        }
    }
}

/// Where each chunk begins in a file of these.
fn starts(chunks: &[Chunk]) -> Vec<usize> {
    let mut at = FILE_HEADER;
    let len = |c: &Chunk| CHUNK_HEADER + c.table.len() + c.payload.len();
    let start = |c: &Chunk| {
        at += len(c);
        at - len(c)
    };
    chunks.iter().map(start).collect()
}

/// Where each entry begins in the index of these.
fn entries(chunks: &[Chunk]) -> Vec<usize> {
    let mut at = 0;
    let start = |c: &Chunk| {
        let here = at;
        at += 8 + CHUNK_HEADER + c.table.len();
        here
    };
    chunks.iter().map(start).collect()
}

/// Everything that can be asked of a trace.
fn examine(path: &Path, thorough: bool) {
    let Ok(reader) = TraceReader::open(path) else {
        return;
    };
    let _ = reader.footer();
    let _ = (reader.complete(), reader.damage().map(ToString::to_string));
    let _ = reader.summary();
    for image in reader.images() {
        let _ = reader.image(&image.name);
    }
    for n in 0..reader.chunk_count() {
        let _ = reader.chunk_info(n);
        let _ = reader.count_of(n, Kind::SLICE);
        let _ = reader.chunk(n);
    }
    let _ = reader.chunk_at(u64::MAX);
    let _ = reader.beginning();
    let _ = reader.content_id();
    for checkpoint in reader.checkpoints().unwrap_or_default() {
        let _ = reader.checkpoint_state(&checkpoint);
        let put = |_: usize, _: &[u8; 4096]| Ok::<(), TraceError>(());
        let _ = reader.checkpoint_pages(&checkpoint, put);
    }
    if thorough {
        let _ = survey::shared_lines(&reader);
        let _ = survey::retired(&reader);
        let _ = survey::stale_blocks(&reader);
        let _ = reader.sharing(0, u64::MAX, 10);
        let _ = reader.hand_offs(1, u64::MAX - 1, None);
        let _ = reader.stream().count();
    }
}

/// The checkpoints of a trace of the sample machine.
fn saved(path: &Path, protocol: &'static str) -> Vec<Saved> {
    let reader = TraceReader::open(path).expect("a trace");
    let all = reader.checkpoints().expect("checkpoints");
    let one = |info: &_| {
        let mut pages = Vec::new();
        let put = |page: usize, bytes: &[u8; 4096]| {
            pages.push((page, Box::new(*bytes)));
            Ok::<(), TraceError>(())
        };
        reader.checkpoint_pages(info, put).expect("pages");
        Saved {
            protocol,
            pages,
            state: reader.checkpoint_state(info).expect("a state"),
        }
    };
    all.iter().map(one).collect()
}

/// The trace without its last chunks of events, and a side file that has these.
fn killed(path: &Path) -> (Vec<u8>, Vec<u8>) {
    let reader = TraceReader::open(path).expect("a trace");
    let header = reader.header().to_vec();
    let path = &path.with_extension("killed");
    let mut writer = TraceWriter::create(path, &header, &[]).expect("a trace");
    let count = reader.chunk_count();
    for n in 0..count {
        for (m, (icount, event)) in reader.chunk(n).expect("events").iter().enumerate() {
            writer.push(*icount, event).expect("a push");
            if n + 1 == count && m % 5 == 0 {
                writer.keep().expect("a side file");
            }
        }
        if n + 1 < count {
            writer.flush().expect("a flush");
        }
    }
    let side = read(&tail::beside(path));
    let trace = read(path);
    drop(writer);
    (trace, side)
}
