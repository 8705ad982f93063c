//! What the engine observed, in the vocabulary of traces.

use super::slice::{Ending, SliceStop};
use crate::memory::pages::{HandOffKind, DEVICE, NO_AGENT};
use crate::runtime::observers::Observed;
use crate::runtime::windows::Window;
use crate::trace::{Access, Block, Event, SliceEnd, NO_VCPU};

/// The event that tells of an observation.
pub fn event(observed: &Observed) -> Event {
    let agent = |a: u8| {
        if matches!(a, DEVICE | NO_AGENT) {
            NO_VCPU
        } else {
            a
        }
    };
    match *observed {
        Observed::Link {
            serial,
            vcpu,
            rip,
            paddr,
            len,
            mode,
            digest,
        } => Event::Link(Block {
            id: serial,
            vcpu,
            pc: rip,
            paddr,
            len,
            mode,
            digest,
        }),
        Observed::Fetch {
            serial,
            vcpu,
            rip,
            paddr,
            len,
            mode,
            digest,
        } => Event::Fetch(Block {
            id: serial.unwrap_or(0),
            vcpu,
            pc: rip,
            paddr,
            len,
            mode,
            digest,
        }),
        Observed::Stale { serial, vcpu, born } => Event::Stale {
            id: serial,
            vcpu,
            what: u8::from(!born),
        },
        Observed::StaleEntry { serial, vcpu } => Event::Stale {
            id: serial,
            vcpu,
            what: 2,
        },
        Observed::StaleInt3 { serial, vcpu } => Event::Stale {
            id: serial,
            vcpu,
            what: 3,
        },
        Observed::Invalidate {
            serial,
            by,
            paddr,
            len,
        } => Event::Invalidate {
            id: serial,
            by: agent(by),
            paddr,
            len,
            reason: 0,
        },
        Observed::Flush { vcpu } => Event::Flush { vcpu, reason: 0 },
        Observed::HandOff(h) => Event::HandOff {
            page: h.page,
            from: agent(h.from),
            to: agent(h.to),
            access: match h.kind {
                HandOffKind::Read => Access::Read,
                HandOffKind::Write => Access::Write,
            },
            lines: h.lines,
        },
    }
}

/// The trace's word for why a slice ended.
pub fn slice_end(stop: SliceStop) -> SliceEnd {
    match stop {
        SliceStop::Quantum => SliceEnd::Quantum,
        SliceStop::Pause => SliceEnd::Pause,
        SliceStop::Halt => SliceEnd::Halt,
        SliceStop::Deadline => SliceEnd::Deadline,
        SliceStop::Ended(Ending::TripleFault { .. }) => SliceEnd::Shutdown,
        SliceStop::Ended(_) => SliceEnd::Exit,
        SliceStop::Window(Window::Fetch) => SliceEnd::FetchWindow,
        SliceStop::Window(Window::Store) => SliceEnd::StoreWindow,
        SliceStop::Window(Window::Unguard) => SliceEnd::UnguardWindow,
    }
}

/// The window in which a recorded slice ended.
pub fn window(stop: SliceEnd) -> Option<Window> {
    match stop {
        SliceEnd::FetchWindow => Some(Window::Fetch),
        SliceEnd::StoreWindow => Some(Window::Store),
        SliceEnd::UnguardWindow => Some(Window::Unguard),
        _ => None,
    }
}
