//! The harness itself: the host CPU agrees with itself, and every kind of mistake is found.

use std::collections::BTreeSet;
use std::path::Path;

use iced_x86::code_asm::*;
use rr86_differential::case::{layout, Case, Entry, Fault, Outcome, Subject, SubjectError};
use rr86_differential::compare::{compare, decode, undefined_flags, Verdict};
use rr86_differential::flipped::{Flip, Flipped};
use rr86_differential::forms::{Family, Forms, Model};
use rr86_differential::generate::Generator;
use rr86_differential::minimise::minimise;
use rr86_differential::native::Native;
use rr86_differential::rng::Rng;
use rr86_differential::run::{Options, Run, Summary};
use rr86_differential::{state, text};

fn generator() -> Generator {
    Generator::new(
        &Forms::of(Model::default()),
        &BTreeSet::from(Family::ALL),
        None,
    )
}

fn case(assemble: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Case {
    let mut assembler = CodeAssembler::new(64).unwrap();
    assemble(&mut assembler).unwrap();
    let mut gpr = [0; 16];
    gpr[4] = layout::ARENA + 0x6000;
    Case {
        seed: 0,
        code_address: layout::CODE,
        code: assembler.assemble(layout::CODE).unwrap(),
        entry: Entry {
            gpr,
            rflags: 0,
            fs_base: layout::ARENA,
            gs_base: layout::ARENA + 0x100,
            fxsave: state::fxsave(&mut Rng::new(1), false),
        },
        arena: vec![0; layout::ARENA_SIZE],
    }
}

fn run(case: &Case) -> Outcome {
    Native::new().unwrap().run(case).unwrap()
}

fn run_cases(subject: &mut dyn Subject, options: Options) -> Summary {
    let mut native = Native::new().unwrap();
    let mut lines = Vec::new();
    let summary = Run::new(options, &mut native, subject)
        .all(&generator(), &mut |line| lines.push(line.to_owned()));
    if !summary.is_clean() || summary.unusable > 0 {
        println!("{}", lines.join("\n"));
    }
    summary
}

#[test]
fn two_children_of_the_host_agree_on_everything() {
    let options = Options {
        seed: 11,
        count: 6000,
        strict: true,
        ..Options::default()
    };
    let summary = run_cases(&mut Native::new().unwrap(), options);
    assert!(summary.is_clean(), "{summary}");
    assert_eq!(summary.unusable, 0);
}

#[test]
fn every_offered_form_is_executed() {
    let forms = Forms::of(Model::default()).offered.len() as u64;
    let options = Options {
        seed: 5,
        count: forms * 4,
        ..Options::default()
    };
    let summary = run_cases(&mut Native::new().unwrap(), options);
    let executed: BTreeSet<_> = summary.covered.union(&summary.reached).copied().collect();
    let missing: Vec<_> = summary.offered.difference(&executed).collect();
    assert!(missing.is_empty(), "{missing:?}");
    // Only the UD forms can do nothing but fault.
    let faulting = summary.offered.difference(&summary.covered).count();
    assert!(faulting <= 4, "{summary}");
}

#[test]
fn every_kind_of_mistake_is_found() {
    let mut native = Native::new().unwrap();
    let subject = case(|a| a.nop());
    let expected = native.run(&subject).unwrap();
    let flips = [
        Flip::Register(0),
        Flip::Register(4),
        Flip::Register(15),
        Flip::Rip,
        Flip::Flag(0),
        Flip::Flag(10),
        Flip::Flag(11),
        Flip::Fpu(0),
        Flip::Fpu(2),
        Flip::Fpu(4),
        Flip::Fpu(24),
        Flip::Fpu(32),
        Flip::Fpu(153),
        Flip::Fpu(160),
        Flip::Fpu(415),
        Flip::Memory(0),
        Flip::Memory(0x6fff),
        Flip::Fault,
    ];
    for flip in flips {
        let mut wrong = Flipped::new(Native::new().unwrap());
        wrong.what = Some(flip);
        let got = wrong.run(&subject).unwrap();
        let verdict = compare(&subject, &expected, &got, &mut native);
        assert!(
            matches!(verdict, Verdict::Different(_)),
            "{flip:?} passed as {verdict:?}"
        );
    }
}

#[test]
fn last_instruction_pointers_do_not_count() {
    let mut native = Native::new().unwrap();
    let subject = case(|a| a.nop());
    let expected = native.run(&subject).unwrap();
    for offset in [6, 8, 15, 16, 23, 28, 42] {
        let mut got = expected.clone();
        got.fxsave[offset] ^= 1;
        assert_eq!(
            compare(&subject, &expected, &got, &mut native),
            Verdict::Equal,
            "{offset}"
        );
    }
}

#[test]
fn a_seed_gives_the_same_case_again() {
    let (a, b) = (generator(), generator());
    for index in 0..50 {
        assert_eq!(a.case(9, index), b.case(9, index));
        assert_ne!(a.case(9, index), a.case(10, index));
    }
}

#[test]
fn a_case_survives_its_text_form() {
    let generator = generator();
    for index in 0..20 {
        let mut case = generator.case(3, index).unwrap();
        case.seed = 0;
        assert_eq!(text::parse(&text::render(&case, "a note")).unwrap(), case);
    }
    let error = text::parse("rax 1\narena 0x7fff 01 02\n").unwrap_err();
    assert_eq!(error.line, 2);
    assert!(text::parse("rxx 1").is_err());
}

#[test]
fn faults_are_raised_at_their_instruction_with_vector_code_and_address() {
    let guard = layout::ARENA + 0x3000;
    let fault = |vector: u8, code: u64, address: u64| {
        Some(Fault {
            vector,
            error_code: code,
            cr2: address,
        })
    };
    let second = layout::CODE + 1;

    let divide = case(|a| {
        a.nop()?;
        a.div(ecx)
    });
    assert_eq!(
        (run(&divide).rip, run(&divide).fault),
        (second, fault(0, 0, 0))
    );

    let load = case(|a| {
        a.nop()?;
        a.mov(eax, dword_ptr(guard))
    });
    assert_eq!(
        (run(&load).rip, run(&load).fault),
        (second, fault(14, 4, guard))
    );

    let store = case(|a| {
        a.nop()?;
        a.mov(dword_ptr(layout::ARENA + 0x1ffe), eax)
    });
    let outcome = run(&store);
    assert_eq!(
        (outcome.rip, outcome.fault),
        (second, fault(14, 7, layout::ARENA + 0x2000))
    );
    assert_eq!(
        outcome.arena, store.arena,
        "a store that faults changes nothing"
    );

    let mut wild = case(|a| a.mov(al, byte_ptr(rbx)));
    wild.entry.gpr[3] = 1 << 47;
    assert_eq!(run(&wild).fault, fault(13, 0, 0));

    let breakpoint = case(|a| a.int3());
    assert_eq!(
        (run(&breakpoint).rip, run(&breakpoint).fault),
        (second, fault(3, 0, 0))
    );

    let undefined = case(|a| a.ud2());
    assert_eq!(
        (run(&undefined).rip, run(&undefined).fault),
        (layout::CODE, fault(6, 0, 0))
    );

    let mut misaligned = case(|a| a.movaps(xmm0, xmmword_ptr(rbx)));
    misaligned.entry.gpr[3] = layout::ARENA + 8;
    assert_eq!(run(&misaligned).fault, fault(13, 0, 0));

    let mut unmasked = case(|a| a.divps(xmm0, xmm1));
    unmasked.entry.fxsave[24..28].copy_from_slice(&0u32.to_le_bytes());
    unmasked.entry.fxsave[160..192].fill(0);
    assert_eq!(run(&unmasked).fault, fault(19, 0, 0));
}

#[test]
fn a_case_that_reaches_its_end_has_no_fault() {
    let mut arithmetic = case(|a| {
        a.add(rax, rcx)?;
        a.mov(dword_ptr(rsp + 8), eax)?;
        a.mov(dl, byte_ptr(rdi).fs())?;
        a.mov(dh, byte_ptr(rdi).gs())
    });
    arithmetic.entry.gpr[0] = u64::MAX;
    arithmetic.entry.gpr[1] = 2;
    arithmetic.arena[0] = 0x11;
    arithmetic.arena[0x100] = 0x22;
    let outcome = run(&arithmetic);
    assert_eq!((outcome.rip, outcome.fault), (arithmetic.end(), None));
    assert_eq!(outcome.gpr[0], 1);
    assert_eq!(outcome.gpr[2], 0x2211);
    assert_eq!(outcome.rflags, 0x11, "CF and AF");
    assert_eq!(outcome.arena[0x6008..0x600c], [1, 0, 0, 0]);
}

#[test]
fn a_case_that_kills_its_child_or_hangs_does_not_spoil_the_others() {
    let mut native = Native::new().unwrap();
    let good = case(|a| a.mov(eax, 7));
    let enters_the_kernel = case(|a| a.syscall());
    let mut too_long = good.clone();
    too_long.code = vec![0x90; 3000];
    let outcomes = native.run_batch(&[
        good.clone(),
        enters_the_kernel,
        good.clone(),
        too_long,
        good.clone(),
    ]);
    assert!(
        matches!(outcomes[1], Err(SubjectError::Killed(_))),
        "{:?}",
        outcomes[1]
    );
    assert!(matches!(outcomes[3], Err(SubjectError::Malformed(_))));
    for index in [0, 2, 4] {
        assert_eq!(outcomes[index].as_ref().unwrap().gpr[0], 7);
    }
}

#[test]
fn undefined_flags_follow_the_count_of_a_shift() {
    const OF: u64 = 0x800;
    const AF: u64 = 0x10;
    let mut native = Native::new().unwrap();
    let shift = |count| {
        case(move |a| {
            a.mov(ecx, count)?;
            a.shl(rax, cl)
        })
    };
    for (count, expected) in [(0, 0), (1, AF), (2, AF | OF), (64, 0)] {
        let shift = shift(count);
        assert_eq!(
            undefined_flags(&shift, shift.end(), &mut native),
            expected,
            "count {count}"
        );
    }
    let repaired = case(|a| {
        a.mul(rcx)?;
        a.cmp(rax, rdx)
    });
    assert_eq!(undefined_flags(&repaired, repaired.end(), &mut native), 0);
    let repaired_on_one_path = case(|a| {
        let mut skip = a.create_label();
        a.xor(eax, eax)?;
        a.je(skip)?;
        a.cmp(rax, rdx)?;
        a.set_label(&mut skip)?;
        a.nop()
    });
    let end = repaired_on_one_path.end();
    assert_eq!(undefined_flags(&repaired_on_one_path, end, &mut native), AF);
}

/// Gets BSWAP wrong and nothing else.
struct WrongBswap(Native);

impl Subject for WrongBswap {
    fn run(&mut self, case: &Case) -> Result<Outcome, SubjectError> {
        let mut outcome = self.0.run(case)?;
        if decode(case)
            .iter()
            .any(|instruction| instruction.mnemonic() == iced_x86::Mnemonic::Bswap)
        {
            outcome.gpr[0] ^= 1;
        }
        Ok(outcome)
    }
}

#[test]
fn a_mismatch_is_reduced_to_its_instruction() {
    let mut native = Native::new().unwrap();
    let mut subject = WrongBswap(Native::new().unwrap());
    let long = case(|a| {
        a.add(rax, rcx)?;
        a.imul_2(rdx, rcx)?;
        a.bswap(rsi)?;
        a.pxor(xmm0, xmm1)?;
        a.push(rax)
    });
    let small = minimise(&long, &mut native, &mut subject, false);
    let left: Vec<_> = decode(&small)
        .iter()
        .map(|instruction| instruction.mnemonic())
        .filter(|&mnemonic| mnemonic != iced_x86::Mnemonic::Nop)
        .collect();
    assert_eq!(left, [iced_x86::Mnemonic::Bswap]);
    assert_eq!(small.entry.gpr, [0; 16]);
}

#[test]
fn kept_cases_replay_equal() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/differential/cases");
    let mut native = Native::new().unwrap();
    let mut again = Native::new().unwrap();
    let mut count = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "case") {
            continue;
        }
        let case = text::parse(&std::fs::read_to_string(&path).unwrap())
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let expected = native.run(&case).unwrap();
        let got = again.run(&case).unwrap();
        let verdict = compare(&case, &expected, &got, &mut native);
        assert_eq!(verdict, Verdict::Equal, "{}", path.display());
        count += 1;
    }
    assert!(count > 0, "there are kept cases");
}

#[test]
fn every_way_to_name_an_operand_occurs() {
    use iced_x86::{OpKind, Register};
    let generator = generator();
    let mut seen = BTreeSet::new();
    for index in 0..4000 {
        let case = generator.case(1, index).unwrap();
        let middle = layout::CODE + layout::PAGE as u64;
        if case.code_address < middle && case.end() > middle {
            seen.insert("code across a page".to_owned());
        }
        for instruction in decode(&case) {
            if instruction.has_lock_prefix() {
                seen.insert("lock".to_owned());
            }
            if instruction.has_rep_prefix() {
                seen.insert("rep".to_owned());
            }
            if instruction.has_repne_prefix() {
                seen.insert("repne".to_owned());
            }
            for operand in 0..instruction.op_count() {
                match instruction.op_kind(operand) {
                    OpKind::Register => {
                        seen.insert(format!("{:?}", instruction.op_register(operand)));
                    }
                    OpKind::Memory => {
                        let base = instruction.memory_base();
                        let index = instruction.memory_index();
                        let size = instruction.memory_displ_size();
                        let width = base.size().max(index.size());
                        let scale = instruction.memory_index_scale();
                        let with = (base != Register::None, index != Register::None);
                        seen.insert(format!("address {width} {with:?} *{scale} disp{size}"));
                        seen.insert(format!("base {base:?}"));
                        seen.insert(format!("index {index:?}"));
                        seen.insert(format!("segment {:?}", instruction.segment_prefix()));
                    }
                    OpKind::MemoryESEDI | OpKind::MemorySegESI => {
                        seen.insert("string with 32-bit address".to_owned());
                    }
                    _ => {}
                }
            }
        }
    }
    let mut expected: Vec<String> = [
        "code across a page",
        "lock",
        "rep",
        "repne",
        "string with 32-bit address",
        "base RIP",
        "base EIP",
        "base None",
        "segment FS",
        "segment GS",
        "segment None",
        "AH",
        "BH",
        "SPL",
        "R15L",
        "address 0 (false, false) *1 disp4",
        "address 0 (false, false) *1 disp8",
    ]
    .map(str::to_owned)
    .into();
    for number in 0..16 {
        let name = format!("{:?}", Register::RAX + number);
        expected.push(format!("base {name}"));
        if number != 4 {
            expected.push(format!("index {name}"));
        }
        expected.push(name);
        expected.push(format!("{:?}", Register::EAX + number));
        expected.push(format!("{:?}", Register::AX + number));
        expected.push(format!("XMM{number}"));
        expected.push(format!("base {:?}", Register::EAX + number));
    }
    for number in 0..8 {
        expected.push(format!("MM{number}"));
        expected.push(format!("ST{number}"));
    }
    for width in [4, 8] {
        for size in [0, 1, width] {
            expected.push(format!("address {width} (true, false) *1 disp{size}"));
            for scale in [1, 2, 4, 8] {
                expected.push(format!("address {width} (true, true) *{scale} disp{size}"));
            }
        }
    }
    let missing: Vec<_> = expected
        .iter()
        .filter(|name| !seen.contains(*name))
        .collect();
    assert!(missing.is_empty(), "{missing:?}\nof {seen:?}");
}
