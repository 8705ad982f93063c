//! The hand-offs of a trace, or of a part of it, without its other events.

use std::collections::BTreeSet;

use super::reader::TraceReader;
use crate::record::error::TraceError;
use crate::record::event::{Access, Event, Kind};

/// A hand-off as the trace has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandOffRow {
    pub icount: u64,
    /// Physical page number.
    pub page: u64,
    pub from: u8,
    pub to: u8,
    pub access: Access,
    /// Bit n: line n was written since the page's last hand-off.
    pub lines: u64,
}

impl TraceReader {
    /// Hand-offs at `first` to `last`, of certain pages if these are given, in their order. Chunks that
    /// have none by their headers are not read.
    pub fn hand_offs(
        &self,
        first: u64,
        last: u64,
        pages: Option<&BTreeSet<u64>>,
    ) -> Result<Vec<HandOffRow>, TraceError> {
        let mut rows = Vec::new();
        for n in 0..self.chunk_count() {
            let info = self.chunk_info(n)?;
            let outside = info.last.0 < first || info.first.0 > last;
            if outside || self.count_of(n, Kind::HAND_OFF)? == 0 {
                continue;
            }
            rows.extend(self.chunk(n)?.iter().filter_map(|(icount, event)| {
                let &Event::HandOff {
                    page,
                    from,
                    to,
                    access,
                    lines,
                } = event
                else {
                    return None;
                };
                let wanted = (first..=last).contains(icount)
                    && pages.is_none_or(|pages| pages.contains(&page));
                wanted.then_some(HandOffRow {
                    icount: *icount,
                    page,
                    from,
                    to,
                    access,
                    lines,
                })
            }));
        }
        Ok(rows)
    }
}
