//! All events of a trace in order, with a thread that decodes one chunk ahead.

use std::sync::mpsc::{channel, sync_channel, Receiver, Sender, TryRecvError};
use std::thread::JoinHandle;

use super::reader::TraceReader;
use crate::host_time::{HostTime, Stopwatch};
use crate::record::error::TraceError;
use crate::record::event::Event;
use crate::runtime::ahead::Guess;

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
    guesses: Option<Guesses>,
    /// Event chunks of the trace up to the one that is being given out.
    chunks: usize,
    error: Option<TraceError>,
    /// For the thread, to have a chunk decoded.
    waited: HostTime,
}

/// The blocks of the chunks that have been decoded, for whoever translates them ahead.
pub struct Guesses {
    batches: Receiver<Vec<Guess>>,
    current: std::vec::IntoIter<Guess>,
}

impl Iterator for Guesses {
    /// `Some(None)` while the next chunk is not there.
    type Item = Option<Guess>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(guess) = self.current.next() {
                return Some(Some(guess));
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
fn guesses(events: &[(u64, Event)]) -> Vec<Guess> {
    let guess = |(_, event): &(u64, Event)| match event {
        Event::Link(block) => Some(Guess {
            serial: block.id,
            linear: block.pc,
            paddr: block.paddr,
            len: block.len,
            mode: block.mode,
            digest: block.digest,
        }),
        _ => None,
    };
    events.iter().filter_map(guess).collect()
}

impl EventStream {
    pub(super) fn new(reader: TraceReader, from: usize) -> Self {
        Self::start(reader, from, None)
    }

    /// A stream that also tells, a chunk or two ahead, which blocks will be.
    pub(super) fn with_guesses(reader: TraceReader, from: usize) -> Self {
        let (sender, batches) = channel();
        let mut stream = Self::start(reader, from, Some(sender));
        stream.guesses = Some(Guesses {
            batches,
            current: Vec::new().into_iter(),
        });
        stream
    }

    fn start(reader: TraceReader, from: usize, foretell: Option<Sender<Vec<Guess>>>) -> Self {
        let (sender, batches) = sync_channel(AHEAD);
        let decode_all = move || {
            for n in from..reader.chunk_count() {
                let batch = reader.chunk(n).map(Some);
                if let (Some(foretell), Ok(Some(events))) = (&foretell, &batch) {
                    // Nobody need listen.
                    let _ = foretell.send(guesses(events));
                }
                let last = batch.is_err();
                if sender.send(batch).is_err() || last {
                    return;
                }
            }
            let end = reader.hidden().map_or(Ok(None), Err);
            // The consumer may have gone away; then nobody misses the end.
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
            guesses: None,
            chunks: from,
            waited: HostTime::default(),
        }
    }

    /// How long the consumer has waited so far.
    pub(super) fn waited(&self) -> HostTime {
        self.waited
    }

    /// What a stream made for it tells of blocks to come; once.
    pub(super) fn take_guesses(&mut self) -> Option<Guesses> {
        self.guesses.take()
    }

    /// Where the stream stands: how many event chunks of the trace it has begun to give out, and how many
    /// events of the last one are left.
    pub(super) fn position(&self) -> (usize, usize) {
        (self.chunks, self.current.len())
    }

    /// The event after the last one that was given out, if it is in the same chunk.
    pub(super) fn upcoming(&self) -> Option<&Event> {
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
