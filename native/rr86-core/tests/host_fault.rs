//! Translated code that fails on the host: the run ends with an error that says where in the guest it was, and the
//! trace replays up to the slice in which it happened.

mod support;

use std::path::Path;

use rr86_core::runtime::signals::HostFault;
use rr86_core::session::{Conditions, Policy, Recording, Scheduler, Session, Stop};
use rr86_core::trace::{Event, TraceReader};
use support::{machine, PROGRAM};

/// The fourth instruction of the program, `nop`, begins its second block.
const NOP: u64 = 0x10_0012;
const JUMP: u64 = NOP + 1;

/// Records a run of which, after 20,000 instructions, the code of the instruction at `rip` begins with `code`.
fn record_with(path: &Path, rip: u64, code: &[u8]) -> (Session<Recording>, HostFault, u64) {
    let mut recorder = Session::record(machine(false), Scheduler::new(Policy::Uniform, 5, 1000));
    recorder
        .record_to(path, b"", &[("kernel".to_string(), (&PROGRAM[..]).into())])
        .expect("a trace");
    let mut conditions = Conditions::default();
    assert_eq!(
        recorder.run(20_000, &mut conditions).expect("a run"),
        Stop::Limit
    );
    let before = recorder.machine.engine.icount();
    recorder.machine.engine.plant(rip, code);
    assert_eq!(
        recorder.run(20_000, &mut conditions).expect("a run"),
        Stop::Failed
    );
    // It stays so.
    assert_eq!(
        recorder.run(20_000, &mut conditions).expect("a run"),
        Stop::Failed
    );
    let fault = recorder
        .machine
        .engine
        .host_fault()
        .expect("a failure")
        .clone();
    recorder.finish(9, 0, "", b"").expect("a whole trace");
    (recorder, fault, before)
}

/// An address that is mapped to a file behind the file's end: SIGBUS is what an access raises.
fn beyond_a_file() -> u64 {
    // SAFETY: makes an empty file and a mapping of it, which nothing but the code under test touches.
    unsafe {
        let file = libc::memfd_create(c"empty".as_ptr(), libc::MFD_CLOEXEC);
        assert!(file >= 0, "a file");
        let null = std::ptr::null_mut();
        let at = libc::mmap(null, 4096, libc::PROT_READ, libc::MAP_SHARED, file, 0);
        assert_ne!(at, libc::MAP_FAILED, "a mapping");
        at as u64
    }
}

#[test]
fn a_failure_of_each_kind_names_the_instruction_and_the_trace_replays_up_to_it() {
    let beyond = [
        &[0x48, 0xb8][..],
        &beyond_a_file().to_le_bytes(),
        &[0x8b, 0x00],
    ]
    .concat();
    let kinds: [(&str, &[u8], u64); 6] = [
        ("#UD", &[0x0f, 0x0b], 6),                          // ud2
        ("#BP", &[0xcc], 3),                                // int3
        ("#DB", &[0xf1], 1),                                // int1
        ("#PF", &[0x48, 0x31, 0xc0, 0x48, 0x8b, 0x00], 14), // xor rax, rax; mov rax, [rax]
        ("#DE", &[0x31, 0xc9, 0xf7, 0xf1], 0),              // xor ecx, ecx; div ecx
        ("#PF", &beyond, 14),                               // mov rax, ...; mov eax, [rax]
    ];
    let folder = tempfile::tempdir().expect("a folder");
    for (number, (name, code, vector)) in kinds.into_iter().enumerate() {
        let path = folder.path().join(number.to_string());
        let (recorder, fault, before) = record_with(&path, JUMP, code);
        assert_eq!(fault.vector, vector, "{fault}");
        let place = fault.place.clone().expect("a block");
        assert_eq!(
            (place.rip, &place.bytes[..]),
            (JUMP, &[0xeb, 0xeb][..]),
            "{fault}"
        );
        assert_eq!((place.block_rip, place.code_bits), (NOP, 32), "{fault}");
        let text = fault.to_string();
        assert!(
            text.contains(&format!("raised {name} on the host")),
            "{text}"
        );
        assert!(text.contains("rip 0x100013, bytes eb eb (block "), "{text}");
        assert!(!text.contains('\n'), "{text}");
        // The state is that of the instruction: four of the five have run.
        let cpu = recorder.machine.engine.cpu(usize::from(fault.vcpu));
        assert_eq!(cpu.rip, JUMP, "{fault}");
        assert!((before..before + 20).contains(&fault.icount), "{fault}");

        let reader = TraceReader::open(&path).expect("a trace");
        let events: Vec<_> = reader.stream().map(|e| e.expect("an event")).collect();
        let (end, last) = events.last().expect("events");
        assert!(matches!(last, Event::Stop { reason: 9, .. }), "{last:?}");
        let mut replayer = Session::replay(machine(false), reader.stream(), true);
        let stop = replayer.run(u64::MAX, &mut Conditions::default());
        assert_eq!(stop.expect("a replay"), Stop::End);
        assert_eq!(replayer.machine.engine.icount(), *end);
        assert!(*end <= fault.icount && *end >= before);
    }
}

#[test]
fn a_jump_out_of_the_code_ends_the_run_too() {
    let folder = tempfile::tempdir().expect("a folder");
    // xor eax, eax; jmp rax
    let (_, fault, _) = record_with(&folder.path().join("x"), NOP, &[0x31, 0xc0, 0xff, 0xe0]);
    assert_eq!((fault.vector, fault.address, &fault.place), (14, 0, &None));
    assert!(fault.to_string().contains("outside of any block"));
}

#[test]
fn a_replay_in_which_code_fails_ends_in_the_same_way() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x");
    support::record(&path);
    let reader = TraceReader::open(&path).expect("a trace");
    let mut replayer = Session::replay(machine(false), reader.stream(), true);
    replayer.machine.engine.plant(NOP, &[0x0f, 0x0b]);
    let stop = replayer.run(u64::MAX, &mut Conditions::default());
    assert_eq!(stop.expect("a replay"), Stop::Failed);
    let fault = replayer.machine.engine.host_fault().expect("a failure");
    assert_eq!((fault.vector, fault.icount), (6, 3), "{fault}");
}
