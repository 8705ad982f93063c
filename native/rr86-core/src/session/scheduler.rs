//! Seeded schedulers: who runs next, and for how long.
//!
//! Linux spins without PAUSE or HLT while it brings up other vCPUs, so slices end by instruction count
//! in every one of them. PAUSE counts as giving way, or a strict order of priorities would spin for
//! ever on a lock whose holder may not run.

use thiserror::Error;

use super::slice::{Decision, SliceStop};

/// The policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Round robin, with jitter on every slice.
    Uniform,
    /// Any vCPU next; slices from a sixty-fourth of the quantum to twice of it, short ones as likely
    /// as long ones.
    Random,
    /// Probabilistic concurrency testing (Burckhardt et al., 2010): random priorities, of which the
    /// highest always runs, and a few moments at which the running vCPU drops to the lowest.
    Pct,
    /// Round robin, but again and again some vCPU does not get to run for a while, as in rr's chaos mode.
    Starve,
}

/// A schedule that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("there is no schedule {0:?}; known: uniform, random, pct, starve")]
pub struct UnknownPolicy(pub String);

impl Policy {
    /// The policy with this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn named(name: &str) -> Result<Self, UnknownPolicy> {
        match name {
            "uniform" => Ok(Self::Uniform),
            "random" => Ok(Self::Random),
            "pct" => Ok(Self::Pct),
            "starve" => Ok(Self::Starve),
            other => Err(UnknownPolicy(other.to_string())),
        }
    }
}

/// Mean distance of two priority changes, in slices. A bug needs one to three of them close to each
/// other; over a long run there are many groups.
const CHANGE_SLICES: u64 = 400;
/// Mean length of a starvation, and of the time between two, in slices.
const STARVE_SLICES: u64 = 60;

/// Draws decisions; the same seed and the same questions give the same decisions.
#[derive(Clone, Debug)]
pub struct Scheduler {
    policy: Policy,
    state: u64,
    quantum: u64,
    last: usize,
    /// Higher runs first (PCT).
    priorities: Vec<u64>,
    /// Slices until the next change of priority or starvation.
    until_change: u64,
    starved: Option<usize>,
    /// The last slice ended with a yield.
    yielded: bool,
}

impl Scheduler {
    pub fn new(policy: Policy, seed: u64, quantum: u64) -> Self {
        Self {
            policy,
            state: seed ^ 0x6a09_e667_f3bc_c908,
            quantum: quantum.max(1),
            last: 0,
            priorities: Vec::new(),
            until_change: 0,
            starved: None,
            yielded: false,
        }
    }

    /// SplitMix64: every state is followed by another, so no seed is bad.
    fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Tells how the last slice ended.
    pub fn note(&mut self, stop: SliceStop) {
        self.yielded = matches!(stop, SliceStop::Pause | SliceStop::Halt);
    }

    /// The next slice, of a vCPU that can run.
    ///
    /// # Panics
    /// When none can.
    pub fn next(&mut self, runnable: &[bool]) -> Decision {
        let vcpu = match self.policy {
            Policy::Uniform => self.in_turn(runnable, None),
            Policy::Random => {
                let able: Vec<usize> = (0..runnable.len()).filter(|&v| runnable[v]).collect();
                able[(self.draw() % able.len() as u64) as usize]
            }
            Policy::Pct => self.by_priority(runnable),
            Policy::Starve => self.starving(runnable),
        };
        self.last = vcpu;
        let budget = if self.policy == Policy::Random {
            (self.quantum * 2) >> (self.draw() % 8)
        } else {
            self.quantum / 4 + self.draw() % (self.quantum + self.quantum / 2).max(1)
        };
        Decision {
            vcpu,
            budget: budget.max(1),
        }
    }

    /// The next in turn that can run, `without` only if there is no other.
    fn in_turn(&self, runnable: &[bool], without: Option<usize>) -> usize {
        let count = runnable.len();
        let turn = |able: &dyn Fn(usize) -> bool| {
            (1..=count)
                .map(|step| (self.last + step) % count)
                .find(|&v| able(v))
        };
        turn(&|v| runnable[v] && Some(v) != without)
            .or_else(|| turn(&|v| runnable[v]))
            .expect("the machine asks only when some vCPU can run")
    }

    fn by_priority(&mut self, runnable: &[bool]) -> usize {
        while self.priorities.len() < runnable.len() {
            let priority = self.draw() | 1 << 63;
            self.priorities.push(priority);
        }
        if self.until_change == 0 {
            self.until_change = 1 + self.draw() % (2 * CHANGE_SLICES);
            // Below every priority that is drawn, and below whoever was dropped before.
            let lowest = self
                .priorities
                .iter()
                .copied()
                .min()
                .unwrap_or(1 << 63)
                .min(1 << 62);
            self.priorities[self.last] = lowest.saturating_sub(1);
            if lowest < 1 << 61 {
                self.priorities.clear();
                return self.by_priority(runnable);
            }
        }
        self.until_change -= 1;
        let passed = if self.yielded { Some(self.last) } else { None };
        let best = |except: Option<usize>| {
            (0..runnable.len())
                .filter(|&v| runnable[v] && Some(v) != except)
                .max_by_key(|&v| self.priorities[v])
        };
        best(passed)
            .or_else(|| best(None))
            .expect("the machine asks only when some vCPU can run")
    }

    fn starving(&mut self, runnable: &[bool]) -> usize {
        if self.until_change == 0 {
            self.until_change = 1 + self.draw() % (2 * STARVE_SLICES);
            let victim = (self.draw() % runnable.len() as u64) as usize;
            self.starved = if self.starved.is_some() {
                None
            } else {
                Some(victim)
            };
        }
        self.until_change -= 1;
        self.in_turn(runnable, self.starved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICIES: [Policy; 4] = [Policy::Uniform, Policy::Random, Policy::Pct, Policy::Starve];

    fn run(policy: Policy, seed: u64, runnable: &[bool]) -> Vec<Decision> {
        let mut s = Scheduler::new(policy, seed, 1000);
        (0..2000).map(|_| s.next(runnable)).collect()
    }

    #[test]
    fn the_same_seed_decides_the_same_and_another_differently() {
        for policy in POLICIES {
            let all = [true, true, false, true];
            assert_eq!(run(policy, 1, &all), run(policy, 1, &all));
            assert_ne!(run(policy, 1, &all), run(policy, 2, &all));
            assert!(run(policy, 1, &all)
                .iter()
                .all(|d| d.vcpu != 2 && (1..=2000).contains(&d.budget)));
        }
    }

    #[test]
    fn every_vcpu_gets_to_run_under_every_policy() {
        for policy in POLICIES {
            let decisions = run(policy, 7, &[true; 4]);
            assert!(
                (0..4).all(|v| decisions.iter().any(|d| d.vcpu == v)),
                "{policy:?}"
            );
        }
    }

    #[test]
    fn the_only_vcpu_that_can_run_runs() {
        for policy in POLICIES {
            assert!(run(policy, 3, &[false, false, true])
                .iter()
                .all(|d| d.vcpu == 2));
        }
    }

    #[test]
    fn a_vcpu_that_yields_lets_a_lower_priority_run() {
        let mut s = Scheduler::new(Policy::Pct, 5, 1000);
        let first = s.next(&[true; 2]);
        s.note(SliceStop::Pause);
        assert_ne!(s.next(&[true; 2]).vcpu, first.vcpu);
    }
}
