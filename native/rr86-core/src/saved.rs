//! The codec of saved state: devices, and everything else that a checkpoint keeps.
//!
//! Fields come in a fixed order, without tags or padding. Whoever reads them checks every length and
//! value: the bytes may come from a damaged trace, or from a hostile one.

use thiserror::Error;

/// Why a saved state could not be loaded.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LoadError {
    /// The state ends before all fields were read.
    #[error("the saved state ends too early: {wanted} more bytes expected, {left} left")]
    Truncated {
        /// Bytes that the next field needs.
        wanted: usize,
        /// Bytes that are left.
        left: usize,
    },
    /// Bytes are left over after the last field.
    #[error("the saved state has {0} bytes too many")]
    TrailingBytes(usize),
    /// A field holds a value that the device can never have.
    #[error("the saved state has an impossible value for {field}: {value:#x}")]
    BadValue {
        /// Name of the field.
        field: &'static str,
        /// What was read.
        value: u64,
    },
    /// A component's state is absent.
    #[error("the saved state lacks the component {0:?}")]
    MissingComponent(String),
    /// A device that is not part of the core does not take the state.
    #[error("{0}")]
    Refused(String),
    /// The state holds a component that this board does not have.
    #[error("the saved state has a component {0:?}, which this board lacks")]
    UnknownComponent(String),
}

/// Writes fields in the canonical form.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty state.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Everything that was written.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Writes one byte.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// Writes 16 bits.
    pub fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Writes 32 bits.
    pub fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Writes 64 bits.
    pub fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Writes a flag as one byte, 0 or 1.
    pub fn bool(&mut self, value: bool) {
        self.bytes.push(u8::from(value));
    }

    /// Writes a byte string with its length (64 bits) in front.
    pub fn bytes(&mut self, value: &[u8]) {
        self.u64(value.len() as u64);
        self.bytes.extend_from_slice(value);
    }

    /// Writes a number in as few bytes as it needs: seven bits a byte, lowest first.
    pub fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    /// Writes the difference of two numbers, short where they are close to each other.
    pub fn delta(&mut self, from: u64, to: u64) {
        let difference = to.wrapping_sub(from) as i64;
        self.varint(((difference << 1) ^ (difference >> 63)) as u64);
    }

    /// Writes a value that may be absent: a flag, then the value or zero.
    pub fn option_u64(&mut self, value: Option<u64>) {
        self.bool(value.is_some());
        self.u64(value.unwrap_or(0));
    }
}

/// Reads fields in the order in which they were written.
#[derive(Debug)]
pub struct Reader<'a> {
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { left: bytes }
    }

    fn take(&mut self, wanted: usize) -> Result<&'a [u8], LoadError> {
        if wanted > self.left.len() {
            return Err(LoadError::Truncated {
                wanted,
                left: self.left.len(),
            });
        }
        let (head, tail) = self.left.split_at(wanted);
        self.left = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], LoadError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// Reads one byte.
    pub fn u8(&mut self) -> Result<u8, LoadError> {
        Ok(self.array::<1>()?[0])
    }

    /// Reads 16 bits.
    pub fn u16(&mut self) -> Result<u16, LoadError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Reads 32 bits.
    pub fn u32(&mut self) -> Result<u32, LoadError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Reads 64 bits.
    pub fn u64(&mut self) -> Result<u64, LoadError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Reads a flag; anything but 0 and 1 is an error.
    pub fn bool(&mut self) -> Result<bool, LoadError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(LoadError::BadValue {
                field: "flag",
                value: u64::from(value),
            }),
        }
    }

    /// Reads a byte string. Its length is checked against what is left before anything is allocated.
    pub fn bytes(&mut self) -> Result<Vec<u8>, LoadError> {
        let length = usize::try_from(self.u64()?).unwrap_or(usize::MAX);
        Ok(self.take(length)?.to_vec())
    }

    /// Reads a byte string of a known length.
    pub fn exactly(&mut self, length: usize) -> Result<&'a [u8], LoadError> {
        self.take(length)
    }

    /// Reads a number of variable length; more than 64 bits are an error.
    pub fn varint(&mut self) -> Result<u64, LoadError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(LoadError::BadValue {
            field: "number of variable length",
            value,
        })
    }

    /// Reads a number that was written as a difference from `from`.
    pub fn delta(&mut self, from: u64) -> Result<u64, LoadError> {
        let folded = self.varint()?;
        Ok(from.wrapping_add((folded >> 1) ^ (folded & 1).wrapping_neg()))
    }

    /// Reads how many items follow, each of at least one byte, and of which there are `most` at most.
    pub fn count(&mut self, field: &'static str, most: usize) -> Result<usize, LoadError> {
        let value = self.varint()?;
        match usize::try_from(value) {
            Ok(count) if count <= most.min(self.left.len()) => Ok(count),
            _ => Err(LoadError::BadValue { field, value }),
        }
    }

    /// Reads the index of one of `count` items.
    pub fn index(&mut self, field: &'static str, count: usize) -> Result<usize, LoadError> {
        let value = self.varint()?;
        match usize::try_from(value) {
            Ok(index) if index < count => Ok(index),
            _ => Err(LoadError::BadValue { field, value }),
        }
    }

    /// Reads a value that may be absent.
    pub fn option_u64(&mut self) -> Result<Option<u64>, LoadError> {
        let present = self.bool()?;
        let value = self.u64()?;
        match (present, value) {
            (true, value) => Ok(Some(value)),
            (false, 0) => Ok(None),
            (false, value) => Err(LoadError::BadValue {
                field: "absent value",
                value,
            }),
        }
    }

    /// Confirms that everything was read.
    pub fn finish(self) -> Result<(), LoadError> {
        match self.left.len() {
            0 => Ok(()),
            left => Err(LoadError::TrailingBytes(left)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_in_order() {
        let mut w = Writer::new();
        w.u8(1);
        w.u16(0x203);
        w.u32(4);
        w.u64(5);
        w.bool(true);
        w.bytes(b"six");
        w.option_u64(None);
        w.varint(u64::MAX);
        w.delta(7, 3);
        w.delta(0, u64::MAX);
        let bytes = w.into_bytes();
        let mut r = Reader::new(&bytes);
        assert_eq!(r.u8(), Ok(1));
        assert_eq!(r.u16(), Ok(0x203));
        assert_eq!(r.u32(), Ok(4));
        assert_eq!(r.u64(), Ok(5));
        assert_eq!(r.bool(), Ok(true));
        assert_eq!(r.bytes(), Ok(b"six".to_vec()));
        assert_eq!(r.option_u64(), Ok(None));
        assert_eq!(r.varint(), Ok(u64::MAX));
        assert_eq!(r.delta(7), Ok(3));
        assert_eq!(r.delta(0), Ok(u64::MAX));
        assert_eq!(r.finish(), Ok(()));
    }

    #[test]
    fn a_hostile_length_is_an_error_without_an_allocation() {
        let bytes = u64::MAX.to_le_bytes();
        assert!(matches!(
            Reader::new(&bytes).bytes(),
            Err(LoadError::Truncated { left: 0, .. })
        ));
    }

    #[test]
    fn counts_are_held_against_what_could_follow() {
        let mut w = Writer::new();
        w.varint(3);
        w.u16(0);
        let bytes = w.into_bytes();
        assert!(Reader::new(&bytes).count("things", 9).is_err());
        assert_eq!(Reader::new(&[2, 0, 0]).count("things", 9), Ok(2));
        assert!(Reader::new(&[2, 0, 0]).count("things", 1).is_err());
        assert!(Reader::new(&[0xff; 10]).varint().is_err());
    }

    #[test]
    fn leftover_bytes_are_an_error() {
        let mut r = Reader::new(&[1, 2]);
        assert_eq!(r.u8(), Ok(1));
        assert_eq!(r.finish(), Err(LoadError::TrailingBytes(1)));
    }
}
