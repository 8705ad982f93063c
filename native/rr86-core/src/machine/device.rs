//! What all devices share: a state that can be saved and loaded.
//!
//! A device's state is written as little-endian fields in a fixed order, without padding or tags, so
//! that equal states give equal bytes and a digest of the bytes is a digest of the device. Loading
//! checks every length and value: a damaged trace is an error, never a panic.

pub use crate::saved::{LoadError, Reader, Writer};

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
