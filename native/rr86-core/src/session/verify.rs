//! Comparing what a replay does with what its trace says.

use std::sync::Arc;

use super::error::{Divergence, Fact, SessionError};
use super::observe;
use crate::runtime::observers::Observed;
use crate::trace::Event;

/// How far a replay has followed its trace: every divergence says so.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Position {
    /// Slices of the trace that have begun.
    pub decisions: u64,
    /// vCPU of the last one.
    pub vcpu: u8,
}

impl Position {
    /// The replay differs from the trace here.
    pub fn diverged(
        self,
        component: &str,
        icount: u64,
        expected: Fact,
        found: Fact,
    ) -> SessionError {
        Box::new(Divergence {
            component: component.to_string(),
            decision: self.decisions,
            icount,
            vcpu: self.vcpu,
            expected,
            found,
        })
        .into()
    }

    /// Compares the digest of a component with the recorded one.
    ///
    /// # Errors
    /// When they differ, or none was recorded.
    pub fn check_digest(
        self,
        icount: u64,
        recorded: &[(Arc<str>, u64)],
        component: &str,
        value: u64,
    ) -> Result<(), SessionError> {
        let recorded = recorded.iter().find(|(name, _)| **name == *component);
        let expected = recorded.map_or(Fact::Nothing, |(_, digest)| Fact::Digest(*digest));
        let found = Fact::Digest(value);
        if expected == found {
            Ok(())
        } else {
            Err(self.diverged(component, icount, expected, found))
        }
    }

    /// Compares what the engine has observed in a slice with what was recorded of it.
    ///
    /// # Errors
    /// At the first difference.
    pub fn check_observations(
        self,
        recorded: &[(u64, Event)],
        observed: &[(u64, Observed)],
    ) -> Result<(), SessionError> {
        for n in 0..recorded.len().max(observed.len()) {
            let want = recorded.get(n);
            let got = observed
                .get(n)
                .map(|(icount, o)| (*icount, observe::event(o)));
            if want != got.as_ref() {
                return Err(self.mismatch(want, got.as_ref()));
            }
        }
        Ok(())
    }

    /// One of the two is there.
    fn mismatch(self, want: Option<&(u64, Event)>, got: Option<&(u64, Event)>) -> SessionError {
        let component = match want.or(got).map(|(_, e)| e) {
            Some(Event::HandOff { .. }) => "pages",
            _ => "blocks",
        };
        let fact = |side: Option<&(u64, Event)>| {
            side.map_or(Fact::Nothing, |(at, e)| Fact::Event(*at, e.clone()))
        };
        let moments = [want, got].into_iter().flatten().map(|(at, _)| *at);
        let icount = moments.min().unwrap_or_default();
        self.diverged(component, icount, fact(want), fact(got))
    }
}
