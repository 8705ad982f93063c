//! All events of a trace in order, with a thread that decodes one chunk ahead.

use std::sync::mpsc::{channel, sync_channel, Receiver, Sender, TryRecvError};
use std::thread::JoinHandle;

use super::error::TraceError;
use super::event::{Block, Event};
use super::reader::TraceReader;
use crate::host_time::{HostTime, Stopwatch};

/// Chunks that may wait, decoded, for the consumer.
const AHEAD: usize = 1;

/// Events with their instruction counts, chunk by chunk; `None` after the last one, so that a
/// thread that died cannot be taken for the end of the trace.
type Batch = Result<Option<Vec<(u64, Event)>>, TraceError>;

/// An iterator over events. It holds three chunks at most. The first error ends it; a trace that
/// was cut off ends without one (see [`TraceReader::complete`]).
pub struct EventStream {
    batches: Option<Receiver<Batch>>,
    thread: Option<JoinHandle<()>>,
    current: std::vec::IntoIter<(u64, Event)>,
    blocks: Option<Upcoming>,
    /// Event chunks of the trace up to the one that is being given out.
    chunks: usize,
    error: Option<TraceError>,
    /// For the thread, to have a chunk decoded.
    waited: HostTime,
}

/// The blocks of the chunks that have been decoded, for whoever translates them ahead.
pub struct Upcoming {
    batches: Receiver<Vec<Block>>,
    current: std::vec::IntoIter<Block>,
}

impl Iterator for Upcoming {
    /// `Some(None)` while the next chunk is not there.
    type Item = Option<Block>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(block) = self.current.next() {
                return Some(Some(block));
            }
            match self.batches.try_recv() {
                Ok(batch) => self.current = batch.into_iter(),
                Err(TryRecvError::Empty) => return Some(None),
                Err(TryRecvError::Disconnected) => return None,
            }
        }
    }
}

/// The blocks that come into being in a chunk.
fn linked(events: &[(u64, Event)]) -> Vec<Block> {
    let block = |(_, event): &(u64, Event)| match event {
        Event::Link(block) => Some(*block),
        _ => None,
    };
    events.iter().filter_map(block).collect()
}

impl TraceReader {
    /// All events from the start, in the order of their pushes.
    pub fn stream(&self) -> EventStream {
        self.stream_from(0)
    }

    /// All events from event chunk `n` on.
    pub fn stream_from(&self, n: usize) -> EventStream {
        EventStream::start(self.clone(), n, None)
    }

    /// All events from a position on, which is one that a stream of this trace has had.
    ///
    /// # Errors
    /// [`TraceError`] when they cannot be read, or the trace has fewer.
    pub fn stream_at(&self, (chunks, left): (usize, usize)) -> Result<EventStream, TraceError> {
        let mut events = self.stream_from(chunks.saturating_sub(usize::from(left > 0)));
        while events.position() != (chunks, left) {
            match events.next() {
                Some(event) => drop(event?),
                None => {
                    let count = self.chunk_count();
                    return Err(TraceError::NoChunk {
                        index: chunks,
                        count,
                    });
                }
            }
        }
        Ok(events)
    }

    /// The same, for a replay that may have blocks translated ahead: the stream also gives, a chunk or two
    /// ahead, the blocks that will be.
    pub fn stream_for_replay(&self, n: usize) -> EventStream {
        let (sender, batches) = channel();
        let mut stream = EventStream::start(self.clone(), n, Some(sender));
        stream.blocks = Some(Upcoming {
            batches,
            current: Vec::new().into_iter(),
        });
        stream
    }
}

impl EventStream {
    fn start(reader: TraceReader, from: usize, foretell: Option<Sender<Vec<Block>>>) -> Self {
        let (sender, batches) = sync_channel(AHEAD);
        let decode_all = move || {
            for n in from..reader.chunk_count() {
                let batch = reader.chunk(n).map(Some);
                if let (Some(foretell), Ok(Some(events))) = (&foretell, &batch) {
                    // The replay may not want them.
                    let _ = foretell.send(linked(events));
                }
                let last = batch.is_err();
                if sender.send(batch).is_err() || last {
                    return;
                }
            }
            let end = reader.hidden().map_or(Ok(None), Err);
            // The consumer may have gone away; then the end is not missed.
            let _ = sender.send(end);
        };
        let thread = std::thread::Builder::new()
            .name("rr86-trace-read".into())
            .spawn(decode_all)
            .ok();
        EventStream {
            error: thread.is_none().then_some(TraceError::Thread),
            batches: thread.is_some().then_some(batches),
            thread,
            current: Vec::new().into_iter(),
            blocks: None,
            chunks: from,
            waited: HostTime::default(),
        }
    }

    /// How long the consumer has waited so far.
    pub fn waited(&self) -> HostTime {
        self.waited
    }

    /// The blocks to come, if the stream was made for a replay; once.
    pub fn take_blocks(&mut self) -> Option<Upcoming> {
        self.blocks.take()
    }

    /// Where the stream stands: how many event chunks of the trace it has begun to give out, and how many
    /// events of the last one are left.
    pub fn position(&self) -> (usize, usize) {
        (self.chunks, self.current.len())
    }

    /// The event after the last one that was given out, if it is in the same chunk.
    pub fn upcoming(&self) -> Option<&Event> {
        self.current.as_slice().first().map(|(_, event)| event)
    }

    /// Between two chunks, how many event chunks of the trace have been given out.
    pub fn between_chunks(&self) -> Option<usize> {
        (self.current.len() == 0).then_some(self.chunks)
    }

    fn stop(&mut self) {
        // Without a receiver the thread's next send fails, and it ends.
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            // A panic over there has already shown as a missing end.
            let _ = thread.join();
        }
    }
}

impl Iterator for EventStream {
    type Item = Result<(u64, Event), TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(event) = self.current.next() {
                return Some(Ok(event));
            }
            if let Some(error) = self.error.take() {
                return Some(Err(error));
            }
            let watch = Stopwatch::start();
            let batch = self.batches.as_ref()?.recv();
            self.waited += watch.read();
            match batch {
                Ok(Ok(Some(batch))) => {
                    self.chunks += 1;
                    self.current = batch.into_iter();
                }
                Ok(Ok(None)) => self.stop(),
                Ok(Err(error)) => {
                    self.stop();
                    self.error = Some(error);
                }
                Err(_) => {
                    self.stop();
                    self.error = Some(TraceError::Thread);
                }
            }
        }
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.stop();
    }
}
