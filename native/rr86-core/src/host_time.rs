//! Where the host's time goes, for people who look at counters.
//!
//! The only place in the core that asks what time it is on the host: guest execution knows virtual time
//! alone. What is measured here can be added up and shown in seconds, and say when a call comes back to its
//! caller, which changes nothing. No decision, no digest and no trace can come to depend on it. A [`Cadence`] says
//! when a trace's side file is due, which is no part of the trace.

use std::time::{Duration, Instant};

/// Of what comes by the hundred thousand, one in so many is measured: reading the clock takes as long as some
/// of it. Odd, because steps that take turns must all be met.
const ONE_IN: u32 = 7;

/// What the thread that runs the guest does besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Reading the bytes of new blocks, decoding them and making host code.
    Translating,
    Digests,
    Checkpoints,
    /// Waiting for the thread that writes the trace, or for the one that reads it.
    Trace,
}

impl Phase {
    pub const ALL: [Self; 4] = [
        Self::Translating,
        Self::Digests,
        Self::Checkpoints,
        Self::Trace,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Translating => "translating",
            Self::Digests => "digests",
            Self::Checkpoints => "checkpoints",
            Self::Trace => "trace",
        }
    }
}

/// A span of the host's time.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostTime(Duration);

impl HostTime {
    pub fn seconds(self) -> f64 {
        self.0.as_secs_f64()
    }

    /// The rest of this span without another.
    #[must_use]
    pub fn without(self, part: Self) -> Self {
        Self(self.0.saturating_sub(part.0))
    }
}

impl std::ops::AddAssign for HostTime {
    fn add_assign(&mut self, more: Self) {
        self.0 = self.0.saturating_add(more.0);
    }
}

/// A watch that runs.
#[derive(Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    #[allow(clippy::disallowed_methods)] // Nothing but `HostTime` comes of it.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The time since it was started.
    pub fn read(&self) -> HostTime {
        HostTime(self.0.elapsed())
    }
}

/// Says ten times a second that it is time again. Asking costs a few nanoseconds.
#[derive(Debug, Default)]
pub struct Cadence {
    /// Milliseconds on the host's clock.
    next: u64,
}

impl Cadence {
    const PERIOD: u64 = 100;

    #[inline]
    pub fn due(&mut self) -> bool {
        let mut now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the call writes to `now` alone, which is a whole `timespec`. The clock exists since
        // Linux 2.6.32; without it `now` stays zero, which is never past `next`.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut now) };
        let now = (now.tv_sec as u64)
            .saturating_mul(1000)
            .saturating_add(now.tv_nsec as u64 / 1_000_000);
        let due = now > self.next;
        if due {
            self.next = now + Self::PERIOD;
        }
        due
    }
}

/// How long a call that runs the guest goes on before it comes back to its caller.
///
/// Whoever runs the guest counts its steps here: what may take up to some microseconds each, such as a call
/// of the dispatcher or a slow access. A call that is over comes back between two blocks. That can be
/// anywhere in a slice, and changes nothing in the guest.
#[derive(Debug, Default)]
pub struct CallLimit {
    limit: Option<Limit>,
    began: Option<Stopwatch>,
    /// Steps until the limit is looked at.
    left: u32,
    over: bool,
}

/// What ends a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    Time(Duration),
    /// For tests: so many steps, whatever the host's clock says.
    Steps(u32),
}

/// Steps between two looks at the host's clock.
const STEPS_BETWEEN_LOOKS: u32 = 256;

impl CallLimit {
    pub fn new(limit: Limit) -> Self {
        Self {
            limit: Some(limit),
            ..Self::default()
        }
    }

    /// A call begins.
    pub fn begin(&mut self) {
        self.over = false;
        self.left = match self.limit {
            Some(Limit::Steps(steps)) => steps,
            _ => STEPS_BETWEEN_LOOKS,
        };
        let timed = matches!(self.limit, Some(Limit::Time(_)));
        self.began = timed.then(Stopwatch::start);
    }

    /// Counts a step. True when the call is over.
    #[inline]
    pub fn step(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            self.look();
        }
        self.over
    }

    /// Counts what takes as long as many steps. True when the call is over.
    pub fn look(&mut self) -> bool {
        self.left = STEPS_BETWEEN_LOOKS;
        self.over |= match (self.limit, &self.began) {
            (Some(Limit::Time(limit)), Some(began)) => began.read().0 >= limit,
            (Some(Limit::Steps(_)), _) => true,
            _ => false,
        };
        self.over
    }

    /// Whether the call is over.
    pub fn is_over(&self) -> bool {
        self.over
    }
}

/// What a run has cost so far, on the thread that runs the guest.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// All of it.
    pub whole: HostTime,
    phases: [HostTime; Phase::ALL.len()],
    /// How many samples could have been taken since the last one.
    passed: u32,
}

impl Spent {
    pub fn add(&mut self, phase: Phase, time: HostTime) {
        self.phases[phase as usize] += time;
    }

    /// Starts a watch now and then, for what comes by the hundred thousand.
    #[inline]
    pub fn sample(&mut self) -> Option<Stopwatch> {
        self.passed = (self.passed + 1) % ONE_IN;
        (self.passed == 0).then(Stopwatch::start)
    }

    /// Counts what such a watch has measured for those that were passed over, too.
    #[inline]
    pub fn add_sample(&mut self, phase: Phase, watch: Option<Stopwatch>) {
        if let Some(watch) = watch {
            self.add(phase, HostTime(watch.read().0.saturating_mul(ONE_IN)));
        }
    }

    pub fn on(&self, phase: Phase) -> HostTime {
        self.phases[phase as usize]
    }

    /// Running the guest: translated code, helpers, devices, scheduling, and what else has no phase.
    pub fn rest(&self) -> HostTime {
        self.phases
            .iter()
            .fold(self.whole, |rest, &phase| rest.without(phase))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(n: u64) -> HostTime {
        HostTime(Duration::from_millis(n))
    }

    #[test]
    fn phases_and_the_rest_add_up_to_the_whole() {
        let mut spent = Spent::default();
        spent.whole += milliseconds(100);
        spent.add(Phase::Digests, milliseconds(20));
        spent.add(Phase::Digests, milliseconds(10));
        spent.add(Phase::Trace, milliseconds(5));
        assert_eq!(spent.on(Phase::Digests).0.as_millis(), 30);
        assert_eq!(spent.rest().0.as_millis(), 65);
    }

    #[test]
    fn samples_meet_each_of_two_steps_that_take_turns() {
        let mut spent = Spent::default();
        let taken: Vec<bool> = (0..28).map(|_| spent.sample().is_some()).collect();
        let of = |step: usize| taken.iter().skip(step).step_by(2).filter(|&&t| t).count();
        assert_eq!((of(0), of(1)), (2, 2));
        assert_eq!(spent.on(Phase::Translating).0, Duration::ZERO);
    }

    #[test]
    fn a_call_is_over_after_its_steps_and_the_next_begins_anew() {
        let mut limit = CallLimit::new(Limit::Steps(3));
        for _ in 0..2 {
            limit.begin();
            let over: Vec<bool> = (0..4).map(|_| limit.step()).collect();
            assert_eq!(over, [false, false, true, true]);
            assert!(limit.is_over());
        }
    }

    #[test]
    fn a_call_without_a_limit_is_never_over() {
        let mut limit = CallLimit::default();
        limit.begin();
        assert!((0..10_000).all(|_| !limit.step()));
    }

    #[test]
    fn a_call_is_over_when_its_time_has_passed() {
        let mut limit = CallLimit::new(Limit::Time(Duration::ZERO));
        limit.begin();
        assert!((0..=STEPS_BETWEEN_LOOKS).any(|_| limit.step()));
        let mut limit = CallLimit::new(Limit::Time(Duration::MAX));
        limit.begin();
        assert!((0..=STEPS_BETWEEN_LOOKS).all(|_| !limit.step()));
    }

    #[test]
    fn what_was_measured_twice_leaves_no_rest() {
        let mut spent = Spent::default();
        spent.whole += milliseconds(1);
        spent.add(Phase::Translating, milliseconds(2));
        assert_eq!(spent.rest().0, Duration::ZERO);
    }
}
