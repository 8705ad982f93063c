//! Random and corner entry states.

use crate::case::{layout, Entry, FLAG_MASK};
use crate::rng::Rng;

/// A double-precision pattern, with a taste for zeros, infinities, NaNs and denormals.
fn double(rng: &mut Rng) -> u64 {
    let sign = rng.u64() & (1 << 63);
    let fraction = rng.u64() >> 12;
    sign | match rng.below(8) {
        0 => 0,
        1 => 0x7ff0_0000_0000_0000,
        2 => 0x7ff0_0000_0000_0000 | fraction | 1,
        3 => 0x7ff8_0000_0000_0000,
        4 => fraction,
        5 => (rng.below(64) as f64).to_bits(),
        6 => (1000 + rng.below(60)) << 52 | fraction,
        _ => rng.u64() >> 1,
    }
}

fn single(rng: &mut Rng) -> u32 {
    let sign = (rng.u64() as u32) & (1 << 31);
    let fraction = (rng.u64() as u32) >> 9;
    sign | match rng.below(8) {
        0 => 0,
        1 => 0x7f80_0000,
        2 => 0x7f80_0000 | fraction | 1,
        3 => 0x7fc0_0000,
        4 => fraction,
        5 => (rng.below(64) as f32).to_bits(),
        6 => (120 + rng.below(40) as u32) << 23 | fraction,
        _ => rng.u64() as u32 >> 1,
    }
}

/// 16 bytes for an XMM register or for memory that SSE instructions read.
pub fn vector(rng: &mut Rng) -> [u8; 16] {
    let (low, high) = match rng.below(4) {
        0 => (rng.u64(), rng.u64()),
        1 => (rng.operand(), rng.operand()),
        2 => (double(rng), double(rng)),
        _ => {
            let mut pair = || u64::from(single(rng)) | u64::from(single(rng)) << 32;
            (pair(), pair())
        }
    };
    (u128::from(low) | u128::from(high) << 64).to_le_bytes()
}

/// An 80-bit x87 value: (significand, sign and exponent), including unnormals and pseudo-denormals.
pub fn extended(rng: &mut Rng) -> (u64, u16) {
    let sign = (rng.u64() as u16) & 0x8000;
    let top = 1u64 << 63;
    let (significand, exponent) = match rng.below(10) {
        0 => (0, 0),
        1 => (top, 0x7fff),
        2 => (top | rng.u64() | 1, 0x7fff),
        3 => (top | 1 << 62, 0x7fff),
        4 => (rng.u64() >> 1, 0),
        5 => (top | rng.u64() << 40, 0x3fff + rng.below(40) as u16),
        6 => (rng.u64(), rng.u64() as u16 & 0x7fff),
        7 => (top, 0x3fff + rng.below(4) as u16),
        _ => (top | rng.u64(), 0x3fc0 + rng.below(0x80) as u16),
    };
    (significand, exponent | sign)
}

/// An x87 control word without reserved bits; exceptions mostly masked.
pub fn control_word(rng: &mut Rng, faults: bool) -> u16 {
    let masks = if faults && rng.chance(30) {
        rng.u64() as u16 & 0x3f
    } else {
        0x3f
    };
    let precision = rng.pick(&[0, 2, 3, 3, 3]) << 8;
    let rounding = (rng.below(4) as u16) << 10;
    masks | 0x40 | precision | rounding
}

/// An MXCSR value without reserved bits; exceptions mostly masked.
pub fn mxcsr(rng: &mut Rng, faults: bool) -> u32 {
    let masks = if faults && rng.chance(30) {
        (rng.u64() as u32 & 0x3f) << 7
    } else {
        0x1f80
    };
    let mut value = masks | (rng.below(4) as u32) << 13 | (rng.u64() as u32 & 0x3f);
    if rng.chance(20) {
        value |= 0x8000;
    }
    if rng.chance(20) {
        value |= 0x40;
    }
    value
}

/// A valid FXSAVE image. With `faults` there may be unmasked and pending exceptions.
pub fn fxsave(rng: &mut Rng, faults: bool) -> [u8; 512] {
    let mut image = [0; 512];
    let control = control_word(rng, faults);
    let mut status = rng.u64() as u16 & 0x477f;
    status |= (rng.below(8) as u16) << 11;
    if !faults || rng.chance(70) {
        status &= 0xff80 | control;
    }
    // ES and B summarise the unmasked exceptions.
    if status & !control & 0x3f != 0 {
        status |= 0x8080;
    }
    let tags: u8 = match rng.below(4) {
        0 => 0xff,
        1 => 0,
        _ => rng.u64() as u8,
    };
    image[0..2].copy_from_slice(&control.to_le_bytes());
    image[2..4].copy_from_slice(&status.to_le_bytes());
    image[4] = tags;
    image[24..28].copy_from_slice(&mxcsr(rng, faults).to_le_bytes());
    image[28..32].copy_from_slice(&0xffffu32.to_le_bytes());
    for register in 0..8 {
        let (significand, exponent) = if rng.chance(20) {
            (rng.operand(), 0xffff)
        } else {
            extended(rng)
        };
        let at = 32 + register * 16;
        image[at..at + 8].copy_from_slice(&significand.to_le_bytes());
        image[at + 8..at + 10].copy_from_slice(&exponent.to_le_bytes());
    }
    for register in 0..16 {
        let at = 160 + register * 16;
        image[at..at + 16].copy_from_slice(&vector(rng));
    }
    image
}

/// Random registers; the generator then places the addresses that it needs.
pub fn entry(rng: &mut Rng, faults: bool) -> Entry {
    let mut gpr = [0; 16];
    for value in &mut gpr {
        *value = rng.operand();
    }
    let mut rflags = rng.u64() & FLAG_MASK;
    if rng.chance(60) {
        rflags &= !0x400;
    }
    let base = |rng: &mut Rng| layout::ARENA + rng.below(0x1000) - 0x800;
    Entry {
        gpr,
        rflags,
        fs_base: base(rng),
        gs_base: base(rng),
        fxsave: fxsave(rng, faults),
    }
}

/// A random arena image: integers, floating-point values of each kind, text-like bytes.
pub fn arena(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = vec![0; layout::ARENA_SIZE];
    for page in (0..layout::ARENA_SIZE / layout::PAGE).filter(|&page| layout::mapped(page)) {
        for block in 0..layout::PAGE / 256 {
            let kind = rng.below(4);
            let start = page * layout::PAGE + block * 256;
            let mut at = start;
            while at < start + 256 {
                let value: [u8; 16] = match kind {
                    0 => (u128::from(rng.u64()) | u128::from(rng.u64()) << 64).to_le_bytes(),
                    1 => vector(rng),
                    2 => {
                        let (significand, exponent) = extended(rng);
                        (u128::from(significand) | u128::from(exponent) << 64).to_le_bytes()
                    }
                    _ => [rng.u64() as u8 & 3; 16],
                };
                bytes[at..at + 16].copy_from_slice(&value);
                at += 16;
            }
        }
    }
    bytes
}
