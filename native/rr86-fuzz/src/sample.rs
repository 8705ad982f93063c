//! Valid files to start from: recordings of two vCPUs that patch each other's code.

use std::path::Path;

use rr86_core::cpu::semantics::Semantics;
use rr86_core::runtime::protocol::Protocol;
use rr86_core::runtime::translator::BlockLimits;
use rr86_core::session::{
    Condition, Conditions, Machine, MachineConfig, Policy, Scheduler, Session,
};
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
    let mut machine = Machine::new(MachineConfig {
        memory: (PAGES as u64) << 12,
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
            protocol: Protocol::named(protocol).expect("a protocol"),
        },
        tracking: true,
    })
    .expect("a machine");
    machine.load(ENTRY, &PROGRAM).expect("RAM");
    for vcpu in 0..2 {
        let mut set = |name: &str, value| {
            machine.set_register(vcpu, name, value).expect("a register");
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
