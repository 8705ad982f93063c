//! Branches: recordings that begin at any moment of a replay, inside slices and windows too.

use std::path::{Path, PathBuf};

use rr86_core::cpu::semantics::Semantics;
use rr86_core::runtime::protocol::Protocol;
use rr86_core::runtime::translator::BlockLimits;
use rr86_core::session::{
    BranchError, BranchPoint, Condition, Conditions, Machine, MachineConfig, Policy, Recording,
    Replay, Scheduler, Session, Stop,
};
use rr86_core::trace::{format, Event, TraceReader};
use tempfile::TempDir;

const ENTRY: u64 = 0x10_0000;
/// ```text
/// again:  lock incl  0x200000
///         mov   0x200000, %eax
///         mov   %al, patch + 1
///         nop
///         jmp   patch
/// patch:  mov   $0, %cl
///         add   %ecx, 0x200000(%ebx)
///         jmp   again
/// ```
const PROGRAM: [u8; 30] = [
    0xf0, 0xff, 0x05, 0x00, 0x00, 0x20, 0x00, 0xa1, 0x00, 0x00, 0x20, 0x00, 0xa2, 0x15, 0x00, 0x10,
    0x00, 0x90, 0xeb, 0x00, 0xb1, 0x00, 0x01, 0x8b, 0x00, 0x00, 0x20, 0x00, 0xeb, 0xe2,
];
/// Where the program counts.
const COUNTER: u64 = 0x20_0000;
/// Instructions of the parent.
const LENGTH: u64 = 3000;

fn protocol(name: &str) -> Protocol {
    Protocol::named(name).expect("a protocol")
}

fn machine(name: &str) -> Machine {
    let mut machine = Machine::new(MachineConfig {
        memory: 4 << 20,
        vcpus: 2,
        cpuid: Vec::new(),
        msrs: Vec::new(),
        start_time: 0,
        semantics: Semantics::CURRENT,
        fw_cfg: Vec::new(),
        fw_cfg_files: Vec::new(),
        blocks: BlockLimits {
            instructions: 8,
            capacity: 64,
            protocol: protocol(name),
        },
        tracking: true,
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

struct Parent {
    folder: TempDir,
    name: &'static str,
    /// The machine's digests at its end, and when that was.
    end: (u64, Vec<(String, u64)>),
}

fn images() -> [(String, rr86_core::contents::Contents); 1] {
    [("kernel".to_owned(), (&PROGRAM[..]).into())]
}

fn run(session: &mut Session<Recording>, limit: u64) {
    let stop = session.run(limit, &mut Conditions::default());
    assert_eq!(stop.expect("a run"), Stop::Limit);
}

impl Parent {
    fn new(name: &'static str) -> Self {
        Self::with_windows(name, 0x8000)
    }

    fn with_windows(name: &'static str, bias: u32) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let scheduler = Scheduler::new(Policy::Random, 9, 40);
        let mut session = Session::record(machine(name), scheduler);
        session.machine.draw_windows(3, bias);
        let path = folder.path().join("parent");
        session.record_to(&path, b"", &images()).expect("a trace");
        for _ in 0..3 {
            session.console_input(b"key");
            run(&mut session, LENGTH / 3);
        }
        let end = (session.machine.engine.icount(), session.machine.digests());
        session.finish(2, 0, "", b"").expect("a whole trace");
        Self { folder, name, end }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn reader(&self) -> TraceReader {
        TraceReader::open(&self.path("parent")).expect("a trace")
    }

    /// A replay that stands before an instruction.
    fn replay_at(&self, icount: u64) -> Session<Replay> {
        let events = self.reader().stream();
        let mut replay = Session::replay(machine(self.name), events, true);
        go_to(&mut replay, icount);
        replay
    }

    fn branch(&self, point: &BranchPoint, seed: u64) -> Session<Recording> {
        let scheduler = Scheduler::new(Policy::Random, seed, 40);
        let mut branch = Session::branch(machine(self.name), point, scheduler).expect("a branch");
        branch.machine.draw_windows(seed, 0x8000);
        branch
    }
}

fn go_to(replay: &mut Session<Replay>, icount: u64) {
    let mut there = Conditions::new(vec![Condition::Icount(icount)]);
    let stop = replay.run(u64::MAX, &mut there).expect("a replay");
    assert_eq!(stop, Stop::Condition(0));
    assert_eq!(replay.machine.engine.icount(), icount);
}

/// Records a branch, and gives its end.
fn record(branch: &mut Session<Recording>, path: &Path) -> (u64, Vec<(String, u64)>) {
    branch.record_to(path, b"", &images()).expect("a trace");
    run(branch, LENGTH / 3);
    let end = (branch.machine.engine.icount(), branch.machine.digests());
    branch.finish(2, 0, "", b"").expect("a whole trace");
    end
}

/// Replays a trace from where it begins, verified.
fn replay(name: &str, path: &Path) -> Session<Replay> {
    let reader = TraceReader::open(path).expect("a trace");
    let replay = Session::from_beginning(machine(name), &reader, true);
    let mut replay = replay.expect("a beginning");
    let stop = replay.run(u64::MAX, &mut Conditions::default());
    assert_eq!(stop.expect("a replay"), Stop::End);
    replay
}

fn registers(machine: &mut Machine) -> Vec<Vec<(String, u64)>> {
    (0..2)
        .map(|v| machine.registers(v).expect("a vCPU"))
        .collect()
}

#[test]
fn a_branch_begins_at_any_moment_and_its_trace_replays_by_itself() {
    for name in ["precise", "qemu-7.2"] {
        let parent = Parent::new(name);
        let mut original = parent.replay_at(900);
        let (mut inside, mut inside_block, mut under_way) = (0, 0, 0);
        for icount in 901..960 {
            go_to(&mut original, icount);
            inside += usize::from(original.inside_slice());
            let engine = &original.machine.engine;
            inside_block += (0..2).filter(|&v| engine.inside_block(v).is_some()).count();
            under_way += usize::from(engine.has_under_way());
            let point = original.branch_point().expect("a moment");
            assert_eq!(point.icount, icount);
            let mut branch = parent.branch(&point, icount);
            assert_eq!(
                registers(&mut branch.machine),
                registers(&mut original.machine)
            );
            let (one, two) = (parent.path("one"), parent.path("two"));
            let end = record(&mut branch, &one);
            let mut again = parent.branch(&point, icount);
            assert_eq!(record(&mut again, &two), end);
            assert_eq!(std::fs::read(&one).unwrap(), std::fs::read(&two).unwrap());
            let mut replay = replay(name, &one);
            assert_eq!(
                (replay.machine.engine.icount(), replay.machine.digests()),
                end
            );
        }
        assert!(inside > 20 && inside_block > 20, "{inside} {inside_block}");
        assert_eq!(under_way > 0, name != "precise");
        // None of this has changed the replay that the moments are of.
        let stop = original.run(u64::MAX, &mut Conditions::default());
        assert_eq!(stop.expect("a replay"), Stop::End);
        assert_eq!(original.machine.digests(), parent.end.1);
    }
}

#[test]
fn a_branch_that_follows_the_recording_does_what_it_did() {
    for name in ["precise", "qemu-7.2"] {
        let parent = Parent::new(name);
        let mut original = parent.replay_at(1500);
        for icount in 1501..1560 {
            go_to(&mut original, icount);
            let point = original.branch_point().expect("a moment");
            let mut branch = parent.branch(&point, 1);
            branch
                .follow(&point, &parent.reader())
                .expect("a recording");
            let path = parent.path("same");
            branch.record_to(&path, b"", &images()).expect("a trace");
            run(&mut branch, parent.end.0 - icount);
            let end = (branch.machine.engine.icount(), branch.machine.digests());
            assert_eq!(end, parent.end, "{name}, from {icount}");
            // Behind the recording's end, the scheduler goes on.
            run(&mut branch, 100);
            branch.finish(2, 0, "", b"").expect("a whole trace");
            replay(name, &path);
        }
    }
}

#[test]
fn a_branch_of_a_branch_replays_by_itself_too() {
    let parent = Parent::new("qemu-7.2");
    let point = parent.replay_at(1003).branch_point().expect("a moment");
    let first = parent.path("first");
    record(&mut parent.branch(&point, 4), &first);
    let reader = TraceReader::open(&first).expect("a trace");
    let begun = Session::from_beginning(machine(parent.name), &reader, true);
    let mut replay_of_first = begun.expect("a beginning");
    go_to(&mut replay_of_first, 1300);
    let point = replay_of_first.branch_point().expect("a moment");
    let second = parent.path("second");
    let end = record(&mut parent.branch(&point, 5), &second);
    let mut replayed = replay(parent.name, &second);
    assert_eq!(replayed.machine.digests(), end.1);
}

#[test]
fn what_is_written_before_a_branch_runs_is_what_it_begins_with() {
    let parent = Parent::new("precise");
    let point = parent.replay_at(1000).branch_point().expect("a moment");
    let path = parent.path("written");
    let mut branch = parent.branch(&point, 4);
    // Over code: `mov $0, %cl` becomes `mov $0, %dl`.
    branch.change_memory(ENTRY + 20, &[0xb2]).expect("RAM");
    branch.change_memory(COUNTER, &[1, 2, 3, 4]).expect("RAM");
    let end = record(&mut branch, &path);
    assert!(branch.change_memory(COUNTER, &[0]).is_err(), "it has begun");
    let reader = TraceReader::open(&path).expect("a trace");
    let first = reader.beginning().expect("whole").expect("a checkpoint");
    assert_eq!((first.icount, first.chunk), (1000, 0));
    let begun = Session::from_beginning(machine("precise"), &reader, true);
    let mut bytes = [0; 4];
    let ram = &begun.expect("a beginning").machine.engine.memory.ram;
    ram.read(COUNTER, &mut bytes);
    assert_eq!(bytes, [1, 2, 3, 4]);
    ram.read(ENTRY + 20, &mut bytes[..1]);
    assert_eq!(bytes[0], 0xb2);
    // The block that had the old byte is gone: a new one is linked there.
    let linked = |event: &Event| match event {
        Event::Link(block) => block.paddr == ENTRY + 20,
        _ => false,
    };
    let events: Vec<_> = reader.stream().map(|e| e.expect("an event").1).collect();
    assert!(events.iter().any(linked));
    assert_eq!(replay("precise", &path).machine.digests(), end.1);
    let outside = parent
        .branch(&point, 4)
        .change_memory(u64::MAX - 1, &[0; 4]);
    assert!(matches!(outside, Err(BranchError::Machine(_))));
}

#[test]
fn a_branch_under_another_protocol_begins_without_blocks() {
    for (from, to) in [
        ("precise", "qemu-7.2"),
        ("qemu-7.2", "precise"),
        ("qemu-7.2", "qemu-10"),
    ] {
        let parent = Parent::new(from);
        let mut original = parent.replay_at(1000);
        for icount in 1001..1030 {
            go_to(&mut original, icount);
            let point = original.branch_point().expect("a moment");
            let path = parent.path("changed");
            let mut branch = parent.branch(&point, 4);
            branch.change_protocol(protocol(to)).expect("a beginning");
            assert!(branch.machine.engine.blocks().is_empty());
            let end = record(&mut branch, &path);
            assert_eq!(replay(to, &path).machine.digests(), end.1);
        }
    }
}

#[test]
fn a_store_under_way_is_committed_under_another_protocol_too() {
    // Stores' windows are drawn more rarely than others.
    let parent = Parent::with_windows("qemu-7.2", 0x8000 << 8);
    let mut original = parent.replay_at(1000);
    let (mut kept, mut dropped) = (0, 0);
    for icount in 1001..1060 {
        go_to(&mut original, icount);
        if !original.machine.engine.has_under_way() {
            continue;
        }
        let point = original.branch_point().expect("a moment");
        let mut branch = parent.branch(&point, 4);
        branch
            .change_protocol(protocol("precise"))
            .expect("a beginning");
        if branch.machine.engine.has_under_way() {
            kept += 1;
        } else {
            dropped += 1;
        }
        run(&mut branch, 200);
        assert!(!branch.machine.engine.has_under_way());
    }
    assert!(kept > 0 && dropped > 0, "{kept} {dropped}");
}

#[test]
fn a_machine_that_has_been_used_forgets_its_own_memory() {
    let parent = Parent::new("precise");
    let point = parent.replay_at(1000).branch_point().expect("a moment");
    let mut used = machine("precise");
    used.load(0x30_0000, &[1; 5000]).expect("RAM");
    used.digests();
    let scheduler = Scheduler::new(Policy::Random, 4, 40);
    let branch = Session::branch(used, &point, scheduler).expect("a branch");
    let mut bytes = [9; 2];
    branch.machine.engine.memory.ram.read(0x30_0000, &mut bytes);
    assert_eq!(bytes, [0, 0]);
}

#[test]
fn a_checkpoint_behind_events_is_no_beginning() {
    let parent = Parent::new("precise");
    let path = parent.path("kept");
    let mut recorder = Session::record(machine("precise"), Scheduler::new(Policy::Random, 9, 40));
    recorder.set_checkpoints(300).expect("checkpoints");
    recorder.record_to(&path, b"", &images()).expect("a trace");
    run(&mut recorder, 1000);
    recorder.finish(2, 0, "", b"").expect("a whole trace");
    let mut bytes = std::fs::read(&path).expect("a file");
    let (major, minor) = format::AT_CHECKPOINT;
    bytes[..format::FILE_HEADER].copy_from_slice(&format::file_header(major, minor));
    std::fs::write(&path, &bytes).expect("a file");
    let reader = TraceReader::open(&path).expect("a trace");
    assert!(!reader.checkpoints().expect("checkpoints").is_empty());
    assert!(reader.beginning().is_err());
}

#[test]
fn checkpoints_of_a_branch_hold_what_changed_since_it_began() {
    let parent = Parent::new("precise");
    let point = parent.replay_at(1000).branch_point().expect("a moment");
    let path = parent.path("kept");
    let mut branch = parent.branch(&point, 4);
    // A page that does not change afterwards.
    branch.change_memory(0x30_0000, &[1]).expect("RAM");
    branch.record_to(&path, b"", &images()).expect("a trace");
    branch.set_checkpoints(300).expect("checkpoints");
    run(&mut branch, 1000);
    let end = branch.machine.digests();
    branch.finish(2, 0, "", b"").expect("a whole trace");
    let reader = TraceReader::open(&path).expect("a trace");
    let all = reader.checkpoints().expect("checkpoints");
    assert!(all.len() > 3, "{all:?}");
    assert!(all[1..].iter().all(|c| c.pages < all[0].pages), "{all:?}");
    for checkpoint in &all {
        let begun = Session::from_checkpoint(machine("precise"), &reader, checkpoint, true);
        let mut replay = begun.expect("a checkpoint");
        let stop = replay.run(u64::MAX, &mut Conditions::default());
        assert_eq!(stop.expect("a replay"), Stop::End);
        assert_eq!(replay.machine.digests(), end);
    }
}

#[test]
fn a_trace_without_the_checkpoint_at_which_it_begins_is_refused() {
    let parent = Parent::new("precise");
    let point = parent.replay_at(1000).branch_point().expect("a moment");
    let path = parent.path("cut");
    record(&mut parent.branch(&point, 4), &path);
    let whole = std::fs::read(&path).expect("a file");
    let state = (0..whole.len() - 5)
        .find(|&at| whole[at..at + 4] == *b"rr8c" && whole[at + 4] == 7)
        .expect("a piece of a state");
    for len in [state, state + 10, state + 60] {
        std::fs::write(&path, &whole[..len]).expect("a file");
        let reader = TraceReader::open(&path).expect("a trace");
        assert!(reader.beginning().is_err(), "{len}");
        assert!(Session::from_beginning(machine("precise"), &reader, true).is_err());
    }
}
