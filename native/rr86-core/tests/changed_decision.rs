//! A trace in which one decision was changed: its replay is a divergence that says where and what.

use std::path::Path;

use rr86_core::record::{Event, Recorder, Stop, TraceWriter};
use rr86_core::replay::{Divergence, ReplayError, Replayer, TraceReader};
use rr86_core::schedule::{Conditions, Machine, MachineConfig, Policy, Scheduler};
use rr86_core::translate::engine::BlockLimits;
use rr86_core::translate::protocol::Protocol;

const ENTRY: u64 = 0x10_0000;
/// Two vCPUs count together and note what they saw, each in a place of its own:
///
/// ```text
/// again:  lock incl  0x200000
///         mov   0x200000, %eax
///         add   %eax, 0x200000(%ebx)
///         nop
///         jmp   again
/// ```
const PROGRAM: [u8; 21] = [
    0xf0, 0xff, 0x05, 0x00, 0x00, 0x20, 0x00, 0xa1, 0x00, 0x00, 0x20, 0x00, 0x01, 0x83, 0x00, 0x00,
    0x20, 0x00, 0x90, 0xeb, 0xeb,
];

fn machine() -> Machine {
    let mut machine = Machine::new(MachineConfig {
        memory: 16 << 20,
        vcpus: 2,
        cpuid: Vec::new(),
        msrs: Vec::new(),
        start_time: 0,
        fw_cfg: Vec::new(),
        fw_cfg_files: Vec::new(),
        tracking: true,
        blocks: BlockLimits {
            instructions: 3,
            capacity: 64,
            protocol: Protocol::named("precise").expect("a protocol"),
        },
    })
    .expect("a machine");
    machine.load(ENTRY, &PROGRAM).expect("RAM");
    for vcpu in 0..2 {
        let mut set = |name: &str, value| {
            machine.set_register(vcpu, name, value).expect(name);
        };
        for segment in ["cs", "ss", "ds", "es"] {
            set(segment, 8);
            set(&format!("{segment}_base"), 0);
            set(&format!("{segment}_limit"), 0xffff_ffff);
            let attr = if segment == "cs" { 0xc09b } else { 0xc093 };
            set(&format!("{segment}_attr"), attr);
        }
        set("cr0", 0x11);
        set("rflags", 2);
        set("rip", ENTRY);
        set("rbx", 64 + 64 * vcpu as u64);
        set("activity", 0);
    }
    machine
}

fn record(path: &Path) {
    let mut recorder = Recorder::new(machine(), Scheduler::new(Policy::Uniform, 5, 1000));
    recorder
        .record_to(path, b"", &[("kernel".to_string(), PROGRAM.into())])
        .expect("a trace");
    let stop = recorder
        .run(40_000, &mut Conditions::default())
        .expect("a run");
    assert_eq!(stop, Stop::Limit);
    recorder.finish(0, 0, "", b"").expect("a whole trace");
}

/// Copies a trace, with its events changed.
fn rewrite(from: &Path, to: &Path, change: impl FnOnce(&mut Vec<(u64, Event)>)) {
    let reader = TraceReader::open(from).expect("a trace");
    let mut events: Vec<_> = reader.stream().map(|e| e.expect("an event")).collect();
    change(&mut events);
    let images = [("kernel".to_string(), PROGRAM.into())];
    let mut writer = TraceWriter::create(to, reader.header(), &images).expect("a copy");
    for (icount, event) in &events {
        writer.push(*icount, event).expect("an event");
    }
    writer.finish(b"").expect("a whole copy");
}

fn replay(path: &Path) -> Result<Stop, ReplayError> {
    let reader = TraceReader::open(path).expect("a trace");
    Replayer::new(machine(), reader.stream(), true).run(u64::MAX, &mut Conditions::default())
}

/// The divergence of a recording after `change`, which gets the position of the tenth slice, and that
/// slice's moment.
fn divergence(change: impl FnOnce(&mut Vec<(u64, Event)>, usize)) -> (Divergence, u64) {
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
        Err(ReplayError::Divergence(divergence)) => (divergence, moment),
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
}
