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
    /// Where the range of the owner's bytes lies: kernels ask for it in their loops.
    start: *const u8,
}

// SAFETY: `start` is a shared reference to bytes that `owner` keeps, which may go from thread to thread.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

/// What keeps bytes alive.
trait Owner: Send + Sync {
    /// The bytes, which stay where they are and as they are as long as the owner is there.
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

/// Bytes of a mapped file whose memory goes back to the system with the last that uses them.
struct Lent(Bytes);

impl Owner for Lent {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // Around a page that is read, Linux maps others that it has, at most those of its 2 MiB: neighbours that went back
        // come again and would stay, so they go back once more.
        const AROUND: usize = 2 << 20;
        let Bytes { owner, range, .. } = &self.0;
        let base = owner.bytes().as_ptr() as usize;
        let start = ((base + range.start) / AROUND * AROUND).max(base) - base;
        let end = ((base + range.end).next_multiple_of(AROUND) - base).min(owner.bytes().len());
        Bytes::of(owner.clone(), start..end).give_back(0..end - start);
    }
}

/// Memory of no file.
#[cfg(target_os = "linux")]
pub(crate) struct Anonymous(pub(crate) memmap2::MmapMut);

#[cfg(target_os = "linux")]
impl Owner for Anonymous {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Bytes {
    /// # Panics
    /// When the owner does not have the range.
    fn of(owner: Arc<dyn Owner>, range: Range<usize>) -> Bytes {
        let start = owner.bytes()[range.clone()].as_ptr();
        Bytes { owner, range, start }
    }

    /// The bytes of a vector of plain values; their alignment is that of the values.
    pub fn from_vec<T: bytemuck::Pod + Send + Sync>(values: Vec<T>) -> Bytes {
        let range = 0..std::mem::size_of_val(values.as_slice());
        Bytes::of(Arc::new(values), range)
    }

    /// The bytes of a mapped file.
    pub fn from_mmap(map: memmap2::Mmap) -> Bytes {
        let range = 0..map.len();
        Bytes::of(Arc::new(map), range)
    }

    /// A range of memory of no file.
    #[cfg(target_os = "linux")]
    pub(crate) fn from_anonymous(memory: Anonymous, range: Range<usize>) -> Option<Bytes> {
        let len = memory.0.len();
        Bytes::of(Arc::new(memory), 0..len).slice(range)
    }

    /// A part of these bytes, or `None` if the range is not inside.
    pub fn slice(&self, range: Range<usize>) -> Option<Bytes> {
        if range.start > range.end || range.end > self.len() {
            return None;
        }
        Some(Bytes::of(self.owner.clone(), self.range.start + range.start..self.range.start + range.end))
    }

    /// The same bytes; where they are mapped, the system gets their memory back when the last clone of the result is
    /// gone. Who goes through a large file so never has more of it in memory than what is in use.
    #[must_use]
    pub fn lent(&self) -> Bytes {
        if !self.owner.as_any().is::<memmap2::Mmap>() {
            return self.clone();
        }
        Bytes::of(Arc::new(Lent(self.clone())), 0..self.len())
    }

    /// Lets the system have the memory of a range of mapped bytes; they come from the file again when they are read.
    pub fn give_back(&self, range: Range<usize>) {
        if let Some(Lent(bytes)) = self.owner.as_any().downcast_ref() {
            return bytes.give_back(self.range.start + range.start..self.range.start + range.end);
        }
        #[cfg(target_os = "linux")]
        if let Some(map) = self.owner.as_any().downcast_ref::<memmap2::Mmap>() {
            let start = self.range.start + range.start;
            // SAFETY: the map is of a file and read-only: dropped pages are read again with the same bytes. Failure does
            // no harm.
            drop(unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, range.len()) });
        }
        #[cfg(not(target_os = "linux"))]
        drop(range);
    }

    /// Whether the bytes lie in a mapped file.
    pub fn is_mapped(&self) -> bool {
        let owner = self.owner.as_any();
        owner.is::<memmap2::Mmap>() || owner.is::<Lent>()
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
    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: `start` is where the range of the owner's bytes lies, which stay there; the owner is there.
        unsafe { std::slice::from_raw_parts(self.start, self.range.len()) }
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
