//! Measures what the host CPU leaves in flags that the SDM calls undefined, and what BSF and BSR
//! leave in their destination when the source is zero.

use std::fmt::Write as _;

use iced_x86::{Code, Encoder, Instruction, Register};

use crate::case::{layout, Case, Entry, Subject};
use crate::compare::flag_names;
use crate::rng::Rng;
use crate::state;

/// The status flags.
const STATUS: u64 = 0x8d5;
const TRIALS: usize = 400;

struct Probe {
    name: &'static str,
    undefined: u64,
    instruction: Instruction,
    /// Draws operands: rax, rcx, rdx, rbx.
    operands: fn(&mut Rng) -> [u64; 4],
}

/// A table with one line for each instruction: which undefined flags keep or otherwise depend on
/// their incoming value, which follow from the operands, which are constant.
pub fn measure(native: &mut dyn Subject) -> String {
    let mut text = String::from(
        "instruction                     undefined      = incoming     depends otherwise  always 0  always 1  from the operands\n",
    );
    for probe in probes() {
        let mut rng = Rng::new(7);
        let mut zeros = STATUS;
        let mut ones = STATUS;
        let mut kept = STATUS;
        let mut depends = 0;
        let mut valid = 0;
        for _ in 0..TRIALS {
            let gpr = (probe.operands)(&mut rng);
            let Some(low) = run(native, &probe.instruction, gpr, 0) else {
                continue;
            };
            let Some(high) = run(native, &probe.instruction, gpr, STATUS) else {
                continue;
            };
            let mixed = rng.u64() & STATUS;
            let Some(middle) = run(native, &probe.instruction, gpr, mixed) else {
                continue;
            };
            valid += 1;
            depends |= (low.0 ^ high.0) | (low.0 ^ middle.0);
            kept &= !low.0 & high.0 & !(middle.0 ^ mixed);
            zeros &= !(low.0 | high.0 | middle.0);
            ones &= low.0 & high.0 & middle.0;
        }
        let undefined = probe.undefined;
        let kept = kept & undefined;
        let depends = depends & undefined & !kept;
        let zeros = zeros & undefined;
        let ones = ones & undefined;
        let rest = undefined & !(kept | depends | zeros | ones);
        let _ = writeln!(
            text,
            "{:<31} {:<14} {:<14} {:<18} {:<9} {:<9} {}{}",
            probe.name,
            flag_names(undefined),
            flag_names(kept),
            flag_names(depends),
            flag_names(zeros),
            flag_names(ones),
            flag_names(rest),
            if valid == 0 {
                "  (never completed)"
            } else {
                ""
            }
        );
    }
    text.push_str("\nBSF and BSR with a zero source, destination 0x1122334455667788 before:\n");
    for (name, code, source, target) in [
        ("bsf r16", Code::Bsf_r16_rm16, Register::CX, Register::AX),
        ("bsf r32", Code::Bsf_r32_rm32, Register::ECX, Register::EAX),
        ("bsf r64", Code::Bsf_r64_rm64, Register::RCX, Register::RAX),
        ("bsr r16", Code::Bsr_r16_rm16, Register::CX, Register::AX),
        ("bsr r32", Code::Bsr_r32_rm32, Register::ECX, Register::EAX),
        ("bsr r64", Code::Bsr_r64_rm64, Register::RCX, Register::RAX),
    ] {
        let Ok(instruction) = Instruction::with2(code, target, source) else {
            continue;
        };
        let operands = [0x1122_3344_5566_7788, 0, 0, 0];
        if let Some((_, rax)) = run(native, &instruction, operands, 0) {
            let _ = writeln!(text, "  {name}: {rax:#018x}");
        }
    }
    text
}

/// Status flags and rax after one instruction, or `None` when it faults.
fn run(
    native: &mut dyn Subject,
    instruction: &Instruction,
    operands: [u64; 4],
    rflags: u64,
) -> Option<(u64, u64)> {
    let mut encoder = Encoder::new(64);
    encoder.encode(instruction, layout::CODE).ok()?;
    let mut gpr = [0; 16];
    gpr[..4].copy_from_slice(&operands);
    gpr[4] = layout::ARENA + 0x6000;
    let entry = Entry {
        gpr,
        rflags,
        fs_base: 0,
        gs_base: 0,
        fxsave: state::fxsave(&mut Rng::new(1), false),
    };
    let case = Case {
        seed: 0,
        code_address: layout::CODE,
        code: encoder.take_buffer(),
        entry,
        arena: vec![0; layout::ARENA_SIZE],
    };
    let outcome = native.run(&case).ok()?;
    outcome
        .fault
        .is_none()
        .then_some((outcome.rflags & STATUS, outcome.gpr[0]))
}

fn any(rng: &mut Rng) -> [u64; 4] {
    [rng.operand(), rng.operand(), rng.operand(), rng.operand()]
}

/// rdx:rax / rcx with a quotient that fits.
fn dividend(rng: &mut Rng) -> [u64; 4] {
    [rng.operand() & 0x3fff, 1 + rng.below(0x7f), 0, 0]
}

/// Counts of two and more, within the width.
fn many<const WIDTH: u64>(rng: &mut Rng) -> [u64; 4] {
    let count = 2 + rng.below(WIDTH - 2);
    [rng.operand(), count, rng.operand(), rng.operand()]
}

/// Counts above the operand width (8- and 16-bit operands only).
fn beyond<const WIDTH: u64>(rng: &mut Rng) -> [u64; 4] {
    let count = WIDTH + 1 + rng.below(31 - WIDTH);
    [rng.operand(), count, rng.operand(), rng.operand()]
}

fn zero_source(rng: &mut Rng) -> [u64; 4] {
    [rng.operand(), 0, rng.operand(), 0]
}

fn nonzero_source(rng: &mut Rng) -> [u64; 4] {
    [
        rng.operand(),
        rng.operand() | 1 << rng.below(16),
        rng.operand(),
        0,
    ]
}

/// A table, in a function because its entries are made by code.
fn probes() -> Vec<Probe> {
    use Register::*;
    const CF: u64 = 1;
    const PF: u64 = 4;
    const AF: u64 = 0x10;
    const ZF: u64 = 0x40;
    const SF: u64 = 0x80;
    const OF: u64 = 0x800;
    type Operands = fn(&mut Rng) -> [u64; 4];
    let mut probes = Vec::new();
    let mut one = |name, code, register, undefined, operands: Operands| {
        if let Ok(instruction) = Instruction::with1(code, register) {
            probes.push(Probe {
                name,
                undefined,
                instruction,
                operands,
            });
        }
    };
    let product = SF | ZF | AF | PF;
    one("mul r8", Code::Mul_rm8, CL, product, any);
    one("mul r16", Code::Mul_rm16, CX, product, any);
    one("mul r32", Code::Mul_rm32, ECX, product, any);
    one("mul r64", Code::Mul_rm64, RCX, product, any);
    one("imul r8", Code::Imul_rm8, CL, product, any);
    one("imul r16", Code::Imul_rm16, CX, product, any);
    one("imul r32", Code::Imul_rm32, ECX, product, any);
    one("imul r64", Code::Imul_rm64, RCX, product, any);
    one("div r8", Code::Div_rm8, CL, STATUS, |rng| {
        [rng.below(0x7f), 1 + rng.below(0x7f), 0, 0]
    });
    one("div r16", Code::Div_rm16, CX, STATUS, dividend);
    one("div r32", Code::Div_rm32, ECX, STATUS, dividend);
    one("div r64", Code::Div_rm64, RCX, STATUS, dividend);
    one("idiv r8", Code::Idiv_rm8, CL, STATUS, |rng| {
        [rng.below(0x7f), 1 + rng.below(0x7f), 0, 0]
    });
    one("idiv r16", Code::Idiv_rm16, CX, STATUS, dividend);
    one("idiv r32", Code::Idiv_rm32, ECX, STATUS, dividend);
    one("idiv r64", Code::Idiv_rm64, RCX, STATUS, dividend);
    let mut two = |name, code, first, second, undefined, operands: Operands| {
        if let Ok(instruction) = Instruction::with2(code, first, second) {
            probes.push(Probe {
                name,
                undefined,
                instruction,
                operands,
            });
        }
    };
    two("imul r16, r16", Code::Imul_r16_rm16, AX, CX, product, any);
    two("imul r32, r32", Code::Imul_r32_rm32, EAX, ECX, product, any);
    two("imul r64, r64", Code::Imul_r64_rm64, RAX, RCX, product, any);
    two("and", Code::And_rm64_r64, RAX, RCX, AF, any);
    two("or", Code::Or_rm64_r64, RAX, RCX, AF, any);
    two("xor", Code::Xor_rm64_r64, RAX, RCX, AF, any);
    two("test", Code::Test_rm64_r64, RAX, RCX, AF, any);
    two("and r8", Code::And_rm8_r8, AL, CL, AF, any);
    two("bt", Code::Bt_rm64_r64, RAX, RCX, OF | SF | AF | PF, any);
    two("bts", Code::Bts_rm64_r64, RAX, RCX, OF | SF | AF | PF, any);
    two("btr", Code::Btr_rm64_r64, RAX, RCX, OF | SF | AF | PF, any);
    two("btc", Code::Btc_rm64_r64, RAX, RCX, OF | SF | AF | PF, any);
    let scan = CF | OF | SF | AF | PF;
    two(
        "bsf, source 0",
        Code::Bsf_r64_rm64,
        RAX,
        RCX,
        scan,
        zero_source,
    );
    two(
        "bsf, source not 0",
        Code::Bsf_r64_rm64,
        RAX,
        RCX,
        scan,
        nonzero_source,
    );
    two(
        "bsr, source 0",
        Code::Bsr_r64_rm64,
        RAX,
        RCX,
        scan,
        zero_source,
    );
    two(
        "bsr, source not 0",
        Code::Bsr_r64_rm64,
        RAX,
        RCX,
        scan,
        nonzero_source,
    );
    two("shl r64, 1", Code::Shl_rm64_CL, RAX, CL, AF, |rng| {
        [rng.operand(), 1, 0, 0]
    });
    two(
        "shl r64, >1",
        Code::Shl_rm64_CL,
        RAX,
        CL,
        AF | OF,
        many::<64>,
    );
    two(
        "shr r64, >1",
        Code::Shr_rm64_CL,
        RAX,
        CL,
        AF | OF,
        many::<64>,
    );
    two(
        "sar r64, >1",
        Code::Sar_rm64_CL,
        RAX,
        CL,
        AF | OF,
        many::<64>,
    );
    two(
        "shl r32, >1",
        Code::Shl_rm32_CL,
        EAX,
        CL,
        AF | OF,
        many::<32>,
    );
    two(
        "shr r32, >1",
        Code::Shr_rm32_CL,
        EAX,
        CL,
        AF | OF,
        many::<32>,
    );
    two(
        "shl r16, >1",
        Code::Shl_rm16_CL,
        AX,
        CL,
        AF | OF,
        many::<16>,
    );
    two(
        "shl r16, >16",
        Code::Shl_rm16_CL,
        AX,
        CL,
        CF | AF | OF,
        beyond::<16>,
    );
    two(
        "shr r16, >16",
        Code::Shr_rm16_CL,
        AX,
        CL,
        CF | AF | OF,
        beyond::<16>,
    );
    two(
        "sar r16, >16",
        Code::Sar_rm16_CL,
        AX,
        CL,
        AF | OF,
        beyond::<16>,
    );
    two(
        "shl r8, >8",
        Code::Shl_rm8_CL,
        AL,
        CL,
        CF | AF | OF,
        beyond::<8>,
    );
    two(
        "shr r8, >8",
        Code::Shr_rm8_CL,
        AL,
        CL,
        CF | AF | OF,
        beyond::<8>,
    );
    two("rol r64, >1", Code::Rol_rm64_CL, RAX, CL, OF, many::<64>);
    two("ror r64, >1", Code::Ror_rm64_CL, RAX, CL, OF, many::<64>);
    two("rcl r64, >1", Code::Rcl_rm64_CL, RAX, CL, OF, many::<64>);
    two("rcr r64, >1", Code::Rcr_rm64_CL, RAX, CL, OF, many::<64>);
    two("rol r8, >1", Code::Rol_rm8_CL, AL, CL, OF, many::<32>);
    two("rcl r8, >1", Code::Rcl_rm8_CL, AL, CL, OF, many::<32>);
    let mut three = |name, code, first, second, undefined, operands: Operands| {
        if let Ok(instruction) = Instruction::with3(code, first, second, CL) {
            probes.push(Probe {
                name,
                undefined,
                instruction,
                operands,
            });
        }
    };
    three("shld r64, 1", Code::Shld_rm64_r64_CL, RAX, RDX, AF, |rng| {
        [rng.operand(), 1, rng.operand(), 0]
    });
    three(
        "shld r64, >1",
        Code::Shld_rm64_r64_CL,
        RAX,
        RDX,
        AF | OF,
        many::<64>,
    );
    three(
        "shrd r64, >1",
        Code::Shrd_rm64_r64_CL,
        RAX,
        RDX,
        AF | OF,
        many::<64>,
    );
    three(
        "shld r32, >1",
        Code::Shld_rm32_r32_CL,
        EAX,
        EDX,
        AF | OF,
        many::<32>,
    );
    three(
        "shld r16, 2..16",
        Code::Shld_rm16_r16_CL,
        AX,
        DX,
        AF | OF,
        many::<16>,
    );
    three(
        "shld r16, >16",
        Code::Shld_rm16_r16_CL,
        AX,
        DX,
        STATUS,
        beyond::<16>,
    );
    three(
        "shrd r16, >16",
        Code::Shrd_rm16_r16_CL,
        AX,
        DX,
        STATUS,
        beyond::<16>,
    );
    probes
}
