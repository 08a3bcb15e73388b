//! Traces: every value of a call in an `.npz` file, written value by value as the call computes them.

use crate::failure::{Result, refused};
use crate::interrupt::{self, Guarded};
use crate::npz;
use quince_engine::{Observed, Observer, Origin};
use quince_tensor::{DType, Error, Tensor};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// The values of a call in a file that gets its name when it is whole, and is removed otherwise, also by Ctrl-C.
pub struct Trace {
    path: PathBuf,
    // Closed before the directory is removed.
    archive: ZipWriter<Steady>,
    unfinished: Unfinished,
    fault: Fault,
    /// Only values whose names contain one of these are written; all if there is none.
    only: Vec<String>,
    names: HashSet<String>,
}

impl Trace {
    /// Begins the file at `path`.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn create(path: &Path, only: &[String]) -> Result<Trace> {
        let unfinished = Unfinished::create(path)?;
        let file = unfinished.file();
        let file = File::create(&file).map_err(|e| refused("write", &file, &e))?;
        let fault = Fault::default();
        let archive = ZipWriter::new(Steady { file: BufWriter::new(file), at: 0, end: 0, fault: fault.clone() });
        let (path, only, names) = (path.to_path_buf(), only.to_vec(), HashSet::new());
        Ok(Trace { path, unfinished, archive, fault, only, names })
    }

    /// Ends the file, and gives it its name; tells how many values it has.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn finish(mut self) -> Result<usize> {
        let count = self.names.len();
        let ended = self.archive.finish().map_err(|e| unwritable(&e)).and_then(|mut file| {
            drop(file.flush());
            self.fault.check()
        });
        ended.map_err(|e| e.at(self.path.display()))?;
        fs::rename(self.unfinished.file(), &self.path).map_err(|e| refused("write", &self.path, &e))?;
        self.unfinished.keep_nothing();
        Ok(count)
    }

    fn add(&mut self, name: &str, tensor: &Tensor) -> quince_tensor::Result<()> {
        let header = npz::header(tensor)?;
        // Bytes do not depend on the time: zip's `DateTime` is 1980 unless told otherwise.
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(zip::DateTime::default())
            .large_file(tensor.bytes().len() > 1 << 31);
        self.archive.start_file(format!("{name}.npy"), options).map_err(|e| unwritable(&e))?;
        let written = self.archive.write_all(&header).and_then(|()| self.archive.write_all(tensor.bytes()));
        written.map_err(|e| unwritable(&e))?;
        self.fault.check()
    }
}

impl Observer for Trace {
    fn value(&mut self, value: &Observed) -> quince_tensor::Result<()> {
        let mut name = value.name.to_owned();
        match value.origin {
            Origin::Constant => return Ok(()),
            Origin::StateBefore => name.push_str(".before"),
            Origin::StateAfter => name.push_str(".after"),
            Origin::Input | Origin::State(_) | Origin::Operation(_) => {}
        }
        value.iterations.iter().for_each(|iteration| name.push_str(&format!("[{iteration}]")));
        if !self.only.is_empty() && !self.only.iter().any(|part| name.contains(part)) {
            return Ok(());
        }
        if self.names.contains(&name) {
            // Only in programs that give two variables one name.
            let number = (2..).find(|number| !self.names.contains(&format!("{name}#{number}")));
            name.push_str(&format!("#{}", number.unwrap_or(0)));
        }
        interrupt::check()?;
        self.add(&name, &as_numpy(value.tensor()?)?)
            .map_err(|e| e.at(format!("value `{name}`")).at(self.path.display()))?;
        self.names.insert(name);
        Ok(())
    }
}

/// The tensor in a type that numpy has.
fn as_numpy(tensor: Tensor) -> quince_tensor::Result<Tensor> {
    match tensor.dtype() {
        dtype if dtype.is_sub_byte() && dtype.is_int() => {
            tensor.cast(if dtype.is_unsigned() { DType::U8 } else { DType::I8 })
        }
        _ => Ok(tensor),
    }
}

fn unwritable(error: &dyn std::fmt::Display) -> Error {
    Error::new(format!("cannot write: {error}"))
}

/// A hidden directory beside the file, for the file while it is not whole.
struct Unfinished {
    directory: PathBuf,
    guarded: Option<Guarded>,
}

impl Unfinished {
    fn create(path: &Path) -> Result<Unfinished> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let directory = path.with_file_name(format!(".{name}.unfinished"));
        fs::create_dir_all(&directory).map_err(|e| refused("create", &directory, &e))?;
        let guarded = Some(interrupt::guard(Some(directory.clone())));
        Ok(Unfinished { directory, guarded })
    }

    fn file(&self) -> PathBuf {
        self.directory.join("new")
    }

    fn keep_nothing(&mut self) {
        // What matters has its name already, or is lost.
        drop(fs::remove_dir_all(&self.directory));
        self.guarded = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.guarded.is_some() {
            self.keep_nothing();
        }
    }
}

/// The first error of a file.
#[derive(Clone, Default)]
struct Fault(Arc<Mutex<Option<io::Error>>>);

impl Fault {
    fn set(&self, error: io::Error) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(error);
    }

    fn check(&self) -> quince_tensor::Result<()> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(error) if error.kind() == io::ErrorKind::StorageFull => {
                Err(Error::new("cannot write: the disk is full").hint("free some space, or write to another disk"))
            }
            Some(error) => Err(unwritable(error)),
        }
    }
}

/// A file that takes everything and remembers its first error: an archive that cannot be ended would say so on stderr,
/// and hide what the system said.
struct Steady {
    file: BufWriter<File>,
    /// Where it is, and how long, had there been no error.
    at: u64,
    end: u64,
    fault: Fault,
}

impl Steady {
    fn attempt<T>(&mut self, f: impl FnOnce(&mut BufWriter<File>) -> io::Result<T>) {
        if self.fault.check().is_ok()
            && let Err(error) = f(&mut self.file)
        {
            self.fault.set(error);
        }
    }
}

impl Write for Steady {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.attempt(|file| file.write_all(bytes));
        self.at += bytes.len() as u64;
        self.end = self.end.max(self.at);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.attempt(BufWriter::flush);
        Ok(())
    }
}

impl Seek for Steady {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.end.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        if !matches!(to, SeekFrom::Current(0)) {
            self.attempt(|file| file.seek(to));
        }
        Ok(self.at)
    }
}
