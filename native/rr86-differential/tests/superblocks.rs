//! Paths of blocks as superblocks, against the host CPU, and with and without: loops of several blocks with
//! branches that mostly go one way, calls, accesses that fault on the way, and code that changes itself, stopped
//! anywhere.

use std::collections::BTreeMap;

use iced_x86::code_asm::*;
use iced_x86::IcedError;
use rr86_core::runtime::observers::Observed;
use rr86_core::translate::layout::Exit;
use rr86_core::translate::shortcuts::Shortcuts;
use rr86_differential::case::{layout, Case, Entry, Outcome, Subject};
use rr86_differential::compare::{compare, Verdict};
use rr86_differential::engine::{Setup, Translated};
use rr86_differential::native::Native;
use rr86_differential::rng::Rng;
use rr86_differential::{state, text};

/// Bytes that quiet programs go in each turn.
const WALK: i32 = 24;
const CASES: u64 = 200;
/// Counts the turns of a program.
const TURNS: AsmRegister64 = r14;
/// What addresses are made of; of those in memory, two.
const BASES: [AsmRegister64; 5] = [rsi, rdi, rbx, r9, r10];
const BASES32: [AsmRegister32; 5] = [esi, edi, ebx, r9d, r10d];
const INDICES: [AsmRegister64; 2] = [rcx, r11];
/// What is computed with.
const DATA: [AsmRegister64; 5] = [rax, rdx, r8, r12, r15];
const DATA32: [AsmRegister32; 5] = [eax, edx, r8d, r12d, r15d];
const DATA16: [AsmRegister16; 5] = [ax, dx, r8w, r12w, r15w];
const DATA8: [AsmRegister8; 7] = [al, ah, dl, dh, r8b, r12b, r15b];
const VECTORS: [AsmRegisterXmm; 3] = [xmm0, xmm1, xmm2];

type Done = Result<(), IcedError>;

/// A program while it is written.
struct Program<'a> {
    a: CodeAssembler,
    rng: &'a mut Rng,
    /// Accesses may leave the pages that can be written.
    wild: bool,
    /// Nothing but flags that are made and then left alone for some accesses; these go through memory until
    /// one of them faults.
    quiet: bool,
}

impl Program<'_> {
    /// Puts a label here. No instruction can have two.
    fn label(&mut self, label: &mut CodeLabel) -> Done {
        self.a.set_label(label)?;
        self.a.nop()
    }

    fn address(&mut self) -> AsmMemoryOperand {
        let base = self.rng.pick(&BASES);
        let displacement = self.rng.pick(&[0, 0, 8, -8, 16, 32, -64, 3]);
        if self.rng.chance(25) {
            base + self.rng.pick(&INDICES) * self.rng.pick(&[1, 2, 4, 8]) + displacement
        } else {
            base + displacement
        }
    }

    fn access(&mut self) -> Done {
        let at = self.address();
        let number = self.rng.below(5) as usize;
        let (data, data32, data16) = (DATA[number], DATA32[number], DATA16[number]);
        // A high byte has no encoding together with the newer registers.
        let data8 = self.rng.pick(&[al, dl, r8b, r12b, r15b]);
        let vector = self.rng.pick(&VECTORS);
        let a = &mut self.a;
        match self.rng.below(26) {
            0 => a.mov(data, qword_ptr(at)),
            1 => a.mov(data32, dword_ptr(at)),
            2 => a.movzx(data32, byte_ptr(at)),
            3 => a.movsx(data, word_ptr(at)),
            4 => a.mov(data8, byte_ptr(at)),
            5 => a.mov(data16, word_ptr(at)),
            6 => a.mov(qword_ptr(at), data),
            7 => a.mov(dword_ptr(at), data32),
            8 => a.mov(word_ptr(at), data16),
            9 => a.mov(byte_ptr(at), data8),
            10 => a.add(qword_ptr(at), data),
            11 => a.adc(dword_ptr(at), data32),
            12 => a.sbb(data16, word_ptr(at)),
            13 => a.xor(byte_ptr(at), data8),
            14 => a.inc(word_ptr(at)),
            15 => a.cmp(qword_ptr(at), data),
            16 => a.xchg(dword_ptr(at), data32),
            17 => a.xadd(qword_ptr(at), data),
            18 => a.cmpxchg(dword_ptr(at), data32),
            19 => a.movups(vector, xmmword_ptr(at)),
            20 => a.movups(xmmword_ptr(at), vector),
            21 => a.movq(vector, qword_ptr(at)),
            22 => a.setc(byte_ptr(at)),
            23 => a.push(qword_ptr(at)).and_then(|()| a.pop(data)),
            24 => a.push(data).and_then(|()| a.pop(qword_ptr(at))),
            _ => a.cmovl(data, qword_ptr(at)),
        }
    }

    fn compute(&mut self) -> Done {
        let (one, two) = (self.rng.pick(&DATA), self.rng.pick(&DATA));
        let (narrow, other) = (self.rng.pick(&DATA8), self.rng.pick(&[al, ah, dl, dh]));
        let number = self.rng.below(5) as usize;
        let a = &mut self.a;
        match self.rng.below(24) {
            0 => a.add(one, two),
            1 => a.adc(one, two),
            2 => a.sbb(DATA32[number], 5),
            3 => a.sub(DATA16[number], 3),
            4 => a.xor(one, two),
            5 => a.cmp(one, two),
            6 => a.test(one, two),
            7 => a.imul_2(one, two),
            8 => a.shr(one, 3),
            9 => a.rcl(DATA32[number], 1),
            10 => a.lea(one, qword_ptr(two + rsi * 2 + 7)),
            11 => a.setb(narrow),
            12 => a.seto(narrow),
            13 => a.cmovs(one, two),
            14 => a.cmovbe(DATA16[number], DATA16[2]),
            15 => a.add(other, 0x71),
            16 => a.mov(other, 0x1f),
            17 => a.inc(DATA16[number]),
            18 => a.movzx(DATA32[number], dl),
            19 => a.mov(DATA32[number], 0x1234_5678),
            20 => a.neg(narrow),
            21 => a.cmc(),
            22 => a.bswap(one),
            _ => a.pxor(self.rng.pick(&VECTORS), xmm0),
        }
    }

    /// Moves a base, which stays in the pages that can be written unless the program is wild.
    fn step(&mut self) -> Done {
        let number = self.rng.below(5) as usize;
        let (base, base32) = (BASES[number], BASES32[number]);
        let by = self
            .rng
            .pick(&[1, -1, 4, 8, -8, 16, 24, 48, 64, -64, 96, 320]);
        let a = &mut self.a;
        match self.rng.below(3) {
            0 => a.add(base, by),
            1 => a.lea(base, qword_ptr(base + by)),
            _ => a.sub(base, by),
        }?;
        if self.wild {
            return Ok(());
        }
        let mask = self.rng.pick(&[0xffc, 0x1bfc]);
        a.and(base32, (layout::ARENA + mask) as i32)?;
        a.or(base32, 0x100)
    }

    /// Flags, and accesses that neither look at them nor change them, but perhaps what they came from.
    fn quiet_work(&mut self) -> Done {
        let (one, two) = (self.rng.pick(&DATA), self.rng.pick(&DATA));
        let number = self.rng.below(5) as usize;
        let value = self.rng.pick(&[1, -1, 0x7f, 0x1234_5678]);
        let a = &mut self.a;
        match self.rng.below(9) {
            0 => a.add(one, two),
            1 => a.sub(one, two),
            2 => a.cmp(one, two),
            3 => a.test(one, two),
            4 => a.and(DATA32[number], DATA32[0]),
            5 => a.xor(DATA32[number], DATA32[1]),
            6 => a.add(DATA32[number], value),
            7 => a.sub(one, value),
            _ => a.cmp(DATA32[number], value),
        }?;
        for _ in 0..self.rng.below(4) {
            let at = self.rng.pick(&BASES) + self.rng.pick(&[0, 8, -8, 16]);
            let data = self.rng.pick(&DATA);
            let a = &mut self.a;
            match self.rng.below(7) {
                0 | 1 => a.mov(data, qword_ptr(at)),
                2 | 3 => a.mov(qword_ptr(at), data),
                4 => a.mov(data, two),
                5 => a.push(data).and_then(|()| a.pop(one)),
                _ => a.lea(data, qword_ptr(two + 5)),
            }?;
        }
        Ok(())
    }

    fn work(&mut self, most: u64) -> Done {
        if self.quiet {
            return self.quiet_work();
        }
        for _ in 0..self.rng.below(most + 1) {
            match self.rng.below(10) {
                0..5 => self.access()?,
                5..9 => self.compute()?,
                _ => self.step()?,
            }
        }
        Ok(())
    }

    /// A branch that goes mostly one way, or now this way and now that.
    fn branch(&mut self, to: CodeLabel) -> Done {
        let mask = self.rng.pick(&[1, 3, 7, 15, 31, 31, 63]);
        let number = self.rng.below(5) as usize;
        let a = &mut self.a;
        match self.rng.below(8) {
            0..3 => {
                a.test(TURNS, mask)?;
                a.je(to)
            }
            3..6 => {
                a.test(TURNS, mask)?;
                a.jne(to)
            }
            6 => {
                a.add(DATA32[number], 0x0765_4321)?;
                a.jc(to)
            }
            // Of flags that were made long ago.
            _ => a.jns(to),
        }
    }

    /// A store into the immediate of a MOV, now and then or always.
    fn change(&mut self, target: CodeLabel) -> Done {
        let mut over = self.a.create_label();
        let seldom = self.rng.chance(70);
        let at = qword_ptr(target);
        let a = &mut self.a;
        if seldom {
            a.test(TURNS, self.rng.pick(&[15, 31]))?;
            a.jne(over)?;
        }
        a.lea(rbp, at)?;
        match self.rng.below(4) {
            0 => a.mov(byte_ptr(rbp + 2), r14b)?,
            1 => a.add(word_ptr(rbp + 3), 3)?,
            2 => a.mov(dword_ptr(rbp + 1), r8d)?,
            _ => a.xor(byte_ptr(rbp + 4), 0x55)?,
        }
        if seldom {
            self.label(&mut over)?;
        }
        Ok(())
    }

    fn function(&mut self, mut entry: CodeLabel) -> Done {
        let mut inner = self.a.create_label();
        self.label(&mut entry)?;
        let kind = self.rng.below(3);
        match kind {
            0 => self
                .a
                .push(rbp)
                .and_then(|()| self.a.mov(rbp, rsp))
                .and_then(|()| self.a.push(r15))?,
            1 => {
                for register in [rdx, r15, r9] {
                    self.a.push(register)?;
                }
            }
            _ => {}
        }
        self.work(3)?;
        self.branch(inner)?;
        self.work(2)?;
        self.label(&mut inner)?;
        self.work(2)?;
        match kind {
            0 => self.a.leave()?,
            1 => {
                for register in [r9, r15, rdx] {
                    self.a.pop(register)?;
                }
            }
            _ => {}
        }
        self.a.ret()
    }
}

/// What programs do besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    /// They write into their own instructions.
    Changing,
    /// See [`Program::quiet`].
    Quiet,
}

/// A loop of several blocks.
fn random_program(seed: u64, kind: Kind) -> Case {
    let mut rng = Rng::new(seed ^ (kind as u64) << 40);
    let (changing, quiet) = (kind == Kind::Changing, kind == Kind::Quiet);
    let wild = rng.chance(35);
    let turns = 40 + rng.below(160);
    let count = 2 + rng.below(5) as usize;
    let mut p = Program {
        a: CodeAssembler::new(64).unwrap(),
        rng: &mut rng,
        wild,
        quiet,
    };
    write_program(&mut p, count, changing).unwrap();
    // In the first page, the second one, or across both.
    let at = layout::CODE + p.rng.pick(&[0, 0, 0x123, 0xe80, 0xf80, 0x1000]);
    let code = p.a.assemble(at).unwrap();
    let mut gpr = [0u64; 16];
    for value in &mut gpr {
        *value = rng.operand();
    }
    for register in [6, 7, 3, 9, 10] {
        gpr[register] = layout::ARENA + 0x100 + (rng.below(0xe00) & !7);
    }
    for register in [1, 11] {
        gpr[register] = rng.below(32);
    }
    if quiet {
        for register in [6, 7, 3, 9, 10] {
            // To the page that can only be read, and then to the one that is not there.
            gpr[register] = layout::ARENA + 0x2000 - WALK as u64 * (50 + rng.below(60));
        }
    }
    (gpr[4], gpr[5], gpr[14]) = (layout::ARENA + 0x6000, layout::ARENA + 0x800, turns);
    Case {
        seed,
        code_address: at,
        code,
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

fn write_program(p: &mut Program, count: usize, changing: bool) -> Done {
    let mut blocks: Vec<CodeLabel> = (0..count).map(|_| p.a.create_label()).collect();
    let mut end = p.a.create_label();
    let functions: Vec<CodeLabel> = (0..2).map(|_| p.a.create_label()).collect();
    // Instructions that the program changes, and the blocks that they are in.
    let mut targets: Vec<(CodeLabel, u64)> = (0..2)
        .map(|_| (p.a.create_label(), p.rng.below(count as u64)))
        .collect();
    for number in 0..count {
        let mut label = blocks[number];
        p.label(&mut label)?;
        blocks[number] = label;
        p.work(3)?;
        if changing && p.rng.chance(50) {
            let (target, _) = p.rng.pick(&targets);
            p.change(target)?;
            p.work(2)?;
        }
        for (target, place) in &mut targets {
            if changing && *place == number as u64 {
                p.a.set_label(target)?;
                p.a.mov(p.rng.pick(&[eax, edx]), 0x1111_1111)?;
            }
        }
        p.work(2)?;
        let later = if number + 2 < count {
            blocks[number + 1 + p.rng.below((count - number - 1) as u64) as usize]
        } else {
            end
        };
        match p.rng.below(8) {
            0..3 => p.branch(later)?,
            3 => {
                // Round something that a path has no need to lay out.
                p.a.jmp(later)?;
            }
            4 | 5 => p.a.call(functions[p.rng.below(2) as usize])?,
            6 => {
                p.a.lea(rbp, qword_ptr(later))?;
                p.a.jmp(rbp)?;
            }
            _ => {}
        }
    }
    p.label(&mut end)?;
    p.work(1)?;
    if p.quiet {
        for base in BASES {
            p.a.lea(base, qword_ptr(base + WALK))?;
        }
    }
    p.a.dec(TURNS)?;
    p.a.jne(blocks[0])?;
    let mut over = p.a.create_label();
    p.a.jmp(over)?;
    for function in functions {
        p.function(function)?;
    }
    p.label(&mut over)
}

const KINDS: [Kind; 3] = [Kind::Plain, Kind::Changing, Kind::Quiet];

/// What can be seen of a case where it is stopped.
#[derive(Debug, PartialEq, Eq)]
struct Stop {
    instructions: u64,
    rip: u64,
    gpr: [u64; 16],
    rflags: u64,
    fpu: Vec<u8>,
    /// Of the blocks that exist.
    blocks: u64,
    /// Of memory, now and then: what comes after it is not on the fast path.
    ram: Option<u64>,
}

/// A case from its start to its end, and all that it leaves behind.
#[derive(Debug, PartialEq)]
struct Course {
    stops: Vec<Stop>,
    outcome: Outcome,
    lines: Vec<u64>,
    observed: Vec<(u64, Observed)>,
    ram: u64,
}

/// The lengths of slices, and whether they end inside of blocks.
#[derive(Clone, Copy, Debug)]
enum Slices {
    Each(u64),
    Random { seed: u64, most: u64, exact: bool },
}

fn follow(subject: &mut Translated, case: &Case, slices: Slices) -> Course {
    let mut rng = match slices {
        Slices::Each(_) => Rng::new(0),
        Slices::Random { seed, .. } => Rng::new(seed),
    };
    subject.prepare(case).unwrap();
    let start = subject.engine().icount();
    let mut stops = Vec::new();
    loop {
        let (budget, exact) = match slices {
            Slices::Each(budget) => (budget, true),
            Slices::Random { most, exact, .. } => (1 + rng.below(most), exact),
        };
        let halted = subject.step(budget, exact).unwrap();
        let ram = (stops.len() % 3 == 0).then(|| subject.ram_digest());
        let engine = subject.engine();
        let cpu = engine.cpu(0);
        stops.push(Stop {
            instructions: engine.icount() - start,
            rip: cpu.rip,
            gpr: cpu.gpr,
            rflags: cpu.rflags,
            fpu: cpu.fpu.0[..416].to_vec(),
            blocks: engine.blocks().digest(),
            ram,
        });
        if halted {
            break;
        }
        assert!(stops.len() < 1_000_000, "{}", text::disassemble(case));
    }
    Course {
        stops,
        outcome: subject.outcome(case).unwrap(),
        lines: subject.take_lines(),
        observed: subject.take_observed(),
        ram: subject.ram_digest(),
    }
}

fn setup(changing: bool, paths: bool) -> Setup {
    let without = Shortcuts::without(["paths"]).unwrap();
    Setup {
        writable_code: changing,
        tracking: true,
        hot: Some(1),
        shortcuts: if paths { Shortcuts::ALL } else { without },
        ..Setup::default()
    }
}

#[test]
fn random_programs_agree_with_the_host() {
    for kind in KINDS {
        let changing = kind == Kind::Changing;
        let cases: Vec<Case> = (0..CASES).map(|seed| random_program(seed, kind)).collect();
        let mut native = if changing {
            Native::with_writable_code().unwrap()
        } else {
            Native::new().unwrap()
        };
        let expected = native.run_batch(&cases);
        for stretch in [23, 41, 150] {
            let setup = Setup {
                stretch,
                tracking: false,
                ..setup(changing, true)
            };
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
            assert!(subject.engine().observers.stats().superblocks > CASES / 2);
        }
    }
}

#[test]
fn programs_are_at_the_same_place_wherever_they_are_stopped() {
    for kind in KINDS {
        let changing = kind == Kind::Changing;
        let mut with = Translated::new(setup(changing, true)).unwrap();
        let mut without = Translated::new(setup(changing, false)).unwrap();
        let mut single = Translated::new(setup(changing, false)).unwrap();
        let mut faults = 0;
        for seed in 0..CASES {
            let case = random_program(seed, kind);
            let places: BTreeMap<u64, Stop> = follow(&mut single, &case, Slices::Each(1))
                .stops
                .into_iter()
                .map(|stop| (stop.instructions, stop))
                .collect();
            for slices in [
                Slices::Each(53),
                Slices::Random {
                    seed,
                    most: 90,
                    exact: true,
                },
                Slices::Random {
                    seed,
                    most: 250,
                    exact: true,
                },
                Slices::Random {
                    seed,
                    most: 200,
                    exact: false,
                },
            ] {
                let [got, expected] =
                    [&mut with, &mut without].map(|subject| follow(subject, &case, slices));
                let what = || format!("seed {seed}, {slices:?}\n{}", text::disassemble(&case));
                for (got, expected) in got.stops.iter().zip(&expected.stops) {
                    assert_eq!(got, expected, "{}", what());
                    let place = &places[&got.instructions];
                    assert_eq!(
                        (got.rip, got.gpr, got.rflags, &got.fpu),
                        (place.rip, place.gpr, place.rflags, &place.fpu),
                        "{}",
                        what()
                    );
                }
                assert!(got == expected, "{}", what());
                faults += u64::from(got.outcome.fault.is_some());
            }
        }
        let (with, without) = (
            with.engine().observers.stats(),
            without.engine().observers.stats(),
        );
        assert!(with.superblocks > CASES / 2, "{with:?}");
        assert_eq!(without.superblocks, 0);
        for exit in [Exit::Chain, Exit::Lookup, Exit::Budget] {
            assert!(with.exits[exit as usize] > 500, "{exit:?} {with:?}");
        }
        assert!(faults > CASES / 5, "{faults}");
        if changing {
            assert!(with.exits[Exit::Stopped as usize] > 100, "{with:?}");
        }
    }
}
