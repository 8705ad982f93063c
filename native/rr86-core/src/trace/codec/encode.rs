//! Events into columns, and columns into a chunk.

use super::columns::{column, hand_off, page_slot, run, State, COLUMNS, MAX_EVENTS, ORDER, TABLE};
use crate::trace::error::TraceError;
use crate::trace::event::{Access, Block, Event, Kind};
use crate::trace::format::{self, ChunkHeader, ChunkKind, Codec};
use crate::trace::varint::{delta, put};

/// Raw bytes at which a chunk is full.
const TARGET: usize = 1 << 20;

/// How often the raw size is added up, in events (a power of two).
const CHECK: u32 = 1024;

/// The largest input or detail text of one event, in bytes.
pub const MAX_BLOB: usize = 1 << 20;

/// The most digests in one event.
pub const MAX_DIGESTS: usize = 4096;

/// The longest component name, in bytes.
pub const MAX_NAME: usize = 255;

/// How far a chunk had grown at some moment; by default it was empty.
#[derive(Default)]
pub struct Mark {
    events: u32,
    /// Length of each column.
    lens: Vec<usize>,
}

/// The events of a chunk that is being recorded.
pub struct ChunkBuilder {
    columns: Vec<Vec<u8>>,
    counts: [u32; Kind::COUNT],
    events: u32,
    /// Bytes of inputs, texts and digests since the chunk began.
    blobs: usize,
    first: (u64, u8),
    last: (u64, u8),
    state: State,
}

impl Default for ChunkBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl ChunkBuilder {
    pub fn new() -> Self {
        ChunkBuilder {
            columns: vec![Vec::new(); TABLE],
            counts: [0; Kind::COUNT],
            events: 0,
            blobs: 0,
            first: (u64::MAX, 0),
            last: (0, 0),
            state: State::new(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.events == 0
    }

    /// Whether the chunk has grown to its target size.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.events as usize >= MAX_EVENTS
            || self.blobs >= TARGET
            || (self.events % CHECK == 0 && self.raw_len() >= TARGET)
    }

    fn raw_len(&self) -> usize {
        self.columns.iter().map(Vec::len).sum()
    }

    /// Adds an event. A refused event (too large) has changed nothing.
    pub fn push(&mut self, icount: u64, event: &Event) -> Result<(), TraceError> {
        self.check(event)?;
        let kind = event.kind();
        let vcpu = event.vcpu();
        self.events += 1;
        self.counts[usize::from(kind.0)] += 1;
        if icount < self.first.0 {
            self.first = (icount, vcpu);
        }
        if icount >= self.last.0 {
            self.last = (icount, vcpu);
        }
        self.columns[ORDER].push(kind.0);
        let expected = if kind == Kind::SLICE {
            self.state.slice_end
        } else {
            self.state.last
        };
        put(&mut self.columns[column(kind, 0)], delta(expected, icount));
        self.state.last = icount;
        self.fields(icount, event);
        Ok(())
    }

    /// Refuses what a reader would refuse.
    fn check(&mut self, event: &Event) -> Result<(), TraceError> {
        let (what, len, limit) = match event {
            Event::Input { bytes, .. } => ("an input", bytes.len(), MAX_BLOB),
            Event::Stop { detail, .. } => ("a stop's detail", detail.len(), MAX_BLOB),
            Event::Digests { list } => {
                if let Some((name, _)) = list.iter().find(|(name, _)| name.len() > MAX_NAME) {
                    ("a component's name", name.len(), MAX_NAME)
                } else {
                    ("a list of digests", list.len(), MAX_DIGESTS)
                }
            }
            _ => return Ok(()),
        };
        if len > limit {
            return Err(TraceError::TooLarge {
                what,
                len: len as u64,
                limit: limit as u64,
            });
        }
        self.blobs += len;
        Ok(())
    }

    #[inline]
    fn byte(&mut self, kind: Kind, n: usize, x: u8) {
        self.columns[column(kind, n)].push(x);
    }

    #[inline]
    fn number(&mut self, kind: Kind, n: usize, x: u64) {
        put(&mut self.columns[column(kind, n)], x);
    }

    fn bytes(&mut self, kind: Kind, n: usize, x: &[u8]) {
        self.columns[column(kind, n)].extend_from_slice(x);
    }

    /// The vCPU, in column 1 of every kind that has one.
    #[inline]
    fn vcpu(&mut self, kind: Kind, vcpu: u8) {
        self.byte(kind, 1, vcpu ^ self.state.vcpu);
        self.state.vcpu = vcpu;
    }

    fn fields(&mut self, icount: u64, event: &Event) {
        let kind = event.kind();
        match event {
            Event::Slice {
                vcpu,
                instructions,
                stop,
            } => {
                self.vcpu(kind, *vcpu);
                self.number(kind, 2, *instructions);
                self.byte(kind, 3, stop.code());
                self.state.sliced(icount, *instructions);
            }
            Event::TimeSkip { to_ns } => {
                self.number(kind, 1, delta(self.state.to_ns, *to_ns));
                self.state.to_ns = *to_ns;
            }
            Event::Input { source, bytes } => {
                self.byte(kind, 1, *source);
                self.number(kind, 2, bytes.len() as u64);
                self.bytes(kind, 3, bytes);
            }
            Event::Digests { list } => self.digests(list),
            Event::Fetch(block) => self.fetch(block),
            Event::Link(block) => self.link(block),
            Event::Invalidate {
                id,
                by,
                paddr,
                len,
                reason,
            } => {
                self.vcpu(kind, *by);
                self.number(kind, 2, delta(self.state.invalidated, *id));
                self.number(kind, 3, delta(self.state.invalidated_paddr, *paddr));
                self.number(kind, 4, u64::from(*len));
                self.byte(kind, 5, *reason);
                self.state.invalidated = *id;
                self.state.invalidated_paddr = *paddr;
            }
            Event::Flush { vcpu, reason } => {
                self.vcpu(kind, *vcpu);
                self.byte(kind, 2, *reason);
            }
            Event::Stale { id, vcpu, what } => {
                self.vcpu(kind, *vcpu);
                self.number(kind, 2, *id);
                self.byte(kind, 3, *what);
            }
            Event::HandOff {
                page,
                from,
                to,
                access,
                lines,
            } => {
                self.vcpu(kind, *to);
                self.hand_off(*page, *from, *to, *access);
                self.lines(*lines);
            }
            Event::CrossWrite { vcpu, paddr, value } => {
                self.vcpu(kind, *vcpu);
                self.number(kind, 2, delta(self.state.cross_paddr, *paddr));
                self.byte(kind, 3, value.as_bytes().len() as u8);
                self.bytes(kind, 4, value.as_bytes());
                self.state.cross_paddr = *paddr;
            }
            Event::Stop {
                vcpu,
                reason,
                code,
                detail,
            } => {
                self.vcpu(kind, *vcpu);
                self.byte(kind, 2, *reason);
                self.number(kind, 3, u64::from(*code));
                self.number(kind, 4, detail.len() as u64);
                self.bytes(kind, 5, detail.as_bytes());
            }
        }
    }

    fn digests(&mut self, list: &[(std::sync::Arc<str>, u64)]) {
        const KIND: Kind = Kind::DIGESTS;
        self.number(KIND, 1, list.len() as u64);
        for (name, digest) in list {
            let known = self.state.names.iter().position(|n| n == name);
            let index = known.unwrap_or(self.state.names.len());
            self.number(KIND, 2, index as u64);
            if known.is_none() {
                self.byte(KIND, 3, name.len() as u8);
                self.bytes(KIND, 3, name.as_bytes());
                self.blobs += name.len();
                self.state.names.push(name.clone());
            }
            self.bytes(KIND, 4, &digest.to_le_bytes());
        }
        self.blobs += list.len() * 8;
    }

    fn fetch(&mut self, block: &Block) {
        const KIND: Kind = Kind::FETCH;
        self.vcpu(KIND, block.vcpu);
        self.number(KIND, 2, delta(self.state.next_id, block.id));
        self.number(KIND, 3, delta(self.state.next_pc, block.pc));
        let bias = block.paddr.wrapping_sub(block.pc);
        self.number(KIND, 4, delta(self.state.bias, bias));
        self.number(KIND, 5, u64::from(block.len));
        self.number(KIND, 6, u64::from(block.mode ^ self.state.mode));
        self.bytes(KIND, 7, &block.digest.to_le_bytes());
        self.state.fetched(block);
    }

    fn link(&mut self, block: &Block) {
        const KIND: Kind = Kind::LINK;
        self.vcpu(KIND, block.vcpu);
        let like = self.state.fetched[usize::from(block.vcpu)];
        self.number(KIND, 2, delta(like.id, block.id));
        self.number(KIND, 3, delta(like.pc, block.pc));
        self.number(KIND, 4, delta(like.paddr, block.paddr));
        self.number(KIND, 5, u64::from(like.len ^ block.len));
        self.number(KIND, 6, u64::from(like.mode ^ block.mode));
        self.number(KIND, 7, u64::from(like.digest ^ block.digest));
    }

    fn hand_off(&mut self, page: u64, from: u8, to: u8, access: Access) {
        const KIND: Kind = Kind::HAND_OFF;
        let index = page_slot(page);
        let slot = self.state.pages[usize::from(index)];
        let mut flags = 0;
        if access == Access::Write {
            flags |= hand_off::WRITE;
        }
        if slot.page == page {
            flags |= hand_off::KNOWN;
            let [low, high] = index.to_le_bytes();
            self.byte(KIND, 4, low);
            self.byte(KIND, 8, high);
        } else {
            self.number(KIND, 5, delta(self.state.missed_page, page));
            self.state.missed_page = page;
        }
        if slot.owner == from {
            flags |= hand_off::OWNER;
        } else {
            self.byte(KIND, 3, from);
        }
        self.byte(KIND, 2, flags);
        let slot = &mut self.state.pages[usize::from(index)];
        slot.page = page;
        slot.owner = if access == Access::Write { to } else { from };
    }

    fn lines(&mut self, lines: u64) {
        const KIND: Kind = Kind::HAND_OFF;
        let code = match (lines, run(lines)) {
            (0, _) => hand_off::LINES_NONE,
            (u64::MAX, _) => hand_off::LINES_ALL,
            (_, Some((line, 1))) => line,
            (_, Some((start, length))) => {
                self.bytes(KIND, 7, &[start, length]);
                hand_off::LINES_RUN
            }
            (_, None) => {
                self.bytes(KIND, 7, &lines.to_le_bytes());
                hand_off::LINES_MAP
            }
        };
        self.byte(KIND, 6, code);
    }

    /// What the chunk's header says of its events.
    pub fn header(&self) -> ChunkHeader {
        ChunkHeader {
            kind: ChunkKind::EVENTS,
            codec: Codec::Columns,
            events: self.events,
            first_vcpu: self.first.1,
            last_vcpu: self.last.1,
            first_icount: self.first.0,
            last_icount: self.last.0,
            ..ChunkHeader::default()
        }
    }

    /// Whether there are events behind the mark.
    pub fn grown(&self, mark: &Mark) -> bool {
        self.events != mark.events
    }

    /// What each column has got since the mark, which moves here: for each that has grown its kind, its
    /// number, how many bytes, and these.
    pub fn growth(&self, mark: &mut Mark) -> Vec<u8> {
        mark.events = self.events;
        mark.lens.resize(TABLE, 0);
        let mut out = Vec::new();
        for (at, (column, len)) in self.columns.iter().zip(&mut mark.lens).enumerate() {
            let new = &column[*len..];
            if !new.is_empty() {
                out.push((at / COLUMNS) as u8);
                out.push((at % COLUMNS) as u8);
                put(&mut out, new.len() as u64);
                out.extend_from_slice(new);
            }
            *len = column.len();
        }
        out
    }

    /// The chunk as it stands in the file: header, table and compressed columns.
    pub fn to_chunk(
        &self,
        sequence: u32,
        compressor: &mut zstd::bulk::Compressor<'_>,
    ) -> std::io::Result<Vec<u8>> {
        let mut table = Vec::with_capacity(512);
        let present = self.counts.iter().filter(|&&n| n != 0).count();
        put(&mut table, present as u64);
        for (kind, &count) in self.counts.iter().enumerate().filter(|(_, &n)| n != 0) {
            table.push(kind as u8);
            put(&mut table, u64::from(count));
        }
        let raw_len = self.raw_len();
        let mut payload = Vec::with_capacity(raw_len / 3);
        for (at, raw) in self
            .columns
            .iter()
            .enumerate()
            .filter(|(_, c)| !c.is_empty())
        {
            let stored = format::compress(compressor, raw, &mut payload)?;
            table.push((at / COLUMNS) as u8);
            table.push((at % COLUMNS) as u8);
            put(&mut table, raw.len() as u64);
            put(&mut table, stored as u64);
        }
        let header = ChunkHeader {
            sequence,
            raw_len: raw_len as u32,
            ..self.header()
        };
        Ok(header.chunk(&table, &payload))
    }
}
