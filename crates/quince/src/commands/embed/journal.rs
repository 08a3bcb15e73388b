//! What is known of an output that is not finished: vectors are written as they are made, so that a run which was ended
//! goes on where it was.
//!
//! The journal lies beside the output, under `.unfinished`: a line that says what the vectors are of, then the vectors,
//! float32 in little-endian. Whatever of the last part is not whole is made again, and gives the same bytes.

use crate::failure::{Result, refused};
use quince_runtime::Embeddings;
use quince_tensor::Error;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The longest first line, in bytes.
const MAX_HEAD: u64 = 256;

/// Vectors on their way to an output.
pub struct Journal {
    path: PathBuf,
    file: File,
    head: String,
    found: Embeddings,
}

/// Whether an unfinished output is gone on with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// It is begun anew.
    Anew,
    /// It is gone on with, if there is one.
    Resumed,
}

impl Journal {
    /// Opens the journal of an output. `digest` is of all that makes the vectors what they are.
    ///
    /// # Errors
    /// When there is one of other vectors and it is to be gone on with; when the system refuses.
    pub fn open(output: &Path, digest: &str, begin: Begin) -> Result<Journal> {
        let path = beside(output);
        let head = format!("quince embeddings 1 {digest}\n");
        let fail = |e: std::io::Error| refused("write", &path, &e);
        if begin == Begin::Resumed && path.is_file() {
            let mut file = File::options().read(true).write(true).open(&path).map_err(fail)?;
            let mut reader = BufReader::new(&file);
            let mut line = String::new();
            // What is no text is not ours either.
            drop(reader.by_ref().take(MAX_HEAD).read_line(&mut line));
            if line != head {
                let error = Error::new("found an unfinished output of other texts, another package or other options");
                return Err(error.hint("leave out --resume to begin anew").at(path.display()).into());
            }
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).map_err(fail)?;
            // The dimension stands before the vectors, so that it is known whether the last one is whole.
            let number = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).map_or(0, u32::from_le_bytes);
            let dimension = bytes.get(..4).map_or(0, number) as usize;
            let whole = dimension.checked_mul(4).filter(|row| *row > 0).map_or(0, |row| (bytes.len() - 4) / row);
            let values = bytes.get(4..).unwrap_or_default().chunks_exact(4).take(whole * dimension);
            let values = values.map(|bytes| f32::from_bits(number(bytes))).collect();
            file.seek(SeekFrom::End(0)).map_err(fail)?;
            return Ok(Journal { path, file, head, found: Embeddings { dimension, values } });
        }
        let mut file = File::create(&path).map_err(fail)?;
        file.write_all(head.as_bytes()).map_err(fail)?;
        Ok(Journal { path, file, head, found: Embeddings::default() })
    }

    /// How many vectors there are, of whole parts of `part` vectors; others are forgotten.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn keep_whole(&mut self, part: usize) -> Result<usize> {
        let rows = self.found.values.len() / self.found.dimension.max(1);
        let kept = rows - rows % part;
        self.found.values.truncate(kept * self.found.dimension);
        let dimension = if kept == 0 { 0 } else { 4 };
        let length = self.head.len() + dimension + self.found.values.len() * 4;
        let cut = self.file.set_len(length as u64).and_then(|()| self.file.seek(SeekFrom::End(0)));
        cut.map_err(|e| refused("write", &self.path, &e))?;
        if kept == 0 {
            self.found.dimension = 0;
        }
        Ok(kept)
    }

    /// Adds vectors.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn add(&mut self, more: Embeddings) -> Result<()> {
        let mut bytes = Vec::with_capacity(4 + more.values.len() * 4);
        if self.found.dimension == 0 {
            self.found.dimension = more.dimension;
            bytes.extend((more.dimension as u32).to_le_bytes());
        }
        bytes.extend(more.values.iter().flat_map(|value| value.to_le_bytes()));
        self.file.write_all(&bytes).map_err(|e| refused("write", &self.path, &e))?;
        self.found.values.extend(more.values);
        Ok(())
    }

    /// All vectors.
    pub fn embeddings(&self) -> &Embeddings {
        &self.found
    }

    /// Removes the journal, once the output is there.
    pub fn remove(self) {
        // What is left is in nobody's way.
        drop(fs::remove_file(&self.path));
    }
}

fn beside(output: &Path) -> PathBuf {
    let mut name = output.file_name().unwrap_or_default().to_owned();
    name.push(".unfinished");
    output.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two(from: f32) -> Embeddings {
        Embeddings { dimension: 2, values: vec![from, from + 1.0, from + 2.0, from + 3.0] }
    }

    #[test]
    fn whole_parts_are_gone_on_with() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("out.npy");
        let open = |begin| Journal::open(&output, "abc", begin);
        let mut journal = open(Begin::Resumed).unwrap();
        assert_eq!(journal.keep_whole(2).unwrap(), 0);
        journal.add(two(0.0)).unwrap();
        journal.add(two(4.0)).unwrap();
        let whole = fs::read(beside(&output)).unwrap();
        // The second part was being written.
        for cut in [whole.len(), whole.len() - 3, whole.len() - 9] {
            fs::write(beside(&output), &whole[..cut]).unwrap();
            let mut journal = open(Begin::Resumed).unwrap();
            let kept = journal.keep_whole(2).unwrap();
            assert_eq!(kept, if cut == whole.len() { 4 } else { 2 });
            if kept == 2 {
                journal.add(two(4.0)).unwrap();
            }
            assert_eq!(fs::read(beside(&output)).unwrap(), whole, "{cut}");
            assert_eq!(journal.embeddings().values, [two(0.0).values, two(4.0).values].concat());
        }
        for cut in 1..whole.len() - 16 {
            fs::write(beside(&output), &whole[..cut]).unwrap();
            let resumed = open(Begin::Resumed).and_then(|mut journal| journal.keep_whole(2));
            assert!(resumed.is_err() || resumed.is_ok_and(|kept| kept == 0), "{cut}");
        }
    }

    #[test]
    fn vectors_of_something_else_are_not_mixed_in() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("out.npy");
        Journal::open(&output, "abc", Begin::Anew).unwrap().add(two(0.0)).unwrap();
        assert!(Journal::open(&output, "abd", Begin::Resumed).is_err());
        assert_eq!(Journal::open(&output, "abd", Begin::Anew).unwrap().keep_whole(1).unwrap(), 0);
        fs::write(beside(&output), [0xff; 300]).unwrap();
        assert!(Journal::open(&output, "abd", Begin::Resumed).is_err());
    }
}
