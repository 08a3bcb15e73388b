//! Opening files that strangers made: kinds and lengths are checked before anything is read.

use quince_tensor::{Bytes, Error, Result, bail};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// An error about a file that the system gave, with what was being done.
pub(crate) fn io_error(path: &Path, doing: &str, error: &std::io::Error) -> Error {
    Error::new(format!("cannot {doing}: {error}")).at(path.display())
}

/// Opens a regular file and gives its length. Pipes and directories are refused, since opening one may never end.
pub(crate) fn open(path: &Path) -> Result<(File, u64)> {
    let metadata = std::fs::metadata(path).map_err(|error| io_error(path, "open the file", &error))?;
    if !metadata.is_file() {
        let what = if metadata.is_dir() { "a directory" } else { "a pipe or device" };
        return Err(Error::new(format!("found {what}, expected a file")).at(path.display()));
    }
    let file = File::open(path).map_err(|error| io_error(path, "open the file", &error))?;
    Ok((file, metadata.len()))
}

/// Maps a whole file.
pub(crate) fn map(path: &Path) -> Result<Bytes> {
    let (file, _) = open(path)?;
    // SAFETY: the map is read-only and private. Another process that shortens the file while it is mapped ends this
    // one with SIGBUS, as in every program that maps files; bytes it changes are read as they are then.
    let map = unsafe { memmap2::Mmap::map(&file) };
    map.map(Bytes::from_mmap).map_err(|error| io_error(path, "map the file", &error))
}

/// Reads a text file of at most `limit` bytes.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String> {
    let (file, length) = open(path)?;
    if length > limit {
        let error = Error::new(format!("found a file of {length} bytes, expected at most {limit}"));
        return Err(error.at(path.display()));
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).map_err(|error| io_error(path, "read the file", &error))?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) => {
            let offset = error.utf8_error().valid_up_to();
            let error = Error::new("found bytes that are not UTF-8, expected text").at(format!("byte {offset}"));
            Err(error.at(path.display()))
        }
    }
}

/// The file `name` of `directory`, where a stranger chose the name: it must not lead out of the directory.
pub(crate) fn inside(directory: &Path, name: &str) -> Result<std::path::PathBuf> {
    let plain = |part| matches!(part, std::path::Component::Normal(_));
    if name.is_empty() || name.contains(['\\', '\0']) || !Path::new(name).components().all(plain) {
        bail!("found the file name `{}`, expected one inside the directory", crate::suggest::shown(name));
    }
    Ok(directory.join(name))
}
