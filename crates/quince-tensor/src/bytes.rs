//! Bytes that are owned or mapped, shared without copying.

use crate::{Result, bail};
use std::any::Any;
use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// A range of bytes and what keeps them alive: a vector, or a mapped file. Cloning shares.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn Owner>,
    range: Range<usize>,
}

/// What keeps bytes alive.
trait Owner: Send + Sync {
    fn bytes(&self) -> &[u8];
    fn as_any(&self) -> &dyn Any;
}

impl<T: bytemuck::Pod + Send + Sync> Owner for Vec<T> {
    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(self)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Owner for memmap2::Mmap {
    fn bytes(&self) -> &[u8] {
        self
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Bytes {
    /// The bytes of a vector of plain values; their alignment is that of the values.
    pub fn from_vec<T: bytemuck::Pod + Send + Sync>(values: Vec<T>) -> Bytes {
        let range = 0..std::mem::size_of_val(values.as_slice());
        Bytes { owner: Arc::new(values), range }
    }

    /// The bytes of a mapped file.
    pub fn from_mmap(map: memmap2::Mmap) -> Bytes {
        let range = 0..map.len();
        Bytes { owner: Arc::new(map), range }
    }

    /// A part of these bytes, or `None` if the range is not inside.
    pub fn slice(&self, range: Range<usize>) -> Option<Bytes> {
        if range.start > range.end || range.end > self.len() {
            return None;
        }
        Some(Bytes { owner: self.owner.clone(), range: self.range.start + range.start..self.range.start + range.end })
    }

    /// Whether the bytes lie in a mapped file.
    pub fn is_mapped(&self) -> bool {
        self.owner.as_any().is::<memmap2::Mmap>()
    }
}

/// Zeros, or an error where memory for them is not to be had. Large ones take no memory before they are written.
pub fn zeroed<T: bytemuck::Zeroable>(len: usize) -> Result<Vec<T>> {
    match bytemuck::try_zeroed_vec(len) {
        Ok(zeros) => Ok(zeros),
        Err(()) => bail!("there is no memory for {len} elements of {} bytes", size_of::<T>()),
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.owner.bytes()[self.range.clone()]
    }
}

impl<T: bytemuck::Pod + Send + Sync> From<Vec<T>> for Bytes {
    fn from(values: Vec<T>) -> Bytes {
        Bytes::from_vec(values)
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}
