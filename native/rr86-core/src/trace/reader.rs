//! Opens a trace and reads its parts.
//!
//! A trace is readable as far as it is whole: [`TraceReader::open`] fails only where not even the
//! header and the image list can be read, and [`TraceReader::damage`] says what is wrong with the
//! rest. Where a trace was cut off, its events go on with those of its side file ([`SideFile`]). A chunk's bytes are read, checked and decoded when they are asked for.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use xxhash_rust::xxh3::xxh3_128;

use super::checkpoints::{self, CheckpointInfo};
use super::codec;
use super::error::TraceError;
use super::event::{Event, Kind};
use super::format::{self, ChunkHeader, ChunkKind, Codec, EventTable, PAGE_SIZE};
use super::scan::{self, Located};
use super::side_file::{self, SideFile};
use super::summary::Summary;
use super::tail;
use super::varint::Cursor;

/// An image that a trace holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    pub name: String,
    /// Length of the content in bytes.
    pub len: u64,
    /// XXH3-128 of the content.
    pub hash: u128,
}

/// An event chunk, by its header alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkInfo {
    /// The chunk's number in the file, as errors name it.
    pub sequence: u32,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in the file.
    pub stored_len: u64,
    pub events: u32,
    /// The lowest and the highest moment of its events, each an instruction count and a vCPU
    /// ([`crate::trace::NO_VCPU`] for an event of the whole machine). Moments may go back by up
    /// to a slice within a chunk and from one chunk to the next.
    pub first: (u64, u8),
    pub last: (u64, u8),
}

/// A chunk as it stands in the file: header, table, payload.
pub(crate) type RawChunk = (ChunkHeader, Vec<u8>, Vec<u8>);

/// A trace that is open for reading. Clones share the open file.
#[derive(Clone)]
pub struct TraceReader {
    trace: Arc<Trace>,
}

/// What all clones share.
struct Trace {
    file: File,
    path: PathBuf,
    file_len: u64,
    major: u16,
    chunks: Vec<Located>,
    /// Places of the event chunks in `chunks`.
    events: Vec<usize>,
    damage: Option<TraceError>,
    header: Vec<u8>,
    images: Vec<ImageInfo>,
    side: Option<SideFile>,
}

impl TraceReader {
    /// Opens a trace and reads its header and its list of images.
    pub fn open(path: &Path) -> Result<Self, TraceError> {
        let io = |e| TraceError::io(path, e);
        // A pipe or a device is never a trace, and opening one may wait for ever.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(TraceError::NotATrace {
                path: path.to_owned(),
            });
        }
        let file = File::open(path).map_err(io)?;
        let file_len = file.metadata().map_err(io)?.len();
        let major = scan::check_file_header(&file, path, file_len)?;
        let layout = scan::locate(&file, path, file_len)?;
        let events = (0..layout.chunks.len())
            .filter(|&n| layout.chunks[n].header.kind == ChunkKind::EVENTS)
            .collect();
        let mut trace = Trace {
            file,
            path: path.to_owned(),
            file_len,
            major,
            chunks: layout.chunks,
            events,
            damage: layout.damage,
            header: Vec::new(),
            images: Vec::new(),
            side: None,
        };
        trace.header = trace.opening(0, ChunkKind::HEADER)?;
        let list = trace.opening(1, ChunkKind::IMAGE_LIST)?;
        trace.images = image_list(&list)
            .ok_or_else(|| trace.chunks[1].malformed("the list of images makes no sense"))?;
        trace.go_on_with_side_file();
        Ok(TraceReader {
            trace: Arc::new(trace),
        })
    }

    /// What was found beside a trace that was cut off.
    pub fn side_file(&self) -> Option<&SideFile> {
        self.trace.side.as_ref()
    }

    /// The recorder's header, as it was given to the writer.
    pub fn header(&self) -> &[u8] {
        &self.trace.header
    }

    /// The recorder's footer; `None` if the recording did not get so far.
    pub fn footer(&self) -> Result<Option<Vec<u8>>, TraceError> {
        self.trace
            .chunks
            .iter()
            .rev()
            .find(|c| c.header.kind == ChunkKind::FOOTER)
            .map(|c| self.trace.blob(c))
            .transpose()
    }

    /// The images in the order in which they were given to the writer.
    pub fn images(&self) -> &[ImageInfo] {
        &self.trace.images
    }

    /// The content of an image, checked against its hash.
    pub fn image(&self, name: &str) -> Result<Vec<u8>, TraceError> {
        let mut content = vec![0; self.image_len(name)?];
        self.read_image(name, &mut content)?;
        Ok(content)
    }

    /// Length of an image, all pieces of which are there.
    pub fn image_len(&self, name: &str) -> Result<usize, TraceError> {
        let info = self.image_info(name)?;
        let pieces = self.pieces(info);
        let stored: u64 = pieces.iter().map(|c| u64::from(c.header.raw_len)).sum();
        if stored == info.len {
            return Ok(stored as usize);
        }
        Err(match &self.trace.damage {
            Some(damage) if stored < info.len => damage.clone(),
            _ => broken(name, "its pieces do not add up to its length"),
        })
    }

    /// Reads an image, whose length this is, checked against its hash. Straight into its place, and by two
    /// threads: it is large, and whoever replays waits for it.
    pub fn read_image(&self, name: &str, out: &mut [u8]) -> Result<(), TraceError> {
        let info = self.image_info(name)?;
        let (whole, mut done) = (out.len(), 0);
        let mut rest = &mut *out;
        let mut parts = Vec::new();
        for piece in self.pieces(info) {
            let offset = (done as u64).to_le_bytes();
            if piece.table.len() != format::IMAGE_TABLE || piece.table[16..] != offset {
                return Err(broken(name, "its pieces are out of order"));
            }
            let len = piece.header.raw_len as usize;
            let (part, behind) = rest
                .split_at_mut_checked(len)
                .ok_or_else(|| broken(name, "its pieces do not add up to its length"))?;
            parts.push((piece, part));
            rest = behind;
            done += len;
        }
        self.read_parts(parts)?;
        if done != whole || xxh3_128(out) != info.hash {
            return Err(broken(name, "its content does not have its hash"));
        }
        Ok(())
    }

    fn read_parts(&self, parts: Vec<(&Located, &mut [u8])>) -> Result<(), TraceError> {
        let alone = parts.len() < 2;
        let queue = Mutex::new(parts.into_iter());
        let read = || loop {
            // Whoever panicked has taken a part out, and left a whole queue.
            let next = queue.lock().unwrap_or_else(|e| e.into_inner()).next();
            match next {
                Some((piece, part)) => self.trace.read_blob(piece, part)?,
                None => return Ok(()),
            }
        };
        if alone {
            return read();
        }
        std::thread::scope(|scope| {
            let helper = std::thread::Builder::new().spawn_scoped(scope, read);
            let own = read();
            // Without a helper, all has been read here.
            let helped = helper.map_or(Ok(()), |h| h.join().unwrap_or(Err(TraceError::Thread)));
            own.and(helped)
        })
    }

    fn image_info(&self, name: &str) -> Result<&ImageInfo, TraceError> {
        let mut images = self.trace.images.iter();
        images
            .find(|i| i.name == name)
            .ok_or_else(|| TraceError::NoImage {
                name: name.to_owned(),
            })
    }

    fn pieces(&self, info: &ImageInfo) -> Vec<&Located> {
        let hash = info.hash.to_be_bytes();
        let chunks = self.trace.chunks.iter();
        chunks
            .filter(|c| c.header.kind == ChunkKind::IMAGE && c.table.starts_with(&hash))
            .collect()
    }

    /// Whether the recording was finished and nothing of the file's frame is missing: the index
    /// is there and names every chunk. The content of chunks is checked when it is read.
    pub fn complete(&self) -> bool {
        self.trace.damage.is_none()
    }

    /// Why the trace is not [`complete`](TraceReader::complete):
    /// [`Truncated`](TraceError::Truncated) where the file just ends, anything else where it is
    /// damaged.
    pub fn damage(&self) -> Option<&TraceError> {
        self.trace.damage.as_ref()
    }

    /// The error with which the events end: damage that may hide events. A recording that was cut
    /// off simply ends, and so does one that is damaged only behind its footer.
    pub(super) fn hidden(&self) -> Option<TraceError> {
        let ended = self
            .trace
            .chunks
            .iter()
            .any(|c| c.header.kind == ChunkKind::FOOTER);
        match &self.trace.damage {
            Some(TraceError::Truncated { .. }) | None => None,
            Some(_) if ended => None,
            Some(damage) => Some(damage.clone()),
        }
    }

    /// Sizes and counts, from the chunk headers alone.
    pub fn summary(&self) -> Result<Summary, TraceError> {
        Summary::of(self.trace.file_len, &self.trace.chunks)
    }

    /// Number of event chunks.
    pub fn chunk_count(&self) -> usize {
        self.trace.events.len()
    }

    /// What the header of event chunk `n` says.
    pub fn chunk_info(&self, n: usize) -> Result<ChunkInfo, TraceError> {
        let chunk = self.event_chunk(n)?;
        let header = &chunk.header;
        Ok(ChunkInfo {
            sequence: header.sequence,
            offset: chunk.offset,
            stored_len: header.total_len(),
            events: header.events,
            first: (header.first_icount, header.first_vcpu),
            last: (header.last_icount, header.last_vcpu),
        })
    }

    /// How many events of a kind event chunk `n` has, as its header says.
    pub fn count_of(&self, n: usize, kind: Kind) -> Result<u32, TraceError> {
        let chunk = self.event_chunk(n)?;
        let table =
            EventTable::parse(&chunk.table, &chunk.header).map_err(|why| chunk.malformed(why))?;
        Ok(table.counts[usize::from(kind.0)])
    }

    /// The first event chunk with an event at `icount` or later; `chunk_count()` if there is none.
    pub fn chunk_at(&self, icount: u64) -> usize {
        let trace = &self.trace;
        let reaches = |&at: &usize| trace.chunks[at].header.last_icount >= icount;
        trace
            .events
            .iter()
            .position(reaches)
            .unwrap_or(trace.events.len())
    }

    /// The events of event chunk `n` in the order of their pushes, each with its instruction
    /// count. Events of kinds that a later minor version added are left out.
    pub fn chunk(&self, n: usize) -> Result<Vec<(u64, Event)>, TraceError> {
        let chunk = self.event_chunk(n)?;
        if chunk.header.codec != Codec::Columns {
            return Err(chunk.malformed("its events are not in columns"));
        }
        let table =
            EventTable::parse(&chunk.table, &chunk.header).map_err(|why| chunk.malformed(why))?;
        let payload = self.trace.payload(chunk)?;
        codec::decode(&table, &payload).map_err(|why| chunk.malformed(why))
    }

    /// Identifies what the trace holds: equal for equal recordings, with checkpoints or without. It is made of the
    /// checksums of the chunks, so it is there without reading them, and does not say that they are intact.
    ///
    /// # Errors
    /// When the trace should begin at a checkpoint and that is not whole.
    pub fn content_id(&self) -> Result<u128, TraceError> {
        let opening = self.opening_chunks()?;
        let mut all = Vec::new();
        for (n, chunk) in self.trace.chunks.iter().enumerate() {
            let added = matches!(chunk.header.kind, ChunkKind::CHECKPOINT | ChunkKind::PAGES);
            if n < opening || !added {
                // Without its number in the file, and without its own checksum, which has the number in it.
                all.extend_from_slice(&chunk.fixed[..8]);
                all.extend_from_slice(&chunk.fixed[12..format::CHUNK_HEADER - 4]);
            }
        }
        Ok(xxh3_128(&all))
    }

    /// How many chunks there are up to the end of the checkpoint at which the trace begins; 0 without one.
    pub(crate) fn opening_chunks(&self) -> Result<usize, TraceError> {
        Ok(self.beginning()?.map_or(0, |first| first.state.end))
    }

    /// Major and minor version of a copy.
    pub(super) fn version(&self) -> (u16, u16) {
        if self.trace.major == format::AT_CHECKPOINT.0 {
            format::AT_CHECKPOINT
        } else {
            (format::MAJOR, format::MINOR)
        }
    }

    /// The checkpoint at which the trace begins; `None` for one that begins at power-on.
    ///
    /// # Errors
    /// When the trace should begin at a checkpoint and that is not whole.
    pub fn beginning(&self) -> Result<Option<CheckpointInfo>, TraceError> {
        if self.trace.major != format::AT_CHECKPOINT.0 {
            return Ok(None);
        }
        match self.checkpoints()?.into_iter().next() {
            Some(first) if first.chunk == 0 => Ok(Some(first)),
            _ => Err(self
                .trace
                .damage
                .clone()
                .unwrap_or(TraceError::NoBeginning {
                    path: self.trace.path.clone(),
                })),
        }
    }

    /// The whole checkpoints, in their order.
    pub fn checkpoints(&self) -> Result<Vec<CheckpointInfo>, TraceError> {
        checkpoints::list(&self.trace.chunks)
    }

    /// The state of a checkpoint.
    pub fn checkpoint_state(&self, info: &CheckpointInfo) -> Result<Vec<u8>, TraceError> {
        let mut state = Vec::new();
        for chunk in &self.trace.chunks[info.state.clone()] {
            if chunk.header.kind == ChunkKind::CHECKPOINT {
                state.extend_from_slice(&self.trace.blob(chunk)?);
            }
        }
        Ok(state)
    }

    /// Gives each page of RAM that is not zero at a checkpoint to `put`, in no particular order.
    pub fn checkpoint_pages<E: From<TraceError>>(
        &self,
        info: &CheckpointInfo,
        mut put: impl FnMut(usize, &[u8; PAGE_SIZE]) -> Result<(), E>,
    ) -> Result<(), E> {
        let chunks = &self.trace.chunks[..info.state.start];
        for (at, wanted) in checkpoints::newest_pages(chunks)? {
            let raw = self.trace.blob(&chunks[at])?;
            for (page, slot) in wanted {
                let bytes = raw.get(slot * PAGE_SIZE..).and_then(<[u8]>::first_chunk);
                let bytes = bytes.ok_or_else(|| {
                    E::from(chunks[at].malformed("it has fewer pages than it says"))
                })?;
                put(page, bytes)?;
            }
        }
        Ok(())
    }

    /// Gives every chunk as it stands in the file, for a copy.
    pub(crate) fn raw_chunk(&self, n: usize) -> Option<Result<RawChunk, TraceError>> {
        let chunk = self.trace.chunks.get(n)?;
        let payload = self.trace.payload(chunk);
        Some(payload.map(|payload| (chunk.header, chunk.table.clone(), payload)))
    }

    fn event_chunk(&self, n: usize) -> Result<&Located, TraceError> {
        let at = self.trace.events.get(n).ok_or(TraceError::NoChunk {
            index: n,
            count: self.trace.events.len(),
        })?;
        Ok(&self.trace.chunks[*at])
    }
}

impl Trace {
    /// Appends what the side file of a trace that was cut off has and the trace has not.
    fn go_on_with_side_file(&mut self) {
        let Some(TraceError::Truncated { offset, .. }) = self.damage else {
            return;
        };
        let mut chunks = self.chunks.iter();
        if chunks.any(|c| c.header.kind == ChunkKind::FOOTER) {
            // All events are in the trace.
            return;
        }
        match side_file::read(&self.path, &self.header, &self.chunks, offset) {
            Ok(None) => {}
            Ok(Some((more, side))) => {
                let from = self.chunks.len();
                self.events.extend(from..from + more.len());
                self.chunks.extend(more);
                self.side = Some(side);
            }
            Err(_) => {
                self.side = Some(SideFile {
                    path: tail::beside(&self.path),
                    events: 0,
                    left_out: Some("it cannot be read"),
                });
            }
        }
    }

    /// One of the chunks that every trace opens with.
    fn opening(&self, n: usize, kind: ChunkKind) -> Result<Vec<u8>, TraceError> {
        let end = self.chunks.last().map_or(format::FILE_HEADER as u64, |c| {
            c.offset + c.header.total_len()
        });
        let cut = || TraceError::Truncated {
            chunk: n as u32,
            offset: end,
        };
        let chunk = match self.chunks.get(n) {
            Some(chunk) => chunk,
            None => return Err(self.damage.clone().unwrap_or_else(cut)),
        };
        if chunk.header.kind != kind {
            return Err(chunk.malformed("a trace does not open like this"));
        }
        self.blob(chunk)
    }

    /// The stored payload of a chunk.
    fn payload(&self, chunk: &Located) -> Result<Vec<u8>, TraceError> {
        self.check_head(chunk)?;
        scan::payload(&self.file, chunk)
            .map_err(|e| TraceError::io(&self.path, e))?
            .ok_or_else(|| chunk.checksum_error())
    }

    /// Reads the head of a chunk as well as its copy in the index, which does not prove that the chunk itself is
    /// intact.
    fn check_head(&self, chunk: &Located) -> Result<(), TraceError> {
        let header = &chunk.header;
        if header.raw_len as usize > format::MAX_RAW || header.stored_len > header.raw_len {
            return Err(chunk.malformed("it is larger than a chunk may be"));
        }
        match scan::head_matches(&self.file, chunk) {
            Ok(true) => Ok(()),
            Ok(false) => Err(chunk.checksum_error()),
            Err(e) => Err(TraceError::io(&self.path, e)),
        }
    }

    /// The payload of a chunk of opaque bytes, decompressed, into a place of its length.
    fn read_blob(&self, chunk: &Located, out: &mut [u8]) -> Result<(), TraceError> {
        if chunk.header.codec != Codec::Stored || chunk.header.stored_len as usize != out.len() {
            out.copy_from_slice(&self.blob(chunk)?);
            return Ok(());
        }
        self.check_head(chunk)?;
        match scan::read_payload(&self.file, chunk, out) {
            Ok(true) => Ok(()),
            Ok(false) => Err(chunk.checksum_error()),
            Err(e) => Err(TraceError::io(&self.path, e)),
        }
    }

    /// The payload of a chunk of opaque bytes, decompressed.
    fn blob(&self, chunk: &Located) -> Result<Vec<u8>, TraceError> {
        let stored = self.payload(chunk)?;
        let raw_len = chunk.header.raw_len as usize;
        let fits = match chunk.header.codec {
            Codec::Stored => stored.len() == raw_len,
            Codec::Zstd => stored.len() < raw_len,
            Codec::Columns => false,
        };
        if !fits {
            return Err(chunk.malformed("its length does not fit its codec"));
        }
        format::decompress(&stored, raw_len)
            .ok_or_else(|| chunk.malformed("it does not decompress to its declared length"))
    }
}

fn broken(name: &str, why: &'static str) -> TraceError {
    TraceError::Image {
        name: name.to_owned(),
        why,
    }
}

fn image_list(bytes: &[u8]) -> Option<Vec<ImageInfo>> {
    let mut at = Cursor::new(bytes);
    let mut images = Vec::new();
    for _ in 0..at.varint()? {
        let name_len = usize::try_from(at.varint()?).ok()?;
        let name = std::str::from_utf8(at.take(name_len)?).ok()?.to_owned();
        let len = at.varint()?;
        let hash = u128::from_be_bytes(at.array()?);
        if len > format::MAX_IMAGE {
            return None;
        }
        images.push(ImageInfo { name, len, hash });
    }
    at.is_empty().then_some(images)
}
