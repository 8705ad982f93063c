//! The sweep against the host's CPU, in 64-bit user code.

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use super::table::{decode, describe, is_hint, is_offered, length};
use super::{Mode, Part, Summary};
use crate::case::{layout, Case, Entry, Outcome, Subject};
use crate::compare::{compare, Verdict};
use crate::engine::{Setup, Translated};
use crate::native::Native;
use crate::rng::Rng;
use crate::state;

const BATCH: usize = 256;

/// Whether the host may be given an encoding: it neither enters the kernel or a hypervisor, nor takes the segments
/// away that the harness stands on.
fn may_run(insn: &Instruction, bytes: &[u8]) -> bool {
    let far = matches!(insn.mnemonic(), M::Jmp | M::Call) && !near(insn);
    let segment = (0..insn.op_count())
        .any(|n| insn.op_kind(n) == OpKind::Register && insn.op_register(n).is_segment_register());
    let system = matches!(
        insn.mnemonic(),
        M::Syscall
            | M::Sysenter
            | M::Int
            | M::Int1
            | M::Iret
            | M::Iretd
            | M::Iretq
            | M::Retf
            | M::Vmmcall
            | M::Vmcall
            | M::Vmgexit
            | M::Lss
            | M::Lfs
            | M::Lgs
            | M::Wrfsbase
            | M::Wrgsbase
            | M::Wrpkru
            | M::Xrstor
            | M::Xrstor64
            | M::Monitorx
            | M::Mwaitx
            | M::Umwait
            | M::Tpause
            | M::Llwpcb
            // CR4.OSXSAVE and CR4.FSGSBASE are clear on the other side.
            | M::Xgetbv
            | M::Xsetbv
            | M::Xsave
            | M::Xsave64
            | M::Xsaveopt
            | M::Xsaveopt64
            | M::Rdfsbase
            | M::Rdgsbase
    );
    !far && !segment && !system && !makers_differ(insn, bytes) && !may_circle(insn)
}

/// What makers do differently, and rr86 as Intel's: near branches have 64-bit operands whatever 66 says, and LOOPE
/// and LOOPNE ask for what the opcode says, not for what a prefix F2 or F3 says.
fn makers_differ(insn: &Instruction, bytes: &[u8]) -> bool {
    let is_prefix = |byte: &&u8| {
        matches!(
            **byte,
            0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x40
                ..=0x4f
        )
    };
    let prefixes = bytes.iter().take_while(is_prefix);
    let has = |prefix: u8| prefixes.clone().any(|&byte| byte == prefix);
    let counted = matches!(insn.mnemonic(), M::Loope | M::Loopne);
    let branch = insn.is_jcc_short_or_near()
        || near(insn)
        || counted
        || matches!(
            insn.mnemonic(),
            M::Loop | M::Jcxz | M::Jecxz | M::Jrcxz | M::Ret
        );
    branch && has(0x66) || counted && (has(0xf2) || has(0xf3))
}

/// A branch into itself, which may go on for ever.
fn may_circle(insn: &Instruction) -> bool {
    let direct = (0..insn.op_count()).any(|n| {
        matches!(
            insn.op_kind(n),
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
        )
    });
    direct && insn.near_branch_target() < insn.len() as u64
}

fn near(insn: &Instruction) -> bool {
    insn.is_jmp_short_or_near()
        || insn.is_jmp_near_indirect()
        || insn.is_call_near()
        || insn.is_call_near_indirect()
}

/// Whether only the fact that it executes is compared: what it gives is the processor's or the system's own.
fn own_result(insn: &Instruction) -> bool {
    matches!(
        insn.mnemonic(),
        M::Cpuid
            | M::Rdtsc
            | M::Rdtscp
            | M::Rdpmc
            // MXCSR_MASK.
            | M::Fxsave
            | M::Fxsave64
            | M::Sgdt
            | M::Sidt
            | M::Sldt
            | M::Str
            | M::Smsw
            | M::Lar
            | M::Lsl
            | M::Verr
            | M::Verw
            | M::Pushfq
            | M::Popfq
            | M::Pushf
            | M::Popf
    )
}

fn case(bytes: &[u8; 15], arena: &[u8]) -> Case {
    let length = length(bytes, Mode::Long3);
    let mut gpr = [layout::ARENA + 0x800; 16];
    gpr[1] = 2;
    gpr[4] = layout::ARENA + 0x6000;
    gpr[5] = layout::ARENA + 0x6000;
    Case {
        seed: 0,
        code_address: layout::CODE + 0x100,
        code: bytes[..length].to_vec(),
        entry: Entry {
            gpr,
            rflags: 0,
            fs_base: layout::ARENA,
            gs_base: layout::ARENA,
            fxsave: state::fxsave(&mut Rng::new(7), false),
        },
        arena: arena.to_vec(),
    }
}

fn undefined(outcome: &Outcome, case: &Case) -> bool {
    outcome
        .fault
        .is_some_and(|fault| fault.vector == 6 && outcome.rip == case.code_address)
}

/// The host and rr86.
pub struct Sides {
    native: Native,
    subject: Translated,
}

fn translated() -> Translated {
    Translated::new(Setup::default()).expect("a host that rr86 runs on")
}

impl Default for Sides {
    fn default() -> Self {
        Self {
            native: Native::new().expect("a host that runs cases"),
            subject: translated(),
        }
    }
}

impl Sides {
    /// Compares the encodings of a part that can be compared.
    pub fn compare(
        &mut self,
        part: Part,
        stride: usize,
        seed: u64,
        note: &mut dyn FnMut(&[u8; 15]),
    ) -> Summary {
        let mut summary = Summary::default();
        // Operands of all zeros make the fewest faults that are not the encoding's.
        let arena = vec![0; layout::ARENA_SIZE];
        let chosen: Vec<[u8; 15]> = part
            .encodings(stride, seed)
            .filter(|bytes| may_run(&decode(bytes, part.mode), bytes))
            .collect();
        for some in chosen.chunks(BATCH) {
            let cases: Vec<Case> = some.iter().map(|bytes| case(bytes, &arena)).collect();
            let expected = self.native.run_batch(&cases);
            for ((bytes, case), expected) in some.iter().zip(&cases).zip(expected) {
                note(bytes);
                let Ok(expected) = expected else { continue };
                summary.cases += 1;
                let got = match self.subject.run(case) {
                    Ok(got) => got,
                    Err(error) => {
                        summary.find(format!("{}: {error}", describe(bytes, part.mode)));
                        self.subject = translated();
                        continue;
                    }
                };
                if let Some(difference) = judge(bytes, case, &expected, &got, &mut self.native) {
                    summary.find(format!("{}: {difference}", describe(bytes, part.mode)));
                }
            }
        }
        summary
    }
}

/// What is wrong about an outcome.
fn judge(
    bytes: &[u8; 15],
    case: &Case,
    expected: &Outcome,
    got: &Outcome,
    native: &mut Native,
) -> Option<String> {
    let insn = decode(bytes, Mode::Long3);
    match (undefined(expected, case), undefined(got, case)) {
        (true, true) => None,
        // The host knows more than the model.
        (false, true) if !is_offered(&insn) => None,
        (false, true) => Some("raises #UD, and not on the host".into()),
        // The model knows more than the host, or the host takes a hint for something else.
        (true, false) if is_hint(&insn) => None,
        (true, false) => Some("executes, and raises #UD on the host".into()),
        (false, false) if !is_offered(&insn) && !insn.is_invalid() => {
            Some("executes and is not offered".into())
        }
        (false, false) if own_result(&insn) || is_hint(&insn) => None,
        // The host has LZCNT and TZCNT.
        (false, false)
            if matches!(insn.mnemonic(), M::Bsf | M::Bsr) && case.code.contains(&0xf3) =>
        {
            None
        }
        (false, false) => match compare(case, expected, got, native) {
            Verdict::Equal | Verdict::UndefinedFlags(_) => None,
            Verdict::Different(list) => Some(format!("{list:?}")),
        },
    }
}
