//! What a trace consists of, told from its chunk headers.

use super::error::TraceError;
use super::event::Kind;
use super::format::{ChunkKind, EventTable};
use super::scan::Located;

/// The share of one kind of event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KindSummary {
    pub kind: Kind,
    pub events: u64,
    /// Bytes of the kind's columns before and after compression. The order of kinds (one byte an
    /// event, before compression) is not counted here.
    pub raw_bytes: u64,
    pub stored_bytes: u64,
}

/// Sizes and counts of a trace. All sizes are in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub file_bytes: u64,
    /// The images as stored.
    pub image_bytes: u64,
    /// The event chunks as stored, headers and tables included, and their columns uncompressed.
    pub event_bytes: u64,
    pub event_raw_bytes: u64,
    /// The part of `event_bytes` that tells the order of kinds, and that is headers and tables.
    pub order_bytes: u64,
    pub frame_bytes: u64,
    /// Event chunks.
    pub chunks: usize,
    pub events: u64,
    /// The highest instruction count of any event.
    pub last_icount: u64,
    /// The kinds that occur, in ascending order; kinds of a later minor version included.
    pub kinds: Vec<KindSummary>,
}

impl Summary {
    pub(super) fn of(file_bytes: u64, chunks: &[Located]) -> Result<Self, TraceError> {
        let mut summary = Summary {
            file_bytes,
            ..Summary::default()
        };
        let mut kinds: Vec<KindSummary> = (0..=u8::MAX)
            .map(|kind| KindSummary {
                kind: Kind(kind),
                events: 0,
                raw_bytes: 0,
                stored_bytes: 0,
            })
            .collect();
        for chunk in chunks {
            match chunk.header.kind {
                ChunkKind::IMAGE => summary.image_bytes += chunk.header.total_len(),
                ChunkKind::EVENTS => {
                    let table = EventTable::parse(&chunk.table, &chunk.header)
                        .map_err(|why| chunk.malformed(why))?;
                    summary.add(chunk, &table, &mut kinds);
                }
                _ => {}
            }
        }
        summary.order_bytes = kinds[0].stored_bytes;
        summary.kinds = kinds.into_iter().filter(|k| k.events != 0).collect();
        Ok(summary)
    }

    fn add(&mut self, chunk: &Located, table: &EventTable, kinds: &mut [KindSummary]) {
        let header = &chunk.header;
        self.chunks += 1;
        self.event_bytes += header.total_len();
        self.frame_bytes += header.total_len() - u64::from(header.stored_len);
        self.events += u64::from(header.events);
        self.last_icount = self.last_icount.max(header.last_icount);
        for (kind, &count) in kinds.iter_mut().zip(&table.counts) {
            kind.events += u64::from(count);
        }
        for column in &table.columns {
            let kind = &mut kinds[usize::from(column.kind)];
            kind.raw_bytes += u64::from(column.raw_len);
            kind.stored_bytes += u64::from(column.stored_len);
            self.event_raw_bytes += u64::from(column.raw_len);
        }
    }
}
