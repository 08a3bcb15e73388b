//! Values of a call on disk, where there is room for all of them: written one after the other, read back by name.

use quince_engine::{Observed, Observer};
use quince_tensor::{Bytes, DType, Error, Result, Tensor};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};

use super::key;

/// Values of a call in a file.
pub(super) struct Spool {
    file: BufWriter<File>,
    end: u64,
    entries: HashMap<String, Entry>,
}

/// Where a value lies.
struct Entry {
    dtype: DType,
    shape: Vec<usize>,
    offset: u64,
    bytes: usize,
}

impl Spool {
    /// An empty one in a file whose contents are lost.
    pub fn new(mut file: File) -> Result<Spool> {
        file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0))).map_err(|e| refused(&e))?;
        Ok(Spool { file: BufWriter::new(file), end: 0, entries: HashMap::new() })
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The value of this name.
    pub fn read(&mut self, name: &str) -> Result<Option<Tensor>> {
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(entry.bytes).map_err(|_| Error::new(format!("no memory for the value `{name}`")))?;
        // Seeking writes out what is still in the buffer.
        let read = self.file.seek(SeekFrom::Start(entry.offset)).and_then(|_| {
            self.file.get_mut().take(entry.bytes as u64).read_to_end(&mut bytes)?;
            self.file.seek(SeekFrom::Start(self.end))
        });
        read.map_err(|e| refused(&e))?;
        Ok(Some(Tensor::new(entry.dtype, entry.shape.clone(), Bytes::from_vec(bytes))?.aligned()))
    }
}

impl Observer for Spool {
    fn value(&mut self, value: &Observed) -> Result<()> {
        let Some(name) = key(value) else { return Ok(()) };
        let tensor = value.tensor()?;
        self.file.write_all(tensor.bytes()).map_err(|e| refused(&e))?;
        let bytes = tensor.bytes().len();
        let entry = Entry { dtype: tensor.dtype(), shape: tensor.shape().to_vec(), offset: self.end, bytes };
        self.end += bytes as u64;
        self.entries.insert(name, entry);
        Ok(())
    }
}

fn refused(error: &io::Error) -> Error {
    let found = Error::new(format!("cannot keep values in a temporary file: {error}"));
    match error.kind() {
        io::ErrorKind::StorageFull => found.hint("free some space, or name a directory on another disk"),
        _ => found,
    }
}
