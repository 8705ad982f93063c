//! The layout of a trace file: the file header, the chunk header, the tables and the trailer.
//!
//! A file is a 16-byte file header and then chunks. Each chunk is written by one call and carries
//! its own checksums, so whatever was written before the recorder died can be read. The index at
//! the end repeats all chunk headers; it saves a reader the walk and proves that nothing is
//! missing.

use std::cell::RefCell;
use std::io;

use super::varint::{put, Cursor};

/// First bytes of a trace. The non-ASCII byte and the line ends show damage by text-mode copies.
pub const MAGIC: [u8; 8] = *b"\x89RR86\r\n\x1a";
/// Raised when old readers would misread: they refuse.
pub const MAJOR: u16 = 1;
/// Raised when something is added that old readers may pass over.
pub const MINOR: u16 = 1;
/// Major and minor version of a trace that begins at a checkpoint: readers of version 1 would begin at power-on.
pub const AT_CHECKPOINT: (u16, u16) = (2, 0);
/// Length of the file header.
pub const FILE_HEADER: usize = 16;

/// First bytes of a chunk.
pub const CHUNK_MAGIC: [u8; 4] = *b"rr8c";
/// Length of a chunk header, without its table.
pub const CHUNK_HEADER: usize = 56;
/// Length of the trailer.
pub const TRAILER: usize = 32;
const TRAILER_MAGIC: [u8; 8] = *b"rr86end\n";

/// The most raw bytes in one chunk other than the index.
pub const MAX_RAW: usize = 16 << 20;
/// The most raw bytes in an index: enough for a million chunks.
pub const MAX_INDEX: u64 = 256 << 20;
/// The largest table of a chunk.
pub const MAX_TABLE: usize = 64 << 10;
/// The largest image.
pub const MAX_IMAGE: u64 = 1 << 30;
/// Raw bytes of an image in one chunk.
pub const IMAGE_CHUNK: usize = 1 << 20;
/// The table of an image chunk: content hash (16 bytes, big-endian) and offset (8 bytes).
pub const IMAGE_TABLE: usize = 24;

/// Raw bytes of a checkpoint in one chunk.
pub const CHECKPOINT_CHUNK: usize = 1 << 20;
/// The most bytes in a checkpoint's state.
pub const MAX_STATE: u64 = 256 << 20;
/// Pages that one chunk tells of.
const PAGES_A_CHUNK: usize = 4096;

/// Bytes of a page of RAM, as checkpoints and hand-offs count them.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
/// Bits of an address within a page.
pub const PAGE_SHIFT: u32 = 12;
/// Bits of an address within one of the lines that hand-offs tell of.
pub const LINE_SHIFT: u32 = 6;

/// What a chunk holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChunkKind(pub u8);

impl ChunkKind {
    /// The recorder's header, opaque to this layer. Always the first chunk.
    pub const HEADER: ChunkKind = ChunkKind(1);
    /// Names, lengths and hashes of the images. Always the second chunk.
    pub const IMAGE_LIST: ChunkKind = ChunkKind(2);
    /// A piece of an image's content.
    pub const IMAGE: ChunkKind = ChunkKind(3);
    /// Events.
    pub const EVENTS: ChunkKind = ChunkKind(4);
    /// The recorder's last words, opaque to this layer.
    pub const FOOTER: ChunkKind = ChunkKind(5);
    /// Offsets and headers of all chunks before it.
    pub const INDEX: ChunkKind = ChunkKind(6);
    /// A piece of a checkpoint's state; the last piece makes the checkpoint whole.
    pub const CHECKPOINT: ChunkKind = ChunkKind(7);
    /// Pages of RAM that changed since the checkpoint before.
    pub const PAGES: ChunkKind = ChunkKind(8);
}

/// How a payload is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codec {
    #[default]
    Stored,
    Zstd,
    /// Events: each column by itself, verbatim where that is no longer than its zstd frame.
    Columns,
}

/// The fixed part of a chunk, decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkHeader {
    pub kind: ChunkKind,
    pub codec: Codec,
    /// The chunk's number in the file, from 0.
    pub sequence: u32,
    pub events: u32,
    pub table_len: u32,
    pub raw_len: u32,
    pub stored_len: u32,
    /// The vCPUs of the two moments below.
    pub first_vcpu: u8,
    pub last_vcpu: u8,
    /// The lowest and the highest moment of the chunk's events.
    pub first_icount: u64,
    pub last_icount: u64,
    /// CRC-32C of the table, and of the payload as stored.
    pub table_crc: u32,
    pub payload_crc: u32,
}

impl ChunkHeader {
    /// A whole chunk: this header with lengths and checksums filled in, the table, the payload.
    pub fn chunk(mut self, table: &[u8], payload: &[u8]) -> Vec<u8> {
        self.table_len = table.len() as u32;
        self.stored_len = payload.len() as u32;
        self.table_crc = crc32c::crc32c(table);
        self.payload_crc = crc32c::crc32c(payload);
        let mut out = Vec::with_capacity(CHUNK_HEADER + table.len() + payload.len());
        out.extend_from_slice(&CHUNK_MAGIC);
        out.push(self.kind.0);
        out.push(self.codec as u8);
        out.push(self.first_vcpu);
        out.push(self.last_vcpu);
        for word in [
            self.sequence,
            self.events,
            self.table_len,
            self.raw_len,
            self.stored_len,
            self.table_crc,
        ] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.first_icount.to_le_bytes());
        out.extend_from_slice(&self.last_icount.to_le_bytes());
        out.extend_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(table);
        out.extend_from_slice(payload);
        out
    }

    /// Reads the fixed part and checks it against its own checksum, so that its lengths can be
    /// believed even where the file ends before them.
    pub fn parse(bytes: &[u8; CHUNK_HEADER]) -> Result<Self, &'static str> {
        const SHORT: &str = "its header is short";
        let mut at = Cursor::new(bytes);
        if at.array::<4>() != Some(CHUNK_MAGIC) {
            return Err("no chunk begins here");
        }
        let (fixed, crc) = bytes.split_at(CHUNK_HEADER - 4);
        if crc != crc32c::crc32c(fixed).to_le_bytes() {
            return Err("its header does not match its checksum");
        }
        let [kind, codec, first_vcpu, last_vcpu] = at.array().ok_or(SHORT)?;
        let mut words = [0u32; 6];
        for word in &mut words {
            *word = u32::from_le_bytes(at.array().ok_or(SHORT)?);
        }
        let [sequence, events, table_len, raw_len, stored_len, table_crc] = words;
        Ok(ChunkHeader {
            kind: ChunkKind(kind),
            codec: match codec {
                0 => Codec::Stored,
                1 => Codec::Zstd,
                2 => Codec::Columns,
                _ => return Err("its codec is unknown"),
            },
            sequence,
            events,
            table_len,
            raw_len,
            stored_len,
            table_crc,
            first_vcpu,
            last_vcpu,
            first_icount: u64::from_le_bytes(at.array().ok_or(SHORT)?),
            last_icount: u64::from_le_bytes(at.array().ok_or(SHORT)?),
            payload_crc: u32::from_le_bytes(at.array().ok_or(SHORT)?),
        })
    }

    /// Length of the whole chunk in the file.
    pub fn total_len(&self) -> u64 {
        CHUNK_HEADER as u64 + u64::from(self.table_len) + u64::from(self.stored_len)
    }
}

/// The 16 bytes at the start of a trace.
pub fn file_header(major: u16, minor: u16) -> [u8; FILE_HEADER] {
    let mut out = [0; FILE_HEADER];
    out[..8].copy_from_slice(&MAGIC);
    out[8..10].copy_from_slice(&major.to_le_bytes());
    out[10..12].copy_from_slice(&minor.to_le_bytes());
    let crc = crc32c::crc32c(&out[..12]);
    out[12..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// The 32 bytes at the end of a finished trace.
pub fn trailer(index_offset: u64, file_len: u64) -> [u8; TRAILER] {
    let mut out = [0; TRAILER];
    out[..8].copy_from_slice(&index_offset.to_le_bytes());
    out[8..16].copy_from_slice(&file_len.to_le_bytes());
    let crc = crc32c::crc32c(&out[..20]);
    out[20..24].copy_from_slice(&crc.to_le_bytes());
    out[24..].copy_from_slice(&TRAILER_MAGIC);
    out
}

/// The offset of the index, if these are the last bytes of a finished trace of this length.
pub fn parse_trailer(bytes: &[u8; TRAILER], file_len: u64) -> Option<u64> {
    let index_offset = u64::from_le_bytes(*bytes.first_chunk()?);
    (*bytes == trailer(index_offset, file_len)).then_some(index_offset)
}

/// One column of an event chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    pub kind: u8,
    pub column: u8,
    pub raw_len: u32,
    pub stored_len: u32,
}

/// The table of an event chunk: how many events of each kind, and which columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventTable {
    pub counts: [u32; 256],
    pub columns: Vec<Column>,
}

impl EventTable {
    /// Reads the table; counts and columns must come in ascending order and add up.
    pub fn parse(bytes: &[u8], header: &ChunkHeader) -> Result<Self, &'static str> {
        Self::entries(bytes)
            .ok_or("its table is malformed")
            .and_then(|table| {
                let events: u64 = table.counts.iter().map(|&n| u64::from(n)).sum();
                let stored: u64 = table.columns.iter().map(|c| u64::from(c.stored_len)).sum();
                let raw: u64 = table.columns.iter().map(|c| u64::from(c.raw_len)).sum();
                let declared = (header.events, header.stored_len, header.raw_len);
                if (events, stored, raw)
                    != (declared.0.into(), declared.1.into(), declared.2.into())
                {
                    Err("its table disagrees with its header")
                } else {
                    Ok(table)
                }
            })
    }

    fn entries(bytes: &[u8]) -> Option<Self> {
        let mut at = Cursor::new(bytes);
        let mut counts = [0; 256];
        let mut next = 0;
        for _ in 0..at.varint()? {
            let kind = at.byte()?;
            if u16::from(kind) < next {
                return None;
            }
            next = u16::from(kind) + 1;
            counts[usize::from(kind)] = at.varint()?.try_into().ok()?;
        }
        let mut columns: Vec<Column> = Vec::new();
        while !at.is_empty() {
            let entry = Column {
                kind: at.byte()?,
                column: at.byte()?,
                raw_len: at.varint()?.try_into().ok()?,
                stored_len: at.varint()?.try_into().ok()?,
            };
            let ascending = columns
                .last()
                .is_none_or(|c| (c.kind, c.column) < (entry.kind, entry.column));
            if !ascending || entry.stored_len > entry.raw_len {
                return None;
            }
            columns.push(entry);
        }
        Some(EventTable { counts, columns })
    }
}

/// The table of a piece of a checkpoint's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateTable {
    /// Number of the checkpoint in the trace, from 0.
    pub checkpoint: u32,
    pub icount: u64,
    /// Length of the whole state.
    pub total: u64,
    /// Where in it this piece belongs.
    pub offset: u64,
}

impl StateTable {
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.checkpoint.to_le_bytes().to_vec();
        for word in [self.icount, self.total, self.offset] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out
    }

    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut at = Cursor::new(bytes);
        let checkpoint = u32::from_le_bytes(at.array()?);
        let mut words = [0; 3];
        for word in &mut words {
            *word = u64::from_le_bytes(at.array()?);
        }
        let [icount, total, offset] = words;
        at.is_empty().then_some(StateTable {
            checkpoint,
            icount,
            total,
            offset,
        })
    }
}

/// The table of a chunk of pages: the checkpoint, and each page's number with whether it is zero, in
/// ascending order. The payload has those that are not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PagesTable {
    pub checkpoint: u32,
    pub pages: Vec<(usize, bool)>,
}

impl PagesTable {
    /// Whether another page has to go to another chunk.
    pub fn is_full(&self, payload: usize) -> bool {
        payload >= CHECKPOINT_CHUNK || self.pages.len() >= PAGES_A_CHUNK
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.checkpoint.to_le_bytes().to_vec();
        let mut next = 0;
        for &(page, zero) in &self.pages {
            put(&mut out, ((page - next) as u64) << 1 | u64::from(zero));
            next = page + 1;
        }
        out
    }

    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut at = Cursor::new(bytes);
        let checkpoint = u32::from_le_bytes(at.array()?);
        let mut pages = Vec::new();
        let mut next = 0usize;
        while !at.is_empty() {
            let entry = at.varint()?;
            let page = next.checked_add(usize::try_from(entry >> 1).ok()?)?;
            pages.push((page, entry & 1 != 0));
            next = page.checked_add(1)?;
        }
        Some(PagesTable { checkpoint, pages })
    }

    /// Length that the payload must have.
    pub fn payload(&self) -> usize {
        PAGE_SIZE * self.pages.iter().filter(|(_, zero)| !zero).count()
    }
}

/// Appends `raw` to `out`, compressed where that is shorter; returns the length it took. Equal
/// lengths mean "verbatim".
pub fn compress(
    compressor: &mut zstd::bulk::Compressor<'_>,
    raw: &[u8],
    out: &mut Vec<u8>,
) -> io::Result<usize> {
    // No zstd frame of so few bytes is shorter than they are.
    const TINY: usize = 16;
    if raw.len() > TINY {
        let packed = compressor.compress(raw)?;
        if packed.len() < raw.len() {
            out.extend_from_slice(&packed);
            return Ok(packed.len());
        }
    }
    out.extend_from_slice(raw);
    Ok(raw.len())
}

/// The inverse of [`compress`]; `None` if the result has another length than declared. The caller
/// has checked `raw_len` against a limit.
pub fn decompress(stored: &[u8], raw_len: usize) -> Option<Vec<u8>> {
    if stored.len() == raw_len {
        return Some(stored.to_vec());
    }
    if stored.len() > raw_len {
        return None;
    }
    // Making a context takes longer than decompressing a column.
    thread_local! {
        static CONTEXT: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    }
    let raw = CONTEXT.with_borrow_mut(|context| {
        if context.is_none() {
            *context = zstd::bulk::Decompressor::new().ok();
        }
        context.as_mut()?.decompress(stored, raw_len).ok()
    })?;
    (raw.len() == raw_len).then_some(raw)
}
