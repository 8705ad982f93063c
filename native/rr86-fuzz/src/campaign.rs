//! Many inputs one after the other. What ends one of them is told with the two numbers that repeat it.

use std::collections::BTreeMap;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use crate::targets::Targets;

/// Inputs between two lines of progress.
const STEP: u64 = 1 << 18;
/// An input that takes as many of the watch's looks has hung.
const LOOKS: u32 = 30;

/// Which inputs.
#[derive(Clone, Debug)]
pub struct Campaign {
    pub seed: u64,
    pub from: u64,
    pub inputs: u64,
    /// Of one target alone.
    pub only: Option<String>,
    /// Whether to say how far it is.
    pub progress: bool,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    pub inputs: BTreeMap<&'static str, u64>,
    pub findings: Vec<String>,
}

impl Campaign {
    /// Runs it. A hang ends the process.
    pub fn run(&self, targets: &mut Targets) -> Outcome {
        let current = Arc::new(AtomicU64::new(self.from));
        self.watch(current.clone());
        // A finding is one line; a backtrace of each would take longer than a thousand inputs.
        std::panic::set_hook(Box::new(|panic| {
            let place = panic.location().map(ToString::to_string);
            eprintln!("panic at {}", place.unwrap_or_default());
        }));
        let mut outcome = Outcome::default();
        let only = self.only.as_deref();
        for number in self.from..self.from.saturating_add(self.inputs) {
            current.store(number, Ordering::Relaxed);
            match catch_unwind(AssertUnwindSafe(|| targets.run(self.seed, number, only))) {
                Ok(name) => *outcome.inputs.entry(name).or_default() += 1,
                Err(panic) => {
                    let text = panic.downcast_ref::<String>().cloned();
                    let text =
                        text.or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned()));
                    let what = text.unwrap_or_else(|| "a panic".to_owned());
                    let finding =
                        format!("--seed {} --from {number} --inputs 1: {what}", self.seed);
                    eprintln!("finding: {finding}");
                    outcome.findings.push(finding);
                }
            }
            let done = number + 1 - self.from;
            if self.progress && done % STEP == 0 {
                let (seed, found) = (self.seed, outcome.findings.len());
                eprintln!(
                    "seed {seed}: {done} inputs, {found} findings; go on with --from {}",
                    number + 1
                );
            }
        }
        drop(std::panic::take_hook());
        current.store(u64::MAX, Ordering::Relaxed);
        outcome
    }

    /// A thread that ends the process when an input takes for ever.
    fn watch(&self, current: Arc<AtomicU64>) {
        let seed = self.seed;
        std::thread::spawn(move || {
            let (mut last, mut looks) = (u64::MAX, 0);
            loop {
                std::thread::sleep(Duration::from_secs(1));
                let number = current.load(Ordering::Relaxed);
                if number == u64::MAX {
                    return;
                }
                looks = if number == last { looks + 1 } else { 0 };
                last = number;
                if looks == LOOKS {
                    eprintln!("finding: --seed {seed} --from {number} --inputs 1: it hangs");
                    std::process::abort();
                }
            }
        });
    }
}
