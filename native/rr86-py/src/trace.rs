//! Trace files for Python: headers, images and events.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use rr86_core::trace::survey::{self, StaleBlock};
use rr86_core::trace::{self, Access, Block, Event, EventStream, SharedLine, SharedPage};

use crate::errors::{self, NativeError};

/// (icount, page number, from, to, for writing, lines)
type HandOffTuple = (u64, u64, u8, u8, bool, u64);
/// (address, hand-offs, writers, readers)
type LineRow = (u64, u64, Vec<u8>, Vec<u8>);
/// (address, hand-offs, for writing, writers, readers, lines)
type PageRow = (u64, u64, u64, Vec<u8>, Vec<u8>, Vec<LineRow>);

/// (id, pc, paddr, length, vcpu, fetched, linked, slice, born, executed, executed by)
type StaleRow = (u64, u64, u64, u16, u8, u64, u64, u64, bool, u64, u8);

fn stale_row(stale: &StaleBlock) -> StaleRow {
    let block = &stale.block;
    (
        block.id,
        block.pc,
        block.paddr,
        block.len,
        block.vcpu,
        stale.fetched,
        stale.linked,
        stale.slice,
        stale.born,
        stale.executed,
        stale.executed_by,
    )
}

fn line_row(line: &SharedLine) -> LineRow {
    let (writers, readers) = (line.writers.iter(), line.readers.iter());
    (
        line.address,
        line.hand_offs,
        writers.collect(),
        readers.collect(),
    )
}

fn page_row(page: &SharedPage) -> PageRow {
    (
        page.address,
        page.hand_offs,
        page.for_writing,
        page.writers.iter().collect(),
        page.readers.iter().collect(),
        page.lines.iter().map(line_row).collect(),
    )
}

#[pyclass(frozen, module = "rr86._native")]
pub struct TraceReader(trace::TraceReader);

/// All events of a trace for one replay from power-on; the first are being decoded.
#[pyclass(frozen, module = "rr86._native")]
pub struct Events(Mutex<Option<EventStream>>);

impl Events {
    /// The stream, once.
    pub fn take(&self) -> PyResult<EventStream> {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = || NativeError::new_err("these events are being replayed already");
        stream.take().ok_or_else(gone)
    }
}

fn block<'py>(fields: &Bound<'py, PyDict>, b: &Block) -> PyResult<()> {
    fields.set_item("id", b.id)?;
    fields.set_item("pc", b.pc)?;
    fields.set_item("paddr", b.paddr)?;
    fields.set_item("len", b.len)?;
    fields.set_item("mode", b.mode)?;
    fields.set_item("digest", b.digest)
}

/// Kind and fields of an event.
fn fields<'py>(py: Python<'py>, event: &Event) -> PyResult<(&'static str, Bound<'py, PyDict>)> {
    let f = PyDict::new(py);
    let kind = match event {
        Event::Slice {
            instructions, stop, ..
        } => {
            f.set_item("instructions", instructions)?;
            f.set_item("stop", stop.code())?;
            "slice"
        }
        Event::TimeSkip { to_ns } => {
            f.set_item("to_ns", to_ns)?;
            "time-skip"
        }
        Event::Input { source, bytes } => {
            f.set_item("source", source)?;
            f.set_item("bytes", PyBytes::new(py, bytes))?;
            "input"
        }
        Event::Digests { list } => {
            for (name, value) in list {
                f.set_item(&**name, value)?;
            }
            "digests"
        }
        Event::Fetch(b) => {
            block(&f, b)?;
            "fetch"
        }
        Event::Link(b) => {
            block(&f, b)?;
            "link"
        }
        Event::Invalidate {
            id,
            by,
            paddr,
            len,
            reason,
        } => {
            f.set_item("id", id)?;
            f.set_item("by", by)?;
            f.set_item("paddr", paddr)?;
            f.set_item("len", len)?;
            f.set_item("reason", reason)?;
            "invalidate"
        }
        Event::Flush { reason, .. } => {
            f.set_item("reason", reason)?;
            "flush"
        }
        Event::Stale { id, what, .. } => {
            f.set_item("id", id)?;
            f.set_item("what", what)?;
            "stale"
        }
        Event::HandOff {
            page,
            from,
            to,
            access,
            lines,
        } => {
            f.set_item("page", page)?;
            f.set_item("from", from)?;
            f.set_item("to", to)?;
            f.set_item("write", u8::from(*access == Access::Write))?;
            f.set_item("lines", lines)?;
            "hand-off"
        }
        Event::CrossWrite { paddr, value, .. } => {
            f.set_item("paddr", paddr)?;
            f.set_item("value", PyBytes::new(py, value.as_bytes()))?;
            "cross-write"
        }
        Event::Stop {
            reason,
            code,
            detail,
            ..
        } => {
            f.set_item("reason", reason)?;
            f.set_item("code", code)?;
            f.set_item("detail", PyBytes::new(py, detail.as_bytes()))?;
            "stop"
        }
    };
    Ok((kind, f))
}

#[pymethods]
impl TraceReader {
    #[new]
    fn new(path: &str) -> PyResult<Self> {
        trace::TraceReader::open(Path::new(path))
            .map(Self)
            .map_err(errors::trace)
    }

    fn header<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.header())
    }

    fn footer<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let footer = self.0.footer().map_err(errors::trace)?;
        Ok(footer.map(|f| PyBytes::new(py, &f)))
    }

    fn images(&self) -> Vec<(String, u64, String)> {
        self.0
            .images()
            .iter()
            .map(|i| (i.name.clone(), i.len, format!("{:032x}", i.hash)))
            .collect()
    }

    fn image<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyBytes>> {
        let len = self.0.image_len(name).map_err(errors::trace)?;
        PyBytes::new_with(py, len, |out| {
            py.detach(|| self.0.read_image(name, out))
                .map_err(errors::trace)
        })
    }

    fn begin_events(&self) -> Events {
        Events(Mutex::new(Some(self.0.stream_for_replay(0))))
    }

    fn beginning(&self) -> PyResult<Option<u64>> {
        let first = self.0.beginning().map_err(errors::trace)?;
        Ok(first.map(|checkpoint| checkpoint.icount))
    }

    fn content_id(&self) -> PyResult<String> {
        let id = self.0.content_id().map_err(errors::trace)?;
        Ok(format!("{id:032x}"))
    }

    fn complete(&self) -> bool {
        self.0.complete()
    }

    fn damage(&self) -> Option<String> {
        self.0.damage().map(ToString::to_string)
    }

    fn side_file(&self) -> Option<(String, u64, Option<&'static str>)> {
        let side = self.0.side_file()?;
        let path = side.path.to_string_lossy().into_owned();
        Some((path, side.events, side.left_out))
    }

    fn summary<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let s = self.0.summary().map_err(errors::trace)?;
        let d = PyDict::new(py);
        d.set_item("file_bytes", s.file_bytes)?;
        d.set_item("image_bytes", s.image_bytes)?;
        d.set_item("event_bytes", s.event_bytes)?;
        d.set_item("event_raw_bytes", s.event_raw_bytes)?;
        d.set_item("chunks", s.chunks)?;
        d.set_item("events", s.events)?;
        d.set_item("last_icount", s.last_icount)?;
        for kind in &s.kinds {
            let name = kind.kind.name();
            d.set_item(format!("{name}_events"), kind.events)?;
            d.set_item(format!("{name}_bytes"), kind.stored_bytes)?;
        }
        Ok(d)
    }

    fn shared_lines(&self, py: Python<'_>) -> PyResult<BTreeMap<u64, u64>> {
        py.detach(|| survey::shared_lines(&self.0))
            .map_err(errors::trace)
    }

    fn retired(&self, py: Python<'_>) -> PyResult<BTreeMap<u8, u64>> {
        py.detach(|| survey::retired(&self.0))
            .map_err(errors::trace)
    }

    fn stale_blocks(&self, py: Python<'_>) -> PyResult<(u64, u64, Vec<StaleRow>)> {
        let found = py
            .detach(|| survey::stale_blocks(&self.0))
            .map_err(errors::trace)?;
        let rows = found.executed.iter().map(stale_row).collect();
        Ok((found.born, found.survived, rows))
    }

    fn checkpoints(&self) -> PyResult<Vec<(u64, u64, u64)>> {
        let all = self.0.checkpoints().map_err(errors::trace)?;
        Ok(all
            .iter()
            .map(|c| (c.icount, c.stored_len, c.pages))
            .collect())
    }

    fn chunk_count(&self) -> usize {
        self.0.chunk_count()
    }

    #[pyo3(signature = (first, last, pages=None))]
    fn hand_offs(
        &self,
        py: Python<'_>,
        first: u64,
        last: u64,
        pages: Option<BTreeSet<u64>>,
    ) -> PyResult<Vec<HandOffTuple>> {
        let rows = py
            .detach(|| self.0.hand_offs(first, last, pages.as_ref()))
            .map_err(errors::trace)?;
        Ok(rows
            .iter()
            .map(|r| {
                let write = r.access == Access::Write;
                (r.icount, r.page, r.from, r.to, write, r.lines)
            })
            .collect())
    }

    fn sharing<'py>(
        &self,
        py: Python<'py>,
        first: u64,
        last: u64,
        top: usize,
    ) -> PyResult<Bound<'py, PyDict>> {
        let sharing = py
            .detach(|| self.0.sharing(first, last, top))
            .map_err(errors::trace)?;
        let pages: Vec<_> = sharing.pages.iter().map(page_row).collect();
        let lines: Vec<_> = sharing.lines.iter().map(line_row).collect();
        let d = PyDict::new(py);
        d.set_item("hand_offs", sharing.hand_offs)?;
        d.set_item("page_count", sharing.page_count)?;
        d.set_item("line_count", sharing.line_count)?;
        d.set_item("pages", pages)?;
        d.set_item("lines", lines)?;
        Ok(d)
    }

    fn chunk_moments(&self, chunk: usize) -> PyResult<(u64, u64)> {
        let info = self.0.chunk_info(chunk).map_err(errors::trace)?;
        Ok((info.first.0, info.last.0))
    }

    fn slices(&self, py: Python<'_>, chunk: usize) -> PyResult<Vec<(u64, u8, u64)>> {
        let events = py.detach(|| self.0.chunk(chunk)).map_err(errors::trace)?;
        let slice = |(icount, event): (u64, Event)| match event {
            Event::Slice {
                vcpu, instructions, ..
            } => Some((icount, vcpu, instructions)),
            _ => None,
        };
        Ok(events.into_iter().filter_map(slice).collect())
    }

    #[pyo3(signature = (chunk, kinds=None, first=0, last=u64::MAX))]
    fn events<'py>(
        &self,
        py: Python<'py>,
        chunk: usize,
        kinds: Option<Vec<String>>,
        first: u64,
        last: u64,
    ) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        let info = self.0.chunk_info(chunk).map_err(errors::trace)?;
        if info.last.0 < first || info.first.0 > last {
            return Ok(list);
        }
        let events = py.detach(|| self.0.chunk(chunk)).map_err(errors::trace)?;
        for (icount, event) in &events {
            let wanted = |kinds: &Vec<String>| kinds.iter().any(|k| k == event.kind().name());
            let unwanted = kinds.as_ref().is_some_and(|kinds| !wanted(kinds));
            if unwanted || !(first..=last).contains(icount) {
                continue;
            }
            let (kind, fields) = fields(py, event)?;
            list.append((kind, *icount, event.vcpu(), fields))?;
        }
        Ok(list)
    }
}
