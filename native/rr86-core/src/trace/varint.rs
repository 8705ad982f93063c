//! Variable-length integers: seven bits a byte, lowest first, the top bit set on all but the last
//! (LEB128). Signed differences are folded so that small magnitudes stay small (zigzag).

/// Appends `x`.
#[inline]
pub fn put(out: &mut Vec<u8>, x: u64) {
    if x < 0x80 {
        out.push(x as u8);
    } else {
        put_long(out, x);
    }
}

fn put_long(out: &mut Vec<u8>, mut x: u64) {
    let mut buf = [0u8; 10];
    let mut n = 0;
    while x >= 0x80 {
        buf[n] = x as u8 | 0x80;
        x >>= 7;
        n += 1;
    }
    buf[n] = x as u8;
    out.extend_from_slice(&buf[..=n]);
}

/// `to - from`, wrapping, folded into an unsigned number.
#[inline]
pub fn delta(from: u64, to: u64) -> u64 {
    let d = to.wrapping_sub(from) as i64;
    ((d << 1) ^ (d >> 63)) as u64
}

/// The inverse of [`delta`].
#[inline]
pub fn apply(from: u64, folded: u64) -> u64 {
    from.wrapping_add((folded >> 1) ^ (folded & 1).wrapping_neg())
}

/// A cursor over one column. Every read is checked; `None` means that the column is malformed.
#[derive(Default)]
pub struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Cursor { rest: bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn len(&self) -> usize {
        self.rest.len()
    }

    #[inline]
    pub fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    #[inline]
    pub fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(head)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    /// One varint; more than 64 bits are refused.
    #[inline]
    pub fn varint(&mut self) -> Option<u64> {
        let first = self.byte()?;
        if first < 0x80 {
            return Some(u64::from(first));
        }
        let mut x = u64::from(first & 0x7f);
        for shift in (7..64).step_by(7) {
            let b = self.byte()?;
            if shift == 63 && b > 1 {
                return None;
            }
            x |= u64::from(b & 0x7f) << shift;
            if b < 0x80 {
                return Some(x);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_comes_back() {
        for shift in 0..64 {
            for x in [1u64 << shift, (1u64 << shift) - 1, u64::MAX >> shift] {
                let mut out = Vec::new();
                put(&mut out, x);
                let mut c = Cursor::new(&out);
                assert_eq!(c.varint(), Some(x));
                assert!(c.is_empty());
                assert_eq!(apply(7, delta(7, x)), x);
                assert_eq!(apply(x, delta(x, 7)), 7);
            }
        }
    }

    #[test]
    fn an_overlong_or_unfinished_number_is_refused() {
        assert_eq!(Cursor::new(&[0x80; 9]).varint(), None);
        assert_eq!(Cursor::new(&[0xff; 10]).varint(), None);
        let mut two_to_64 = [0x80u8; 10];
        two_to_64[9] = 2;
        assert_eq!(Cursor::new(&two_to_64).varint(), None);
    }
}
