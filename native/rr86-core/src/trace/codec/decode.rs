//! A chunk's columns back into events. Nothing in the bytes is trusted.

use std::sync::Arc;

use super::columns::{
    column, hand_off, page_slot, run_lines, State, MAX_EVENTS, ORDER, TABLE, USED,
};
use crate::trace::event::{Access, Block, Event, Kind, SliceEnd, Value};
use crate::trace::format::{self, EventTable, MAX_RAW};
use crate::trace::varint::{apply, Cursor};

/// Why a chunk cannot be decoded.
type Malformed = &'static str;

/// The events of a chunk in the order of their pushes. Kinds and columns of a later minor
/// version are passed over.
pub fn decode(table: &EventTable, payload: &[u8]) -> Result<Vec<(u64, Event)>, Malformed> {
    let raw = decompress(table, payload)?;
    let mut decoder = Decoder {
        columns: (0..TABLE).map(|_| Cursor::default()).collect(),
        unknown: (0..256).map(|_| Cursor::default()).collect(),
        state: State::new(),
    };
    for (kind, n, bytes) in &raw {
        let kind = Kind(*kind);
        if usize::from(kind.0) < Kind::COUNT {
            decoder.columns[column(kind, usize::from(*n))] = Cursor::new(bytes);
        } else {
            decoder.unknown[usize::from(kind.0)] = Cursor::new(bytes);
        }
    }
    let order = std::mem::take(&mut decoder.columns[ORDER]);
    decoder.run(order, table)
}

/// The columns that this version knows, and the moments of unknown kinds, decompressed.
fn decompress(table: &EventTable, payload: &[u8]) -> Result<Vec<(u8, u8, Vec<u8>)>, Malformed> {
    let mut rest = payload;
    let mut total = 0usize;
    let mut out: Vec<(u8, u8, Vec<u8>)> = Vec::new();
    for entry in &table.columns {
        let (stored, after) = rest
            .split_at_checked(entry.stored_len as usize)
            .ok_or("a column reaches beyond the chunk")?;
        rest = after;
        let used = USED.get(usize::from(entry.kind)).copied().unwrap_or(1);
        if usize::from(entry.column) >= used {
            continue;
        }
        total += entry.raw_len as usize;
        if total > MAX_RAW {
            return Err("its columns are larger than a chunk may be");
        }
        let raw = format::decompress(stored, entry.raw_len as usize)
            .ok_or("a column does not decompress to its declared length")?;
        out.push((entry.kind, entry.column, raw));
    }
    if rest.is_empty() {
        Ok(out)
    } else {
        Err("bytes are left over after the last column")
    }
}

struct Decoder<'a> {
    columns: Vec<Cursor<'a>>,
    /// The moments of kinds that this version does not know.
    unknown: Vec<Cursor<'a>>,
    state: State,
}

impl Decoder<'_> {
    fn run(
        mut self,
        mut order: Cursor<'_>,
        table: &EventTable,
    ) -> Result<Vec<(u64, Event)>, Malformed> {
        if order.len() > MAX_EVENTS {
            return Err("it holds more events than a chunk may");
        }
        let mut counts = [0u32; 256];
        let mut events = Vec::with_capacity(order.len());
        while let Some(kind) = order.byte() {
            counts[usize::from(kind)] += 1;
            let kind = Kind(kind);
            let expected = if kind == Kind::SLICE {
                self.state.slice_end
            } else {
                self.state.last
            };
            let when = if usize::from(kind.0) < Kind::COUNT {
                &mut self.columns[column(kind, 0)]
            } else {
                &mut self.unknown[usize::from(kind.0)]
            };
            let folded = when.varint().ok_or("a column of moments ends early")?;
            let icount = apply(expected, folded);
            self.state.last = icount;
            if usize::from(kind.0) < Kind::COUNT {
                let event = self
                    .event(kind, icount)
                    .ok_or("a field is missing or impossible")?;
                events.push((icount, event));
            }
        }
        if counts != table.counts {
            return Err("the declared counts are not those of its events");
        }
        if self
            .columns
            .iter()
            .chain(&self.unknown)
            .any(|c| !c.is_empty())
        {
            return Err("a column is longer than its events");
        }
        Ok(events)
    }

    fn byte(&mut self, kind: Kind, n: usize) -> Option<u8> {
        self.columns[column(kind, n)].byte()
    }

    fn number(&mut self, kind: Kind, n: usize) -> Option<u64> {
        self.columns[column(kind, n)].varint()
    }

    fn blob(&mut self, kind: Kind, len: usize, bytes: usize) -> Option<Vec<u8>> {
        let len = usize::try_from(self.number(kind, len)?).ok()?;
        Some(self.columns[column(kind, bytes)].take(len)?.to_vec())
    }

    fn vcpu(&mut self, kind: Kind) -> Option<u8> {
        self.state.vcpu ^= self.byte(kind, 1)?;
        Some(self.state.vcpu)
    }

    fn event(&mut self, kind: Kind, icount: u64) -> Option<Event> {
        Some(match kind {
            Kind::SLICE => {
                let vcpu = self.vcpu(kind)?;
                let instructions = self.number(kind, 2)?;
                let stop = SliceEnd::from_code(self.byte(kind, 3)?);
                self.state.sliced(icount, instructions);
                Event::Slice {
                    vcpu,
                    instructions,
                    stop,
                }
            }
            Kind::TIME_SKIP => {
                self.state.to_ns = apply(self.state.to_ns, self.number(kind, 1)?);
                Event::TimeSkip {
                    to_ns: self.state.to_ns,
                }
            }
            Kind::INPUT => Event::Input {
                source: self.byte(kind, 1)?,
                bytes: self.blob(kind, 2, 3)?,
            },
            Kind::DIGESTS => Event::Digests {
                list: self.digests()?,
            },
            Kind::FETCH => Event::Fetch(self.fetch()?),
            Kind::LINK => Event::Link(self.link()?),
            Kind::INVALIDATE => {
                let by = self.vcpu(kind)?;
                self.state.invalidated = apply(self.state.invalidated, self.number(kind, 2)?);
                self.state.invalidated_paddr =
                    apply(self.state.invalidated_paddr, self.number(kind, 3)?);
                Event::Invalidate {
                    id: self.state.invalidated,
                    by,
                    paddr: self.state.invalidated_paddr,
                    len: self.number(kind, 4)?.try_into().ok()?,
                    reason: self.byte(kind, 5)?,
                }
            }
            Kind::FLUSH => Event::Flush {
                vcpu: self.vcpu(kind)?,
                reason: self.byte(kind, 2)?,
            },
            Kind::STALE => Event::Stale {
                vcpu: self.vcpu(kind)?,
                id: self.number(kind, 2)?,
                what: self.byte(kind, 3)?,
            },
            Kind::HAND_OFF => self.hand_off()?,
            Kind::CROSS_WRITE => {
                let vcpu = self.vcpu(kind)?;
                self.state.cross_paddr = apply(self.state.cross_paddr, self.number(kind, 2)?);
                let len = self.byte(kind, 3)?;
                Event::CrossWrite {
                    vcpu,
                    paddr: self.state.cross_paddr,
                    value: Value::new(self.columns[column(kind, 4)].take(usize::from(len))?)?,
                }
            }
            Kind::STOP => Event::Stop {
                vcpu: self.vcpu(kind)?,
                reason: self.byte(kind, 2)?,
                code: self.number(kind, 3)?.try_into().ok()?,
                detail: String::from_utf8(self.blob(kind, 4, 5)?).ok()?,
            },
            _ => return None,
        })
    }

    fn digests(&mut self) -> Option<Vec<(Arc<str>, u64)>> {
        const KIND: Kind = Kind::DIGESTS;
        let count = usize::try_from(self.number(KIND, 1)?).ok()?;
        if count > self.columns[column(KIND, 4)].len() / 8 {
            return None;
        }
        let mut list = Vec::with_capacity(count);
        for _ in 0..count {
            let index = usize::try_from(self.number(KIND, 2)?).ok()?;
            if index == self.state.names.len() {
                let len = self.byte(KIND, 3)?;
                let name = self.columns[column(KIND, 3)].take(usize::from(len))?;
                self.state
                    .names
                    .push(std::str::from_utf8(name).ok()?.into());
            }
            let name = self.state.names.get(index)?.clone();
            let digest = u64::from_le_bytes(self.columns[column(KIND, 4)].array()?);
            list.push((name, digest));
        }
        Some(list)
    }

    fn fetch(&mut self) -> Option<Block> {
        const KIND: Kind = Kind::FETCH;
        let vcpu = self.vcpu(KIND)?;
        let id = apply(self.state.next_id, self.number(KIND, 2)?);
        let pc = apply(self.state.next_pc, self.number(KIND, 3)?);
        let bias = apply(self.state.bias, self.number(KIND, 4)?);
        let block = Block {
            id,
            vcpu,
            pc,
            paddr: pc.wrapping_add(bias),
            len: self.number(KIND, 5)?.try_into().ok()?,
            mode: self.state.mode ^ u32::try_from(self.number(KIND, 6)?).ok()?,
            digest: u32::from_le_bytes(self.columns[column(KIND, 7)].array()?),
        };
        self.state.fetched(&block);
        Some(block)
    }

    fn link(&mut self) -> Option<Block> {
        const KIND: Kind = Kind::LINK;
        let vcpu = self.vcpu(KIND)?;
        let like = self.state.fetched[usize::from(vcpu)];
        Some(Block {
            id: apply(like.id, self.number(KIND, 2)?),
            vcpu,
            pc: apply(like.pc, self.number(KIND, 3)?),
            paddr: apply(like.paddr, self.number(KIND, 4)?),
            len: like.len ^ u16::try_from(self.number(KIND, 5)?).ok()?,
            mode: like.mode ^ u32::try_from(self.number(KIND, 6)?).ok()?,
            digest: like.digest ^ u32::try_from(self.number(KIND, 7)?).ok()?,
        })
    }

    fn hand_off(&mut self) -> Option<Event> {
        const KIND: Kind = Kind::HAND_OFF;
        let to = self.vcpu(KIND)?;
        let flags = self.byte(KIND, 2)?;
        if flags & !(hand_off::WRITE | hand_off::KNOWN | hand_off::OWNER) != 0 {
            return None;
        }
        let access = if flags & hand_off::WRITE != 0 {
            Access::Write
        } else {
            Access::Read
        };
        let (page, index) = if flags & hand_off::KNOWN != 0 {
            let index = u16::from_le_bytes([self.byte(KIND, 4)?, self.byte(KIND, 8)?]);
            let index = usize::from(index);
            (self.state.pages.get(index)?.page, index)
        } else {
            self.state.missed_page = apply(self.state.missed_page, self.number(KIND, 5)?);
            let page = self.state.missed_page;
            (page, usize::from(page_slot(page)))
        };
        let from = if flags & hand_off::OWNER != 0 {
            self.state.pages[index].owner
        } else {
            self.byte(KIND, 3)?
        };
        let slot = &mut self.state.pages[index];
        slot.page = page;
        slot.owner = if access == Access::Write { to } else { from };
        Some(Event::HandOff {
            page,
            from,
            to,
            access,
            lines: self.lines()?,
        })
    }

    fn lines(&mut self) -> Option<u64> {
        const KIND: Kind = Kind::HAND_OFF;
        let code = self.byte(KIND, 6)?;
        let map = &mut self.columns[column(KIND, 7)];
        Some(match code {
            0..=63 => 1 << code,
            hand_off::LINES_NONE => 0,
            hand_off::LINES_ALL => u64::MAX,
            hand_off::LINES_RUN => {
                let [start, length] = map.array()?;
                run_lines(start, length)?
            }
            hand_off::LINES_MAP => u64::from_le_bytes(map.array()?),
            _ => return None,
        })
    }
}
