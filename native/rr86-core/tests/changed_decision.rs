//! A trace in which one decision was changed: its replay is a divergence that says where and what.

mod support;

use std::path::Path;

use rr86_core::session::{Conditions, Divergence, Fact, Session, SessionError, Stop, Wait};
use rr86_core::trace::{Event, TraceReader};
use support::{machine, record, rewrite};

fn replay(path: &Path) -> Result<Stop, SessionError> {
    let reader = TraceReader::open(path).expect("a trace");
    Session::replay(machine(false), reader.stream(), true).run(u64::MAX, &mut Conditions::default())
}

/// The divergence of a recording after `change`, which gets the position of the tenth slice, and that
/// slice's moment.
fn divergence(change: impl FnOnce(&mut Vec<(u64, Event)>, usize)) -> (Box<Divergence>, u64) {
    let folder = tempfile::tempdir().expect("a folder");
    let (good, bad) = (folder.path().join("good"), folder.path().join("bad"));
    record(&good);
    assert_eq!(replay(&good).expect("an untouched trace"), Stop::End);
    let mut moment = 0;
    rewrite(&good, &bad, |events| {
        let slices = events.iter().enumerate();
        let (at, (icount, _)) = slices
            .filter(|(_, (_, e))| matches!(e, Event::Slice { .. }))
            .nth(9)
            .expect("ten slices");
        moment = *icount;
        change(events, at);
    });
    match replay(&bad) {
        Err(SessionError::Divergence(divergence)) => (divergence, moment),
        other => panic!("no divergence: {other:?}"),
    }
}

#[test]
fn an_unchanged_copy_replays() {
    let folder = tempfile::tempdir().expect("a folder");
    let (good, copy) = (folder.path().join("good"), folder.path().join("copy"));
    record(&good);
    rewrite(&good, &copy, |_| {});
    assert_eq!(replay(&copy).expect("a replay"), Stop::End);
}

#[test]
fn a_shorter_slice_is_noticed_where_the_next_one_starts() {
    let (found, moment) = divergence(|events, at| {
        let Event::Slice { instructions, .. } = &mut events[at].1 else {
            unreachable!()
        };
        *instructions -= 1;
    });
    assert_eq!(found.component, "schedule");
    // The eleventh slice starts an instruction too late.
    let (Fact::SliceStart(recorded), Fact::SliceStart(reached)) = (&found.expected, &found.found)
    else {
        panic!("{found}");
    };
    assert_eq!((found.decision, *recorded), (11, reached + 1));
    assert_eq!(found.icount, *reached);
    assert!(
        (moment..moment + 2000).contains(&found.icount),
        "{found} after {moment}"
    );
    assert!(found.vcpu < 2);
    assert!(found.to_string().contains(&found.icount.to_string()));
}

#[test]
fn a_slice_of_another_vcpu_is_noticed_in_that_slice() {
    let (found, moment) = divergence(|events, at| {
        let Event::Slice { vcpu, .. } = &mut events[at].1 else {
            unreachable!()
        };
        *vcpu ^= 1;
    });
    // The pages that the two share do not change hands as recorded.
    assert_eq!(found.component, "pages");
    assert_eq!(found.decision, 10);
    let of_page =
        |fact: &Fact| matches!(fact, Fact::Event(_, Event::HandOff { .. }) | Fact::Nothing);
    assert!(of_page(&found.expected) && of_page(&found.found), "{found}");
    assert_ne!(found.expected, found.found);
    assert!(
        (moment..moment + 2000).contains(&found.icount),
        "{found} after {moment}"
    );
    assert!(found.vcpu < 2);
}

#[test]
fn a_digest_that_differs_names_its_component() {
    let (found, _) = divergence(|events, _| {
        let last = events.iter_mut().rev().find_map(|(_, event)| match event {
            Event::Digests { list } => Some(list),
            _ => None,
        });
        let list = last.expect("digests at the end");
        let entry = list.iter_mut().find(|(name, _)| &**name == "cpu1");
        entry.expect("a digest of cpu1").1 ^= 1;
    });
    assert_eq!(found.component, "cpu1");
    let (Fact::Digest(recorded), Fact::Digest(replayed)) = (&found.expected, &found.found) else {
        panic!("{found}");
    };
    assert_eq!(*recorded, replayed ^ 1);
    assert!(found.decision > 10, "{found}");
}

#[test]
fn an_invented_jump_in_time_is_noticed() {
    let (found, moment) = divergence(|events, at| {
        // Events of a slice come before it, so right behind the ninth is before those of the tenth.
        let ninth = events[..at]
            .iter()
            .rposition(|(_, e)| matches!(e, Event::Slice { .. }))
            .expect("nine slices");
        let icount = events[at].0;
        events.insert(ninth + 1, (icount, Event::TimeSkip { to_ns: 1 << 40 }));
    });
    assert_eq!((found.component.as_str(), found.icount), ("time", moment));
    assert_eq!(found.decision, 9);
    assert_eq!(found.expected, Fact::Jump(1 << 40));
    assert_eq!(found.found, Fact::Wait(Wait::Ready));
}
