//! Trace files taken apart and put together, with checksums that fit.

use std::cell::RefCell;
use std::collections::BTreeMap;

use rr86_core::trace::format::{self, ChunkHeader, ChunkKind, Codec, EventTable, CHUNK_HEADER};

use crate::mutate::varint;

/// A chunk: what its header says, the table, the payload as stored.
#[derive(Clone)]
pub struct Chunk {
    pub header: ChunkHeader,
    pub table: Vec<u8>,
    pub payload: Vec<u8>,
}

/// Columns of an event chunk by kind and number, uncompressed.
pub type Columns = BTreeMap<(u8, u8), Vec<u8>>;

/// The chunks that begin at `start`, as far as they are whole.
pub fn chunks(file: &[u8], start: usize) -> Vec<Chunk> {
    let mut found = Vec::new();
    let mut rest = file.get(start..).unwrap_or_default();
    while let Some((fixed, after)) = rest.split_first_chunk::<CHUNK_HEADER>() {
        let Ok(header) = ChunkHeader::parse(fixed) else {
            break;
        };
        let Some((table, after)) = after.split_at_checked(header.table_len as usize) else {
            break;
        };
        let Some((payload, after)) = after.split_at_checked(header.stored_len as usize) else {
            break;
        };
        found.push(Chunk {
            header,
            table: table.to_vec(),
            payload: payload.to_vec(),
        });
        rest = after;
    }
    found
}

impl Chunk {
    /// The payload of a chunk of opaque bytes, decompressed.
    pub fn content(&self) -> Vec<u8> {
        format::decompress(&self.payload, self.header.raw_len as usize).unwrap_or_default()
    }

    /// The chunk with another payload, verbatim or compressed.
    pub fn holding(&self, raw: &[u8], packed: bool) -> Self {
        let mut chunk = self.clone();
        chunk.header.raw_len = raw.len() as u32;
        chunk.header.codec = Codec::Stored;
        chunk.payload = raw.to_vec();
        if packed {
            let frame = pack(raw);
            if frame.len() < raw.len() {
                chunk.header.codec = Codec::Zstd;
                chunk.payload = frame;
            }
        }
        chunk
    }

    /// The columns of an event chunk.
    pub fn columns(&self) -> Columns {
        let mut columns = Columns::new();
        let Ok(table) = EventTable::parse(&self.table, &self.header) else {
            return columns;
        };
        let mut rest = &self.payload[..];
        for c in table.columns {
            let Some((stored, after)) = rest.split_at_checked(c.stored_len as usize) else {
                break;
            };
            let raw = format::decompress(stored, c.raw_len as usize).unwrap_or_default();
            columns.insert((c.kind, c.column), raw);
            rest = after;
        }
        columns
    }

    /// An event chunk with these columns, and with a table that fits them.
    pub fn with_columns(&self, columns: &Columns, packed: bool) -> Self {
        let mut counts = [0u64; 256];
        for &kind in columns.get(&(0, 0)).into_iter().flatten() {
            counts[usize::from(kind)] += 1;
        }
        let present = counts.iter().filter(|&&n| n != 0).count();
        let mut table = varint(present as u64);
        for (kind, &count) in counts.iter().enumerate().filter(|(_, &n)| n != 0) {
            table.push(kind as u8);
            table.extend(varint(count));
        }
        let mut payload = Vec::new();
        let mut raw_len = 0;
        for (&(kind, column), raw) in columns {
            let mut stored = raw.clone();
            if packed {
                let frame = pack(raw);
                if frame.len() < raw.len() {
                    stored = frame;
                }
            }
            table.extend([kind, column]);
            table.extend(varint(raw.len() as u64));
            table.extend(varint(stored.len() as u64));
            payload.extend(stored);
            raw_len += raw.len() as u32;
        }
        let mut header = self.header;
        header.codec = Codec::Columns;
        header.kind = ChunkKind::EVENTS;
        header.events = counts.iter().sum::<u64>() as u32;
        header.raw_len = raw_len;
        Self {
            header,
            table,
            payload,
        }
    }

    /// The chunk's bytes as number `sequence` of a file.
    pub fn bytes(&self, sequence: u32) -> Vec<u8> {
        let header = ChunkHeader {
            sequence,
            ..self.header
        };
        header.chunk(&self.table, &self.payload)
    }
}

fn pack(raw: &[u8]) -> Vec<u8> {
    thread_local! {
        static CONTEXT: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
    }
    let packed = CONTEXT.with_borrow_mut(|context| {
        if context.is_none() {
            *context = zstd::bulk::Compressor::new(1).ok();
        }
        context.as_mut()?.compress(raw).ok()
    });
    packed.unwrap_or_else(|| raw.to_vec())
}

/// The major and minor version of a trace of these chunks: one that has a checkpoint before its first events begins
/// there.
fn version(chunks: &[Chunk]) -> (u16, u16) {
    let kinds = chunks.iter().map(|c| c.header.kind);
    let first = kinds
        .clone()
        .find(|&kind| matches!(kind, ChunkKind::EVENTS | ChunkKind::CHECKPOINT));
    if first == Some(ChunkKind::CHECKPOINT) {
        format::AT_CHECKPOINT
    } else {
        (format::MAJOR, format::MINOR)
    }
}

/// A trace of these chunks as a killed recorder leaves it.
pub fn cut(chunks: &[Chunk]) -> Vec<u8> {
    let (major, minor) = version(chunks);
    let mut out = format::file_header(major, minor).to_vec();
    for (n, chunk) in chunks.iter().enumerate() {
        out.extend(chunk.bytes(n as u32));
    }
    out
}

/// The index that a trace of these chunks needs.
pub fn index(chunks: &[Chunk]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut offset = format::FILE_HEADER as u64;
    for (n, chunk) in chunks.iter().enumerate() {
        let bytes = chunk.bytes(n as u32);
        out.extend(offset.to_le_bytes());
        out.extend(&bytes[..CHUNK_HEADER + chunk.table.len()]);
        offset += bytes.len() as u64;
    }
    out
}

/// A finished trace with this index, whatever it says.
pub fn finish(chunks: &[Chunk], index: &[u8], packed: bool) -> Vec<u8> {
    let mut out = cut(chunks);
    let offset = out.len() as u64;
    let empty = Chunk {
        header: ChunkHeader {
            kind: ChunkKind::INDEX,
            ..ChunkHeader::default()
        },
        table: Vec::new(),
        payload: Vec::new(),
    };
    out.extend(empty.holding(index, packed).bytes(chunks.len() as u32));
    let end = out.len() + format::TRAILER;
    out.extend(format::trailer(offset, end as u64));
    out
}

/// Makes the checksums of all chunks fit that can still be found one after the other, and the trailer's.
pub fn repair(file: &mut [u8]) {
    let (major, minor) = match file.get(8) {
        Some(2) => format::AT_CHECKPOINT,
        _ => (format::MAJOR, format::MINOR),
    };
    let head = format::file_header(major, minor);
    if let Some(start) = file.first_chunk_mut() {
        *start = head;
    }
    let mut at = format::FILE_HEADER;
    let mut last = at;
    while let Some(fixed) = file.get(at..at + CHUNK_HEADER) {
        let word =
            |n: usize| u32::from_le_bytes([fixed[n], fixed[n + 1], fixed[n + 2], fixed[n + 3]]);
        let (table_len, stored_len) = (word(16) as usize, word(24) as usize);
        let table = at + CHUNK_HEADER..at + CHUNK_HEADER + table_len;
        let payload = table.end..table.end + stored_len;
        if file[at..at + 4] != format::CHUNK_MAGIC || payload.end > file.len() {
            break;
        }
        let sums = [
            crc32c::crc32c(&file[table]),
            crc32c::crc32c(&file[payload.clone()]),
        ];
        file[at + 28..at + 32].copy_from_slice(&sums[0].to_le_bytes());
        file[at + 48..at + 52].copy_from_slice(&sums[1].to_le_bytes());
        let own = crc32c::crc32c(&file[at..at + 52]);
        file[at + 52..at + 56].copy_from_slice(&own.to_le_bytes());
        last = at;
        at = payload.end;
    }
    let len = file.len();
    if let Some(end) = file.last_chunk_mut() {
        *end = format::trailer(last as u64, len as u64);
    }
}
