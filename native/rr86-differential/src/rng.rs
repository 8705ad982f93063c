//! A small seeded generator (xoshiro256**), so that a case is the same on every host and for ever.

/// Deterministic source of random and corner values.
#[derive(Clone, Debug)]
pub struct Rng([u64; 4]);

/// One step of SplitMix64; also used to derive the seed of a case from the run's seed.
pub fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Rng {
    /// A generator whose whole stream follows from `seed`.
    pub fn new(seed: u64) -> Self {
        let mut state = [0; 4];
        let mut x = seed;
        for word in &mut state {
            x = mix(x);
            *word = x;
        }
        Self(state)
    }

    /// 64 uniform bits.
    pub fn u64(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Uniform below `bound`, which must not be zero (the bias of the modulus does not matter here).
    pub fn below(&mut self, bound: u64) -> u64 {
        self.u64() % bound
    }

    /// True in `percent` of a hundred draws.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One element of a non-empty slice.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }

    /// A 64-bit operand: uniform, small, or at one of the corners of a narrower width.
    pub fn operand(&mut self) -> u64 {
        match self.below(6) {
            0 | 1 => self.u64(),
            2 => self.below(70),
            3 => {
                let corner = 1u64 << self.pick(&[0, 7, 8, 15, 16, 31, 32, 62, 63]);
                let near = corner.wrapping_add(self.below(3)).wrapping_sub(1);
                if self.chance(30) {
                    near.wrapping_neg()
                } else {
                    near
                }
            }
            4 => self.pick(&[
                0,
                1,
                u64::MAX,
                i64::MAX as u64,
                i64::MIN as u64,
                0xffff_ffff,
                0x5555_5555_5555_5555,
            ]),
            _ => self.u64() >> self.below(64),
        }
    }
}
