//! The oracle finds a whole log of cross-vCPU writes to be whole, and finds what is taken out of one.

mod support;

use std::path::Path;

use rr86_core::runtime::oracle::Verdict;
use rr86_core::session::{Conditions, Session, Stop};
use rr86_core::trace::{Event, TraceReader};
use support::{machine, record, rewrite};

fn verdict(path: &Path, verify: bool) -> Verdict {
    let reader = TraceReader::open(path).expect("a trace");
    let mut replayer = Session::replay(machine(true), reader.stream(), verify);
    let stop = replayer.run(u64::MAX, &mut Conditions::default());
    assert_eq!(stop.expect("a replay"), Stop::End);
    assert_eq!(replayer.machine.engine.unseen_by_oracle(), None);
    let oracle = replayer.machine.engine.oracle().expect("the oracle");
    oracle.verdict().clone()
}

/// Positions of the hand-offs that tell one vCPU of lines that another has written.
fn told(events: &[(u64, Event)]) -> Vec<usize> {
    let tells = |event: &Event| matches!(*event, Event::HandOff { from, to, lines, .. } if from < 2 && from != to && lines != 0);
    (0..events.len())
        .filter(|&at| tells(&events[at].1))
        .collect()
}

#[test]
fn a_whole_log_has_no_gap_and_the_replay_is_the_recorded_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let trace = folder.path().join("trace");
    record(&trace);
    let verdict = verdict(&trace, true);
    assert_eq!((verdict.missing, verdict.gaps.len()), (0, 0));
    assert!(verdict.hand_offs > 20 && verdict.foreign > verdict.hand_offs);
}

#[test]
fn a_hand_off_that_is_taken_out_is_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let (whole, less) = (folder.path().join("whole"), folder.path().join("less"));
    record(&whole);
    for nth in [1, 4, 9, 16] {
        let mut gone = None;
        rewrite(&whole, &less, |events| {
            gone = Some(events.remove(told(events)[nth]));
        });
        let Some((
            icount,
            Event::HandOff {
                page,
                from,
                to,
                lines,
                ..
            },
        )) = gone
        else {
            unreachable!()
        };
        let verdict = verdict(&less, false);
        assert_eq!(verdict.gaps.len(), 1, "{:?}", verdict.gaps);
        let gap = verdict.gaps[0];
        assert_eq!((gap.writer, gap.agent, gap.paddr >> 12), (from, to, page));
        assert!(gap.written < icount && icount <= gap.icount && gap.icount < icount + 5);
        // The counter; the other lines are read by their writer alone.
        assert_eq!((gap.lines, lines & gap.lines), (1, 1));
        assert!(gap.rip.is_some());
    }
}

#[test]
fn a_line_that_is_taken_out_of_a_hand_off_is_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let (whole, less) = (folder.path().join("whole"), folder.path().join("less"));
    record(&whole);
    rewrite(&whole, &less, |events| {
        let at = told(events)[7];
        let Event::HandOff { lines, .. } = &mut events[at].1 else {
            unreachable!()
        };
        assert_eq!(*lines & 1, 1);
        *lines &= !1;
    });
    let verdict = verdict(&less, false);
    assert_eq!(verdict.gaps.len(), 1);
    assert_eq!(verdict.gaps[0].lines, 1);
}
