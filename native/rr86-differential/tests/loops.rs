//! Loops of one block against the host CPU, and with and without their fast code: turns that cross pages, end
//! in pages that cannot be touched, go backwards, write what they read, and stop in the middle.

use iced_x86::code_asm::*;
use iced_x86::IcedError;
use rr86_core::translate::shortcuts::Shortcuts;
use rr86_differential::case::{layout, Case, Entry, Subject};
use rr86_differential::compare::{compare, Verdict};
use rr86_differential::engine::{Setup, Translated};
use rr86_differential::native::Native;
use rr86_differential::rng::Rng;
use rr86_differential::{state, text};

const CASES: u64 = 1500;
/// What addresses are made of; of those in memory, two.
const BASES: [AsmRegister64; 5] = [rsi, rdi, rbx, r9, r10];
const INDICES: [AsmRegister64; 2] = [rcx, r11];
/// What is computed with.
const DATA: [AsmRegister64; 4] = [rax, rdx, r8, r15];
const DATA32: [AsmRegister32; 4] = [eax, edx, r8d, r15d];
const STEPS: [i32; 14] = [1, -1, 2, 4, -4, 8, -8, 16, -16, 24, 48, 64, 96, 3];
const VECTORS: [AsmRegisterXmm; 3] = [xmm0, xmm1, xmm2];

/// The address of an access: a base, perhaps with an index.
fn address(rng: &mut Rng) -> AsmMemoryOperand {
    let base = rng.pick(&BASES);
    let displacement = rng.pick(&[0, 0, 8, -8, 16, 32, -64, 3]);
    if rng.chance(35) {
        base + rng.pick(&INDICES) * rng.pick(&[1, 2, 4, 8]) + displacement
    } else {
        base + displacement
    }
}

fn access(a: &mut CodeAssembler, rng: &mut Rng) -> Result<(), IcedError> {
    let at = address(rng);
    let (data, data32) = (rng.pick(&DATA), rng.pick(&DATA32));
    let vector = rng.pick(&VECTORS);
    match rng.below(16) {
        0 => a.mov(data, qword_ptr(at)),
        1 => a.mov(data32, dword_ptr(at)),
        2 => a.movzx(data32, byte_ptr(at)),
        3 => a.mov(qword_ptr(at), data),
        4 => a.mov(dword_ptr(at), data32),
        5 => a.mov(byte_ptr(at), al),
        6 => a.mov(word_ptr(at), dx),
        7 => a.add(qword_ptr(at), data),
        8 => a.xor(data, qword_ptr(at)),
        9 => a.adc(dword_ptr(at), data32),
        10 => a.movups(vector, xmmword_ptr(at)),
        11 => a.movups(xmmword_ptr(at), vector),
        12 => a.movaps(vector, xmmword_ptr(at)),
        13 => a.movaps(xmmword_ptr(at), vector),
        14 => a.paddd(vector, xmmword_ptr(at)),
        _ => a.addsd(vector, qword_ptr(at)),
    }
}

fn compute(a: &mut CodeAssembler, rng: &mut Rng) -> Result<(), IcedError> {
    let (one, two) = (rng.pick(&DATA), rng.pick(&DATA));
    match rng.below(7) {
        0 => a.add(one, two),
        1 => a.adc(one, 5),
        2 => a.imul_2(one, two),
        3 => a.shr(one, 3),
        4 => a.lea(one, qword_ptr(two + rsi * 2 + 7)),
        5 => a.setb(al),
        _ => a.pxor(rng.pick(&VECTORS), rng.pick(&VECTORS)),
    }
}

fn step(a: &mut CodeAssembler, rng: &mut Rng, register: AsmRegister64) -> Result<(), IcedError> {
    let by = rng.pick(&STEPS);
    match rng.below(4) {
        0 => a.sub(register, by),
        1 => a.lea(register, qword_ptr(register + by)),
        2 => a.inc(register),
        _ => a.add(register, by),
    }
}

/// Where the loop's code ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Anywhere,
    /// So many bytes from the end of a page; behind it when negative.
    FromPageEnd(i64),
}

const PLACES: [Place; 5] = [
    Place::Anywhere,
    Place::FromPageEnd(0),
    Place::FromPageEnd(1),
    Place::FromPageEnd(-1),
    Place::FromPageEnd(-2),
];

fn random_loop(seed: u64, place: Place) -> Case {
    let mut rng = Rng::new(seed);
    let mut a = CodeAssembler::new(64).unwrap();
    let mut again = a.create_label();
    let most = if rng.chance(30) { 12 } else { 700 };
    let turns = 1 + rng.below(most);
    a.set_label(&mut again).unwrap();
    for _ in 0..1 + rng.below(4) {
        access(&mut a, &mut rng).unwrap();
        if rng.chance(40) {
            compute(&mut a, &mut rng).unwrap();
        }
        if rng.chance(60) {
            let register = if rng.chance(75) {
                rng.pick(&BASES)
            } else {
                rng.pick(&INDICES)
            };
            step(&mut a, &mut rng, register).unwrap();
        }
    }
    // A counter of 64 or 32 bits, up or down.
    match rng.below(4) {
        0 => a.dec(rbp).and_then(|()| a.jne(again)),
        1 => a.sub(ebp, 1).and_then(|()| a.ja(again)),
        2 => {
            a.add(r12, 1).unwrap();
            a.cmp(r12, rbp).unwrap();
            a.jb(again)
        }
        _ => {
            a.add(r12d, 3).unwrap();
            a.cmp(r12d, ebp).unwrap();
            a.jl(again)
        }
    }
    .unwrap();
    let mut gpr = [0u64; 16];
    for value in &mut gpr {
        *value = rng.operand();
    }
    for register in [6, 7, 3, 9, 10] {
        let aligned = if rng.chance(70) { !15 } else { !0 };
        gpr[register] = layout::ARENA + (rng.below(layout::ARENA_SIZE as u64 - 64) & aligned);
    }
    for register in [1, 11] {
        gpr[register] = rng.below(64) * if rng.chance(80) { 16 } else { 1 };
    }
    (gpr[4], gpr[5], gpr[12]) = (layout::ARENA + 0x6000, turns, 0);
    let code = a.assemble(layout::CODE).unwrap();
    let code_address = match place {
        Place::Anywhere => layout::CODE,
        Place::FromPageEnd(bytes) => {
            let end = (layout::CODE + layout::PAGE as u64).wrapping_add_signed(-bytes);
            end - code.len() as u64
        }
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

#[test]
fn random_loops_agree_with_the_host() {
    let cases: Vec<Case> = (0..CASES)
        .map(|seed| random_loop(seed, PLACES[seed as usize % PLACES.len()]))
        .collect();
    let mut native = Native::new().unwrap();
    let expected = native.run_batch(&cases);
    let cut = Setup {
        stretch: 7,
        ..Setup::default()
    };
    for setup in [Setup::default(), cut] {
        let mut subject = Translated::new(setup).unwrap();
        for (case, expected) in cases.iter().zip(&expected) {
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

/// MXCSR_MASK on Intel's processors and on AMD's.
const MASKS: [u32; 2] = [0xffff, 0x2_ffff];

/// What FXSAVE shows of the last x87 instruction, as a guest has put it there.
fn with_pointers(mut case: Case) -> Case {
    let mut rng = Rng::new(case.seed);
    let pointers: Vec<u8> = (0..16).map(|_| rng.u64() as u8).collect();
    case.entry.fxsave[6..8].copy_from_slice(&0x123u16.to_le_bytes());
    case.entry.fxsave[8..24].copy_from_slice(&pointers);
    case
}

#[test]
fn the_fast_code_counts_and_marks_as_the_ordinary_code_does() {
    let without = Shortcuts::without(["loops"]).unwrap();
    for mask in MASKS {
        let mut subjects = [Shortcuts::default(), without].map(|shortcuts| {
            Translated::new(Setup {
                shortcuts,
                tracking: true,
                mxcsr_mask: Some(mask),
                ..Setup::default()
            })
            .unwrap()
        });
        for seed in 0..CASES {
            let place = PLACES[seed as usize % PLACES.len()];
            let case = with_pointers(random_loop(seed, place));
            let [fast, ordinary] = subjects.each_mut().map(|subject| {
                let before = subject.engine().icount();
                let outcome = subject.run(&case).unwrap();
                let instructions = subject.engine().icount() - before;
                (outcome, instructions, subject.take_lines())
            });
            assert_eq!(
                fast.1,
                ordinary.1,
                "instructions\n{}",
                text::disassemble(&case)
            );
            assert_eq!(fast.2, ordinary.2, "lines\n{}", text::disassemble(&case));
            assert!(fast.0 == ordinary.0, "{}", text::disassemble(&case));
            assert_eq!(fast.0.fxsave[28..32], 0xffffu32.to_le_bytes());
        }
    }
}
