//! Every shortcut where its conditions end: accesses around the borders of pages and lines, into pages that cannot be
//! touched and into the code that is running, by code that ends at a page's end, stopped at every instruction. With
//! and without the shortcut, everything must be the same: state, instructions, marked lines, blocks and memory.

use iced_x86::code_asm::*;
use iced_x86::IcedError;
use rr86_core::runtime::observers::Observed;
use rr86_core::translate::shortcuts::Shortcuts;
use rr86_differential::case::{layout, Case, Entry, Outcome, Subject};
use rr86_differential::compare::{compare, Verdict};
use rr86_differential::engine::{Setup, Translated};
use rr86_differential::native::Native;
use rr86_differential::rng::Rng;
use rr86_differential::{state, text};

const CASES: u64 = 400;
const PAGE: u64 = layout::PAGE as u64;
const LINE: u64 = 64;
/// What addresses are made of. R10 and R11 live in memory, as RAX does.
const BASES: [AsmRegister64; 6] = [rsi, rdi, rbx, rbp, r10, r11];
const DATA: [AsmRegister64; 5] = [rax, rdx, r8, r12, r15];
const DATA32: [AsmRegister32; 5] = [eax, edx, r8d, r12d, r15d];
const DATA16: [AsmRegister16; 5] = [ax, dx, r8w, r12w, r15w];
const DATA8: [AsmRegister8; 5] = [al, dl, r8b, r12b, r15b];
const VECTORS: [AsmRegisterXmm; 3] = [xmm0, xmm1, xmm9];

/// Neighbours of each other more often than not, so that accesses share a check.
fn address(rng: &mut Rng, base: AsmRegister64) -> AsmMemoryOperand {
    let displacement = rng.pick(&[0, 0, 1, 4, 8, -8, 16, 24, -16, 31, 56, -64, 128]);
    if rng.chance(15) {
        base + rcx * rng.pick(&[1, 2, 4, 8]) + displacement
    } else {
        base + displacement
    }
}

fn access(a: &mut CodeAssembler, rng: &mut Rng, base: AsmRegister64) -> Result<(), IcedError> {
    let at = address(rng, base);
    let number = rng.below(5) as usize;
    let (data, data32) = (DATA[number], DATA32[number]);
    let (data16, data8) = (DATA16[number], DATA8[number]);
    let vector = rng.pick(&VECTORS);
    match rng.below(30) {
        0 | 1 => a.mov(data, qword_ptr(at)),
        2 => a.mov(data32, dword_ptr(at)),
        3 => a.movzx(data32, byte_ptr(at)),
        4 => a.movsx(data, word_ptr(at)),
        5 => a.mov(data16, word_ptr(at)),
        6 | 7 => a.mov(qword_ptr(at), data),
        8 => a.mov(dword_ptr(at), data32),
        9 => a.mov(word_ptr(at), data16),
        10 => a.mov(byte_ptr(at), data8),
        11 => a.mov(dword_ptr(at), 0x1234_5678),
        12 => a.add(qword_ptr(at), data),
        13 => a.adc(dword_ptr(at), data32),
        14 => a.sbb(data16, word_ptr(at)),
        15 => a.cmp(byte_ptr(at), data8),
        16 => a.lock().xadd(qword_ptr(at), data),
        17 => a.xchg(dword_ptr(at), data32),
        18 => a.cmpxchg8b(qword_ptr(at)),
        19 => a.cmpxchg16b(xmmword_ptr(at)),
        20 => a.movups(vector, xmmword_ptr(at)),
        21 => a.movups(xmmword_ptr(at), vector),
        22 => a.movaps(xmmword_ptr(at), vector),
        23 => a.movq(vector, qword_ptr(at)),
        24 => a.movsd_2(qword_ptr(at), vector),
        25 => a.push(qword_ptr(at)),
        26 => a.pop(qword_ptr(at)),
        27 => a.setc(byte_ptr(at)),
        28 => a.bts(dword_ptr(at), data32),
        _ => a.lock().dec(word_ptr(at)),
    }
}

fn other(a: &mut CodeAssembler, rng: &mut Rng) -> Result<(), IcedError> {
    let (one, two) = (rng.pick(&DATA), rng.pick(&DATA));
    let base = rng.pick(&BASES);
    match rng.below(14) {
        0 => a.push(one),
        1 => a.pop(two),
        2 => a.add(rsp, rng.pick(&[8, -8, 16, -24])),
        3 => a.add(base, rng.pick(&[8, -8, 1, 64, -64, 4096])),
        4 => a.lea(base, qword_ptr(base + 16)),
        5 => a.xchg(rng.pick(&BASES), base),
        6 => a.adc(one, two),
        7 => a.imul_2(one, two),
        8 => a.rol(one, 5),
        9 => a.mov(rcx, rng.below(9)),
        10 => a.mulsd(rng.pick(&VECTORS), xmm1),
        11 => a.movsq(),
        12 => a.stosd(),
        _ => a.inc(two),
    }
}

/// A place around a border: of a page of the arena, or, when it may be written, of the code.
fn place(rng: &mut Rng, changing: bool) -> u64 {
    let near = rng.below(48).wrapping_sub(24);
    let border = match rng.below(10) {
        0..=5 => layout::ARENA + PAGE * rng.below(8),
        6 | 7 => layout::ARENA + LINE * rng.below(7 * PAGE / LINE),
        8 if changing => layout::CODE + PAGE,
        _ => layout::ARENA + PAGE,
    };
    border.wrapping_add(near)
}

fn random_case(seed: u64, changing: bool) -> Case {
    let mut rng = Rng::new(seed);
    let mut a = CodeAssembler::new(64).unwrap();
    let mut again = a.create_label();
    let turns = if rng.chance(50) { 1 } else { 2 + rng.below(6) };
    a.set_label(&mut again).unwrap();
    let mut base = rng.pick(&BASES);
    for _ in 0..2 + rng.below(12) {
        if rng.chance(70) {
            access(&mut a, &mut rng, base).unwrap();
        } else {
            other(&mut a, &mut rng).unwrap();
        }
        if rng.chance(25) {
            base = rng.pick(&BASES);
        }
    }
    a.dec(r14).unwrap();
    a.jne(again).unwrap();
    let mut gpr = [0u64; 16];
    for value in &mut gpr {
        *value = rng.operand();
    }
    for register in [3, 5, 6, 7, 10, 11] {
        gpr[register] = place(&mut rng, changing);
    }
    (gpr[1], gpr[14]) = (rng.below(9), turns);
    gpr[4] = if rng.chance(50) {
        layout::ARENA + 0x6000 + rng.below(17) * 8
    } else {
        layout::ARENA + 0x5800
    };
    let length = a.assemble(layout::CODE).unwrap().len() as u64;
    let end = layout::CODE + PAGE;
    let code_address = match rng.below(3) {
        0 => layout::CODE + rng.below(64),
        1 => end - length,
        _ => end - rng.below(length + 1),
    };
    Case {
        seed,
        code_address,
        code: a.assemble(code_address).unwrap(),
        entry: Entry {
            gpr,
            rflags: 0x45,
            fs_base: layout::ARENA,
            gs_base: layout::ARENA + 0x100,
            fxsave: state::fxsave(&mut rng, false),
        },
        arena: state::arena(&mut rng),
    }
}

/// All that a case leaves behind.
#[derive(Debug, PartialEq)]
struct Course {
    outcome: Outcome,
    instructions: u64,
    lines: Vec<u64>,
    observed: Vec<(u64, Observed)>,
    ram: u64,
    blocks: u64,
}

fn follow(subject: &mut Translated, case: &Case, stretch: u64) -> Course {
    subject.prepare(case).unwrap();
    let start = subject.engine().icount();
    // Out of step with blocks, so that stops come at ever other places of them.
    while !subject.step(stretch, true).unwrap() {}
    Course {
        outcome: subject.outcome(case).unwrap(),
        instructions: subject.engine().icount() - start,
        lines: subject.take_lines(),
        observed: subject.take_observed(),
        ram: subject.ram_digest(),
        blocks: subject.engine().blocks().digest(),
    }
}

/// Each shortcut taken away from all of them, and each alone.
fn sets() -> Vec<(&'static str, Shortcuts)> {
    let mut sets = vec![("none", without(|_| true)), ("all", Shortcuts::ALL)];
    for (name, _) in Shortcuts::NAMES {
        sets.push((name, without(|other| other == name)));
        sets.push((name, without(|other| other != name)));
    }
    sets
}

fn without(taken: impl Fn(&str) -> bool) -> Shortcuts {
    let names = Shortcuts::NAMES.map(|(name, _)| name);
    Shortcuts::without(names.into_iter().filter(|name| taken(name))).unwrap()
}

#[test]
fn no_shortcut_shows_at_the_borders_of_pages_and_lines() {
    for changing in [false, true] {
        let cases: Vec<Case> = (0..CASES).map(|seed| random_case(seed, changing)).collect();
        for stretch in [1_000_000, 1, 5] {
            let mut expected: Vec<Course> = Vec::new();
            for (name, shortcuts) in sets() {
                let mut subject = Translated::new(Setup {
                    writable_code: changing,
                    tracking: true,
                    hot: Some(1),
                    shortcuts,
                    ..Setup::default()
                })
                .unwrap();
                for (number, case) in cases.iter().enumerate() {
                    let got = follow(&mut subject, case, stretch);
                    match expected.get(number) {
                        None => expected.push(got),
                        Some(expected) => assert!(
                            got == *expected,
                            "{name} {shortcuts:?}, changing {changing}, stretch {stretch}\n{}",
                            text::disassemble(case)
                        ),
                    }
                }
            }
        }
    }
}

#[test]
fn accesses_at_the_borders_of_pages_and_lines_agree_with_the_host() {
    for changing in [false, true] {
        let cases: Vec<Case> = (0..3 * CASES)
            .map(|seed| random_case(seed, changing))
            .collect();
        let mut native = if changing {
            Native::with_writable_code().unwrap()
        } else {
            Native::new().unwrap()
        };
        let expected = native.run_batch(&cases);
        let mut faults = 0;
        for stretch in [0, 1] {
            let setup = Setup {
                writable_code: changing,
                stretch,
                ..Setup::default()
            };
            let mut subject = Translated::new(setup).unwrap();
            for (case, expected) in cases.iter().zip(&expected) {
                let expected = expected.as_ref().unwrap();
                let got = subject.run(case).unwrap();
                faults += u64::from(got.fault.is_some());
                match compare(case, expected, &got, &mut native) {
                    Verdict::Equal => {}
                    Verdict::UndefinedFlags(list) | Verdict::Different(list) => {
                        panic!("{setup:?}\n{}", text::report(case, &list))
                    }
                }
            }
        }
        // Both ends are tried: accesses that fault, and accesses that do not.
        assert!((CASES..5 * CASES).contains(&faults), "{faults}");
    }
}
