//! An expansion: what one full replay of a trace yields and the trace itself does not hold, kept in a
//! file beside it. It can be made again at any time, so it has no claim to last: another version of the
//! format is refused, and the replay is made once more.
//!
//! It has the inputs of every vCPU ([`InputLog`]), in one chunk for each vCPU and each interval between two
//! sets of digests, so that a vCPU that is replayed alone reads its own chunks and nothing else. If it was
//! asked for, it has the last stores to shared lines too ([`StoreEntry`]), in a chunk for each interval and each
//! sixty-fourth of the pages, so that a question about an address reads little.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_128;

use crate::memory::PAGE_SIZE;
use crate::runtime::inputs::{Acquired, Delivery, InputLog};
use crate::runtime::storelog::StoreEntry;
use crate::trace::format::{self, ChunkHeader, ChunkKind, Codec, CHUNK_HEADER};
use crate::trace::varint::{apply, delta, put, Cursor};
use crate::trace::{TraceError, TraceReader};

const MAGIC: [u8; 8] = *b"\x89RR86x\r\n";
/// Raised with every change; there is no compatibility.
const VERSION: u16 = 2;
const FILE_HEADER: usize = 32;
const LEVEL: i32 = 3;
/// The most raw bytes of an interval's inputs, or of its stores to a group of pages.
const MAX_RAW: usize = 1 << 30;
/// The most raw bytes in a chunk. Whatever is longer goes to several, so that a reader takes no more memory ahead
/// for what a chunk says that it holds.
const MAX_PIECE: usize = 8 << 20;

/// Inputs of one vCPU.
const INPUTS: ChunkKind = ChunkKind(32);
/// Stores of an interval to the pages of a group.
const STORES: ChunkKind = ChunkKind(33);
/// Pages are grouped by the lowest bits of their number.
const GROUPS: u64 = 64;
/// The end, so that an expansion that was cut short is known.
const END: ChunkKind = ChunkKind(34);

/// What changed in a vCPU from outside between two slices of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sync {
    /// Which of the vCPU's sync points: the starts of its slices and the digests, counted from 0.
    pub index: u64,
    /// INIT reached it.
    pub init: bool,
    /// Offsets and new bytes in the vCPU's saved state.
    pub changes: Vec<(u16, Vec<u8>)>,
}

/// One vCPU's part of an interval.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    pub inputs: InputLog,
    pub syncs: Vec<Sync>,
}

/// Identifies the trace that an expansion belongs to.
fn identity(trace: &TraceReader) -> Result<u128, TraceError> {
    let mut all = trace.header().to_vec();
    all.extend(trace.footer()?.unwrap_or_default());
    all.extend(trace.summary()?.file_bytes.to_le_bytes());
    if let Some(side) = trace.side_file().filter(|side| side.events != 0) {
        all.extend(side.events.to_le_bytes());
    }
    Ok(xxh3_128(&all))
}

fn file_header(identity: u128) -> [u8; FILE_HEADER] {
    let mut out = [0; FILE_HEADER];
    out[..8].copy_from_slice(&MAGIC);
    out[8..10].copy_from_slice(&VERSION.to_le_bytes());
    out[16..].copy_from_slice(&identity.to_be_bytes());
    out
}

/// Writes an expansion.
pub struct ExpansionWriter {
    file: File,
    path: PathBuf,
    compressor: zstd::bulk::Compressor<'static>,
    sequence: u32,
    with_stores: bool,
}

impl ExpansionWriter {
    /// Creates the file.
    ///
    /// # Errors
    /// When it cannot be written, or the trace cannot be read.
    pub fn create(path: &Path, trace: &TraceReader, stores: bool) -> Result<Self, TraceError> {
        let io = |e| TraceError::io(path, e);
        let mut file = File::create(path).map_err(io)?;
        file.write_all(&file_header(identity(trace)?)).map_err(io)?;
        Ok(Self {
            file,
            path: path.to_owned(),
            compressor: zstd::bulk::Compressor::new(LEVEL).map_err(io)?,
            sequence: 0,
            with_stores: stores,
        })
    }

    /// Adds a vCPU's part of the next interval.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn part(&mut self, vcpu: u8, part: &Part) -> Result<(), TraceError> {
        let raw = encode(part);
        self.chunk(INPUTS, vcpu, &raw)
    }

    fn chunk(&mut self, kind: ChunkKind, vcpu: u8, raw: &[u8]) -> Result<(), TraceError> {
        if raw.len() > MAX_RAW {
            return Err(TraceError::TooLarge {
                what: "an interval's inputs",
                len: raw.len() as u64,
                limit: MAX_RAW as u64,
            });
        }
        let mut left = raw.len().div_ceil(MAX_PIECE).max(1) as u32;
        let mut pieces = raw.chunks(MAX_PIECE);
        while left != 0 {
            left -= 1;
            self.piece(kind, vcpu, pieces.next().unwrap_or_default(), left)?;
        }
        Ok(())
    }

    /// Adds a piece, of which `left` follow.
    fn piece(
        &mut self,
        kind: ChunkKind,
        vcpu: u8,
        raw: &[u8],
        left: u32,
    ) -> Result<(), TraceError> {
        let io = |e| TraceError::io(&self.path, e);
        let mut payload = Vec::new();
        format::compress(&mut self.compressor, raw, &mut payload).map_err(io)?;
        let header = ChunkHeader {
            kind,
            codec: if payload.len() < raw.len() {
                Codec::Zstd
            } else {
                Codec::Stored
            },
            sequence: self.sequence,
            events: left,
            raw_len: raw.len() as u32,
            first_vcpu: vcpu,
            last_vcpu: vcpu,
            ..ChunkHeader::default()
        };
        self.sequence += 1;
        self.file
            .write_all(&header.chunk(&[], &payload))
            .map_err(io)
    }

    /// Adds the stores that were completed in an interval.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn stores(&mut self, mut stores: Vec<StoreEntry>) -> Result<(), TraceError> {
        stores.sort_by_key(|e| (group(e.paddr), e.paddr, e.last));
        for entries in stores.chunk_by(|a, b| group(a.paddr) == group(b.paddr)) {
            let raw = encode_stores(entries);
            self.chunk(STORES, group(entries[0].paddr), &raw)?;
        }
        Ok(())
    }

    /// Ends the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> Result<(), TraceError> {
        self.chunk(END, self.with_stores.into(), &[])
    }
}

/// Reads an expansion.
pub struct ExpansionReader {
    file: File,
    path: PathBuf,
    /// Offset and header of each chunk.
    chunks: Vec<(u64, ChunkHeader)>,
    /// Those of them that are not the rest of the one before.
    firsts: Vec<usize>,
    stores: bool,
}

impl ExpansionReader {
    /// Opens a trace's expansion; `None` if there is no file, or one of another trace or version, or
    /// one that was not finished.
    ///
    /// # Errors
    /// When the host refuses to read.
    pub fn open(path: &Path, trace: &TraceReader) -> Result<Option<Self>, TraceError> {
        let io = |e| TraceError::io(path, e);
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io(e)),
        };
        let end = file.metadata().map_err(io)?.len();
        let mut head = [0; FILE_HEADER];
        if end < FILE_HEADER as u64 || file.read_exact_at(&mut head, 0).is_err() {
            return Ok(None);
        }
        if head != file_header(identity(trace)?) {
            return Ok(None);
        }
        let mut chunks = Vec::new();
        let mut firsts = Vec::new();
        let mut left = 0;
        let mut offset = FILE_HEADER as u64;
        let mut finished = false;
        let mut stores = false;
        while offset + CHUNK_HEADER as u64 <= end {
            let mut bytes = [0; CHUNK_HEADER];
            file.read_exact_at(&mut bytes, offset).map_err(io)?;
            let Ok(header) = ChunkHeader::parse(&bytes) else {
                break;
            };
            finished = header.kind == END;
            stores = header.first_vcpu != 0;
            if left == 0 {
                firsts.push(chunks.len());
                left = header.events;
            } else {
                left -= 1;
            }
            chunks.push((offset, header));
            offset += header.total_len();
        }
        Ok((finished && offset == end).then(|| Self {
            file,
            path: path.to_owned(),
            chunks,
            firsts,
            stores,
        }))
    }

    /// Chunks with the inputs of a vCPU, in order.
    pub fn parts(&self, vcpu: u8) -> Vec<usize> {
        let firsts = self.firsts.iter().copied();
        firsts
            .filter(|&n| {
                let header = &self.chunks[n].1;
                header.kind == INPUTS && header.first_vcpu == vcpu
            })
            .collect()
    }

    /// The part in chunk `n`, for a machine with `pages` pages of RAM.
    ///
    /// # Errors
    /// When the chunk is damaged or makes no sense.
    pub fn part(&self, n: usize, pages: usize) -> Result<Part, TraceError> {
        let raw = self.raw(n)?;
        decode(&raw, pages).ok_or_else(|| self.malformed(n, "its inputs make no sense"))
    }

    /// Whether the expansion has stores.
    pub fn has_stores(&self) -> bool {
        self.stores
    }

    /// The stores to bytes of [`paddr`, `paddr + len`), in the order of their moments.
    ///
    /// # Errors
    /// When a chunk is damaged or makes no sense.
    pub fn stores(&self, paddr: u64, len: u64) -> Result<Vec<StoreEntry>, TraceError> {
        let end = paddr.saturating_add(len.max(1));
        let mut found = Vec::new();
        let mut groups: Vec<u8> = (paddr >> 12..=(end - 1) >> 12)
            .take(GROUPS as usize)
            .map(|page| group(page << 12))
            .collect();
        groups.sort_unstable();
        groups.dedup();
        for &n in &self.firsts {
            let header = &self.chunks[n].1;
            if header.kind != STORES || !groups.contains(&header.first_vcpu) {
                continue;
            }
            let raw = self.raw(n)?;
            let entries =
                decode_stores(&raw).ok_or_else(|| self.malformed(n, "its stores make no sense"))?;
            let wanted = |e: &StoreEntry| {
                e.paddr < end && paddr < e.paddr.saturating_add(e.new.len() as u64)
            };
            found.extend(entries.into_iter().filter(wanted));
        }
        found.sort_by_key(|e| e.last);
        Ok(found)
    }

    fn malformed(&self, n: usize, why: &'static str) -> TraceError {
        TraceError::Malformed {
            chunk: n as u32,
            offset: self.chunks[n].0,
            why,
        }
    }

    /// What chunk `n` and those that go on with it hold.
    fn raw(&self, n: usize) -> Result<Vec<u8>, TraceError> {
        let mut raw = self.piece(n)?;
        let left = self.chunks[n].1.events as usize;
        for n in (n + 1..self.chunks.len()).take(left) {
            raw.extend(self.piece(n)?);
            if raw.len() > MAX_RAW {
                return Err(self.malformed(n, "it is larger than an interval may be"));
            }
        }
        Ok(raw)
    }

    /// The bytes of chunk `n`.
    fn piece(&self, n: usize) -> Result<Vec<u8>, TraceError> {
        let (offset, header) = self.chunks[n];
        let checksum = TraceError::Checksum {
            chunk: n as u32,
            offset,
        };
        let malformed = |why| self.malformed(n, why);
        if header.raw_len as usize > MAX_PIECE || header.stored_len > header.raw_len {
            return Err(malformed("it is larger than a chunk may be"));
        }
        let mut stored = vec![0; header.stored_len as usize];
        self.file
            .read_exact_at(&mut stored, offset + CHUNK_HEADER as u64)
            .map_err(|e| TraceError::io(&self.path, e))?;
        if crc32c::crc32c(&stored) != header.payload_crc {
            return Err(checksum);
        }
        format::decompress(&stored, header.raw_len as usize)
            .ok_or_else(|| malformed("it does not decompress to its declared length"))
    }
}

fn put_runs(out: &mut Vec<u8>, runs: &[(u16, Vec<u8>)]) {
    put(out, runs.len() as u64);
    let mut at = 0;
    for (offset, bytes) in runs {
        put(out, u64::from(*offset).wrapping_sub(at));
        put(out, bytes.len() as u64);
        out.extend_from_slice(bytes);
        at = u64::from(*offset) + bytes.len() as u64;
    }
}

fn take_runs(from: &mut Cursor<'_>, end: u64) -> Option<Vec<(u16, Vec<u8>)>> {
    let mut runs = Vec::new();
    let mut at = 0u64;
    for _ in 0..from.varint()? {
        let offset = at.checked_add(from.varint()?)?;
        let len = from.varint()?;
        at = offset.checked_add(len)?;
        if at > end || len == 0 {
            return None;
        }
        runs.push((offset as u16, from.take(len as usize)?.to_vec()));
    }
    Some(runs)
}

fn encode(part: &Part) -> Vec<u8> {
    let mut out = Vec::new();
    let Part { inputs, syncs } = part;
    put(&mut out, inputs.answers.len() as u64);
    for answer in &inputs.answers {
        out.push(answer.is_some().into());
        put(&mut out, answer.unwrap_or(0));
    }
    put(&mut out, inputs.deliveries.len() as u64);
    let mut last = 0;
    for d in &inputs.deliveries {
        put(&mut out, d.icount.wrapping_sub(last));
        last = d.icount;
        out.extend_from_slice(&d.rip.to_le_bytes());
        put(&mut out, d.vector.map_or(0, |v| u64::from(v) + 1));
    }
    put(&mut out, inputs.acquired.len() as u64);
    let (mut last, mut page) = (0, 0);
    for a in &inputs.acquired {
        put(&mut out, a.icount.wrapping_sub(last));
        last = a.icount;
        put(
            &mut out,
            delta(page, a.page.into()) << 1 | u64::from(a.write),
        );
        page = a.page.into();
        put_runs(&mut out, &a.changes);
    }
    put(&mut out, syncs.len() as u64);
    for s in syncs {
        put(&mut out, s.index << 1 | u64::from(s.init));
        put_runs(&mut out, &s.changes);
    }
    out
}

fn decode(raw: &[u8], pages: usize) -> Option<Part> {
    let mut from = Cursor::new(raw);
    let mut part = Part::default();
    for _ in 0..from.varint()? {
        let known = from.byte()? != 0;
        let value = from.varint()?;
        part.inputs.answers.push_back(known.then_some(value));
    }
    let mut icount = 0u64;
    for _ in 0..from.varint()? {
        icount = icount.checked_add(from.varint()?)?;
        let rip = u64::from_le_bytes(from.array()?);
        let vector = match from.varint()? {
            0 => None,
            n => Some(u8::try_from(n - 1).ok()?),
        };
        part.inputs.deliveries.push_back(Delivery {
            icount,
            rip,
            vector,
        });
    }
    let (mut icount, mut page) = (0u64, 0u64);
    for _ in 0..from.varint()? {
        icount = icount.checked_add(from.varint()?)?;
        let place = from.varint()?;
        page = apply(page, place >> 1);
        if page >= pages as u64 {
            return None;
        }
        part.inputs.acquired.push_back(Acquired {
            icount,
            page: u32::try_from(page).ok()?,
            write: place & 1 != 0,
            changes: take_runs(&mut from, PAGE_SIZE)?,
        });
    }
    for _ in 0..from.varint()? {
        let place = from.varint()?;
        part.syncs.push(Sync {
            index: place >> 1,
            init: place & 1 != 0,
            changes: take_runs(&mut from, u16::MAX.into())?,
        });
    }
    from.is_empty().then_some(part)
}

fn group(paddr: u64) -> u8 {
    (paddr / PAGE_SIZE % GROUPS) as u8
}

fn encode_stores(entries: &[StoreEntry]) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut paddr, mut first, mut rip) = (0, 0, 0);
    for e in entries {
        put(&mut out, e.paddr.wrapping_sub(paddr));
        put(&mut out, delta(first, e.first));
        put(&mut out, e.last.wrapping_sub(e.first));
        put(&mut out, delta(rip, e.rip));
        out.push(e.agent);
        put(&mut out, e.new.len() as u64);
        out.extend_from_slice(&e.old);
        out.extend_from_slice(&e.new);
        (paddr, first, rip) = (e.paddr, e.first, e.rip);
    }
    out
}

fn decode_stores(raw: &[u8]) -> Option<Vec<StoreEntry>> {
    let mut from = Cursor::new(raw);
    let mut entries = Vec::new();
    let (mut paddr, mut first, mut rip) = (0u64, 0, 0);
    while !from.is_empty() {
        paddr = paddr.checked_add(from.varint()?)?;
        first = apply(first, from.varint()?);
        let last = first.checked_add(from.varint()?)?;
        rip = apply(rip, from.varint()?);
        let agent = from.byte()?;
        let len = usize::try_from(from.varint()?).ok()?;
        entries.push(StoreEntry {
            agent,
            paddr,
            first,
            last,
            rip,
            old: from.take(len)?.to_vec(),
            new: from.take(len)?.to_vec(),
        });
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Part {
        let mut part = Part::default();
        part.inputs.answers.extend([Some(0), None, Some(u64::MAX)]);
        part.inputs.deliveries.push_back(Delivery {
            icount: 7,
            rip: 0xffff_ffff_8100_0000,
            vector: Some(255),
        });
        part.inputs.deliveries.push_back(Delivery {
            icount: 7,
            rip: 1,
            vector: None,
        });
        for (page, write) in [(9, true), (3, false)] {
            part.inputs.acquired.push_back(Acquired {
                icount: 10,
                page,
                write,
                changes: vec![(0, vec![1]), (4095, vec![2])],
            });
        }
        part.syncs.push(Sync {
            index: 5,
            init: true,
            changes: vec![(600, vec![1, 2, 3])],
        });
        part
    }

    #[test]
    fn a_part_comes_back() {
        assert_eq!(decode(&encode(&sample()), 10), Some(sample()));
        assert_eq!(decode(&encode(&Part::default()), 10), Some(Part::default()));
    }

    #[test]
    fn a_part_longer_than_a_chunk_comes_back_from_several() {
        let dir = tempfile::tempdir().expect("a directory");
        let (trace, path) = (dir.path().join("t.rr86"), dir.path().join("t.x"));
        let writer = crate::trace::TraceWriter::create(&trace, b"", &[]).expect("a trace");
        writer.finish(b"").expect("an end");
        let trace = TraceReader::open(&trace).expect("a trace");
        let mut long = sample();
        let answers = (0..MAX_PIECE as u64 / 10).map(|n| Some(!n));
        long.inputs.answers.extend(answers);
        assert!(encode(&long).len() > MAX_PIECE);
        let mut writer = ExpansionWriter::create(&path, &trace, false).expect("a file");
        for part in [&sample(), &long, &sample()] {
            writer.part(1, part).expect("a part");
        }
        writer.finish().expect("an end");
        let reader = ExpansionReader::open(&path, &trace).expect("a file");
        let reader = reader.expect("an expansion");
        let parts = reader.parts(1);
        let read = |n: &usize| reader.part(*n, 10).expect("a part");
        assert!(parts.iter().map(read).eq([sample(), long, sample()]));
    }

    #[test]
    fn stores_come_back() {
        let entry = |paddr, first, last| StoreEntry {
            agent: 3,
            paddr,
            first,
            last,
            rip: u64::MAX - paddr,
            old: vec![1, 2],
            new: vec![3, 4],
        };
        let all = [entry(5, 9, 10), entry(5, 2, 2), entry(4096, 1, u64::MAX)];
        let raw = encode_stores(&all);
        assert_eq!(decode_stores(&raw).as_deref(), Some(&all[..]));
        assert_eq!(decode_stores(&raw[..raw.len() - 1]), None);
    }

    #[test]
    fn pages_beyond_ram_and_cut_bytes_are_refused() {
        let raw = encode(&sample());
        assert_eq!(decode(&raw, 9), None);
        for end in 0..raw.len() {
            assert_eq!(decode(&raw[..end], 10), None, "{end}");
        }
    }
}
