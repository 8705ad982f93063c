//! Predictions that come true, come too late or are wrong.

use std::sync::{Arc, Mutex};

use super::*;
use crate::memory::ram::GuestRam;
use crate::runtime::cache::Blocks;
use crate::runtime::codebuf::CodeBuffer;
use crate::runtime::engine::Engine;
use crate::runtime::protocol::PRECISE;
use crate::session::{testing, Conditions, Policy, Scheduler, Session};

/// 64-bit code of the kernel.
const MODE: Mode = Mode(0x08b2);
const ENTRY: u64 = 0x10_0000;
/// add eax, 1; ret
const BYTES: [u8; 4] = [0x83, 0xc0, 0x01, 0xc3];

fn prediction(serial: u64, bytes: &[u8]) -> Prediction {
    Prediction {
        serial,
        linear: ENTRY,
        paddr: ENTRY,
        len: bytes.len() as u16,
        mode: MODE.0,
        digest: xxh3_64(bytes) as u32,
    }
}

fn settings() -> Settings {
    Settings {
        stubs: Stubs::default(),
        tracking: true,
        shortcuts: Shortcuts::ALL,
        offered: Offered::default(),
        limit: 64,
    }
}

fn ready(next: u64) -> Arc<ReadyBlocks> {
    Arc::new(ReadyBlocks::new(next))
}

/// What is ready for block 3 after the worker has seen these predictions.
fn after(
    ram: &GuestRam,
    next: u64,
    predictions: impl Iterator<Item = Option<Prediction>>,
) -> Option<Box<Translation>> {
    let ready = ready(next);
    let worker = Worker {
        predictions,
        ram: ram.reader(),
        mapping: CodeBuffer::new(1 << 20).unwrap().mapping(),
        populated: 1 << 20,
        settings: settings(),
        ready: ready.clone(),
        waiting: VecDeque::new(),
        held: None,
    };
    worker.run();
    ready.take(3)
}

fn translated(bytes: &[u8]) -> Translation {
    let mut scratch = Scratch::default();
    translate(&prediction(3, bytes), bytes, &settings(), &mut scratch).expect("a block")
}

#[test]
fn a_block_whose_bytes_are_there_is_translated() {
    let mut ram = GuestRam::new(2 << 20).unwrap();
    ram.page_mut(0x100)[..4].copy_from_slice(&BYTES);
    let made = after(&ram, 0, [Some(prediction(3, &BYTES))].into_iter()).expect("a translation");
    assert_eq!((made.count, made.closed), (2, true));
    assert_eq!(made.bytes, BYTES);
}

#[test]
fn a_block_is_translated_once_its_bytes_are_there() {
    let ram = Arc::new(Mutex::new(GuestRam::new(2 << 20).unwrap()));
    let (reader, mut asked) = (ram.lock().unwrap().reader(), 0);
    let writer = ram.clone();
    let predictions = std::iter::from_fn(move || {
        asked += 1;
        match asked {
            1 => Some(Some(prediction(3, &BYTES))),
            2..5 => Some(None),
            5 => {
                writer.lock().unwrap().page_mut(0x100)[..4].copy_from_slice(&BYTES);
                Some(None)
            }
            _ => None,
        }
    });
    let ready = ready(0);
    let worker = Worker {
        predictions,
        ram: reader,
        mapping: CodeBuffer::new(1 << 20).unwrap().mapping(),
        populated: 1 << 20,
        settings: settings(),
        ready: ready.clone(),
        waiting: VecDeque::new(),
        held: None,
    };
    worker.run();
    assert!(ready.take(3).is_some());
}

#[test]
fn a_prediction_that_comes_too_late_is_dropped() {
    let mut ram = GuestRam::new(2 << 20).unwrap();
    ram.page_mut(0x100)[..4].copy_from_slice(&BYTES);
    assert!(after(&ram, 4, [Some(prediction(3, &BYTES))].into_iter()).is_none());
}

#[test]
fn predictions_that_make_no_sense_are_dropped() {
    let ram = GuestRam::new(2 << 20).unwrap();
    let good = prediction(3, &BYTES);
    let bad = [
        Prediction { len: 0, ..good },
        Prediction { len: 4097, ..good },
        Prediction {
            mode: u32::MAX,
            ..good
        },
        Prediction {
            paddr: ENTRY + 4094,
            linear: ENTRY + 4094,
            ..good
        },
        Prediction {
            linear: ENTRY + 1,
            ..good
        },
        // 32-bit code does not lie above 4 GiB.
        Prediction {
            mode: 0x831,
            linear: 1 << 32,
            paddr: 0,
            ..good
        },
    ];
    assert!(after(&ram, 0, bad.into_iter().map(Some)).is_none());
}

#[test]
fn only_a_block_that_ends_by_itself_is_closed() {
    assert!(translated(&BYTES).closed);
    assert!(!translated(&BYTES[..3]).closed);
    // Sixty-four instructions are a whole block.
    assert!(translated(&[0x90; 64]).closed);
}

#[test]
fn code_is_for_a_block_of_the_same_bytes_place_and_mode_only() {
    let made = translated(&BYTES);
    let mut blocks = Blocks::new(1);
    let mut is_of = |rip, mode, bytes: &[u8], count| {
        let id = blocks.insert(rip, ENTRY, None, mode, bytes, count, std::iter::empty());
        made.is_of(blocks.get(id))
    };
    assert!(is_of(ENTRY, MODE, &BYTES, 2));
    assert!(!is_of(ENTRY + 4096, MODE, &BYTES, 2));
    assert!(!is_of(ENTRY, MODE.with_ac(true), &BYTES, 2));
    assert!(!is_of(ENTRY, MODE, &[0x83, 0xc0, 0x02, 0xc3], 2));
    assert!(!is_of(ENTRY, MODE, &BYTES[..3], 1));
}

/// A machine that adds 1 to EAX and stops, about whose first block this is ready.
fn run_with(bytes: &[u8]) -> (u64, u64) {
    // add eax, 1; hlt
    let program = [0x83, 0xc0, 0x01, 0xf4];
    let config = testing::config(16 << 20, 1, 64, PRECISE);
    let mut machine = testing::machine(config, ENTRY, &program);
    let mode = Mode::of(machine.engine.cpu(0));
    let engine: &mut Engine = &mut machine.engine;
    let settings = engine
        .translator
        .settings(engine.cache.stubs(), engine.tracking());
    let prediction = Prediction {
        mode: mode.0,
        ..prediction(0, bytes)
    };
    let mut scratch = Scratch::default();
    let ready = ready(0);
    let made = translate(&prediction, bytes, &settings, &mut scratch).expect("a block");
    ready.put(Box::new(made));
    engine.translator.set_ahead(Some(Ahead {
        ready,
        settings,
        thread: std::thread::spawn(|| ()),
        taken: None,
    }));
    let mut session = Session::record(machine, Scheduler::new(Policy::Uniform, 5, 1000));
    session
        .run(1000, &mut Conditions::default())
        .expect("a run");
    let engine = &session.machine.engine;
    (engine.cpu(0).gpr[0], engine.observers.stats.blocks_ahead)
}

#[test]
fn code_of_other_bytes_is_not_used() {
    assert_eq!(run_with(&[0x83, 0xc0, 0x01, 0xf4]), (1, 1));
    assert_eq!(run_with(&[0x83, 0xc0, 0x02, 0xf4]), (1, 0));
    assert_eq!(run_with(&[0x83, 0xc0, 0x01]), (1, 0));
}

#[test]
fn a_translation_whose_code_was_placed_is_not_given_out_again() {
    // The newest block needs code again when the code buffer has been full.
    let ready = ready(0);
    ready.put(Box::new(translated(&BYTES)));
    let used = ready.take(3).expect("a translation");
    ready.give_back(used);
    assert!(ready.take(3).is_none());
}
