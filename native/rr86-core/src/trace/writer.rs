//! Writes a trace: events are encoded as they are pushed, and a background thread compresses and
//! writes whole chunks.
//!
//! What the file holds is a function of what was pushed and of where `flush` was called, never of
//! the timing of the thread. The queue between the two is short, so a slow disk slows the recorder
//! down instead of filling memory. A failure of the thread surfaces at the next call.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::sync::Arc;
use std::thread::JoinHandle;

use xxhash_rust::xxh3::xxh3_128;

use super::codec::ChunkBuilder;
use super::error::TraceError;
use super::event::Event;
use super::format::{self, ChunkHeader, ChunkKind, Codec, PagesTable, StateTable};
use super::images::Images;
use super::place::{self, Place, Replaced};
use super::reader::TraceReader;
use super::tail::Tail;
use super::varint::put;
use crate::contents::Contents;
use crate::host_time::{HostTime, Stopwatch};

/// The zstd level. On the events of a boot, levels 1 to 9 differ by 1 % in size and by a factor of
/// eight in time; on images, 3 is worth its time.
const LEVEL: i32 = 3;

/// The zstd level of pages in checkpoints, of which there are many.
const PAGE_LEVEL: i32 = 1;

/// Chunks that may wait for the thread. A checkpoint comes as dozens of them at once, and the recorder
/// goes on while they are compressed.
const QUEUE: usize = 48;

/// The longest image name in bytes.
const MAX_IMAGE_NAME: usize = 4096;

/// The most bytes of an image in the list of images, its name aside: two lengths and a hash.
const LIST_ENTRY: usize = 10 + 10 + 16;

enum Job {
    Chunk(Box<ChunkBuilder>),
    /// Write a chunk of opaque bytes.
    Blob {
        kind: ChunkKind,
        table: Vec<u8>,
        raw: Vec<u8>,
    },
    /// Write a chunk of another trace, as it is but for its number.
    Copy {
        header: Box<ChunkHeader>,
        table: Vec<u8>,
        payload: Vec<u8>,
    },
    /// Answer when everything before this is in the file.
    Sync(SyncSender<()>),
    /// Write footer (unless it was copied), index and trailer, and end.
    Finish(Option<Vec<u8>>),
    /// From here on the disk is full.
    #[cfg(test)]
    Break,
}

/// What the recorder and the thread both see.
struct Shared {
    written: AtomicU64,
    /// Event chunks in the file.
    chunks: AtomicU32,
    failed: AtomicBool,
}

/// The writer of one trace, and of its side file (`super::tail`). Dropping it without [`finish`](TraceWriter::finish) writes what was
/// pushed and leaves a trace without an index: readable, but not complete.
pub struct TraceWriter {
    chunk: Box<ChunkBuilder>,
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<Result<(), TraceError>>>,
    shared: Arc<Shared>,
    images: Arc<Images>,
    error: Option<TraceError>,
    /// The side file, or why there is none.
    tail: Result<Tail, Option<TraceError>>,
    /// Checkpoints written so far.
    checkpoints: u32,
    /// For room in the thread's queue.
    waited: HostTime,
}

impl TraceWriter {
    /// Creates the file and writes the header at once; one that exists is replaced when the images are in. The images, of which
    /// equal ones are stored once, are the thread's first work, hashing them included: compressing a
    /// kernel takes as long as booting its first tenth.
    pub fn create(
        path: &Path,
        header: &[u8],
        images: &[(String, Contents)],
    ) -> Result<Self, TraceError> {
        Self::create_as((format::MAJOR, format::MINOR), path, header, images)
    }

    /// The same for a trace that begins at a checkpoint, which is written next: see `checkpoint`.
    pub fn create_at_checkpoint(
        path: &Path,
        header: &[u8],
        images: &[(String, Contents)],
    ) -> Result<Self, TraceError> {
        Self::create_as(format::AT_CHECKPOINT, path, header, images)
    }

    fn create_as(
        version: (u16, u16),
        path: &Path,
        header: &[u8],
        images: &[(String, Contents)],
    ) -> Result<Self, TraceError> {
        too_large("a header", header.len() as u64, format::MAX_RAW as u64)?;
        check_images(images)?;
        let mut output = Output::create(path, version)?;
        // Before there is a header that a side file of an earlier recording could belong to.
        let tail = match &output.replaced {
            Some(Replaced { target, mode, .. }) => Tail::unnamed(target, *mode, header),
            None => Tail::create(path, header),
        };
        let tail = tail.map_err(Some);
        output.tail = tail
            .as_ref()
            .ok()
            .and_then(|tail| tail.file().try_clone().ok());
        output.blob(ChunkKind::HEADER, &[], header)?;
        Self::start(output, Some(images.to_vec()), tail)
    }

    /// Creates the file (replacing one that exists), for a trace that is copied from `original`.
    pub fn create_copy(path: &Path, original: &TraceReader) -> Result<Self, TraceError> {
        let output = Output::create(path, original.version())?;
        let mut writer = Self::start(output, None, Err(None))?;
        // The copy has the checkpoint at which it begins from the original.
        writer.checkpoints = u32::from(original.beginning()?.is_some());
        Ok(writer)
    }

    fn start(
        mut output: Output,
        images: Option<Vec<(String, Contents)>>,
        tail: Result<Tail, Option<TraceError>>,
    ) -> Result<Self, TraceError> {
        let shared = output.shared.clone();
        let path = output.path.clone();
        let (jobs, receiver) = sync_channel(QUEUE);
        let flag = shared.clone();
        let pieces = Arc::new(Images::default());
        let ending = Ending(pieces.clone());
        let thread = std::thread::Builder::new()
            .name("rr86-trace".into())
            .spawn(move || {
                let result = output
                    .images(images, &ending.0)
                    .and_then(|()| output.serve(&receiver));
                flag.failed.store(result.is_err(), Ordering::Release);
                result
            })
            .map_err(|e| TraceError::io(&path, e))?;
        Ok(TraceWriter {
            chunk: Box::default(),
            jobs: Some(jobs),
            thread: Some(thread),
            shared,
            images: pieces,
            error: None,
            tail,
            checkpoints: 0,
            waited: HostTime::default(),
        })
    }

    /// Adds an event that happened at `icount` retired instructions.
    ///
    /// Events are given back in the order of their pushes, whatever their moments. A refused event
    /// (larger than a trace may hold) leaves the writer usable.
    #[inline]
    pub fn push(&mut self, icount: u64, event: &Event) -> Result<(), TraceError> {
        if self.shared.failed.load(Ordering::Relaxed) {
            return Err(self.failure());
        }
        self.chunk.push(icount, event)?;
        if self.chunk.is_full() {
            self.seal()?;
        }
        Ok(())
    }

    /// Returns when everything pushed so far is in the file, where it survives the recorder's
    /// death (not the host's). Each flush ends a chunk, so frequent ones cost file size.
    pub fn flush(&mut self) -> Result<(), TraceError> {
        self.seal()?;
        self.catch_up()
    }

    /// Returns when the thread has written what it was sent.
    fn catch_up(&mut self) -> Result<(), TraceError> {
        let (done, wait) = sync_channel(1);
        self.send(Job::Sync(done))?;
        wait.recv().map_err(|_| self.failure())
    }

    /// Puts the events that were pushed since the last call into the side file, where they survive the
    /// recorder's death. Costs no file size and changes no byte of the trace.
    pub fn keep(&mut self) -> Result<(), TraceError> {
        self.keep_in_tail(false)
    }

    /// Why the trace has no side file, if it should have one.
    pub fn without_tail(&self) -> Option<&TraceError> {
        self.tail.as_ref().err()?.as_ref()
    }

    fn keep_in_tail(&mut self, ends: bool) -> Result<(), TraceError> {
        let Ok(tail) = &self.tail else {
            return Ok(());
        };
        if tail.is_long() && !self.chunk.is_empty() {
            self.catch_up()?;
        }
        let Ok(tail) = &mut self.tail else {
            return Ok(());
        };
        let written = self.shared.chunks.load(Ordering::Acquire);
        let Err(error) = tail.keep(&self.chunk, written, ends) else {
            return Ok(());
        };
        // The recording goes on without. What the side file has stays until the trace has it too.
        let tail = std::mem::replace(&mut self.tail, Err(Some(error)));
        self.catch_up()?;
        if let Ok(tail) = tail {
            tail.remove();
        }
        Ok(())
    }

    /// Everything is in the trace.
    fn remove_tail(&mut self) {
        if let Ok(tail) = std::mem::replace(&mut self.tail, Err(None)) {
            tail.remove();
        }
    }

    /// Length of the file so far; events that have not been written yet do not count.
    pub fn bytes_written(&self) -> u64 {
        self.shared.written.load(Ordering::Relaxed)
    }

    /// How long the caller has waited for the thread so far.
    pub fn waited(&self) -> HostTime {
        self.waited
    }

    /// Writes what is left, the footer and the index, and closes the file. Returns its length.
    pub fn finish(mut self, footer: &[u8]) -> Result<u64, TraceError> {
        too_large("a footer", footer.len() as u64, format::MAX_RAW as u64)?;
        self.seal()?;
        self.send(Job::Finish(Some(footer.to_vec())))?;
        self.join()?;
        self.remove_tail();
        Ok(self.bytes_written())
    }

    /// Ends the chunk under way and writes a checkpoint: the state of the machine at `icount`, and the
    /// pages of RAM that changed since the checkpoint before, in ascending order (`None` for zero
    /// pages). Events that are pushed from here on are those that follow the checkpoint.
    pub fn checkpoint<'a>(
        &mut self,
        icount: u64,
        state: &[u8],
        pages: impl Iterator<Item = (usize, Option<&'a [u8]>)>,
    ) -> Result<(), TraceError> {
        too_large("a state", state.len() as u64, format::MAX_STATE)?;
        self.seal()?;
        let checkpoint = self.checkpoints;
        let new = || PagesTable {
            checkpoint,
            pages: Vec::new(),
        };
        let (mut table, mut raw) = (new(), Vec::new());
        for (page, bytes) in pages {
            if table.is_full(raw.len()) {
                let table = std::mem::replace(&mut table, new()).bytes();
                let raw = std::mem::take(&mut raw);
                self.blob(ChunkKind::PAGES, table, raw)?;
            }
            table.pages.push((page, bytes.is_none()));
            raw.extend_from_slice(bytes.unwrap_or_default());
        }
        if !table.pages.is_empty() {
            self.blob(ChunkKind::PAGES, table.bytes(), raw)?;
        }
        for (n, piece) in state.chunks(format::CHECKPOINT_CHUNK).enumerate() {
            let table = StateTable {
                checkpoint,
                icount,
                total: state.len() as u64,
                offset: (n * format::CHECKPOINT_CHUNK) as u64,
            };
            self.blob(ChunkKind::CHECKPOINT, table.bytes(), piece.to_vec())?;
        }
        self.checkpoints += 1;
        Ok(())
    }

    fn blob(&mut self, kind: ChunkKind, table: Vec<u8>, raw: Vec<u8>) -> Result<(), TraceError> {
        self.send(Job::Blob { kind, table, raw })
    }

    /// Writes a chunk of another trace; only its number changes.
    pub fn copy(
        &mut self,
        header: ChunkHeader,
        table: Vec<u8>,
        payload: Vec<u8>,
    ) -> Result<(), TraceError> {
        self.send(Job::Copy {
            header: Box::new(header),
            table,
            payload,
        })
    }

    /// Writes the index of a trace of which everything else was copied. Returns its length.
    pub fn finish_copy(mut self) -> Result<u64, TraceError> {
        self.send(Job::Finish(None))?;
        self.join()?;
        Ok(self.bytes_written())
    }

    /// Makes every later write fail.
    #[cfg(test)]
    pub(crate) fn break_for_test(&mut self) {
        self.send(Job::Break).expect("a running thread");
    }

    /// Ends the chunk under way: the thread writes it as soon as it can. Each call that finds events ends a
    /// chunk, so frequent ones cost file size.
    pub fn seal(&mut self) -> Result<(), TraceError> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        self.keep_in_tail(true)?;
        let chunk = std::mem::take(&mut self.chunk);
        self.send(Job::Chunk(chunk))
    }

    fn send(&mut self, job: Job) -> Result<(), TraceError> {
        let watch = Stopwatch::start();
        let sent = self
            .jobs
            .as_ref()
            .is_some_and(|jobs| jobs.send(job).is_ok());
        self.waited += watch.read();
        if sent {
            Ok(())
        } else {
            Err(self.failure())
        }
    }

    /// Ends the thread and returns its verdict.
    fn join(&mut self) -> Result<(), TraceError> {
        self.jobs = None;
        self.images.help(LEVEL);
        match self.thread.take() {
            Some(thread) => thread.join().unwrap_or(Err(TraceError::Thread)),
            None => Err(self.error.clone().unwrap_or(TraceError::Thread)),
        }
    }

    /// What stopped the thread; the same at every call.
    #[cold]
    fn failure(&mut self) -> TraceError {
        let error = self.join().err().unwrap_or(TraceError::Thread);
        self.error = Some(error.clone());
        error
    }
}

impl Drop for TraceWriter {
    fn drop(&mut self) {
        if self.thread.is_some() {
            // An error has no one left to hear it; the reader will find the trace incomplete, and what it
            // lacks in the side file.
            if self.seal().and_then(|()| self.join()).is_ok() {
                self.remove_tail();
            }
        }
    }
}

fn too_large(what: &'static str, len: u64, limit: u64) -> Result<(), TraceError> {
    if len > limit {
        Err(TraceError::TooLarge { what, len, limit })
    } else {
        Ok(())
    }
}

/// Refuses images that a trace cannot hold.
fn check_images(images: &[(String, Contents)]) -> Result<(), TraceError> {
    let mut names = BTreeSet::new();
    let mut list = 0;
    for (name, content) in images {
        too_large("an image's name", name.len() as u64, MAX_IMAGE_NAME as u64)?;
        too_large("an image", content.len() as u64, format::MAX_IMAGE)?;
        if !names.insert(name) {
            return Err(TraceError::DuplicateImage { name: name.clone() });
        }
        list += name.len() + LIST_ENTRY;
    }
    too_large("an image list", list as u64, format::MAX_RAW as u64)
}

/// The payload of the image list chunk: a count, and for each image its name's length, the name,
/// the content's length and its hash.
fn image_list(images: &[(String, Contents)], hashes: &[u128]) -> Vec<u8> {
    let mut list = Vec::new();
    put(&mut list, images.len() as u64);
    for ((name, content), hash) in images.iter().zip(hashes) {
        put(&mut list, name.len() as u64);
        list.extend_from_slice(name.as_bytes());
        put(&mut list, content.len() as u64);
        list.extend_from_slice(&hash.to_be_bytes());
    }
    list
}

/// Sends those away who help with the images, however the thread ends.
struct Ending(Arc<Images>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// The different contents among images, by hash.
fn distinct(images: &[(String, Contents)], hashes: &[u128]) -> BTreeMap<u128, Contents> {
    let contents = images.iter().map(|(_, content)| content.clone());
    hashes.iter().copied().zip(contents).collect()
}

/// The file, as the thread sees it.
struct Output {
    file: File,
    path: PathBuf,
    compressor: zstd::bulk::Compressor<'static>,
    page_compressor: zstd::bulk::Compressor<'static>,
    shared: Arc<Shared>,
    offset: u64,
    sequence: u32,
    /// Offset, header and table of each chunk.
    index: Vec<u8>,
    /// What has the name that this file is going to have; and the side file, whose name is taken before.
    replaced: Option<Replaced>,
    tail: Option<File>,
}

impl Output {
    /// A new file with its file header.
    fn create(path: &Path, (major, minor): (u16, u16)) -> Result<Self, TraceError> {
        let io = |e| TraceError::io(path, e);
        let shared = Arc::new(Shared {
            written: AtomicU64::new(0),
            chunks: AtomicU32::new(0),
            failed: AtomicBool::new(false),
        });
        let Place { file, replaced } = Place::take(path)?;
        let mut output = Output {
            file,
            path: path.to_owned(),
            compressor: zstd::bulk::Compressor::new(LEVEL).map_err(io)?,
            page_compressor: zstd::bulk::Compressor::new(PAGE_LEVEL).map_err(io)?,
            shared,
            offset: 0,
            sequence: 0,
            index: Vec::new(),
            replaced,
            tail: None,
        };
        output.write(&format::file_header(major, minor))?;
        Ok(output)
    }

    fn serve(&mut self, jobs: &Receiver<Job>) -> Result<(), TraceError> {
        while let Ok(job) = jobs.recv() {
            match job {
                Job::Chunk(builder) => {
                    let chunk = builder
                        .to_chunk(self.sequence, &mut self.compressor)
                        .map_err(|e| TraceError::io(&self.path, e))?;
                    self.chunk(&chunk)?;
                    self.shared.chunks.fetch_add(1, Ordering::Release);
                }
                Job::Blob { kind, table, raw } => self.blob(kind, &table, &raw)?,
                Job::Copy {
                    mut header,
                    table,
                    payload,
                } => {
                    header.sequence = self.sequence;
                    self.chunk(&header.chunk(&table, &payload))?;
                }
                // A flush that is not waited for any more is no failure.
                Job::Sync(done) => drop(done.send(())),
                Job::Finish(footer) => return self.finish(footer.as_deref()),
                #[cfg(test)]
                Job::Break => {
                    self.file =
                        File::create("/dev/full").map_err(|e| TraceError::io(&self.path, e))?;
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self, footer: Option<&[u8]>) -> Result<(), TraceError> {
        if let Some(footer) = footer {
            self.blob(ChunkKind::FOOTER, &[], footer)?;
        }
        let index = std::mem::take(&mut self.index);
        let offset = self.offset;
        too_large("an index", index.len() as u64, format::MAX_INDEX)?;
        self.blob(ChunkKind::INDEX, &[], &index)?;
        let end = self.offset + format::TRAILER as u64;
        self.write(&format::trailer(offset, end))?;
        self.file.flush().map_err(|e| TraceError::io(&self.path, e))
    }

    /// The list of images and what is in them. A trace that is copied from another has both already.
    fn images(
        &mut self,
        images: Option<Vec<(String, Contents)>>,
        pieces: &Images,
    ) -> Result<(), TraceError> {
        if let Some(images) = images {
            let hashes: Vec<u128> = images.iter().map(|(_, c)| xxh3_128(c)).collect();
            pieces.begin(&distinct(&images, &hashes));
            self.blob(ChunkKind::IMAGE_LIST, &[], &image_list(&images, &hashes))?;
            while let Some(packed) = pieces.next(&mut self.compressor) {
                let packed = packed.map_err(|e| TraceError::io(&self.path, e))?;
                let (table, payload) = (&packed.table, &packed.payload);
                self.packed(ChunkKind::IMAGE, table, payload, packed.raw_len)?;
            }
        }
        pieces.end();
        self.take_name()
    }

    /// Takes the place of the file that this one replaces: a replay could begin now. The side file first, because that of
    /// an equal recording could be taken for this one's.
    fn take_name(&mut self) -> Result<(), TraceError> {
        let tail = self.tail.take();
        let Some(Replaced { target, .. }) = self.replaced.take() else {
            return Ok(());
        };
        if let Some(tail) = tail {
            let path = super::tail::beside(&target);
            place::name(&tail, &path).map_err(|e| TraceError::io(&path, e))?;
        }
        place::name(&self.file, &target).map_err(|e| TraceError::io(&self.path, e))
    }

    /// Writes a chunk of opaque bytes.
    fn blob(&mut self, kind: ChunkKind, table: &[u8], raw: &[u8]) -> Result<(), TraceError> {
        let mut payload = Vec::new();
        let compressor = match kind {
            ChunkKind::PAGES | ChunkKind::CHECKPOINT => &mut self.page_compressor,
            _ => &mut self.compressor,
        };
        format::compress(compressor, raw, &mut payload)
            .map_err(|e| TraceError::io(&self.path, e))?;
        self.packed(kind, table, &payload, raw.len())
    }

    /// Writes a chunk of opaque bytes that have been compressed where that made them shorter.
    fn packed(
        &mut self,
        kind: ChunkKind,
        table: &[u8],
        payload: &[u8],
        raw_len: usize,
    ) -> Result<(), TraceError> {
        let header = ChunkHeader {
            kind,
            codec: if payload.len() < raw_len {
                Codec::Zstd
            } else {
                Codec::Stored
            },
            sequence: self.sequence,
            raw_len: raw_len as u32,
            ..ChunkHeader::default()
        };
        self.chunk(&header.chunk(table, payload))
    }

    /// Writes a whole chunk by one call and enters it into the index.
    fn chunk(&mut self, chunk: &[u8]) -> Result<(), TraceError> {
        let table_len = chunk
            .get(16..20)
            .and_then(|b| b.try_into().ok())
            .map_or(0, u32::from_le_bytes) as usize;
        self.index.extend_from_slice(&self.offset.to_le_bytes());
        self.index
            .extend_from_slice(&chunk[..format::CHUNK_HEADER + table_len]);
        self.sequence += 1;
        self.write(chunk)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), TraceError> {
        self.file
            .write_all(bytes)
            .map_err(|e| TraceError::io(&self.path, e))?;
        self.offset += bytes.len() as u64;
        self.shared.written.store(self.offset, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_that_is_replaced_stays_until_the_new_one_has_its_images() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.rr86");
        let side = super::super::tail::beside(&path);
        std::fs::write(&path, b"the old trace").expect("a file");
        let names = || std::fs::read_dir(folder.path()).expect("a folder").count();
        for whole in [false, true] {
            let mut output = Output::create(&path, (format::MAJOR, format::MINOR)).expect("a file");
            let Some(Replaced { target, mode, .. }) = &output.replaced else {
                // A file system that has no files without names.
                return;
            };
            let tail = Tail::unnamed(target, *mode, b"h").expect("a side file");
            output.tail = Some(tail.file().try_clone().expect("a file"));
            output.blob(ChunkKind::HEADER, &[], b"h").expect("a header");
            assert_eq!(std::fs::read(&path).expect("a file"), b"the old trace");
            assert_eq!(names(), 1);
            // No other process may record to it now.
            let other = Output::create(&path, (format::MAJOR, format::MINOR));
            assert!(matches!(other, Err(TraceError::InUse { .. })));
            if whole {
                let images = vec![("kernel".to_string(), b"bytes".into())];
                output
                    .images(Some(images), &Images::default())
                    .expect("images");
                assert_eq!(names(), 2);
                assert!(side.exists());
            }
        }
        let reader = TraceReader::open(&path).expect("the new trace");
        assert_eq!(reader.header(), b"h");
    }
}
