//! Reads the side file of a trace that was cut off, and makes chunks of what the trace itself lacks.
//!
//! The side file may be of another run, or of an earlier moment, or damaged, or hostile: its records count from
//! where the trace's chunks end, as far as they follow one another, and one that does not fit is where it ends.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::codec::MAX_EVENTS;
use super::format::{self, ChunkHeader, ChunkKind, Codec, CHUNK_HEADER};
use super::scan::Located;
use super::tail::{self, Record, FILE_HEADER, RECORD};
use super::varint::{put, Cursor};

/// The most bytes of a side file that are read; rr86 keeps it far below.
const MOST: u64 = 1 << 30;

/// What became of the side file beside a trace that was cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideFile {
    pub path: PathBuf,
    /// Events that were taken from it.
    pub events: u64,
    /// Why it, or the rest of it, was left out.
    pub left_out: Option<&'static str>,
}

/// The chunk that records have told of so far.
#[derive(Default)]
struct Open {
    last: Record,
    columns: BTreeMap<(u8, u8), Vec<u8>>,
    raw_len: usize,
}

/// The chunks that follow those of a trace, which has `chunks` and whose recorder gave it `header`; `None` if it
/// has no side file. The chunks get the place `offset`.
pub(super) fn read(
    trace: &Path,
    header: &[u8],
    chunks: &[Located],
    offset: u64,
) -> io::Result<Option<(Vec<Located>, SideFile)>> {
    let path = tail::beside(trace);
    let Some(bytes) = content(&path)? else {
        return Ok(None);
    };
    let mut found = Vec::new();
    let left_out = if bytes.len() < FILE_HEADER {
        // Its recorder was killed before it had anything to keep.
        None
    } else if bytes[..FILE_HEADER] != tail::file_header(header) {
        Some("it belongs to another trace")
    } else {
        follow(&bytes[FILE_HEADER..], chunks, offset, &mut found)
    };
    let events = found.iter().map(|c: &Located| u64::from(c.header.events));
    let side = SideFile {
        path,
        events: events.sum(),
        left_out,
    };
    Ok(Some((found, side)))
}

fn content(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut options = File::options();
    // Opening a pipe must not wait.
    let file = match options.read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Goes from record to record. Gives why records were left out that are whole.
fn follow(
    mut bytes: &[u8],
    chunks: &[Located],
    offset: u64,
    found: &mut Vec<Located>,
) -> Option<&'static str> {
    let mut events = chunks.iter().filter(|c| c.header.kind == ChunkKind::EVENTS);
    let present = events.clone().count() as u32;
    let mut before = events.next_back().map_or(0, |c| tail::link(&c.header));
    let mut open: Option<Open> = None;
    let mut next: Option<(u32, u32)> = None;
    while let Some((record, payload, rest)) = split(bytes) {
        bytes = rest;
        let in_turn = next.map_or(record.piece == 0, |next| {
            (record.chunk, record.piece) == next
        });
        if !in_turn {
            // What an earlier, longer side file left at this place.
            break;
        }
        next = Some(if record.ends {
            (record.chunk.checked_add(1)?, 0)
        } else {
            (record.chunk, record.piece.checked_add(1)?)
        });
        if record.chunk < present {
            continue;
        }
        if record.chunk as usize != present as usize + found.len() {
            return Some("events between the trace and it are missing");
        }
        if record.link != before {
            return Some("it belongs to another run");
        }
        let mut chunk = open.take().unwrap_or_default();
        if !chunk.add(record, payload) {
            return Some("a record of it makes no sense");
        }
        if record.ends {
            let sequence = chunks.len() + found.len();
            let chunk = chunk.located(sequence as u32, offset);
            before = tail::link(&chunk.header);
            found.push(chunk);
        } else {
            open = Some(chunk);
        }
    }
    if let Some(chunk) = open {
        let sequence = chunks.len() + found.len();
        found.push(chunk.located(sequence as u32, offset));
    }
    None
}

/// The record at the front, its payload, and what follows; `None` where none is whole.
fn split(bytes: &[u8]) -> Option<(Record, &[u8], &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<RECORD>()?;
    let record = Record::parse(head)?;
    let (payload, rest) = rest.split_at_checked(record.len as usize)?;
    (crc32c::crc32c(payload) == record.payload_crc).then_some((record, payload, rest))
}

impl Open {
    /// Takes in a record; false if it cannot be one of this chunk.
    fn add(&mut self, record: Record, payload: &[u8]) -> bool {
        let mut at = Cursor::new(payload);
        while !at.is_empty() {
            let column = at.byte().zip(at.byte());
            let len = at.varint().and_then(|len| usize::try_from(len).ok());
            let bytes = len.and_then(|len| at.take(len));
            let (Some(column), Some(bytes)) = (column, bytes) else {
                return false;
            };
            self.raw_len += bytes.len();
            self.columns.entry(column).or_default().extend(bytes);
        }
        self.last = record;
        let order = self.columns.get(&(0, 0)).map_or(0, Vec::len);
        order == record.events as usize && order <= MAX_EVENTS && self.raw_len <= format::MAX_RAW
    }

    /// The chunk as if it stood in the trace, with all of its columns verbatim.
    fn located(self, sequence: u32, offset: u64) -> Located {
        let mut counts = BTreeMap::new();
        for &kind in self.columns.get(&(0, 0)).into_iter().flatten() {
            *counts.entry(kind).or_insert(0u64) += 1;
        }
        let mut table = Vec::new();
        put(&mut table, counts.len() as u64);
        for (kind, count) in counts {
            table.push(kind);
            put(&mut table, count);
        }
        let mut payload = Vec::with_capacity(self.raw_len);
        for ((kind, column), raw) in &self.columns {
            table.extend_from_slice(&[*kind, *column]);
            put(&mut table, raw.len() as u64);
            put(&mut table, raw.len() as u64);
            payload.extend_from_slice(raw);
        }
        let header = ChunkHeader {
            kind: ChunkKind::EVENTS,
            codec: Codec::Columns,
            sequence,
            events: self.last.events,
            table_len: table.len() as u32,
            raw_len: payload.len() as u32,
            stored_len: payload.len() as u32,
            first_vcpu: self.last.first.1,
            last_vcpu: self.last.last.1,
            first_icount: self.last.first.0,
            last_icount: self.last.last.0,
            ..ChunkHeader::default()
        };
        Located {
            offset,
            header,
            fixed: [0; CHUNK_HEADER],
            table,
            payload: Some(payload),
        }
    }
}
