//! The translator against the host CPU: a sample of random cases, the kept ones, and systematic ones for what
//! the translator treats specially. All flags must be equal, the undefined ones included.

use std::collections::BTreeSet;
use std::path::Path;

use iced_x86::code_asm::*;
use iced_x86::IcedError;
use rr86_differential::case::{layout, Case, Entry, Subject};
use rr86_differential::compare::{compare, Verdict};
use rr86_differential::engine::{Setup, Translated};
use rr86_differential::forms::{Family, Forms, Model};
use rr86_differential::generate::Generator;
use rr86_differential::native::Native;
use rr86_differential::rng::Rng;
use rr86_differential::run::{Options, Run};
use rr86_differential::{state, text};

const ARENA: u64 = layout::ARENA;

fn setups() -> Vec<Setup> {
    let lengths = [64, 1, 3].map(|block_length| Setup {
        block_length,
        ..Setup::default()
    });
    let stretched = Setup {
        stretch: 2,
        ..Setup::default()
    };
    let watched = Setup {
        watched: true,
        ..Setup::default()
    };
    lengths.into_iter().chain([stretched, watched]).collect()
}

/// Runs cases that may write their own code on both sides, in every setup.
fn agree_in_writable_code(cases: &[Case]) {
    let mut native = Native::with_writable_code().unwrap();
    for setup in setups() {
        let setup = Setup {
            writable_code: true,
            ..setup
        };
        let mut subject = Translated::new(setup).unwrap();
        agree(cases, &mut native, &mut subject, &format!("{setup:?}"));
    }
}

/// Runs the cases on both sides and fails on the first difference.
fn agree(cases: &[Case], native: &mut Native, subject: &mut Translated, what: &str) {
    let expected = native.run_batch(cases);
    let got = subject.run_batch(cases);
    for (case, (expected, got)) in cases.iter().zip(expected.into_iter().zip(got)) {
        let expected = expected.unwrap_or_else(|error| panic!("{what}: {error}"));
        let got =
            got.unwrap_or_else(|error| panic!("{what}: {error}\n{}", text::disassemble(case)));
        match compare(case, &expected, &got, native) {
            Verdict::Equal => {}
            Verdict::UndefinedFlags(list) | Verdict::Different(list) => {
                panic!("{what}\n{}", text::report(case, &list))
            }
        }
    }
}

fn agree_everywhere(cases: &[Case], what: &str) {
    let mut native = Native::new().unwrap();
    for setup in setups() {
        let mut subject = Translated::new(setup).unwrap();
        agree(
            cases,
            &mut native,
            &mut subject,
            &format!("{what}, {setup:?}"),
        );
    }
}

fn blank(code_address: u64) -> Case {
    let mut rng = Rng::new(3);
    let mut gpr = [0; 16];
    for (number, value) in gpr.iter_mut().enumerate() {
        *value = 0x0101_0000_0000_0000 * number as u64 + rng.operand() % 0x1_0000_0000;
    }
    gpr[4] = ARENA + 0x6000;
    Case {
        seed: 0,
        code_address,
        code: Vec::new(),
        entry: Entry {
            gpr,
            rflags: 0x45,
            fs_base: ARENA,
            gs_base: ARENA + 0x100,
            fxsave: state::fxsave(&mut Rng::new(1), false),
        },
        arena: state::arena(&mut rng),
    }
}

fn assemble_at(
    code_address: u64,
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Case {
    let mut assembler = CodeAssembler::new(64).unwrap();
    write(&mut assembler).unwrap();
    let mut case = blank(code_address);
    case.code = assembler.assemble(code_address).unwrap();
    case
}

fn assemble(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Case {
    assemble_at(layout::CODE, write)
}

#[test]
fn random_cases_of_every_family_agree() {
    let forms = Forms::of(Model::default());
    let generator = Generator::new(&forms, &BTreeSet::from(Family::ALL), None);
    for (seed, setup) in setups().into_iter().enumerate() {
        let options = Options {
            seed: 40 + seed as u64,
            count: 2000,
            strict: true,
            ..Options::default()
        };
        let mut native = Native::new().unwrap();
        let mut subject = Translated::new(setup).unwrap();
        let mut lines = Vec::new();
        let summary = Run::new(options, &mut native, &mut subject)
            .all(&generator, &mut |line| lines.push(line.to_owned()));
        assert!(summary.is_clean(), "{setup:?}\n{}", lines.join("\n"));
        assert_eq!(summary.unusable, 0);
    }
}

#[test]
fn kept_cases_agree() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/differential/cases");
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "case")
        })
        .collect();
    names.sort();
    assert!(names.len() > 2);
    for path in names {
        let case = text::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        agree_everywhere(&[case], &path.display().to_string());
    }
}

/// How an instruction names its r/m operand.
#[derive(Clone, Copy)]
enum Rm {
    Register(u8),
    /// `[base + index * 2^scale + disp32]`
    Memory(u8, Option<(u8, u8)>, u32),
}

/// Bytes of a legacy instruction; `rex` forces a prefix where SPL to DIL are meant.
fn encode(word: bool, wide: bool, rex: bool, opcode: &[u8], reg: u8, rm: Rm) -> Vec<u8> {
    let mut bytes = Vec::new();
    if word {
        bytes.push(0x66);
    }
    let (base, index) = match rm {
        Rm::Register(number) => (number, 0),
        Rm::Memory(base, index, _) => (base, index.map_or(0, |(number, _)| number)),
    };
    let prefix = 0x40 | u8::from(wide) << 3 | reg >> 3 << 2 | index >> 3 << 1 | base >> 3;
    if rex || prefix != 0x40 {
        bytes.push(prefix);
    }
    bytes.extend_from_slice(opcode);
    let reg = (reg & 7) << 3;
    match rm {
        Rm::Register(number) => bytes.push(0xc0 | reg | number & 7),
        Rm::Memory(base, index, disp) => {
            bytes.push(0x84 | reg);
            let (index, scale) = index.unwrap_or((4, 0));
            bytes.push(scale << 6 | (index & 7) << 3 | base & 7);
            bytes.extend_from_slice(&disp.to_le_bytes());
        }
    }
    bytes
}

/// Opcodes with a byte operand in both places, and the immediate that follows.
const BYTE_FORMS: &[(&[u8], &[u8])] = &[
    (&[0x00], &[]),
    (&[0x0a], &[]),
    (&[0x10], &[]),
    (&[0x1a], &[]),
    (&[0x28], &[]),
    (&[0x32], &[]),
    (&[0x38], &[]),
    (&[0x84], &[]),
    (&[0x86], &[]),
    (&[0x88], &[]),
    (&[0x8a], &[]),
    (&[0x0f, 0xb0], &[]),
    (&[0x0f, 0xc0], &[]),
    (&[0x0f, 0x92], &[]),
    (&[0xc0], &[3]),
    (&[0xd0], &[]),
    (&[0xd2], &[]),
];

/// Opcodes with a 16-, 32- or 64-bit operand in both places, and the immediate that follows.
const WORD_FORMS: &[(&[u8], &[u8])] = &[
    (&[0x01], &[]),
    (&[0x13], &[]),
    (&[0x1b], &[]),
    (&[0x21], &[]),
    (&[0x3b], &[]),
    (&[0x83], &[0x85]),
    (&[0x87], &[]),
    (&[0x89], &[]),
    (&[0x8b], &[]),
    (&[0xc1], &[5]),
    (&[0xd3], &[]),
    (&[0x0f, 0xb1], &[]),
    (&[0x0f, 0xc1], &[]),
    (&[0x0f, 0xa3], &[]),
    (&[0x0f, 0xab], &[]),
    (&[0x0f, 0xba], &[0x2b]),
    (&[0x0f, 0xa4], &[7]),
    (&[0x0f, 0xa5], &[]),
    (&[0x0f, 0xad], &[]),
    (&[0x0f, 0xaf], &[]),
    (&[0x69], &[]),
    (&[0x6b], &[0x9c]),
    (&[0x63], &[]),
    (&[0x0f, 0xb6], &[]),
    (&[0x0f, 0xbf], &[]),
    (&[0x0f, 0xbc], &[]),
    (&[0x0f, 0xbd], &[]),
    (&[0x0f, 0x42], &[]),
    (&[0x0f, 0x47], &[]),
];

/// Whether an opcode takes an extension in place of its register, and the extensions that exist.
fn extensions(opcode: &[u8]) -> Option<&'static [u8]> {
    match opcode {
        [0x83] => Some(&[0, 1, 2, 3, 4, 5, 6, 7]),
        [0xc0 | 0xc1 | 0xd0..=0xd3] => Some(&[0, 1, 2, 3, 4, 5, 7]),
        [0x0f, 0xba] => Some(&[4, 5, 6, 7]),
        [0x0f, 0x92] => Some(&[0]),
        _ => None,
    }
}

fn registers(opcode: &[u8]) -> Vec<u8> {
    extensions(opcode).map_or_else(|| (0..16).collect(), <[u8]>::to_vec)
}

fn one(code: Vec<u8>, immediate: &[u8]) -> Case {
    let mut case = blank(layout::CODE);
    case.entry.gpr[4] = 0x1234_5678_9abc_def0;
    case.code = code;
    case.code.extend_from_slice(immediate);
    case
}

#[test]
fn byte_registers_agree_in_every_position() {
    let mut cases = Vec::new();
    for &(opcode, immediate) in BYTE_FORMS {
        for rex in [false, true] {
            for rm in 0..if rex { 16 } else { 8 } {
                for reg in registers(opcode) {
                    if !rex && reg >= 8 {
                        continue;
                    }
                    let code = encode(false, false, rex, opcode, reg, Rm::Register(rm));
                    cases.push(one(code, immediate));
                }
            }
        }
    }
    let mut native = Native::new().unwrap();
    let mut subject = Translated::new(Setup::default()).unwrap();
    agree(&cases, &mut native, &mut subject, "byte registers");
}

/// Opcode 69 has an immediate of the operand's size.
fn immediate(opcode: &[u8], word: bool, given: &[u8]) -> Vec<u8> {
    match opcode {
        [0x69] => vec![0x77; if word { 2 } else { 4 }],
        _ => given.to_vec(),
    }
}

#[test]
fn general_registers_agree_in_every_position() {
    let mut cases = Vec::new();
    for &(opcode, given) in WORD_FORMS {
        for (word, wide) in [(true, false), (false, false), (false, true)] {
            for rm in 0..16 {
                for reg in registers(opcode) {
                    let code = encode(word, wide, false, opcode, reg, Rm::Register(rm));
                    cases.push(one(code, &immediate(opcode, word, given)));
                }
            }
        }
    }
    let mut native = Native::new().unwrap();
    let mut subject = Translated::new(Setup::default()).unwrap();
    agree(&cases, &mut native, &mut subject, "general registers");
}

#[test]
fn memory_operands_agree_with_every_base_index_and_register() {
    let mut cases = Vec::new();
    let forms: [&[u8]; 10] = [
        &[0x8b],
        &[0x89],
        &[0x01],
        &[0x87],
        &[0x0f, 0xb1],
        &[0x0f, 0xc1],
        &[0x8d],
        &[0x0f, 0xab],
        &[0x86],
        &[0x0f, 0xb0],
    ];
    for opcode in forms {
        for base in 0..16 {
            for index in 0..16u8 {
                let scaled = (index != 4).then_some((index, (base + index) & 3));
                for reg in [0, 4, 10] {
                    let rm = Rm::Memory(base, scaled, (ARENA + 0x800) as u32);
                    let (word, wide) = [(false, true), (false, false), (true, false)]
                        [usize::from(base ^ index ^ reg) % 3];
                    let mut case = one(encode(word, wide, false, opcode, reg, rm), &[]);
                    for (number, value) in case.entry.gpr.iter_mut().enumerate() {
                        *value = 5 * number as u64;
                    }
                    cases.push(case);
                }
            }
        }
    }
    let mut native = Native::new().unwrap();
    let mut subject = Translated::new(Setup::default()).unwrap();
    agree(&cases, &mut native, &mut subject, "memory operands");
}

#[test]
fn accesses_across_pages_agree_wherever_they_are_cut() {
    let mut cases = Vec::new();
    let forms = BYTE_FORMS.iter().map(|form| (form, true));
    for (&(opcode, given), bytes) in forms.chain(WORD_FORMS.iter().map(|form| (form, false))) {
        for (word, wide) in [(true, false), (false, false), (false, true)] {
            // Into an ordinary page, the read-only one, out of it into a guard page, and out of that.
            for page in [1u64, 2, 3, 4, 5] {
                for before in 0..9 {
                    let reg =
                        extensions(opcode).map_or(9, |list| list[before as usize % list.len()]);
                    let rm = Rm::Memory(3, None, 0);
                    let code = encode(word, wide, bytes, opcode, reg, rm);
                    let mut case = one(code, &immediate(opcode, word, given));
                    case.entry.gpr[3] = ARENA + page * 0x1000 - before;
                    case.entry.gpr[9] = if before % 2 == 0 { 3 } else { 77 };
                    cases.push(case);
                }
            }
        }
    }
    let mut native = Native::new().unwrap();
    let mut subject = Translated::new(Setup::default()).unwrap();
    agree(&cases, &mut native, &mut subject, "page crossings");
}

#[test]
fn the_stack_pointer_as_an_operand_of_stack_instructions_agrees() {
    let target = layout::CODE + 0x20;
    let cases = [
        assemble(|a| {
            a.push(rsp)?;
            a.pop(r9)?;
            a.push(rsp)?;
            a.pop(rsp)?;
            a.push(sp)?;
            a.pop(sp)
        }),
        assemble(|a| {
            a.push(qword_ptr(rsp + 8))?;
            a.push(qword_ptr(rsp))?;
            a.pop(qword_ptr(rsp))?;
            a.pop(qword_ptr(rsp + 16))?;
            a.pop(qword_ptr(esp - 8))?;
            a.push(word_ptr(rsp + 2))?;
            a.pop(word_ptr(rsp + r9 * 1))
        }),
        assemble(|a| {
            a.push(0x7fff_ff00)?;
            a.push(-2)?;
            for register in [r9, r10, r11, r15, rax, rbp] {
                a.push(register)?;
            }
            for register in [r15, r11, r10, r9, rdx, rsi] {
                a.pop(register)?;
            }
            a.push(r10w)?;
            a.pop(r15w)
        }),
        assemble(|a| {
            a.xchg(rsp, r9)?;
            a.xadd(rsp, rsp)?;
            a.cmpxchg(rsp, rsp)?;
            a.xchg(rsp, rax)?;
            a.xadd(r15, r15)?;
            a.cmpxchg(r15, r15)?;
            a.xadd(rax, rax)?;
            a.cmpxchg(rax, rax)?;
            a.xchg(r9, r9)?;
            a.cmpxchg(al, ah)?;
            a.xadd(ah, al)?;
            a.xchg(ah, al)?;
            a.xadd(ch, ch)
        }),
        assemble(|a| {
            a.lea(rbp, qword_ptr(rsp - 0x100))?;
            a.leave()?;
            a.enter(0x20, 0)?;
            a.enter(0x20, 1)?;
            a.enter(0x40, 5)?;
            a.leave()?;
            a.leave()
        }),
        assemble(|a| {
            a.mov(qword_ptr(rsp), target as i32)?;
            a.call(qword_ptr(rsp))?;
            for _ in 0..0x40 {
                a.nop()?;
            }
            Ok(())
        }),
        assemble(|a| {
            a.mov(qword_ptr(rsp + 8), target as i32)?;
            a.jmp(qword_ptr(rsp + 8))?;
            for _ in 0..0x40 {
                a.nop()?;
            }
            Ok(())
        }),
        // With the pushed address in the place that the target was read from.
        assemble(|a| {
            a.mov(qword_ptr(rsp - 8), target as i32)?;
            a.call(qword_ptr(rsp - 8))?;
            for _ in 0..0x40 {
                a.nop()?;
            }
            Ok(())
        }),
        assemble(|a| {
            a.mov(rsp, target)?;
            a.call(rsp)?;
            a.nop()
        }),
        assemble(|a| {
            a.mov(rsp, ARENA + 0x4000)?;
            a.push(rax)
        }),
        assemble(|a| {
            a.mov(rsp, ARENA + 0x3000 - 4)?;
            a.pop(rsp)
        }),
        assemble(|a| {
            a.mov(rsp, 1u64 << 47)?;
            a.pop(rax)
        }),
        assemble(|a| {
            a.mov(rbp, 1u64 << 47)?;
            a.mov(rax, qword_ptr(rbp))
        }),
    ];
    agree_everywhere(&cases, "stack pointer");
}

#[test]
fn control_flow_across_pages_and_in_loops_agrees() {
    let middle = layout::CODE + layout::PAGE as u64;
    let mut cases = Vec::new();
    for before in 1..40 {
        cases.push(assemble_at(middle - before, |a| {
            let (mut again, mut function, mut done) =
                (a.create_label(), a.create_label(), a.create_label());
            a.mov(ecx, 5)?;
            a.set_label(&mut again)?;
            a.add(r15, rcx)?;
            a.call(function)?;
            a.jo(done)?;
            a.dec(ecx)?;
            a.jne(again)?;
            a.jmp(done)?;
            a.set_label(&mut function)?;
            a.push(r9)?;
            a.lea(r10, qword_ptr(r15 + r9 * 2 + 1))?;
            a.pop(r11)?;
            a.test(cl, 1)?;
            a.ret_1(0)?;
            a.set_label(&mut done)?;
            a.setbe(r9b)
        }));
        cases.push(assemble_at(middle - before, |a| {
            let mut again = a.create_label();
            a.mov(ecx, 3)?;
            a.set_label(&mut again)?;
            a.imul_2(r9, r10)?;
            a.loop_(again)?;
            a.mov(ecx, 9)?;
            let mut other = a.create_label();
            a.set_label(&mut other)?;
            a.cmp(ecx, 4)?;
            a.loopne(other)?;
            a.cmovg(r11, rcx)
        }));
    }
    agree_everywhere(&cases, "control flow");
}

#[test]
fn faults_inside_a_block_leave_exactly_what_went_before() {
    let guard = ARENA + 0x3000;
    let cases = [
        assemble(|a| {
            a.add(rax, rcx)?;
            a.mul(r9)?;
            a.mov(r10, qword_ptr(guard))?;
            a.mov(r9, r10)
        }),
        assemble(|a| {
            a.sub(r15, r9)?;
            a.xor(ecx, ecx)?;
            a.stc()?;
            a.div(ecx)?;
            a.inc(r15)
        }),
        assemble(|a| {
            a.cmp(r9, r10)?;
            a.movups(xmm0, xmmword_ptr(ARENA))?;
            a.movaps(xmm1, xmmword_ptr(ARENA + 8))
        }),
        assemble(|a| {
            a.std()?;
            a.shl(r11, 7)?;
            a.push(r11)?;
            a.xadd(qword_ptr(guard - 4096), r11)?;
            a.cld()
        }),
        assemble(|a| {
            a.mov(rdi, guard - 0x1000 - 0x40)?;
            a.mov(ecx, 0x1000)?;
            a.add(al, 0x7f)?;
            a.rep().stosq()
        }),
        assemble(|a| {
            a.mov(rsi, ARENA + 0x1000)?;
            a.mov(rdi, ARENA + 0x1004)?;
            a.mov(ecx, 0x100)?;
            a.rep().movsd()?;
            a.mov(rsi, guard - 0x10)?;
            a.mov(ecx, 0x30)?;
            a.rep().movsb()
        }),
    ];
    agree_everywhere(&cases, "faults");
}

#[test]
fn code_that_changes_itself_agrees() {
    // Each stores into the instruction that follows, into one that ran before, or across both.
    let mut cases = Vec::new();
    for distance in 0..3 {
        let pad = move |a: &mut CodeAssembler| -> Result<(), IcedError> {
            for _ in 0..distance {
                a.inc(r9)?;
            }
            Ok(())
        };
        cases.push(assemble(|a| {
            let mut place = a.create_label();
            a.lea(rbx, qword_ptr(place))?;
            a.add(r15, r9)?;
            a.mov(byte_ptr(rbx + 1), 0x55)?;
            pad(a)?;
            a.set_label(&mut place)?;
            a.mov(al, 1)?;
            a.adc(r10, rax)
        }));
        cases.push(assemble(|a| {
            let mut place = a.create_label();
            a.lea(rbx, qword_ptr(place))?;
            a.mov(r9d, 0x5544_33b8)?;
            a.cmp(r9, r10)?;
            a.xchg(dword_ptr(rbx), r9d)?;
            pad(a)?;
            a.set_label(&mut place)?;
            a.mov(eax, 0x1111_1111)?;
            a.adc(r10, rax)
        }));
        cases.push(assemble(|a| {
            let mut place = a.create_label();
            a.lea(rbx, qword_ptr(place))?;
            a.mov(ecx, 4)?;
            a.lea(rdi, qword_ptr(rbx + 1))?;
            a.mov(eax, 0x7a)?;
            a.rep().stosb()?;
            pad(a)?;
            a.set_label(&mut place)?;
            a.mov(edx, 0x1111_1111)
        }));
        cases.push(assemble(|a| {
            let mut place = a.create_label();
            a.lea(rbx, qword_ptr(place))?;
            a.movups(xmm3, xmmword_ptr(rbx))?;
            a.paddb(xmm3, xmm3)?;
            a.movups(xmm4, xmmword_ptr(rbx))?;
            a.pcmpeqd(xmm5, xmm5)?;
            a.psrldq(xmm5, 12)?;
            a.pslldq(xmm5, 1)?;
            a.pxor(xmm4, xmm5)?;
            a.movups(xmmword_ptr(rbx), xmm4)?;
            pad(a)?;
            a.set_label(&mut place)?;
            a.mov(edx, 0x1111_1111)?;
            a.mov(rax, 0x2222_2222_2222_2222u64)?;
            a.nop()
        }));
        cases.push(assemble(|a| {
            let mut place = a.create_label();
            a.lea(rsp, qword_ptr(place))?;
            a.lea(rsp, qword_ptr(rsp + 9))?;
            a.push(0x66)?;
            pad(a)?;
            a.set_label(&mut place)?;
            a.nop()?;
            a.mov(rax, 0x2222_2222_2222_2222u64)?;
            a.nop()
        }));
        // A loop whose body is another one in each turn.
        cases.push(assemble(|a| {
            let (mut again, mut place) = (a.create_label(), a.create_label());
            a.mov(ecx, 6)?;
            a.lea(rbx, qword_ptr(place))?;
            a.set_label(&mut again)?;
            a.inc(byte_ptr(rbx + 3))?;
            pad(a)?;
            a.set_label(&mut place)?;
            a.add(r10, 0x10)?;
            a.dec(ecx)?;
            a.jne(again)
        }));
        // The changed instruction lies in a block that this one jumps to.
        cases.push(assemble(|a| {
            let (mut again, mut place, mut next) =
                (a.create_label(), a.create_label(), a.create_label());
            a.mov(ecx, 6)?;
            a.lea(rbx, qword_ptr(place))?;
            a.set_label(&mut again)?;
            a.add(byte_ptr(rbx + 3), 3)?;
            pad(a)?;
            a.jmp(next)?;
            a.set_label(&mut next)?;
            a.inc(rdx)?;
            a.set_label(&mut place)?;
            a.add(r10, 0x10)?;
            a.dec(ecx)?;
            a.jne(again)
        }));
    }
    // The same across the page boundary.
    let middle = layout::CODE + layout::PAGE as u64;
    for before in 1..24 {
        cases.push(assemble_at(middle - before, |a| {
            let mut place = a.create_label();
            a.lea(rbx, qword_ptr(place))?;
            a.mov(dword_ptr(rbx + 1), 0x0102_0304)?;
            a.set_label(&mut place)?;
            a.mov(eax, 0x1111_1111)?;
            a.adc(r10, rax)
        }));
    }
    agree_in_writable_code(&cases);
}

#[test]
fn calls_that_push_onto_their_own_block_arrive() {
    let mut cases = Vec::new();
    // How far from the block's start the pushed address ends; the call itself is among what it hits.
    for end in [8, 12, 16, 19, 24] {
        for through in 0..4 {
            cases.push(assemble(|a| {
                let mut start = a.create_label();
                let mut target = a.create_label();
                a.lea(r9, qword_ptr(target))?;
                a.lea(rbx, qword_ptr(target))?;
                a.mov(qword_ptr(rbp), rbx)?;
                a.lea(rsp, qword_ptr(start))?;
                a.add(rsp, end)?;
                a.jmp(start)?;
                a.set_label(&mut start)?;
                a.inc(rax)?;
                a.lea(rdx, qword_ptr(rax + 3))?;
                a.nop()?;
                match through {
                    0 => a.call(target)?,
                    1 => a.call(rbx)?,
                    2 => a.call(r9)?,
                    _ => a.call(qword_ptr(rbp))?,
                }
                a.mov(ecx, 1)?;
                for _ in 0..16 {
                    a.nop()?;
                }
                a.set_label(&mut target)?;
                a.mov(esi, 2)?;
                a.nop()
            }));
        }
    }
    for case in &mut cases {
        case.entry.gpr[5] = ARENA + 0x5000;
    }
    agree_in_writable_code(&cases);
}

/// AMD's processors have a bit 17 in MXCSR, which the guest's has not (MXCSR_MASK is FFFFH).
#[test]
fn mxcsr_bits_that_only_some_makers_have_are_refused_on_all_hosts() {
    for bit in 16..32 {
        let mut case = assemble(|a| a.ldmxcsr(dword_ptr(ARENA as u32)));
        case.arena[..4].copy_from_slice(&(0x1f80u32 | 1 << bit).to_le_bytes());
        for setup in setups() {
            let outcome = Translated::new(setup).unwrap().run(&case).unwrap();
            let fault = outcome.fault.map(|fault| (fault.vector, fault.error_code));
            assert_eq!(fault, Some((13, 0)), "bit {bit}, {setup:?}");
            assert_eq!(outcome.fxsave[24..28], case.entry.fxsave[24..28]);
        }
    }
}
