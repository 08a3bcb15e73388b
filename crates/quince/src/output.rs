//! Outputs: whether what exists is replaced, and that nothing is left of an output that was not finished.

use crate::failure::{Result, refused};
use crate::interrupt::{self, Guarded};
use quince_mlpackage::Staged;
use quince_runtime::Bundle;
use quince_tensor::Error;
use std::fs::File;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Whether an output that exists is replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Existing {
    /// It is an error.
    Refuse,
    /// It is replaced when the new one is whole (`--force`), if it is a bundle or a package.
    Replace,
}

/// A directory that becomes the bundle when it is finished, and is removed otherwise, also by Ctrl-C.
pub struct Output {
    staged: Staged,
    guarded: Guarded,
}

impl Output {
    /// Makes an empty directory for what is to be at `destination`.
    ///
    /// # Errors
    /// When the destination exists and is not to be replaced, when another process writes it, and when the system
    /// refuses.
    pub fn create(destination: &Path, existing: Existing) -> Result<Output> {
        vacant(destination, existing)?;
        let staged = Staged::create(destination, Bundle::recognizes)?;
        Ok(Output { staged, guarded: guarded(destination) })
    }

    /// Where to write until it is finished.
    pub fn path(&self) -> PathBuf {
        self.staged.path()
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// When the system refuses; nothing new is left then.
    pub fn finish(self) -> Result<()> {
        // What is being replaced is in the hidden directory for a moment: from here on that is not removed unasked.
        drop(self.guarded);
        Ok(self.staged.finish()?)
    }
}

/// Has what is unfinished of an output removed should the program end at once.
pub fn guarded(destination: &Path) -> Guarded {
    interrupt::guard(Staged::around(destination))
}

/// An error if there is something at a path that is not to be replaced.
///
/// # Errors
/// When it exists, under [`Existing::Refuse`].
pub fn vacant(destination: &Path, existing: Existing) -> Result<()> {
    if existing == Existing::Refuse && destination.symlink_metadata().is_ok() {
        let error = Error::new("found that the output exists already, expected a new path");
        return Err(error.hint("choose another name, or replace it with --force").at(destination.display()).into());
    }
    Ok(())
}

/// The directory that a destination is in, where there is room for files on the way to it.
pub fn directory(destination: &Path) -> &Path {
    destination.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file beside a destination, which gets its name by [`name`] when it is whole, and is gone otherwise.
///
/// # Errors
/// When the system refuses.
pub fn beside(destination: &Path) -> Result<NamedTempFile<File>> {
    let directory = directory(destination);
    let file = tempfile::Builder::new().prefix(".quince-").make_in(directory, |path| File::create_new(path));
    Ok(file.map_err(|e| refused("make a file", directory, &e))?)
}

/// Gives a file its name; what was called so before is replaced.
///
/// # Errors
/// When the system refuses.
pub fn name(file: NamedTempFile<File>, destination: &Path) -> Result<()> {
    Ok(file.persist(destination).map(drop).map_err(|e| refused("name the output", destination, &e.error))?)
}
