//! Makes a failing case small: fewer instructions, simpler registers and memory, as long as it still fails.

use crate::case::{layout, Case, Subject};
use crate::compare::{compare, decode, Verdict};

/// Whether the subjects disagree on a case; undefined flags count in strict mode only.
pub fn fails(
    case: &Case,
    native: &mut dyn Subject,
    subject: &mut dyn Subject,
    strict: bool,
) -> bool {
    let Ok(expected) = native.run(case) else {
        return false;
    };
    match subject.run(case) {
        Err(_) => true,
        Ok(got) => match compare(case, &expected, &got, native) {
            Verdict::Equal => false,
            Verdict::UndefinedFlags(_) => strict,
            Verdict::Different(_) => true,
        },
    }
}

/// Reduces `case` while it fails. Instructions become NOPs of the same length, so that nothing else moves.
pub fn minimise(
    case: &Case,
    native: &mut dyn Subject,
    subject: &mut dyn Subject,
    strict: bool,
) -> Case {
    let mut best = case.clone();
    best.seed = 0;
    let mut attempt = |best: &mut Case, change: &dyn Fn(&mut Case)| {
        let mut candidate = best.clone();
        change(&mut candidate);
        if candidate != *best && fails(&candidate, native, subject, strict) {
            *best = candidate;
        }
    };
    // The tail first: everything behind the culprit.
    for instruction in decode(&best).iter().rev() {
        let keep = instruction.ip().wrapping_sub(best.code_address) as usize;
        attempt(&mut best, &|case: &mut Case| case.code.truncate(keep));
    }
    for instruction in decode(&best) {
        let start = instruction.ip().wrapping_sub(best.code_address) as usize;
        let end = (start + instruction.len()).min(best.code.len());
        attempt(&mut best, &|case: &mut Case| {
            case.code[start..end].fill(0x90)
        });
    }
    for register in 0..16 {
        attempt(&mut best, &|case: &mut Case| case.entry.gpr[register] = 0);
        attempt(&mut best, &|case: &mut Case| {
            case.entry.gpr[register] &= 0xff
        });
    }
    attempt(&mut best, &|case: &mut Case| case.entry.rflags = 0);
    attempt(&mut best, &|case: &mut Case| case.entry.fs_base = 0);
    attempt(&mut best, &|case: &mut Case| case.entry.gs_base = 0);
    for register in 0..24 {
        let at = 32 + register * 16;
        attempt(&mut best, &|case: &mut Case| {
            case.entry.fxsave[at..at + 16].fill(0)
        });
    }
    let mut size = layout::PAGE;
    while size >= 16 {
        for start in (0..layout::ARENA_SIZE).step_by(size) {
            if best.arena[start..start + size]
                .iter()
                .any(|&byte| byte != 0)
            {
                attempt(&mut best, &|case: &mut Case| {
                    case.arena[start..start + size].fill(0)
                });
            }
        }
        size /= 4;
    }
    best
}
