//! The side file of a trace under way, `TRACE.tail`: the events that are not yet in a whole chunk of the
//! trace, so that a recorder that is killed loses next to none of them.
//!
//! Chunks are cut by their content, so the events of most of a second may wait for the end of theirs, and
//! then for the thread that compresses it. Meanwhile each event is in here: a record has what the columns
//! of a chunk have grown by since the record before, as it is. When it is written depends on the host's
//! time; no byte of the trace does. Once the trace has the chunk, its records are dropped, and at a
//! proper end the side file is removed. Layout: `docs/trace-format.md`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::{xxh3_128, xxh3_64};

use super::codec::encode::Mark;
use super::codec::ChunkBuilder;
use super::error::TraceError;
use super::format::ChunkHeader;
use super::place;
use super::varint::Cursor;

/// First bytes of a side file.
pub const MAGIC: [u8; 8] = *b"\x89RR86t\r\n";
/// Raised with every change: a side file lives no longer than a crash and what comes after it.
const VERSION: u16 = 1;
/// Length of the side file's header.
pub const FILE_HEADER: usize = 36;

const RECORD_MAGIC: [u8; 4] = *b"rr8t";
/// Length of a record without its payload.
pub const RECORD: usize = 56;
/// The chunk has no more events.
const ENDS: u16 = 1;

/// A longer side file makes the recorder wait until the trace has what is in it.
const LONG: u64 = 64 << 20;

/// Where the side file of a trace is.
pub fn beside(trace: &Path) -> PathBuf {
    let mut name = trace.as_os_str().to_owned();
    name.push(".tail");
    name.into()
}

/// The side file's header, for a trace whose recorder gave it these bytes as its header.
pub fn file_header(header: &[u8]) -> [u8; FILE_HEADER] {
    let mut out = [0; FILE_HEADER];
    out[..8].copy_from_slice(&MAGIC);
    out[8..10].copy_from_slice(&VERSION.to_le_bytes());
    out[16..32].copy_from_slice(&xxh3_128(header).to_be_bytes());
    let crc = crc32c::crc32c(&out[..32]);
    out[32..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// What the chunk after one of these moments says of it: a side file that does not fit behind a trace's last
/// chunk is one of another run.
pub fn link(before: &ChunkHeader) -> u64 {
    let mut bytes = [0; 22];
    bytes[..8].copy_from_slice(&before.first_icount.to_le_bytes());
    bytes[8..16].copy_from_slice(&before.last_icount.to_le_bytes());
    bytes[16..20].copy_from_slice(&before.events.to_le_bytes());
    bytes[20] = before.first_vcpu;
    bytes[21] = before.last_vcpu;
    xxh3_64(&bytes)
}

/// The fixed part of a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The number of the event chunk that it belongs to, from 0.
    pub chunk: u32,
    /// Its number among the records of the chunk, from 0.
    pub piece: u32,
    pub len: u32,
    /// What the chunk before is like; 0 in the first one.
    pub link: u64,
    /// Whether it is the chunk's last.
    pub ends: bool,
    /// Events of the chunk up to here, and their lowest and highest moments.
    pub events: u32,
    pub first: (u64, u8),
    pub last: (u64, u8),
    pub payload_crc: u32,
}

impl Record {
    /// The whole record.
    pub fn bytes(mut self, payload: &[u8]) -> Vec<u8> {
        self.len = payload.len() as u32;
        let mut out = Vec::with_capacity(RECORD + payload.len());
        out.extend_from_slice(&RECORD_MAGIC);
        for word in [self.chunk, self.piece, self.len] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        for word in [self.link, self.first.0, self.last.0] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.push(self.first.1);
        out.push(self.last.1);
        out.extend_from_slice(&(u16::from(self.ends) * ENDS).to_le_bytes());
        out.extend_from_slice(&self.events.to_le_bytes());
        out.extend_from_slice(&crc32c::crc32c(payload).to_le_bytes());
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(payload);
        out
    }

    /// Reads the fixed part; `None` where no whole record begins.
    pub fn parse(bytes: &[u8; RECORD]) -> Option<Self> {
        let (fixed, crc) = bytes.split_at(RECORD - 4);
        let mut at = Cursor::new(fixed);
        if at.array()? != RECORD_MAGIC || crc != crc32c::crc32c(fixed).to_le_bytes() {
            return None;
        }
        let mut word = || at.array().map(u32::from_le_bytes);
        let [chunk, piece, len] = [word()?, word()?, word()?];
        let mut long = || at.array().map(u64::from_le_bytes);
        let [link, first, last] = [long()?, long()?, long()?];
        let [first_vcpu, last_vcpu] = at.array()?;
        let flags = u16::from_le_bytes(at.array()?);
        Some(Self {
            chunk,
            piece,
            len,
            link,
            ends: flags & ENDS != 0,
            events: u32::from_le_bytes(at.array()?),
            first: (first, first_vcpu),
            last: (last, last_vcpu),
            payload_crc: u32::from_le_bytes(at.array()?),
        })
    }
}

/// The side file of a trace that is being written.
pub(super) struct Tail {
    file: File,
    path: PathBuf,
    len: u64,
    /// The chunk under way, and how much of it is in here.
    chunk: u32,
    piece: u32,
    mark: Mark,
    link: u64,
}

impl Tail {
    /// Creates the side file, in place of one that an earlier recording left.
    pub fn create(trace: &Path, header: &[u8]) -> Result<Self, TraceError> {
        let path = beside(trace);
        let io = |e| TraceError::io(&path, e);
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).map_err(io)?;
        if !replaceable(&mut file).map_err(io)? {
            return Err(TraceError::NotASideFile { path });
        }
        file.set_len(0).map_err(io)?;
        Self::begin(file, path, header)
    }

    /// Creates the side file of a trace that takes the place of another, without a name so far.
    pub fn unnamed(trace: &Path, mode: u32, header: &[u8]) -> Result<Self, TraceError> {
        let path = beside(trace);
        let io = |e| TraceError::io(&path, e);
        if let Ok(mut old) = File::open(&path) {
            if !replaceable(&mut old).map_err(io)? {
                return Err(TraceError::NotASideFile { path });
            }
        }
        let file = place::unnamed(&path, mode).map_err(io)?;
        Self::begin(file, path, header)
    }

    fn begin(file: File, path: PathBuf, header: &[u8]) -> Result<Self, TraceError> {
        let io = |e| TraceError::io(&path, e);
        file.write_all_at(&file_header(header), 0).map_err(io)?;
        Ok(Self {
            file,
            len: FILE_HEADER as u64,
            chunk: 0,
            piece: 0,
            mark: Mark::default(),
            link: 0,
            path,
        })
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether the trace had better catch up before another chunk is begun in here.
    pub fn is_long(&self) -> bool {
        self.piece == 0 && self.len > LONG
    }

    /// Takes in what the chunk under way has got since the last call, and whether it ends with that. The
    /// trace holds this many event chunks.
    ///
    /// A chunk's first record is where the records of those before can be dropped, because then the trace
    /// has all that this takes away, whenever the process dies.
    pub fn keep(
        &mut self,
        chunk: &ChunkBuilder,
        written: u32,
        ends: bool,
    ) -> Result<(), TraceError> {
        if !ends && !chunk.grown(&self.mark) {
            return Ok(());
        }
        let io = |e| TraceError::io(&self.path, e);
        if self.piece == 0 && written == self.chunk && self.len > FILE_HEADER as u64 {
            self.file.set_len(FILE_HEADER as u64).map_err(io)?;
            self.len = FILE_HEADER as u64;
        }
        let header = chunk.header();
        let record = Record {
            chunk: self.chunk,
            piece: self.piece,
            link: self.link,
            ends,
            events: header.events,
            first: (header.first_icount, header.first_vcpu),
            last: (header.last_icount, header.last_vcpu),
            ..Record::default()
        };
        let bytes = record.bytes(&chunk.growth(&mut self.mark));
        if let Err(error) = self.file.write_all_at(&bytes, self.len) {
            let _ = self.file.set_len(self.len);
            return Err(io(error));
        }
        self.len += bytes.len() as u64;
        self.piece += 1;
        if ends {
            self.link = link(&header);
            self.chunk += 1;
            self.piece = 0;
            self.mark = Mark::default();
        }
        Ok(())
    }

    /// Removes the side file: the trace has everything.
    pub fn remove(self) {
        // A reader knows one that stays behind for what it is.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether a file may be overwritten by a side file: nothing, or a side file.
fn replaceable(file: &mut File) -> io::Result<bool> {
    if !file.metadata()?.is_file() {
        return Ok(false);
    }
    let mut head = Vec::new();
    file.take(MAGIC.len() as u64).read_to_end(&mut head)?;
    Ok(MAGIC.starts_with(&head))
}
