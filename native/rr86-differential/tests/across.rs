//! Accesses across the border of two pages: against the host CPU, and made without Rust and with it.

use iced_x86::code_asm::*;
use iced_x86::IcedError;
use rr86_core::translate::shortcuts::Shortcuts;
use rr86_differential::case::{layout, Case, Entry, Subject};
use rr86_differential::compare::{compare, Verdict};
use rr86_differential::engine::{Setup, Translated};
use rr86_differential::native::Native;
use rr86_differential::rng::Rng;
use rr86_differential::{state, text};

const ARENA: u64 = layout::ARENA;
const PAGE: u64 = layout::PAGE as u64;

type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Reads,
    Stores,
    Both,
}
use Kind::{Both, Reads, Stores};

/// Accesses at RBX, with their sizes.
const ACCESSES: [(u64, Kind, Write); 29] = [
    (2, Reads, |a| a.mov(cx, word_ptr(rbx))),
    (4, Reads, |a| a.mov(r9d, dword_ptr(rbx))),
    (8, Reads, |a| a.mov(rax, qword_ptr(rbx))),
    (8, Reads, |a| a.adc(rdx, qword_ptr(rbx))),
    (8, Reads, |a| a.imul_2(r11, qword_ptr(rbx))),
    (16, Reads, |a| a.movups(xmm2, xmmword_ptr(rbx))),
    (16, Reads, |a| a.movdqu(xmm3, xmmword_ptr(rbx))),
    (10, Reads, |a| a.fld(tbyte_ptr(rbx))),
    (8, Reads, |a| a.addsd(xmm1, qword_ptr(rbx))),
    (2, Stores, |a| a.mov(word_ptr(rbx), dx)),
    (4, Stores, |a| a.mov(dword_ptr(rbx), 0x1234_5678)),
    (8, Stores, |a| a.mov(qword_ptr(rbx), r10)),
    (8, Stores, |a| a.mov(qword_ptr(rbx), -5)),
    (16, Stores, |a| a.movups(xmmword_ptr(rbx), xmm4)),
    (10, Stores, |a| {
        a.fld1()?;
        a.fstp(tbyte_ptr(rbx))
    }),
    (2, Stores, |a| a.add(word_ptr(rbx), 0x7fff)),
    (4, Stores, |a| a.sbb(dword_ptr(rbx), r8d)),
    (8, Stores, |a| a.neg(qword_ptr(rbx))),
    (8, Stores, |a| a.xchg(qword_ptr(rbx), rsi)),
    (8, Stores, |a| a.lock().xadd(qword_ptr(rbx), rdi)),
    (4, Stores, |a| a.lock().inc(dword_ptr(rbx))),
    (8, Stores, |a| a.lock().cmpxchg(qword_ptr(rbx), rcx)),
    (8, Stores, |a| a.lock().cmpxchg8b(qword_ptr(rbx))),
    (8, Stores, |a| a.shl(qword_ptr(rbx), cl)),
    (8, Reads, |a| a.cmp(qword_ptr(rbx), 7)),
    // Through the stack pointer: push, a row of them, call, and back.
    (8, Both, |a| {
        a.lea(rsp, qword_ptr(rbx + 8))?;
        a.push(r12)
    }),
    (8, Both, |a| {
        a.lea(rsp, qword_ptr(rbx + 16))?;
        a.push(r12)?;
        a.push(-3)?;
        a.pop(rsi)?;
        a.pop(r9)
    }),
    (8, Both, |a| {
        let mut there = a.create_label();
        a.lea(rsp, qword_ptr(rbx + 8))?;
        a.lea(r14, qword_ptr(there))?;
        a.call(r14)?;
        a.nop()?;
        a.set_label(&mut there)?;
        a.pop(rsi)
    }),
    (8, Both, |a| {
        let (mut there, mut behind) = (a.create_label(), a.create_label());
        a.lea(rsp, qword_ptr(rbx + 8))?;
        a.call(there)?;
        a.jmp(behind)?;
        a.set_label(&mut there)?;
        a.ret()?;
        a.set_label(&mut behind)?;
        a.nop()
    }),
];

/// On which sides of the border a case writes first, so that the TLB has these pages.
const BOTH_SIDES: &[i32] = &[-64, 64];
const NO_SIDE: &[i32] = &[];

/// Touches pages, and then makes an access, `before` bytes from the border at the start of a page of the arena,
/// twice.
fn case(write: Write, page: u64, before: u64, sides: &[i32]) -> Case {
    case_with(write, page, before, sides)
}

fn case_with(
    write: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
    page: u64,
    before: u64,
    sides: &[i32],
) -> Case {
    let mut a = CodeAssembler::new(64).unwrap();
    for &side in sides {
        a.lock().add(byte_ptr(rbp + side), 1).unwrap();
    }
    write(&mut a).unwrap();
    a.setb(byte_ptr(r13)).unwrap();
    write(&mut a).unwrap();
    let mut rng = Rng::new(page << 8 | before);
    let mut gpr = [0u64; 16];
    for value in &mut gpr {
        *value = rng.operand();
    }
    let border = ARENA + page * PAGE;
    (gpr[3], gpr[5]) = (border - before, border);
    (gpr[4], gpr[13]) = (ARENA + 0x6800, ARENA + 0x6400);
    Case {
        seed: 0,
        code_address: layout::CODE,
        code: a.assemble(layout::CODE).unwrap(),
        entry: Entry {
            gpr,
            rflags: 0x45,
            fs_base: ARENA,
            gs_base: ARENA + 0x100,
            fxsave: state::fxsave(&mut rng, false),
        },
        arena: state::arena(&mut rng),
    }
}

/// Every access at every place across the border at the start of `page`.
fn cases(page: u64, sides: &'static [i32]) -> Vec<Case> {
    cases_of(ACCESSES.iter(), page, sides)
}

fn cases_of<'a>(
    accesses: impl Iterator<Item = &'a (u64, Kind, Write)>,
    page: u64,
    sides: &'static [i32],
) -> Vec<Case> {
    accesses
        .flat_map(|&(size, _, write)| {
            (0..=size).map(move |before| case(write, page, before, sides))
        })
        .collect()
}

#[test]
fn accesses_across_pages_agree_with_the_host() {
    let mut all = cases(1, BOTH_SIDES);
    // Into the read-only page, out of it into a guard page, out of that, and without having been there. Of ten
    // bytes, hosts have stored eight when the others fault.
    for page in [2, 3, 4] {
        let whole = ACCESSES.iter().filter(|(size, ..)| *size != 10);
        all.extend(cases_of(whole, page, NO_SIDE));
    }
    all.extend(cases(6, NO_SIDE));
    let mut native = Native::new().unwrap();
    let expected = native.run_batch(&all);
    for (stretch, tracking) in [(0, false), (0, true), (1, true)] {
        let setup = Setup {
            stretch,
            tracking,
            ..Setup::default()
        };
        let mut subject = Translated::new(setup).unwrap();
        for (case, expected) in all.iter().zip(&expected) {
            let expected = expected.as_ref().unwrap();
            let got = subject.run(case).unwrap();
            match compare(case, expected, &got, &mut native) {
                Verdict::Equal => {}
                Verdict::UndefinedFlags(list) | Verdict::Different(list) => {
                    panic!("{setup:?}\n{}", text::report(case, &list))
                }
            }
        }
    }
}

/// With and without the shortcut.
fn subjects(setup: Setup) -> [Translated; 2] {
    let without = Shortcuts::without(["across"]).unwrap();
    [Shortcuts::default(), without].map(|shortcuts| {
        Translated::new(Setup {
            shortcuts,
            tracking: true,
            ..setup
        })
        .unwrap()
    })
}

#[test]
fn stores_across_pages_mark_both_lines_and_nothing_else() {
    let mut subjects = subjects(Setup::default());
    // The harness has written all pages: those that a case does not touch first are another's.
    for sides in [NO_SIDE, &[-64], &[64], BOTH_SIDES] {
        for page in [1, 2, 6] {
            for case in cases(page, if page == 2 { NO_SIDE } else { sides }) {
                let [quick, slow] = subjects.each_mut().map(|subject| {
                    let before = subject.engine().observers.stats().hand_offs;
                    let outcome = subject.run(&case).unwrap();
                    let hand_offs = subject.engine().observers.stats().hand_offs - before;
                    (outcome, hand_offs, subject.take_lines())
                });
                let what = text::disassemble(&case);
                assert_eq!(quick.1, slow.1, "hand-offs\n{what}");
                assert_eq!(quick.2, slow.2, "lines\n{what}");
                assert!(quick.0 == slow.0, "{what}");
            }
        }
    }
}

#[test]
fn a_page_with_code_is_not_written_unseen() {
    let setup = Setup {
        writable_code: true,
        ..Setup::default()
    };
    let mut subjects = subjects(setup);
    let border = layout::CODE + PAGE;
    for &(size, kind, write) in &ACCESSES {
        for before in 1..size {
            let both = |a: &mut CodeAssembler| {
                write(a)?;
                a.mov(r15, qword_ptr(rbp - 8))?;
                a.mov(rsi, qword_ptr(rbp))
            };
            let mut case = case_with(both, 1, before, BOTH_SIDES);
            (case.entry.gpr[3], case.entry.gpr[5]) = (border - before, border);
            let [quick, slow] = subjects.each_mut().map(|subject| {
                let before = subject.engine().observers.stats().slow_accesses;
                let outcome = subject.run(&case).unwrap();
                (
                    outcome,
                    subject.engine().observers.stats().slow_accesses - before,
                )
            });
            let what = text::disassemble(&case);
            assert!(quick.0 == slow.0, "{what}");
            if kind == Stores {
                assert_eq!(quick.1, slow.1, "{what}");
            }
        }
    }
}

/// How often a run calls Rust to access memory.
fn slow_accesses(subject: &mut Translated, case: &Case) -> u64 {
    let before = subject.engine().observers.stats().slow_accesses;
    subject.run(case).unwrap();
    subject.engine().observers.stats().slow_accesses - before
}

#[test]
fn pages_that_are_known_are_crossed_without_rust_and_watched_ones_are_not() {
    for watched in [false, true] {
        let mut subjects = subjects(Setup {
            watched,
            ..Setup::default()
        });
        for &(size, kind, write) in &ACCESSES {
            let inside = case(write, 1, 64, BOTH_SIDES);
            for before in 1..size {
                let case = case(write, 1, before, BOTH_SIDES);
                let [quick, slow] = subjects
                    .each_mut()
                    .map(|subject| [&inside, &case].map(|case| slow_accesses(subject, case)));
                let (what, spared) = (text::disassemble(&case), slow[1] - quick[1]);
                if !watched {
                    // No more than the same accesses inside of a page need.
                    assert_eq!(quick[0], quick[1], "{what}");
                }
                match kind {
                    Stores if watched => assert_eq!(spared, 0, "{what}"),
                    Both if watched => {}
                    _ => assert!(spared > 0, "{what}"),
                }
            }
        }
    }
}
