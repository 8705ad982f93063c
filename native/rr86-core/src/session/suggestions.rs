//! What a recording did from a moment on, for a run that leaves it there and stays as close to it as it can.

use super::observe;
use super::slice::Decision;
use crate::host_time::HostTime;
use crate::runtime::windows::Window;
use crate::trace::{Event, EventStream, SliceEnd, TraceError, TraceReader, CONSOLE};

/// A slice of the recording, or what is left of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suggestion {
    pub decision: Decision,
    /// The window of the block protocol in which it ended.
    pub window: Option<Window>,
}

/// Where a recording goes on from a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rest {
    /// What is left of the slice under way.
    pub slice: Option<Suggestion>,
    /// Behind that slice, as [`EventStream::position`] has it.
    pub position: (usize, usize),
}

/// The slices and inputs of a recording, in their order.
pub struct Suggestions {
    rest: Option<Suggestion>,
    events: EventStream,
    /// The next event that says anything here.
    next: Option<Event>,
}

impl Suggestions {
    /// What a trace has from a moment on.
    ///
    /// # Errors
    /// [`TraceError`] when it cannot be read.
    pub fn new(reader: &TraceReader, from: Rest) -> Result<Self, TraceError> {
        Ok(Self {
            rest: from.slice,
            events: reader.stream_at(from.position)?,
            next: None,
        })
    }

    /// How long its reader was waited for.
    pub fn waited(&self) -> HostTime {
        self.events.waited()
    }

    fn look(&mut self) -> Result<Option<&Event>, TraceError> {
        while self.next.is_none() {
            match self.events.next().transpose()? {
                None => return Ok(None),
                Some((_, event)) => {
                    let said = matches!(
                        event,
                        Event::Slice { .. } | Event::Input { .. } | Event::TimeSkip { .. }
                    );
                    self.next = said.then_some(event);
                }
            }
        }
        Ok(self.next.as_ref())
    }

    /// What was typed here before anything else came.
    ///
    /// # Errors
    /// [`TraceError`] when the trace cannot be read.
    pub fn input(&mut self) -> Result<Option<Vec<u8>>, TraceError> {
        if self.rest.is_some() {
            return Ok(None);
        }
        match self.look()? {
            Some(Event::Input { .. }) => match self.next.take() {
                Some(Event::Input { source, bytes }) if source == CONSOLE => Ok(Some(bytes)),
                _ => Ok(Some(Vec::new())),
            },
            _ => Ok(None),
        }
    }

    /// Time has jumped, which the recording may tell of too.
    ///
    /// # Errors
    /// [`TraceError`] when the trace cannot be read.
    pub fn pass_skip(&mut self) -> Result<(), TraceError> {
        if self.rest.is_none() && matches!(self.look()?, Some(Event::TimeSkip { .. })) {
            self.next = None;
        }
        Ok(())
    }

    /// The next slice.
    ///
    /// # Errors
    /// [`TraceError`] when the trace cannot be read.
    pub fn slice(&mut self) -> Result<Option<Suggestion>, TraceError> {
        if let Some(rest) = self.rest.take() {
            return Ok(Some(rest));
        }
        while matches!(self.look()?, Some(Event::TimeSkip { .. })) {
            self.next = None;
        }
        let Some(&Event::Slice {
            vcpu,
            instructions,
            stop,
        }) = self.look()?
        else {
            return Ok(None);
        };
        self.next = None;
        // The instruction that shuts a vCPU down never retires.
        let more = u64::from(stop == SliceEnd::Shutdown);
        Ok(Some(Suggestion {
            decision: Decision {
                vcpu: usize::from(vcpu),
                budget: instructions.saturating_add(more),
            },
            window: observe::window(stop),
        }))
    }
}
