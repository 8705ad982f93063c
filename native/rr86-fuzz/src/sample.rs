//! Valid files to start from: recordings of two vCPUs that patch each other's code.

use std::path::Path;

use rr86_core::runtime::protocol::Protocol;
use rr86_core::session::testing;
use rr86_core::session::{Condition, Conditions, Machine, Policy, Scheduler, Session};
use rr86_core::trace::TraceReader;

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
/// Pages of the machine's RAM.
pub const PAGES: usize = 1024;

/// The sample machine at its start.
///
/// # Panics
/// When the host cannot run guests.
pub fn machine(protocol: &str) -> Machine {
    let protocol = Protocol::named(protocol).expect("a protocol");
    let config = testing::config((PAGES as u64) << 12, 2, 8, protocol);
    testing::machine(config, ENTRY, &PROGRAM)
}

/// Records a finished trace of so many instructions, with checkpoints.
///
/// # Panics
/// When it cannot be written.
pub fn record(path: &Path, protocol: &str, length: u64) {
    let scheduler = Scheduler::new(Policy::Random, 9, 40);
    let mut recorder = Session::record(machine(protocol), scheduler);
    recorder.machine.draw_windows(3, 0x8000);
    recorder
        .set_checkpoints(length / 2 + 1)
        .expect("checkpoints");
    let kernel: Vec<u8> = (0..300u32).flat_map(|n| (n * n).to_le_bytes()).collect();
    let images = [
        ("kernel".to_owned(), kernel.into()),
        ("initrd".to_owned(), b"small".into()),
    ];
    let header = b"\x81\xa4rr86\xa30.1";
    recorder.record_to(path, header, &images).expect("a trace");
    for _ in 0..4 {
        recorder.console_input(b"key");
        let mut none = Conditions::default();
        recorder.run(length / 4, &mut none).expect("a run");
    }
    recorder.finish(2, 0, "the end", b"\x80").expect("an end");
}

/// Records a branch of a trace that begins inside a slice.
///
/// # Panics
/// When the trace does not replay, or the branch cannot be written.
pub fn branch(parent: &Path, path: &Path, protocol: &str, length: u64) {
    let reader = TraceReader::open(parent).expect("a trace");
    let mut replayer = Session::replay(machine(protocol), reader.stream(), true);
    let mut there = Conditions::new(vec![Condition::Icount(length / 2 + 7)]);
    replayer.run(u64::MAX, &mut there).expect("a replay");
    let point = replayer.branch_point().expect("a moment");
    let scheduler = Scheduler::new(Policy::Random, 5, 40);
    let mut branch = Session::branch(machine(protocol), &point, scheduler).expect("a branch");
    branch.machine.draw_windows(3, 0x8000);
    let images = [("kernel".to_owned(), b"small".into())];
    let header = b"\x81\xa4rr86\xa30.1";
    branch.record_to(path, header, &images).expect("a trace");
    branch.set_checkpoints(length / 4).expect("checkpoints");
    let mut none = Conditions::default();
    branch.run(length / 2, &mut none).expect("a run");
    branch.finish(2, 0, "the end", b"\x80").expect("an end");
}

/// Expands a trace, with its stores.
///
/// # Panics
/// When the trace does not replay.
pub fn expand(trace: &Path, expansion: &Path) {
    let reader = TraceReader::open(trace).expect("a trace");
    let mut replayer = Session::replay(machine("precise"), reader.stream(), true);
    replayer.expand(&reader, expansion, true).expect("a file");
    let mut none = Conditions::default();
    replayer.run(u64::MAX, &mut none).expect("a replay");
    replayer.finish_expansion().expect("an expansion");
}
