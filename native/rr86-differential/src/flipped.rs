//! A subject that is wrong on purpose, to show that the comparison finds each kind of mistake.

use crate::case::{Case, Outcome, Subject, SubjectError};
use crate::rng::mix;

/// Another subject with one detail of some outcomes changed.
pub struct Flipped<S> {
    inner: S,
    /// Which detail; `None` changes a different one for each case.
    pub what: Option<Flip>,
}

/// The details that can be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flip {
    /// One bit of the register with this number.
    Register(usize),
    Rip,
    /// One RFLAGS bit.
    Flag(u32),
    /// One byte of the FXSAVE image.
    Fpu(usize),
    /// One byte of the arena.
    Memory(usize),
    /// The fault is dropped, or one is made up.
    Fault,
}

impl<S> Flipped<S> {
    pub fn new(inner: S) -> Self {
        Self { inner, what: None }
    }
}

impl<S: Subject> Subject for Flipped<S> {
    fn run(&mut self, case: &Case) -> Result<Outcome, SubjectError> {
        let mut outcome = self.inner.run(case)?;
        let draw = mix(case.seed ^ case.code.len() as u64);
        let what = self.what.unwrap_or(match draw % 4 {
            0 => Flip::Register(draw as usize / 4 % 16),
            1 => Flip::Flag([0, 2, 6, 7][draw as usize / 4 % 4]),
            2 => Flip::Fpu(160 + draw as usize / 4 % 256),
            _ => Flip::Memory(draw as usize / 4 % 0x1000),
        });
        match what {
            Flip::Register(number) => outcome.gpr[number] ^= 1 << 40,
            Flip::Rip => outcome.rip ^= 1,
            Flip::Flag(bit) => outcome.rflags ^= 1 << bit,
            Flip::Fpu(offset) => outcome.fxsave[offset] ^= 0x10,
            Flip::Memory(offset) => outcome.arena[offset] ^= 1,
            Flip::Fault => {
                outcome.fault = match outcome.fault {
                    Some(_) => None,
                    None => Some(crate::case::Fault {
                        vector: 6,
                        error_code: 0,
                        cr2: 0,
                    }),
                }
            }
        }
        Ok(outcome)
    }
}
