//! What counts as equal: everything that a program can see, except last-instruction pointers and, unless asked
//! for, flags that the SDM leaves undefined.

use std::fmt;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};

use crate::case::{layout, Case, Fault, Outcome, Subject, FLAG_MASK, FXSAVE_USED};
use crate::makers;

/// One thing that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    Register {
        name: &'static str,
        expected: u64,
        got: u64,
    },
    Flags {
        expected: u64,
        got: u64,
        undefined: u64,
    },
    Fault {
        expected: Option<Fault>,
        got: Option<Fault>,
    },
    /// A run of FXSAVE image bytes.
    Fpu {
        offset: usize,
        field: String,
        expected: Vec<u8>,
        got: Vec<u8>,
    },
    Memory {
        address: u64,
        expected: Vec<u8>,
        got: Vec<u8>,
    },
}

/// The verdict on one case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Equal,
    /// Equal but for flags that the SDM leaves undefined.
    UndefinedFlags(Vec<Difference>),
    Different(Vec<Difference>),
}

pub const GPR_NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// Decodes a case up to its final `hlt`.
pub fn decode(case: &Case) -> Vec<Instruction> {
    let decoder = Decoder::with_ip(64, &case.code, case.code_address, DecoderOptions::NONE);
    decoder.into_iter().collect()
}

/// Compares two outcomes. `native` is asked for the counts of shifts where the flags differ.
pub fn compare(
    case: &Case,
    expected: &Outcome,
    got: &Outcome,
    native: &mut dyn Subject,
) -> Verdict {
    if expected != got && makers::may_differ(case, expected, got) {
        return Verdict::Equal;
    }
    let mut differences = Vec::new();
    for (index, name) in GPR_NAMES.iter().enumerate() {
        push_register(&mut differences, name, expected.gpr[index], got.gpr[index]);
    }
    push_register(&mut differences, "rip", expected.rip, got.rip);
    if !same_fault(expected.fault, got.fault) {
        differences.push(Difference::Fault {
            expected: expected.fault,
            got: got.fault,
        });
    }
    for (offset, len) in runs(
        &expected.fxsave[..FXSAVE_USED],
        &got.fxsave[..FXSAVE_USED],
        fpu_counts,
    ) {
        let range = offset..offset + len;
        differences.push(Difference::Fpu {
            offset,
            field: fpu_field(offset),
            expected: expected.fxsave[range.clone()].to_vec(),
            got: got.fxsave[range].to_vec(),
        });
    }
    let in_guard = |offset: usize| !layout::mapped(offset / layout::PAGE);
    if expected.arena != got.arena {
        for (offset, len) in runs(&expected.arena, &got.arena, |offset| !in_guard(offset)) {
            let range = offset..offset + len;
            differences.push(Difference::Memory {
                address: layout::ARENA + offset as u64,
                expected: expected.arena.get(range.clone()).unwrap_or(&[]).to_vec(),
                got: got.arena.get(range).unwrap_or(&[]).to_vec(),
            });
        }
    }
    let wrong = (expected.rflags ^ got.rflags) & FLAG_MASK;
    if wrong == 0 {
        return if differences.is_empty() {
            Verdict::Equal
        } else {
            Verdict::Different(differences)
        };
    }
    let undefined = undefined_flags(case, expected.rip, native);
    let flags = Difference::Flags {
        expected: expected.rflags,
        got: got.rflags,
        undefined,
    };
    if differences.is_empty() && wrong & !undefined == 0 {
        return Verdict::UndefinedFlags(vec![flags]);
    }
    differences.push(flags);
    Verdict::Different(differences)
}

fn push_register(list: &mut Vec<Difference>, name: &'static str, expected: u64, got: u64) {
    if expected != got {
        list.push(Difference::Register {
            name,
            expected,
            got,
        });
    }
}

/// Linux sets the P bit of the error code for every address of its own half and the page below it, so that user code learns
/// nothing about what is mapped there.
fn same_fault(expected: Option<Fault>, got: Option<Fault>) -> bool {
    match (expected, got) {
        (Some(mut a), Some(mut b)) => {
            if a.vector == 14 && a.cr2 >= (1 << 47) - layout::PAGE as u64 {
                a.error_code |= 1;
                b.error_code |= 1;
            }
            a == b
        }
        (a, b) => a == b,
    }
}

/// FXSAVE bytes that count: not FOP, FIP and FDP, not MXCSR_MASK, not the padding of ST registers.
pub(crate) fn fpu_counts(offset: usize) -> bool {
    match offset {
        5..=23 | 28..=31 => false,
        32..=159 => offset % 16 < 10,
        _ => true,
    }
}

fn fpu_field(offset: usize) -> String {
    match offset {
        0..=1 => "FCW".into(),
        2..=3 => "FSW".into(),
        4 => "FTW (abridged)".into(),
        24..=27 => "MXCSR".into(),
        32..=159 => format!("ST{}", (offset - 32) / 16),
        _ => format!("XMM{}", (offset - 160) / 16),
    }
}

/// Offsets and lengths of differing runs; runs of one 16-byte line are reported together.
fn runs(a: &[u8], b: &[u8], counts: impl Fn(usize) -> bool) -> Vec<(usize, usize)> {
    let mut found: Vec<(usize, usize)> = Vec::new();
    for offset in 0..a.len().max(b.len()) {
        if a.get(offset) == b.get(offset) || !counts(offset) {
            continue;
        }
        match found.last_mut() {
            Some((start, len)) if *start / 16 == offset / 16 => *len = offset - *start + 1,
            _ => found.push((offset, 1)),
        }
    }
    found
}

/// Status flags that may be anything at `rip`: a forward dataflow over the decoded code, as branches of
/// generated code go forward. Counts in CL come from running the case natively up to the shift.
pub fn undefined_flags(case: &Case, rip: u64, native: &mut dyn Subject) -> u64 {
    let instructions = decode(case);
    // undefined[i]: union over the paths that reach instruction i; the last entry is the end.
    let mut undefined = vec![0u32; instructions.len() + 1];
    for (index, instruction) in instructions.iter().enumerate() {
        if instruction.ip() == rip {
            return to_rflags(undefined[index]);
        }
        let incoming = undefined[index];
        let outgoing = step(case, instruction, incoming, native);
        match instruction.flow_control() {
            FlowControl::Next | FlowControl::Exception | FlowControl::Interrupt => {
                undefined[index + 1] |= outgoing;
            }
            FlowControl::ConditionalBranch
            | FlowControl::UnconditionalBranch
            | FlowControl::Call
                if instruction.op0_kind() == OpKind::NearBranch64 =>
            {
                let target = instruction.near_branch64();
                if instruction.flow_control() == FlowControl::ConditionalBranch {
                    undefined[index + 1] |= outgoing;
                }
                let at = instructions.iter().position(|other| other.ip() == target);
                undefined[at.unwrap_or(instructions.len())] |= outgoing;
            }
            _ => {
                for later in &mut undefined[index + 1..] {
                    *later |= outgoing;
                }
            }
        }
    }
    to_rflags(undefined[instructions.len()])
}

fn step(case: &Case, instruction: &Instruction, incoming: u32, native: &mut dyn Subject) -> u32 {
    let by_cl = instruction.op_count() > 0
        && instruction.op_register(instruction.op_count() - 1) == Register::CL
        && instruction.rflags_modified() != 0
        && instruction.mnemonic() != iced_x86::Mnemonic::Crc32;
    let mut concrete = *instruction;
    if by_cl && is_shift(instruction) {
        let Some(count) = register_at(case, instruction.ip(), native) else {
            return incoming;
        };
        concrete = with_immediate_count(instruction, count as u8);
    }
    if instruction.has_rep_prefix() || instruction.has_repne_prefix() {
        // With rcx = 0 the flags stay as they were.
        return incoming | concrete.rflags_undefined();
    }
    let defined = concrete.rflags_written() | concrete.rflags_cleared() | concrete.rflags_set();
    (incoming & !defined) | concrete.rflags_undefined()
}

fn is_shift(instruction: &Instruction) -> bool {
    use iced_x86::Mnemonic::*;
    matches!(
        instruction.mnemonic(),
        Shl | Shr | Sar | Sal | Rol | Ror | Rcl | Rcr | Shld | Shrd
    )
}

/// The same shift by an immediate: iced then knows which flags the count leaves undefined.
fn with_immediate_count(instruction: &Instruction, count: u8) -> Instruction {
    use iced_x86::Code;
    let name = format!("{:?}", instruction.code())
        .replace("_CL", "_imm8")
        .replace("_cl", "_imm8");
    let mut concrete = *instruction;
    if let Some(code) = Code::values().find(|code| format!("{code:?}") == name) {
        let last = instruction.op_count() - 1;
        concrete.set_code(code);
        concrete.set_op_kind(last, OpKind::Immediate8);
        concrete.set_immediate8(count);
    }
    concrete
}

/// rcx when execution reaches `ip`, or `None` when it does not.
fn register_at(case: &Case, ip: u64, native: &mut dyn Subject) -> Option<u64> {
    let mut prefix = case.clone();
    prefix
        .code
        .truncate(ip.wrapping_sub(case.code_address) as usize);
    // Branches beyond the cut meet `hlt` as well, but elsewhere.
    let outcome = native.run(&prefix).ok()?;
    (outcome.rip == ip && outcome.fault.is_none()).then_some(outcome.gpr[1])
}

/// iced's flag bits to RFLAGS positions.
pub fn to_rflags(bits: u32) -> u64 {
    use iced_x86::RflagsBits as B;
    let pairs = [
        (B::CF, 0),
        (B::PF, 2),
        (B::AF, 4),
        (B::ZF, 6),
        (B::SF, 7),
        (B::DF, 10),
        (B::OF, 11),
    ];
    pairs
        .iter()
        .filter(|(bit, _)| bits & bit != 0)
        .fold(0, |flags, (_, at)| flags | 1u64 << at)
}

/// Names of the set flags, for reports.
pub fn flag_names(rflags: u64) -> String {
    let names = [
        (0, "CF"),
        (2, "PF"),
        (4, "AF"),
        (6, "ZF"),
        (7, "SF"),
        (10, "DF"),
        (11, "OF"),
    ];
    let set: Vec<_> = names
        .iter()
        .filter(|(at, _)| rflags >> at & 1 != 0)
        .map(|(_, name)| *name)
        .collect();
    if set.is_empty() {
        "-".into()
    } else {
        set.join(" ")
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>()
        .join(" ")
}

fn show_fault(fault: Option<Fault>) -> String {
    fault.map_or_else(
        || "none (reached the end)".into(),
        |fault| {
            format!(
                "vector {} error {:#x} cr2 {:#x}",
                fault.vector, fault.error_code, fault.cr2
            )
        },
    )
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Register {
                name,
                expected,
                got,
            } => {
                write!(f, "{name}: expected {expected:#018x}, got {got:#018x}")
            }
            Self::Flags {
                expected,
                got,
                undefined,
            } => write!(
                f,
                "rflags: expected {} ({expected:#x}), got {} ({got:#x}), undefined {}",
                flag_names(*expected),
                flag_names(*got),
                flag_names(*undefined)
            ),
            Self::Fault { expected, got } => {
                write!(
                    f,
                    "fault: expected {}, got {}",
                    show_fault(*expected),
                    show_fault(*got)
                )
            }
            Self::Fpu {
                offset,
                field,
                expected,
                got,
            } => {
                write!(
                    f,
                    "{field} (+{offset:#x}): expected {}, got {}",
                    hex(expected),
                    hex(got)
                )
            }
            Self::Memory {
                address,
                expected,
                got,
            } => {
                write!(
                    f,
                    "memory {address:#x}: expected {}, got {}",
                    hex(expected),
                    hex(got)
                )
            }
        }
    }
}
