//! Two vCPUs that count together, recorded; and copies of the recording with its events changed.

use std::path::Path;

use rr86_core::cpu::semantics::Semantics;
use rr86_core::runtime::protocol::Protocol;
use rr86_core::runtime::translator::BlockLimits;
use rr86_core::session::{Conditions, Machine, MachineConfig, Policy, Scheduler, Session, Stop};
use rr86_core::trace::{Event, TraceReader, TraceWriter};

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
pub const PROGRAM: [u8; 21] = [
    0xf0, 0xff, 0x05, 0x00, 0x00, 0x20, 0x00, 0xa1, 0x00, 0x00, 0x20, 0x00, 0x01, 0x83, 0x00, 0x00,
    0x20, 0x00, 0x90, 0xeb, 0xeb,
];

/// The machine at power-on, with or without the oracle.
pub fn machine(oracle: bool) -> Machine {
    let mut machine = Machine::new(MachineConfig {
        memory: 16 << 20,
        vcpus: 2,
        cpuid: Vec::new(),
        msrs: Vec::new(),
        start_time: 0,
        semantics: Semantics::CURRENT,
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
    if oracle {
        machine.engine.ask_oracle();
    }
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

/// Records some of the run.
#[allow(dead_code)] // Not every test that shares this file wants just this.
pub fn record(path: &Path) {
    let mut recorder = Session::record(machine(false), Scheduler::new(Policy::Uniform, 5, 1000));
    recorder
        .record_to(path, b"", &[("kernel".to_string(), (&PROGRAM[..]).into())])
        .expect("a trace");
    let stop = recorder
        .run(40_000, &mut Conditions::default())
        .expect("a run");
    assert_eq!(stop, Stop::Limit);
    recorder.finish(0, 0, "", b"").expect("a whole trace");
}

/// Copies a trace, with its events changed.
#[allow(dead_code)] // Not every test that shares this file rewrites traces.
pub fn rewrite(from: &Path, to: &Path, change: impl FnOnce(&mut Vec<(u64, Event)>)) {
    let reader = TraceReader::open(from).expect("a trace");
    let mut events: Vec<_> = reader.stream().map(|e| e.expect("an event")).collect();
    change(&mut events);
    let images = [("kernel".to_string(), (&PROGRAM[..]).into())];
    let mut writer = TraceWriter::create(to, reader.header(), &images).expect("a copy");
    for (icount, event) in &events {
        writer.push(*icount, event).expect("an event");
    }
    writer.finish(b"").expect("a whole copy");
}
