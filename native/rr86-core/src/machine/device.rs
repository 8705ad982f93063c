//! What all devices share: the canonical state codec.
//!
//! A device's state is written as little-endian fields in a fixed order, without padding or tags, so
//! that equal states give equal bytes and a digest of the bytes is a digest of the device. Loading
//! checks every length and value: a damaged trace is an error, never a panic.

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

/// A component with a complete, guest-visible state.
pub trait State {
    /// Writes the whole state.
    fn save(&self, w: &mut Writer);

    /// Replaces the whole state. After an error the component's state is unspecified but safe to use.
    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), LoadError>;
}

/// The state of a component as bytes.
#[must_use]
pub fn save_to_bytes(component: &dyn State) -> Vec<u8> {
    let mut writer = Writer::new();
    component.save(&mut writer);
    writer.into_bytes()
}

/// Loads a component from bytes, all of which must belong to it.
pub fn load_from_bytes(component: &mut dyn State, bytes: &[u8]) -> Result<(), LoadError> {
    let mut reader = Reader::new(bytes);
    component.load(&mut reader)?;
    reader.finish()
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
        let bytes = w.into_bytes();
        let mut r = Reader::new(&bytes);
        assert_eq!(r.u8(), Ok(1));
        assert_eq!(r.u16(), Ok(0x203));
        assert_eq!(r.u32(), Ok(4));
        assert_eq!(r.u64(), Ok(5));
        assert_eq!(r.bool(), Ok(true));
        assert_eq!(r.bytes(), Ok(b"six".to_vec()));
        assert_eq!(r.option_u64(), Ok(None));
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
    fn leftover_bytes_are_an_error() {
        let mut r = Reader::new(&[1, 2]);
        assert_eq!(r.u8(), Ok(1));
        assert_eq!(r.finish(), Err(LoadError::TrailingBytes(1)));
    }
}
