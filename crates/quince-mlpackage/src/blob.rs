//! `weight.bin`: a reader over the mapped file and a writer that streams, both of storage version 2.
//!
//! The file begins with 64 bytes: the number of blobs (u32), the version (u32, 2) and zeros. Each blob is 64 bytes of
//! metadata at a multiple of 64 (sentinel u32, dtype u32, size in bytes u64, place of the data u64, unused bits at its
//! end u64, zeros) and its data; the last blob is not padded. Everything is little-endian. Source:
//! `mlmodel/src/MILBlob/Blob/StorageFormat.hpp` of apple/coremltools. A constant refers to a blob by the place of its
//! metadata.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use quince_tensor::{Bytes, DType};
use sha2::{Digest, Sha256};

use crate::error::{Result, refused, wrong};

const ALIGN: u64 = 64;
const SENTINEL: u32 = 0xDEAD_BEEF;
const VERSION: u32 = 2;

/// Writes of this size reach the disk's rate; smaller ones cost up to five times as much.
const BLOCK: usize = 8 << 20;

/// Codes of `BlobDataType`.
const CODES: &[(u32, DType)] = &[
    (1, DType::F16),
    (2, DType::F32),
    (3, DType::U8),
    (4, DType::I8),
    (5, DType::BF16),
    (6, DType::I16),
    (7, DType::U16),
    (8, DType::I4),
    (9, DType::U1),
    (10, DType::U2),
    (11, DType::U4),
    (12, DType::U3),
    (13, DType::U6),
    (14, DType::I32),
    (15, DType::U32),
    (16, DType::F8E4M3FN),
    (17, DType::F8E5M2),
];

/// The code of an element type in `weight.bin`, if it has one.
pub fn code(dtype: DType) -> Option<u32> {
    CODES.iter().find(|(_, d)| *d == dtype).map(|(c, _)| *c)
}

/// One blob of a mapped file.
#[derive(Clone)]
pub struct Blob {
    /// Type of its elements.
    pub dtype: DType,
    /// The elements, packed.
    pub bytes: Bytes,
    /// Bits at the end of the last byte that belong to no element.
    pub padding_bits: u64,
}

/// A mapped `weight.bin`; nothing is read before it is asked for.
pub struct BlobReader {
    path: PathBuf,
    bytes: Bytes,
    count: u32,
}

impl BlobReader {
    /// Maps a file and checks its header.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => wrong(path, "weights", "found no such file, which the program names")
                .hint("the package is incomplete; copy it again"),
            _ => refused("open", path, &e),
        })?;
        let length = file.metadata().map_err(|e| refused("open", path, &e))?.len();
        if length < ALIGN {
            return Err(wrong(path, "header", format!("the file has {length} bytes, expected at least {ALIGN}"))
                .hint("the package is cut; copy it again"));
        }
        // SAFETY: the map is read-only. That another process changes the file meanwhile is the risk of every mapped
        // file; bytes are only read as plain numbers, and no length is taken from them twice.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| refused("map", path, &e))?;
        let bytes = Bytes::from_mmap(map);
        let (count, version) = (u32_at(&bytes, 0), u32_at(&bytes, 4));
        if version != VERSION {
            return Err(wrong(path, "header", format!("storage version {version}, expected {VERSION}"))
                .hint("the file is no weight.bin of an ML Program, or it is damaged"));
        }
        Ok(BlobReader { path: path.to_owned(), bytes, count })
    }

    /// The blob whose metadata is at `offset`.
    pub fn blob(&self, offset: u64) -> Result<Blob> {
        let place = || format!("blob at {offset}");
        let length = self.bytes.len() as u64;
        let cut = |end: String| {
            wrong(&self.path, place(), format!("it needs bytes up to {end}, the file has {length}"))
                .hint("the package is cut or its parts do not belong together; copy it again")
        };
        let data = offset
            .checked_add(ALIGN)
            .filter(|d| *d <= length)
            .ok_or_else(|| cut(offset.saturating_add(ALIGN).to_string()))?;
        let at = offset as usize;
        let sentinel = u32_at(&self.bytes, at);
        if !offset.is_multiple_of(ALIGN) || sentinel != SENTINEL {
            return Err(wrong(
                &self.path,
                place(),
                format!("found {sentinel:#010X}, expected the sentinel {SENTINEL:#010X} at a multiple of {ALIGN}"),
            )
            .hint("model.mlmodel and weight.bin do not belong together, or one is damaged"));
        }
        let found = u32_at(&self.bytes, at + 4);
        let Some((_, dtype)) = CODES.iter().find(|(c, _)| *c == found) else {
            return Err(wrong(
                &self.path,
                place(),
                format!("element type {found} is not known, expected 1 to {}", CODES.len()),
            ));
        };
        let [size, start, padding_bits] = [8, 16, 24].map(|i| u64_at(&self.bytes, at + i));
        if start != data {
            return Err(wrong(&self.path, place(), format!("the data is said to be at {start}, expected {data}")));
        }
        let end = data.checked_add(size).filter(|e| *e <= length).ok_or_else(|| cut(format!("{data} + {size}")))?;
        // Before iOS 18 this field held whatever was in memory; it means something for packed types only.
        let padding_bits = if dtype.is_sub_byte() { padding_bits } else { 0 };
        if padding_bits > 7 || padding_bits > size * 8 {
            let problem = format!("{padding_bits} unused bits in {size} bytes, expected at most 7");
            return Err(wrong(&self.path, place(), problem));
        }
        let bytes = self.bytes.slice(data as usize..end as usize).ok_or_else(|| cut(end.to_string()))?;
        Ok(Blob { dtype: *dtype, bytes, padding_bits })
    }

    /// Every blob with its offset, in the order of the file; ends after the first error.
    pub fn walk(&self) -> impl Iterator<Item = Result<(u64, Blob)>> + '_ {
        let mut next = Some(ALIGN);
        (0..self.count).map_while(move |_| {
            let offset = next.take()?;
            Some(self.blob(offset).map(|blob| {
                next = Some((offset + ALIGN + blob.bytes.len() as u64).next_multiple_of(ALIGN));
                (offset, blob)
            }))
        })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Writes a `weight.bin` blob by blob, in pieces of any size, holding one block of memory.
///
/// A blob equal to an earlier one is taken back when it is finished: the file then holds it once and both get the same
/// offset.
pub struct BlobWriter {
    path: PathBuf,
    file: File,
    /// What is not in the file yet; begins at `flushed`.
    buffer: Vec<u8>,
    flushed: u64,
    open: Option<OpenBlob>,
    stored: HashMap<[u8; 32], u64>,
    content: Sha256,
    count: u32,
}

/// Where blobs would be in a file that is not written. Equal contents are found only where they are in memory.
#[derive(Default)]
pub struct BlobPlaces {
    /// The end of the last blob.
    end: u64,
    known: HashMap<[u8; 32], u64>,
    count: u32,
}

impl BlobPlaces {
    /// The place of a blob of so many bytes.
    pub fn place(&mut self, bytes: u64) -> u64 {
        let offset = self.end.max(ALIGN).next_multiple_of(ALIGN);
        self.end = (offset + ALIGN).saturating_add(bytes);
        self.count += 1;
        offset
    }

    /// The place of a blob of these bytes, or of the equal one before it.
    pub fn place_of(&mut self, dtype: DType, bytes: &[u8]) -> u64 {
        let hash = Sha256::new().chain_update(format!("{dtype} ")).chain_update(bytes).finalize().into();
        if let Some(&offset) = self.known.get(&hash) {
            return offset;
        }
        let offset = self.place(bytes.len() as u64);
        self.known.insert(hash, offset);
        offset
    }

    /// What the file would hold; its hash is not known.
    pub fn stored(&self) -> Stored {
        Stored { blobs: self.count, bytes: self.end.max(ALIGN), hash: [0; 32] }
    }
}

/// What a finished file holds.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    /// Number of blobs.
    pub blobs: u32,
    /// Size of the file in bytes.
    pub bytes: u64,
    /// Hash of the blobs in their order, by type and content.
    pub hash: [u8; 32],
}

struct OpenBlob {
    /// The end of the file before this blob and its alignment.
    before: u64,
    offset: u64,
    end: u64,
    hash: Sha256,
}

impl BlobWriter {
    /// Creates the file; an existing one is an error.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create_new(path).map_err(|e| refused("create", path, &e))?;
        let mut buffer = Vec::with_capacity(BLOCK);
        buffer.resize(ALIGN as usize, 0);
        Ok(BlobWriter {
            path: path.to_owned(),
            file,
            buffer,
            flushed: 0,
            open: None,
            stored: HashMap::new(),
            content: Sha256::new(),
            count: 0,
        })
    }

    /// Begins a blob of `elements` elements; its packed bytes follow by [`BlobWriter::write`].
    pub fn begin(&mut self, dtype: DType, elements: usize) -> Result<()> {
        let place = || format!("blob {}", self.count);
        let (Some(code), Some(size)) = (code(dtype), dtype.byte_len(elements)) else {
            return Err(wrong(
                &self.path,
                place(),
                format!("{elements} elements of {dtype} cannot be stored in a blob"),
            ));
        };
        if self.open.is_some() {
            return Err(wrong(&self.path, place(), "the blob before it is not finished"));
        }
        let padding = (size as u64 * 8).saturating_sub(elements as u64 * dtype.bits() as u64);
        let before = self.position();
        let offset = before.next_multiple_of(ALIGN);
        let mut head = [0u8; ALIGN as usize];
        head[0..4].copy_from_slice(&SENTINEL.to_le_bytes());
        head[4..8].copy_from_slice(&code.to_le_bytes());
        head[8..16].copy_from_slice(&(size as u64).to_le_bytes());
        head[16..24].copy_from_slice(&(offset + ALIGN).to_le_bytes());
        head[24..32].copy_from_slice(&padding.to_le_bytes());
        // Element type, size and padding are part of the content: equal bytes of other types are other blobs.
        let mut hash = Sha256::new();
        hash.update(&head[4..16]);
        hash.update(&head[24..32]);
        self.put(&[0; ALIGN as usize][..(offset - before) as usize])?;
        self.put(&head)?;
        self.open = Some(OpenBlob { before, offset, end: offset + ALIGN + size as u64, hash });
        Ok(())
    }

    /// Appends bytes to the blob begun.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let left = self.open.as_ref().map_or(0, |blob| blob.end - self.position());
        if bytes.len() as u64 > left {
            return Err(wrong(
                &self.path,
                format!("blob {}", self.count),
                format!("{} bytes were given, {left} are expected", bytes.len()),
            ));
        }
        if let Some(blob) = &mut self.open {
            blob.hash.update(bytes);
        }
        self.put(bytes)
    }

    /// Ends the blob and gives its offset, or that of the equal blob written before.
    pub fn finish_blob(&mut self) -> Result<u64> {
        let missing = self.open.as_ref().map_or(u64::MAX, |blob| blob.end - self.position());
        let Some(blob) = self.open.take_if(|_| missing == 0) else {
            return Err(wrong(
                &self.path,
                format!("blob {}", self.count),
                "it was ended before all of its bytes were given",
            ));
        };
        let hash: [u8; 32] = blob.hash.finalize().into();
        if let Some(&offset) = self.stored.get(&hash) {
            self.rewind(blob.before)?;
            return Ok(offset);
        }
        self.stored.insert(hash, blob.offset);
        self.content.update(hash);
        self.count += 1;
        Ok(blob.offset)
    }

    /// Writes what is left and the number of blobs.
    pub fn finish(mut self) -> Result<Stored> {
        self.flush()?;
        let mut head = [0u8; 8];
        head[0..4].copy_from_slice(&self.count.to_le_bytes());
        head[4..8].copy_from_slice(&VERSION.to_le_bytes());
        let written = self.file.seek(SeekFrom::Start(0)).and_then(|_| self.file.write_all(&head));
        written.map_err(|e| refused("write", &self.path, &e))?;
        Ok(Stored { blobs: self.count, bytes: self.flushed, hash: self.content.finalize().into() })
    }

    fn position(&self) -> u64 {
        self.flushed + self.buffer.len() as u64
    }

    /// Appends, writing whole blocks at multiples of the block size.
    fn put(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let room = BLOCK - (self.flushed % BLOCK as u64) as usize - self.buffer.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            if now.len() == room {
                self.flush()?;
            }
            bytes = later;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.file.write_all(&self.buffer).map_err(|e| refused("write", &self.path, &e))?;
        self.flushed += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Forgets everything from `position` on.
    fn rewind(&mut self, position: u64) -> Result<()> {
        if let Some(kept) = position.checked_sub(self.flushed) {
            self.buffer.truncate(kept as usize);
            return Ok(());
        }
        let cut = |file: &mut File| -> io::Result<()> {
            file.set_len(position)?;
            file.seek(SeekFrom::Start(position)).map(drop)
        };
        cut(&mut self.file).map_err(|e| refused("cut", &self.path, &e))?;
        self.buffer.clear();
        self.flushed = position;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weight.bin");
        (dir, path)
    }

    fn store(writer: &mut BlobWriter, dtype: DType, elements: usize, bytes: &[u8]) -> u64 {
        writer.begin(dtype, elements).unwrap();
        for piece in bytes.chunks(1 + bytes.len() / 3) {
            writer.write(piece).unwrap();
        }
        writer.finish_blob().unwrap()
    }

    #[test]
    fn the_file_is_laid_out_as_apple_documents() {
        let (_dir, path) = scratch();
        let mut writer = BlobWriter::create(&path).unwrap();
        assert_eq!(store(&mut writer, DType::U3, 3, &[0o21, 1]), 64);
        assert_eq!(store(&mut writer, DType::F16, 1, &[0, 0x3c]), 192);
        assert_eq!(writer.finish().unwrap().blobs, 2);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 192 + 64 + 2, "the last blob is not padded");
        assert_eq!(bytes[..8], [2, 0, 0, 0, 2, 0, 0, 0]);
        let mut metadata = [0u8; 64];
        metadata[..4].copy_from_slice(&[0xef, 0xbe, 0xad, 0xde]);
        (metadata[4], metadata[8], metadata[16], metadata[24]) = (12, 2, 128, 7);
        assert_eq!(bytes[64..128], metadata);
        let reader = BlobReader::open(&path).unwrap();
        let found: Vec<_> =
            reader.walk().map(|b| b.unwrap()).map(|(at, b)| (at, b.dtype, b.padding_bits, b.bytes.to_vec())).collect();
        assert_eq!(found, [(64, DType::U3, 7, vec![0o21, 1]), (192, DType::F16, 0, vec![0, 0x3c])]);
    }

    /// Blobs larger than the buffer, so that taking one back has to cut the file.
    #[test]
    fn equal_blobs_are_stored_once_and_leave_no_trace() {
        let large: Vec<u8> = (0..BLOCK * 2 + 5).map(|i| (i % 251) as u8).collect();
        let (_dir, path) = scratch();
        let mut writer = BlobWriter::create(&path).unwrap();
        let first = store(&mut writer, DType::U8, large.len(), &large);
        let small = store(&mut writer, DType::U8, 3, &[1, 2, 3]);
        assert_eq!(store(&mut writer, DType::U8, large.len(), &large), first);
        assert_eq!(store(&mut writer, DType::U8, 3, &[1, 2, 3]), small);
        let signed = store(&mut writer, DType::I8, 3, &[1, 2, 3]);
        assert_ne!(signed, small, "another type is another blob");
        assert_eq!(writer.finish().unwrap().blobs, 3);
        let reader = BlobReader::open(&path).unwrap();
        assert_eq!(reader.walk().map(|b| b.unwrap().0).collect::<Vec<_>>(), [first, small, signed]);
        assert_eq!(*reader.blob(first).unwrap().bytes, large[..]);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), signed + 64 + 3);
    }

    #[test]
    fn lengths_other_than_announced_are_refused() {
        let (_dir, path) = scratch();
        let mut writer = BlobWriter::create(&path).unwrap();
        writer.begin(DType::F32, 2).unwrap();
        writer.write(&[0; 7]).unwrap();
        assert!(writer.finish_blob().unwrap_err().to_string().contains("before all of its bytes"));
        assert!(writer.write(&[0; 2]).unwrap_err().to_string().contains("1 are expected"));
        assert!(writer.begin(DType::F64, 2).is_err());
    }

    /// Every length of file and every damaged byte of a metadata gives an error or the same blob, never a panic.
    #[test]
    fn hostile_files_are_refused() {
        let (dir, path) = scratch();
        let mut writer = BlobWriter::create(&path).unwrap();
        let offset = store(&mut writer, DType::I4, 5, &[0x21, 0x43, 0x05]);
        writer.finish().unwrap();
        let good = std::fs::read(&path).unwrap();
        let hurt = dir.path().join("hurt.bin");
        let open = |bytes: &[u8]| {
            std::fs::write(&hurt, bytes).unwrap();
            BlobReader::open(&hurt).and_then(|r| r.blob(offset))
        };
        for length in 0..good.len() {
            assert!(open(&good[..length]).is_err(), "{length}");
        }
        for at in 64..96 {
            for bit in 0..8 {
                let mut bytes = good.clone();
                bytes[at] ^= 1 << bit;
                if let Ok(blob) = open(&bytes) {
                    assert!(blob.bytes.len() <= 3 && blob.padding_bits < 8);
                }
            }
        }
        for offset in [1, 63, 65, 1 << 20, u64::MAX - 3, u64::MAX] {
            assert!(BlobReader::open(&path).unwrap().blob(offset).is_err(), "{offset}");
        }
    }
}
