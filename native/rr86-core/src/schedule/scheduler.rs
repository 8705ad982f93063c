//! The seeded scheduler: round robin over the vCPUs that can run, with jitter on every slice.
//!
//! Linux spins without PAUSE or HLT while it brings up other vCPUs, so slices end by instruction
//! count. The jitter makes different seeds interleave differently: each slice is drawn between a
//! quarter of the quantum and seven quarters, so that the mean is the quantum.

use super::machine::Decision;

/// Draws decisions; the same seed and the same questions give the same decisions.
#[derive(Clone, Debug)]
pub struct Scheduler {
    state: u64,
    quantum: u64,
    last: usize,
}

impl Scheduler {
    pub fn new(seed: u64, quantum: u64) -> Self {
        Self {
            state: seed ^ 0x6a09_e667_f3bc_c908,
            quantum: quantum.max(1),
            last: 0,
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

    /// The next slice: the next vCPU in turn among those that can run.
    pub fn next(&mut self, runnable: &[bool]) -> Decision {
        let count = runnable.len();
        let vcpu = (1..=count)
            .map(|step| (self.last + step) % count)
            .find(|&v| runnable[v])
            .expect("the machine asks only when some vCPU can run");
        self.last = vcpu;
        let spread = self.quantum + self.quantum / 2;
        let budget = self.quantum / 4 + self.draw() % spread.max(1);
        Decision {
            vcpu,
            budget: budget.max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_decides_the_same_and_another_differently() {
        let run = |seed| {
            let mut s = Scheduler::new(seed, 1000);
            (0..50)
                .map(|_| s.next(&[true, true, false, true]))
                .collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        assert!(run(1)
            .iter()
            .all(|d| d.vcpu != 2 && (1..=1750).contains(&d.budget)));
    }
}
