//! Two vCPUs that count together, recorded; and copies of the recording with its events changed.

use std::path::Path;

use rr86_core::runtime::protocol::PRECISE;
use rr86_core::session::testing;
use rr86_core::session::{Conditions, Machine, Policy, Scheduler, Session, Stop};
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
    let config = testing::config(16 << 20, 2, 3, PRECISE);
    let mut machine = Machine::new(config).expect("a machine");
    if oracle {
        machine.engine.ask_oracle();
    }
    testing::prepare(&mut machine, ENTRY, &PROGRAM);
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
