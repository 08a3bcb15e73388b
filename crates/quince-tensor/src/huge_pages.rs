//! Copies of mapped bytes in huge pages.
//!
//! A mapped file has pages of 4 KiB. Reading weights from pages of 2 MiB is up to a quarter faster, because the
//! processor looks up fewer addresses; who reads the same bytes for every token copies them once.

use crate::Bytes;

/// Fewer bytes are not worth a page.
#[cfg(target_os = "linux")]
const LEAST: usize = 1 << 20;

impl Bytes {
    /// The same bytes in huge pages, when these bytes are mapped, many, and the system has huge pages. The memory that
    /// the mapped file took for them is given back, so that together they take no more than before.
    pub fn in_huge_pages(&self) -> Option<Bytes> {
        #[cfg(target_os = "linux")]
        return linux::copy(self);
        #[cfg(not(target_os = "linux"))]
        None
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use super::{Bytes, LEAST};
    use crate::bytes::Anonymous;
    use memmap2::{Advice, MmapMut};
    use std::sync::OnceLock;

    const PAGE: usize = 2 << 20;
    /// Bytes that a thread copies before it gives back their source.
    const PIECE: usize = 4 * PAGE;

    /// Whether the system gives huge pages to who asks.
    fn are_available() -> bool {
        static ANSWER: OnceLock<bool> = OnceLock::new();
        *ANSWER.get_or_init(|| {
            let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
            setting.is_ok_and(|setting| !setting.contains("[never]"))
        })
    }

    pub fn copy(source: &Bytes) -> Option<Bytes> {
        if source.len() < LEAST || !source.is_mapped() || !are_available() {
            return None;
        }
        // Room to begin at a page's boundary: only whole pages are huge.
        let mut map = MmapMut::map_anon(source.len().checked_add(PAGE)?).ok()?;
        map.advise(Advice::HugePage).ok()?;
        let start = map.as_ptr().align_offset(PAGE).min(PAGE);
        let copy = map.get_mut(start..start + source.len())?;
        // Zeroing and copying pages is limited by one core's pace, not by memory.
        std::thread::scope(|scope| {
            let half = source.len().div_ceil(2).next_multiple_of(PIECE).min(source.len());
            let (first, second) = copy.split_at_mut(half);
            scope.spawn(move || copy_part(source, half, second));
            copy_part(source, 0, first);
        });
        Bytes::from_anonymous(Anonymous(map), start..start + source.len())
    }

    fn copy_part(source: &Bytes, first: usize, out: &mut [u8]) {
        for (piece, out) in out.chunks_mut(PIECE).enumerate() {
            let from = first + piece * PIECE;
            out.copy_from_slice(&source[from..from + out.len()]);
            source.give_back(from..from + out.len());
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_the_bytes_of_the_file_which_stay_readable() {
        let contents: Vec<u8> = (0..5_000_001u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &contents).unwrap();
        // SAFETY: nothing else knows the file.
        let mapped = Bytes::from_mmap(unsafe { memmap2::Mmap::map(&file) }.unwrap());
        let part = mapped.slice(3..contents.len()).unwrap();
        if let Some(copy) = part.in_huge_pages() {
            assert!(copy[..] == contents[3..]);
            assert!(copy.in_huge_pages().is_none(), "a copy");
        }
        assert!(part[..] == contents[3..]);
        assert!(mapped.slice(0..100).unwrap().in_huge_pages().is_none(), "few bytes");
        assert!(Bytes::from_vec(contents).in_huge_pages().is_none(), "bytes that are not mapped");
    }
}
