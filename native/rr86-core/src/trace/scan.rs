//! Finds the chunks of a trace file: from the index, or, where there is none that holds, by
//! walking from chunk to chunk.
//!
//! Both ways end with the same list of chunk headers, each checked against its checksum and each
//! lying inside the file, so that later reads can believe their lengths.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::error::TraceError;
use super::format::{self, ChunkHeader, ChunkKind, CHUNK_HEADER, FILE_HEADER, TRAILER};

/// A chunk in the file, and its head as the file (or the index) has it.
pub(super) struct Located {
    pub offset: u64,
    pub header: ChunkHeader,
    /// The fixed header as bytes.
    pub fixed: [u8; CHUNK_HEADER],
    pub table: Vec<u8>,
    /// The stored payload of a chunk that is not in the file: it comes from the side file.
    pub payload: Option<Vec<u8>>,
}

impl Located {
    fn end(&self) -> u64 {
        self.offset + self.header.total_len()
    }

    pub fn checksum_error(&self) -> TraceError {
        TraceError::Checksum {
            chunk: self.header.sequence,
            offset: self.offset,
        }
    }

    pub fn malformed(&self, why: &'static str) -> TraceError {
        TraceError::Malformed {
            chunk: self.header.sequence,
            offset: self.offset,
            why,
        }
    }
}

/// All chunks that could be found.
pub(super) struct Layout {
    /// Without the index.
    pub chunks: Vec<Located>,
    /// Why the trace is not complete.
    pub damage: Option<TraceError>,
}

/// Why a chunk could not be located.
enum Lost {
    Io(io::Error),
    /// The file ends first.
    Short,
    Malformed(&'static str),
    Checksum,
}

impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Self {
        // A file that shrinks while it is read is a short file.
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Lost::Short,
            _ => Lost::Io(error),
        }
    }
}

impl Lost {
    fn error(self, path: &Path, chunk: u32, offset: u64) -> TraceError {
        match self {
            Lost::Io(e) => TraceError::io(path, e),
            Lost::Short => TraceError::Truncated { chunk, offset },
            Lost::Malformed(why) => TraceError::Malformed { chunk, offset, why },
            Lost::Checksum => TraceError::Checksum { chunk, offset },
        }
    }
}

/// Checks the first bytes of the file: is this a trace, and of this format? Gives the major version.
pub(super) fn check_file_header(file: &File, path: &Path, len: u64) -> Result<u16, TraceError> {
    let mut head = [0; FILE_HEADER];
    let n = len.min(FILE_HEADER as u64) as usize;
    file.read_exact_at(&mut head[..n], 0)
        .map_err(|e| TraceError::io(path, e))?;
    let magic = n.min(format::MAGIC.len());
    if n == 0 || head[..magic] != format::MAGIC[..magic] {
        return Err(TraceError::NotATrace {
            path: path.to_owned(),
        });
    }
    if n < FILE_HEADER {
        return Err(TraceError::Truncated {
            chunk: 0,
            offset: n as u64,
        });
    }
    let major = u16::from_le_bytes([head[8], head[9]]);
    let minor = u16::from_le_bytes([head[10], head[11]]);
    if head != format::file_header(major, minor) {
        return Err(TraceError::FileHeader {
            path: path.to_owned(),
        });
    }
    if ![format::MAJOR, format::AT_CHECKPOINT.0].contains(&major) {
        return Err(TraceError::OtherVersion {
            path: path.to_owned(),
            major,
            minor,
        });
    }
    Ok(major)
}

/// Finds all chunks. Only errors of the operating system are errors here; damage is part of the
/// answer.
pub(super) fn locate(file: &File, path: &Path, len: u64) -> Result<Layout, TraceError> {
    match from_index(file, len) {
        Ok(chunks) => Ok(Layout {
            chunks,
            damage: None,
        }),
        Err(Lost::Io(e)) => Err(TraceError::io(path, e)),
        Err(_) => walk(file, path, len),
    }
}

/// Reads the head of the chunk at `offset`; the chunk must end at or before `end`.
fn head(file: &File, offset: u64, end: u64) -> Result<Located, Lost> {
    let room = end.saturating_sub(offset);
    if room < CHUNK_HEADER as u64 {
        return Err(Lost::Short);
    }
    let mut fixed = [0; CHUNK_HEADER];
    file.read_exact_at(&mut fixed, offset)?;
    let header = ChunkHeader::parse(&fixed).map_err(Lost::Malformed)?;
    if header.table_len as usize > format::MAX_TABLE {
        return Err(Lost::Malformed("its table is larger than one may be"));
    }
    if header.total_len() > room {
        return Err(Lost::Short);
    }
    let mut table = vec![0; header.table_len as usize];
    file.read_exact_at(&mut table, offset + CHUNK_HEADER as u64)?;
    if crc32c::crc32c(&table) != header.table_crc {
        return Err(Lost::Checksum);
    }
    Ok(Located {
        offset,
        header,
        fixed,
        table,
        payload: None,
    })
}

/// The stored payload of a located chunk, checked against its checksum.
pub(super) fn payload(file: &File, chunk: &Located) -> io::Result<Option<Vec<u8>>> {
    if let Some(payload) = &chunk.payload {
        return Ok(Some(payload.clone()));
    }
    let mut bytes = vec![0; chunk.header.stored_len as usize];
    let good = read_payload(file, chunk, &mut bytes)?;
    Ok(good.then_some(bytes))
}

/// Reads the stored payload of a located chunk, whose length this is; whether it has its checksum.
pub(super) fn read_payload(file: &File, chunk: &Located, out: &mut [u8]) -> io::Result<bool> {
    file.read_exact_at(out, chunk.end() - out.len() as u64)?;
    Ok(crc32c::crc32c(out) == chunk.header.payload_crc)
}

fn from_index(file: &File, len: u64) -> Result<Vec<Located>, Lost> {
    let trailer_at = len.checked_sub(TRAILER as u64).ok_or(Lost::Short)?;
    let mut trailer = [0; TRAILER];
    file.read_exact_at(&mut trailer, trailer_at)?;
    let index_at = format::parse_trailer(&trailer, len).ok_or(Lost::Checksum)?;
    let index = head(file, index_at, trailer_at)?;
    // Each entry stands for a chunk that is longer than what the entry repeats of it, less its
    // offset: so a true index is never twice as long as the file.
    let raw_len = u64::from(index.header.raw_len);
    if index.header.kind != ChunkKind::INDEX
        || index.end() != trailer_at
        || raw_len > format::MAX_INDEX.min(2 * len)
    {
        return Err(Lost::Malformed("it is not the index"));
    }
    if index.header.stored_len > index.header.raw_len {
        return Err(Lost::Malformed("it is longer than its content"));
    }
    let stored = payload(file, &index)?.ok_or(Lost::Checksum)?;
    let raw = format::decompress(&stored, index.header.raw_len as usize).ok_or(Lost::Checksum)?;
    entries(&raw, index_at).ok_or(Lost::Malformed("its entries do not tile the file"))
}

/// The chunks that an index names. They must follow one another without a gap, from the file
/// header to the index itself.
fn entries(mut raw: &[u8], index_at: u64) -> Option<Vec<Located>> {
    let mut chunks = Vec::new();
    let mut expected = FILE_HEADER as u64;
    while !raw.is_empty() {
        let (offset, rest) = raw.split_first_chunk::<8>()?;
        let (fixed, rest) = rest.split_first_chunk::<CHUNK_HEADER>()?;
        let header = ChunkHeader::parse(fixed).ok()?;
        let (table, rest) = rest.split_at_checked(header.table_len as usize)?;
        let chunk = Located {
            offset: u64::from_le_bytes(*offset),
            header,
            fixed: *fixed,
            table: table.to_vec(),
            payload: None,
        };
        let in_place = chunk.offset == expected
            && chunk.end() <= index_at
            && header.sequence as usize == chunks.len()
            && crc32c::crc32c(table) == header.table_crc;
        if !in_place {
            return None;
        }
        expected = chunk.end();
        chunks.push(chunk);
        raw = rest;
    }
    (expected == index_at).then_some(chunks)
}

/// Walks from chunk to chunk until the file ends or stops making sense.
fn walk(file: &File, path: &Path, len: u64) -> Result<Layout, TraceError> {
    let mut chunks: Vec<Located> = Vec::new();
    let mut offset = FILE_HEADER as u64;
    let lost = loop {
        let chunk = match head(file, offset, len) {
            Ok(chunk) => chunk,
            Err(Lost::Io(e)) => return Err(TraceError::io(path, e)),
            Err(lost) => break lost,
        };
        if chunk.header.sequence as usize != chunks.len() {
            break Lost::Malformed("a chunk is missing before it, or it is there twice");
        }
        if chunk.header.kind == ChunkKind::INDEX {
            // The walk is taken only where index or trailer do not hold.
            let cut = chunk.end().saturating_add(TRAILER as u64) > len;
            break if cut {
                Lost::Short
            } else {
                Lost::Malformed("the index or the trailer is damaged")
            };
        }
        offset = chunk.end();
        chunks.push(chunk);
    };
    Ok(Layout {
        damage: Some(lost.error(path, chunks.len() as u32, offset)),
        chunks,
    })
}

/// Whether the file has, at the chunk's place, the head that was located.
pub(super) fn head_matches(file: &File, chunk: &Located) -> io::Result<bool> {
    if chunk.payload.is_some() {
        return Ok(true);
    }
    let mut bytes = vec![0; CHUNK_HEADER + chunk.table.len()];
    file.read_exact_at(&mut bytes, chunk.offset)?;
    Ok(bytes[..CHUNK_HEADER] == chunk.fixed && bytes[CHUNK_HEADER..] == chunk.table[..])
}
