//! Cases as text: reproducer files, and readable reports.
//!
//! A `.case` file has one item a line: `code_address`, `code` (hex bytes), `rflags`, `fs_base`, `gs_base`, a
//! register name with its value, `fxsave OFFSET` and `arena OFFSET` with up to 16 bytes. What is absent is zero. `#` starts a comment.

use std::fmt::Write as _;

use iced_x86::{Formatter, IntelFormatter};
use thiserror::Error;

use crate::case::{layout, Case, Entry};
use crate::compare::{decode, flag_names, Difference, GPR_NAMES};

/// Why a `.case` file cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line}: {problem}: '{text}'")]
pub struct ParseError {
    pub line: usize,
    pub problem: &'static str,
    pub text: String,
}

/// The instructions in Intel syntax, one a line; runs of NOP are left out.
pub fn disassemble(case: &Case) -> String {
    let mut formatter = IntelFormatter::new();
    let mut text = String::new();
    let end = case.end();
    for instruction in decode(case) {
        if instruction.code() == iced_x86::Code::Nopd {
            continue;
        }
        let mut line = String::new();
        formatter.format(&instruction, &mut line);
        let _ = writeln!(text, "{:#x}  {line}", instruction.ip());
    }
    let _ = writeln!(text, "{end:#x}  hlt");
    text
}

/// Writes a case in the form that [`parse`] reads.
pub fn render(case: &Case, note: &str) -> String {
    let mut text = String::new();
    for line in note.lines().chain(disassemble(case).lines()) {
        let _ = writeln!(text, "# {line}");
    }
    let _ = writeln!(text, "code_address {:#x}", case.code_address);
    for line in case.code.chunks(16) {
        let _ = writeln!(text, "code {}", hex(line));
    }
    let _ = writeln!(text, "rflags {:#x}", case.entry.rflags);
    let _ = writeln!(text, "fs_base {:#x}", case.entry.fs_base);
    let _ = writeln!(text, "gs_base {:#x}", case.entry.gs_base);
    for (name, value) in GPR_NAMES.iter().zip(case.entry.gpr) {
        let _ = writeln!(text, "{name} {value:#x}");
    }
    for (name, bytes) in [
        ("fxsave", &case.entry.fxsave[..]),
        ("arena", &case.arena[..]),
    ] {
        for (line, chunk) in bytes.chunks(16).enumerate() {
            if chunk.iter().any(|&byte| byte != 0) {
                let _ = writeln!(text, "{name} {:#x} {}", line * 16, hex(chunk));
            }
        }
    }
    text
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>()
        .join(" ")
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Reads a `.case` file.
pub fn parse(text: &str) -> Result<Case, ParseError> {
    let mut case = Case {
        seed: 0,
        code_address: layout::CODE,
        code: Vec::new(),
        entry: Entry {
            gpr: [0; 16],
            rflags: 0,
            fs_base: 0,
            gs_base: 0,
            fxsave: [0; 512],
        },
        arena: vec![0; layout::ARENA_SIZE],
    };
    for (index, full) in text.lines().enumerate() {
        let line = full.split('#').next().unwrap_or("").trim();
        let error = |problem| ParseError {
            line: index + 1,
            problem,
            text: line.to_owned(),
        };
        let mut words = line.split_whitespace();
        let Some(key) = words.next() else { continue };
        let rest: Vec<&str> = words.collect();
        let bytes = |words: &[&str]| -> Result<Vec<u8>, ParseError> {
            words
                .iter()
                .map(|word| u8::from_str_radix(word, 16).map_err(|_| error("not a byte")))
                .collect()
        };
        let first = || {
            rest.first()
                .and_then(|word| number(word))
                .ok_or_else(|| error("not a number"))
        };
        match key {
            "code" => case.code.extend(bytes(&rest)?),
            "fxsave" | "arena" => {
                let offset = first()? as usize;
                let data = bytes(&rest[1..])?;
                let place = if key == "arena" {
                    &mut case.arena[..]
                } else {
                    &mut case.entry.fxsave[..]
                };
                let end = offset.saturating_add(data.len());
                place
                    .get_mut(offset..end)
                    .ok_or_else(|| error("outside of the image"))?
                    .copy_from_slice(&data);
            }
            "code_address" => case.code_address = first()?,
            "rflags" => case.entry.rflags = first()?,
            "fs_base" => case.entry.fs_base = first()?,
            "gs_base" => case.entry.gs_base = first()?,
            name => match GPR_NAMES.iter().position(|known| *known == name) {
                Some(register) => case.entry.gpr[register] = first()?,
                None => return Err(error("no such item")),
            },
        }
    }
    Ok(case)
}

/// A report on a case whose outcomes differ.
pub fn report(case: &Case, differences: &[Difference]) -> String {
    let mut text = disassemble(case);
    let _ = writeln!(text, "entry: flags {}", flag_names(case.entry.rflags));
    for (name, value) in GPR_NAMES.iter().zip(case.entry.gpr) {
        if value != 0 {
            let _ = writeln!(text, "  {name} = {value:#x}");
        }
    }
    // What is zero was not needed to fail; a reduced case has few lines left.
    let images = [
        ("fxsave +", &case.entry.fxsave[..], 0),
        ("arena ", &case.arena[..], layout::ARENA),
    ];
    for (name, bytes, base) in images {
        let lines = bytes.chunks(16).enumerate();
        let shown = lines
            .filter(|(_, line)| line.iter().any(|&byte| byte != 0))
            .take(12);
        for (index, line) in shown {
            let _ = writeln!(
                text,
                "  {name}{:#x}: {}",
                base + index as u64 * 16,
                hex(line)
            );
        }
    }
    for difference in differences.iter().take(20) {
        let _ = writeln!(text, "- {difference}");
    }
    text
}
