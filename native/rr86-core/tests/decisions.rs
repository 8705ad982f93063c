//! The run loop asks whoever decides in a fixed order, and owns stops, limits and the time of a call.

mod support;

use rr86_core::host_time::{CallLimit, HostTime, Limit};
use rr86_core::session::{
    Condition, Conditions, Decision, Decisions, Finished, Machine, Next, Session, SessionError,
    SliceStop, Slices, Stop, Wait,
};
use support::machine;

/// Lets vCPU 0 and 1 take turns, 100 instructions each, and notes what it is asked. Before each slice comes one step
/// that is no slice. After `most` slices nothing more is decided.
struct Turns {
    asked: Vec<&'static str>,
    slices: Vec<Finished>,
    stepped: bool,
    most: usize,
}

impl Decisions for Turns {
    fn slices(&self) -> Slices {
        Slices::New
    }

    fn over(&self, _: &Machine) -> Option<Stop> {
        (self.slices.len() == self.most).then_some(Stop::End)
    }

    fn next(&mut self, machine: &mut Machine) -> Result<Next, SessionError> {
        self.asked.push("next");
        self.stepped = !self.stepped;
        if self.stepped {
            return Ok(Next::More);
        }
        assert_eq!(machine.prepare(), Wait::Ready);
        Ok(Next::Slice(Decision {
            vcpu: self.slices.len() % 2,
            budget: 100,
        }))
    }

    fn done(&mut self, machine: &mut Machine, slice: &Finished) -> Result<(), SessionError> {
        self.asked.push("done");
        assert_eq!(machine.engine.icount(), slice.start + slice.instructions);
        self.slices.push(*slice);
        Ok(())
    }

    fn keep(&mut self, returning: bool) -> Result<(), SessionError> {
        if returning {
            self.asked.push("keep");
        }
        Ok(())
    }

    fn waited(&self) -> HostTime {
        HostTime::default()
    }
}

fn session(most: usize) -> Session<Turns> {
    let turns = Turns {
        asked: Vec::new(),
        slices: Vec::new(),
        stepped: false,
        most,
    };
    Session::start(machine(false), turns)
}

fn run(session: &mut Session<Turns>, limit: u64) -> Stop {
    let stop = session.run(limit, &mut Conditions::default());
    stop.expect("a run")
}

#[test]
fn each_slice_is_asked_for_step_by_step_and_told_of_when_it_is_over() {
    let mut session = session(3);
    assert_eq!(run(&mut session, u64::MAX), Stop::End);
    let slice = ["next", "next", "done"];
    assert_eq!(
        session.decisions.asked,
        [&slice[..], &slice, &slice, &["keep"]].concat()
    );
    let vcpus: Vec<usize> = session.decisions.slices.iter().map(|s| s.vcpu).collect();
    assert_eq!((vcpus, session.slices, session.vcpu), (vec![0, 1, 0], 3, 0));
    let budget = |s: &Finished| s.stop == SliceStop::Quantum && s.instructions <= 100;
    assert!(session.decisions.slices.iter().all(budget));
    // Nothing more is asked once all is over.
    assert_eq!(run(&mut session, u64::MAX), Stop::End);
    assert_eq!(session.decisions.asked.len(), 11);
}

#[test]
fn a_limit_is_looked_at_between_slices_alone() {
    let mut session = session(usize::MAX);
    assert_eq!(run(&mut session, 0), Stop::Limit);
    assert_eq!(session.decisions.asked, ["keep"]);
    assert_eq!(run(&mut session, 1), Stop::Limit);
    assert_eq!((session.slices, session.inside_slice()), (1, false));
}

#[test]
fn a_slice_that_was_stopped_inside_goes_on_without_a_question() {
    let mut session = session(1);
    let mut condition = Conditions::new(vec![Condition::Icount(50)]);
    let stop = session.run(u64::MAX, &mut condition).expect("a run");
    assert_eq!((stop, session.inside_slice()), (Stop::Condition(0), true));
    assert_eq!(session.machine.engine.icount(), 50);
    session.decisions.asked.clear();
    // Not even a limit ends a call before the slice has.
    assert_eq!(run(&mut session, 0), Stop::End);
    assert_eq!(session.decisions.asked, ["done", "keep"]);
    let whole = session.decisions.slices[0];
    assert_eq!(
        (whole.start, whole.instructions),
        (0, session.machine.engine.icount())
    );
}

#[test]
fn a_call_whose_time_is_up_comes_back_and_the_next_one_goes_on() {
    let (mut whole, mut parts) = (session(20), session(20));
    assert_eq!(run(&mut whole, u64::MAX), Stop::End);
    parts
        .machine
        .engine
        .limit_calls(CallLimit::new(Limit::Steps(3)));
    let mut calls = 1;
    while run(&mut parts, u64::MAX) == Stop::TimeUp {
        calls += 1;
    }
    assert!(calls > 10, "{calls}");
    assert_eq!(parts.decisions.slices, whole.decisions.slices);
    assert_eq!(parts.machine.digests(), whole.machine.digests());
}
