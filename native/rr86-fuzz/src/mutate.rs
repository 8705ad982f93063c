//! Changes to bytes, drawn from a seed.

/// Numbers in an order that follows from the seed (splitmix64).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64, number: u64) -> Self {
        let mut rng = Self(seed ^ number.wrapping_mul(0xd134_2543_de82_ef95));
        rng.next();
        rng
    }

    #[allow(clippy::should_implement_trait)] // It has no end.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        match bound {
            0 => 0,
            bound => (self.next() % bound as u64) as usize,
        }
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// Numbers at which something may end, overflow or change its meaning.
pub fn interesting(rng: &mut Rng) -> u64 {
    let shift = rng.below(64) as u32;
    let edge = match rng.below(6) {
        0 => 1u64 << shift,
        1 => u64::MAX >> shift,
        2 => u64::MAX << shift,
        3 => rng.next() >> shift,
        4 => *rng.pick(&[0, 1, 63, 64, 255, 256, 4095, 4096, 65_535, 65_536, 131_072]),
        _ => *rng.pick(&[
            1 << 20,
            16 << 20,
            (16 << 20) + 1,
            256 << 20,
            1 << 30,
            1 << 52,
            1 << 62,
        ]),
    };
    edge.wrapping_add(rng.below(3) as u64).wrapping_sub(1)
}

/// A number as the formats' variable-length integers have it.
pub fn varint(mut x: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while x >= 0x80 {
        out.push(x as u8 | 0x80);
        x >>= 7;
    }
    out.push(x as u8);
    out
}

/// A range of `0..len`, short more often than long.
fn range(rng: &mut Rng, len: usize) -> std::ops::Range<usize> {
    let start = rng.below(len + 1);
    let shift = rng.below(12) as u32;
    let most = (len - start).min(4096 >> shift);
    start..start + rng.below(most + 1)
}

/// Makes one to four changes; `other` is where foreign pieces come from.
pub fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..=rng.below(4) {
        change(rng, bytes, other);
    }
}

fn change(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    let at = rng.below(bytes.len());
    match rng.below(12) {
        0..=2 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << rng.below(8);
            }
        }
        3 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = *rng.pick(&[0, 1, 0x7f, 0x80, 0xff, 0xfe, 0x40]);
            }
        }
        4 | 5 => {
            // A fixed-width number in place of what is there.
            let number = interesting(rng).to_le_bytes();
            let width = *rng.pick(&[1, 2, 4, 8]);
            for (byte, new) in bytes[at..].iter_mut().zip(&number[..width]) {
                *byte = *new;
            }
        }
        6 | 7 => {
            // A varint in place of one.
            let end = bytes[at..].iter().position(|b| b & 0x80 == 0);
            let end = end.map_or(at, |n| at + n + 1);
            let number = varint(interesting(rng));
            bytes.splice(at..end, number);
        }
        8 => bytes.truncate(at),
        9 => drop(bytes.drain(range(rng, bytes.len()))),
        10 => {
            let again = bytes[range(rng, bytes.len())].to_vec();
            bytes.splice(at..at, again);
        }
        _ => {
            let foreign = other[range(rng, other.len())].to_vec();
            let place = range(rng, bytes.len());
            bytes.splice(place, foreign);
        }
    }
}
