//! A run: generate, execute on both sides, compare, reduce, count.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use iced_x86::Code;

use crate::case::{Case, Outcome, Subject, SubjectError};
use crate::compare::{compare, decode, Verdict};
use crate::generate::Generator;
use crate::minimise::minimise;
use crate::text;

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub seed: u64,
    pub start: u64,
    pub count: u64,
    /// Undefined flags must be equal as well.
    pub strict: bool,
    /// Where to write reproducers.
    pub keep: Option<PathBuf>,
}

/// The counts of a run.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub cases: u64,
    pub instructions: u64,
    pub mismatches: u64,
    /// Cases that differ in undefined flags only, by the last instruction that left one undefined.
    pub undefined_only: u64,
    /// Cases that the host CPU could not run (they killed the child or did not end).
    pub unusable: u64,
    /// Cases that ended in a fault, by vector.
    pub faults: BTreeMap<u8, u64>,
    /// Forms that were executed to completion.
    pub covered: BTreeSet<Code>,
    /// Forms that were executed, to completion or to a fault of their own.
    pub reached: BTreeSet<Code>,
    /// Forms that were asked for.
    pub offered: BTreeSet<Code>,
}

impl Summary {
    /// Whether nothing differed.
    pub fn is_clean(&self) -> bool {
        self.mismatches == 0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} cases, {} instructions, {} mismatches, {} with other undefined flags, {} unusable",
            self.cases, self.instructions, self.mismatches, self.undefined_only, self.unusable
        )?;
        writeln!(f, "faults by vector: {:?}", self.faults)?;
        let covered = self.offered.intersection(&self.covered).count();
        write!(f, "forms covered: {covered} of {}", self.offered.len())?;
        for code in self.offered.difference(&self.covered).take(60) {
            let how = if self.reached.contains(code) {
                "only faulted"
            } else {
                "not reached"
            };
            write!(f, "\n  {code:?}: {how}")?;
        }
        Ok(())
    }
}

/// A run in progress.
pub struct Run<'a> {
    options: Options,
    native: &'a mut dyn Subject,
    subject: &'a mut dyn Subject,
    summary: Summary,
}

/// Mismatches that are reduced and printed; later ones are counted.
const REPORTED: u64 = 10;
const CHUNK: u64 = 256;

impl<'a> Run<'a> {
    pub fn new(
        options: Options,
        native: &'a mut dyn Subject,
        subject: &'a mut dyn Subject,
    ) -> Self {
        Self {
            options,
            native,
            subject,
            summary: Summary::default(),
        }
    }

    /// Runs every case of the options; `print` gets reports and progress.
    pub fn all(&mut self, generator: &Generator, print: &mut dyn FnMut(&str)) -> Summary {
        self.summary.offered = generator.forms().iter().copied().collect();
        let end = self.options.start.saturating_add(self.options.count);
        let mut index = self.options.start;
        while index < end {
            let next = end.min(index + CHUNK);
            let cases: Vec<Case> = (index..next)
                .filter_map(|n| generator.case(self.options.seed, n))
                .collect();
            let expected = self.native.run_batch(&cases);
            let got = self.subject.run_batch(&cases);
            for (at, (case, (expected, got))) in
                cases.iter().zip(expected.into_iter().zip(got)).enumerate()
            {
                let name = format!("seed {} case {}", self.options.seed, index + at as u64);
                self.judge(case, expected, got, &name, print);
            }
            index = next;
            if index % (CHUNK * 200) == 0 {
                let Summary {
                    cases, mismatches, ..
                } = self.summary;
                print(&format!("{cases} cases, {mismatches} mismatches"));
            }
        }
        self.summary.clone()
    }

    /// Runs one given case.
    pub fn replay(&mut self, case: &Case) -> Summary {
        let expected = self.native.run(case);
        let got = self.subject.run(case);
        self.judge(case, expected, got, "replayed case", &mut |line| {
            println!("{line}")
        });
        self.summary.clone()
    }

    fn judge(
        &mut self,
        case: &Case,
        expected: Result<Outcome, SubjectError>,
        got: Result<Outcome, SubjectError>,
        name: &str,
        print: &mut dyn FnMut(&str),
    ) {
        self.summary.cases += 1;
        let expected = match expected {
            Ok(expected) => expected,
            Err(error) => {
                self.summary.unusable += 1;
                print(&format!("{name}: the host CPU gave no outcome: {error}"));
                return;
            }
        };
        self.count(case, &expected);
        let (differences, failure) = match got {
            Err(error) => (Vec::new(), format!("the subject gave no outcome: {error}")),
            Ok(got) => match compare(case, &expected, &got, self.native) {
                Verdict::Equal => return,
                Verdict::UndefinedFlags(differences) => {
                    self.summary.undefined_only += 1;
                    if !self.options.strict {
                        return;
                    }
                    (differences, "undefined flags differ".into())
                }
                Verdict::Different(differences) => (differences, "outcomes differ".into()),
            },
        };
        self.summary.mismatches += 1;
        if self.summary.mismatches > REPORTED {
            return;
        }
        let strict = self.options.strict;
        let small = minimise(case, self.native, self.subject, strict);
        let shown = match (self.native.run(&small), self.subject.run(&small)) {
            (Ok(expected), Ok(got)) => match compare(&small, &expected, &got, self.native) {
                Verdict::Different(list) | Verdict::UndefinedFlags(list) => list,
                Verdict::Equal => differences,
            },
            _ => differences,
        };
        print(&format!(
            "{name}: {failure}\n{}",
            text::report(&small, &shown)
        ));
        if let Some(directory) = &self.options.keep {
            let file = directory.join(format!("{}.case", name.replace(' ', "-")));
            let note = format!("{name}: {failure}");
            if let Err(error) = std::fs::write(&file, text::render(&small, &note)) {
                print(&format!("{}: {error}", file.display()));
            }
        }
    }

    /// Notes which forms ran: the straight-line ones up to the end or the fault.
    fn count(&mut self, case: &Case, outcome: &Outcome) {
        if let Some(fault) = outcome.fault {
            *self.summary.faults.entry(fault.vector).or_default() += 1;
        }
        let mut certain = true;
        for instruction in decode(case) {
            if outcome.fault.is_some() && instruction.ip() == outcome.rip {
                self.summary.reached.insert(instruction.code());
                break;
            }
            if certain {
                self.summary.instructions += 1;
                self.summary.covered.insert(instruction.code());
            }
            use iced_x86::FlowControl as F;
            certain &= matches!(
                instruction.flow_control(),
                F::Next | F::Exception | F::Interrupt
            );
        }
    }
}
