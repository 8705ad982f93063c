//! Diversions: runs that leave a recording at a moment of its replay.

mod support;

use std::path::{Path, PathBuf};

use rr86_core::session::{
    Condition, Conditions, Decisions, Diversion, Policy, Replay, Scheduler, Session, Stop,
};
use rr86_core::trace::TraceReader;
use support::{machine, PROGRAM};
use tempfile::TempDir;

/// Instructions before the moment, and behind it.
const BEFORE: u64 = 15_000;
const BEHIND: u64 = 25_000;

/// A recorded run with a moment in its middle.
struct Recorded {
    _folder: TempDir,
    path: PathBuf,
    /// The moment, between two slices; there is a checkpoint too. And the scheduler as it was there.
    moment: u64,
    scheduler: Scheduler,
    /// The end of the run, and the machine's digests there.
    end: u64,
    digests: Vec<(String, u64)>,
}

fn run<D: Decisions>(session: &mut Session<D>, limit: u64) {
    let stop = session.run(limit, &mut Conditions::default());
    assert_eq!(stop.expect("a run"), Stop::Limit);
}

fn record() -> Recorded {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("trace");
    let scheduler = Scheduler::new(Policy::Pct, 5, 1000);
    let mut session = Session::record(machine(false), scheduler);
    session.set_checkpoints(BEFORE).expect("checkpoints");
    session
        .record_to(&path, b"", &[("kernel".to_string(), (&PROGRAM[..]).into())])
        .expect("a trace");
    run(&mut session, BEFORE);
    let moment = session.machine.engine.icount();
    let scheduler = session.scheduler();
    run(&mut session, BEHIND);
    let end = session.machine.engine.icount();
    let digests = session.machine.digests();
    session.finish(0, 0, "", b"").expect("a whole trace");
    Recorded {
        _folder: folder,
        path,
        moment,
        scheduler,
        end,
        digests,
    }
}

fn reader(path: &Path) -> TraceReader {
    TraceReader::open(path).expect("a trace")
}

impl Recorded {
    /// A replay that stands at the moment.
    fn replay(&self) -> Session<Replay> {
        let mut replay = Session::replay(machine(false), reader(&self.path).stream(), true);
        run(&mut replay, self.moment);
        assert_eq!(replay.machine.engine.icount(), self.moment);
        replay
    }

    fn divert(&self, scheduler: Scheduler) -> Session<Diversion> {
        let diversion = self.replay().divert_with(scheduler);
        diversion.expect("a diversion")
    }

    /// Where a diversion is that has gone as far as the recording.
    fn end_of(&self, mut diversion: Session<Diversion>) -> (u64, Vec<(String, u64)>) {
        run(&mut diversion, self.end - self.moment);
        (
            diversion.machine.engine.icount(),
            diversion.machine.digests(),
        )
    }

    fn own_end(&self) -> (u64, Vec<(String, u64)>) {
        (self.end, self.digests.clone())
    }
}

#[test]
fn with_the_recordings_scheduler_a_diversion_is_the_recorded_run() {
    let recorded = record();
    let same = || recorded.scheduler.clone();
    let diversion = recorded.divert(same());
    assert_eq!(recorded.end_of(diversion), recorded.own_end());

    let trace = reader(&recorded.path);
    let snapshot = recorded.replay().snapshot(&trace).expect("a snapshot");
    let diversion = Session::<Diversion>::from_snapshot(machine(false), &snapshot, same());
    let diversion = diversion.expect("a diversion from a snapshot");
    assert_eq!(recorded.end_of(diversion), recorded.own_end());

    let checkpoint = &trace.checkpoints().expect("checkpoints")[0];
    assert_eq!(checkpoint.icount, recorded.moment);
    let replay = Session::from_checkpoint(machine(false), &trace, checkpoint, true);
    let diversion = replay.expect("a replay").divert_with(same());
    let diversion = diversion.expect("a diversion from a checkpoint");
    assert_eq!(recorded.end_of(diversion), recorded.own_end());
}

#[test]
fn with_another_seed_a_diversion_ends_differently_and_the_same_each_time() {
    let recorded = record();
    let other = || Scheduler::new(Policy::Pct, 6, 1000);
    let once = recorded.end_of(recorded.divert(other()));
    assert_ne!(once, recorded.own_end());
    assert_eq!(once, recorded.end_of(recorded.divert(other())));
}

#[test]
fn input_to_a_diversion_is_its_own() {
    let recorded = record();
    let mut diversion = recorded.divert(recorded.scheduler.clone());
    diversion.console_input(b"key");
    let (end, digests) = recorded.end_of(diversion);
    let differ = digests.iter().filter(|d| !recorded.digests.contains(d));
    let differ: Vec<&str> = differ.map(|(name, _)| name.as_str()).collect();
    assert_eq!((end, differ), (recorded.end, vec!["serial"]));
}

#[test]
fn a_diversion_that_was_begun_inside_a_slice_completes_that_first() {
    let recorded = record();
    let mut replay = Session::replay(machine(false), reader(&recorded.path).stream(), true);
    let mut inside = Conditions::new(vec![Condition::Icount(recorded.moment - 3)]);
    let stop = replay.run(u64::MAX, &mut inside).expect("a replay");
    assert_eq!(stop, Stop::Condition(0));
    assert!(replay.inside_slice());
    let diversion = replay.divert_with(recorded.scheduler.clone());
    let diversion = diversion.expect("a diversion");
    assert_eq!(diversion.machine.engine.icount(), recorded.moment);
    assert_eq!(recorded.end_of(diversion), recorded.own_end());
}

#[test]
fn recorded_slices_are_followed_as_suggestions_and_the_run_goes_on_behind_the_last() {
    let recorded = record();
    let mut diversion = recorded.replay().divert();
    run(&mut diversion, recorded.end - recorded.moment);
    let digests = diversion.machine.digests();
    assert_eq!(diversion.machine.engine.icount(), recorded.end);
    assert_eq!(digests, recorded.digests);
    run(&mut diversion, 30_000);
    assert!(diversion.machine.engine.icount() >= recorded.end + 30_000);
}
