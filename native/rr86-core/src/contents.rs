//! Contents of the files that a machine boots from. A kernel is many megabytes, each copy of which
//! costs milliseconds of a start, so those who need it share it with whoever has read it.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// Shared bytes that do not change.
#[derive(Clone)]
pub struct Contents(Arc<dyn AsRef<[u8]> + Send + Sync>);

impl Contents {
    /// Takes over anything that holds bytes, without copying them.
    pub fn new(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Self(Arc::new(bytes))
    }
}

impl Deref for Contents {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

impl<T: Into<Vec<u8>>> From<T> for Contents {
    fn from(bytes: T) -> Self {
        Self::new(bytes.into())
    }
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_the_bytes() {
        let vec = vec![1, 2, 3];
        let place = vec.as_ptr();
        let one = Contents::new(vec);
        let other = one.clone();
        assert_eq!(*other, [1, 2, 3]);
        assert!(std::ptr::eq(one.as_ptr(), place) && std::ptr::eq(other.as_ptr(), place));
    }
}
