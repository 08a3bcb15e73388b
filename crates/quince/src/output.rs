//! Outputs that are there whole or not at all: written under a temporary name beside the destination, then renamed.

use crate::failure::{Result, refused};
use crate::interrupt;
use quince_tensor::Error;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// Whether an output that exists is replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Existing {
    /// It is an error.
    Refuse,
    /// It is replaced when the new one is whole (`--force`).
    Replace,
}

/// A directory that becomes the output when it is finished, and is removed otherwise.
pub struct Staged {
    path: PathBuf,
    destination: PathBuf,
    finished: bool,
}

impl Staged {
    /// Makes an empty directory beside `destination`, in place of one that a killed run left behind.
    ///
    /// # Errors
    /// When the destination exists and is not to be replaced, and when the system refuses.
    pub fn create(destination: &Path, existing: Existing) -> Result<Staged> {
        vacant(destination, existing)?;
        let Some(name) = destination.file_name() else {
            return Err(Error::new("found an output without a name, expected a path such as tiny.bundle")
                .at(destination.display())
                .into());
        };
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(".unfinished");
        let path = destination.with_file_name(hidden);
        if path.exists() {
            fs::remove_dir_all(&path).map_err(|e| refused("remove what a killed run left", &path, &e))?;
        }
        fs::create_dir(&path).map_err(|e| refused("create the output", destination, &e))?;
        interrupt::guard(&path);
        Ok(Staged { path, destination: destination.to_path_buf(), finished: false })
    }

    /// Where to write until it is finished.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// When the system refuses; nothing new is left then.
    pub fn finish(mut self) -> Result<()> {
        let old = self.path.with_extension("replaced");
        let was_there = self.destination.exists();
        if was_there {
            fs::rename(&self.destination, &old).map_err(|e| refused("replace the output", &self.destination, &e))?;
        }
        if let Err(error) = fs::rename(&self.path, &self.destination) {
            if was_there {
                // What was there comes back; if even that fails, it stays under the other name.
                drop(fs::rename(&old, &self.destination));
            }
            return Err(refused("finish the output", &self.destination, &error).into());
        }
        self.finished = true;
        if was_there {
            remove(&old).map_err(|e| refused("remove what was replaced", &old, &e))?;
        }
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.finished {
            // Nothing more can be done about a directory that cannot be removed; its name says what it is.
            drop(fs::remove_dir_all(&self.path));
        }
        interrupt::release(&self.path);
    }
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

fn remove(path: &Path) -> std::io::Result<()> {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn an_unfinished_output_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let staged = Staged::create(&directory.path().join("out"), Existing::Refuse).unwrap();
        fs::write(staged.path().join("half"), "h").unwrap();
        drop(staged);
        assert_eq!(names(directory.path()), Vec::<String>::new());
    }

    #[test]
    fn what_exists_is_replaced_only_when_asked() {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("out");
        fs::create_dir(&out).unwrap();
        fs::write(out.join("old"), "o").unwrap();
        assert!(Staged::create(&out, Existing::Refuse).is_err());
        let staged = Staged::create(&out, Existing::Replace).unwrap();
        fs::write(staged.path().join("new"), "n").unwrap();
        assert_eq!(names(&out), ["old"]);
        staged.finish().unwrap();
        assert_eq!((names(&out), names(directory.path())), (vec!["new".to_string()], vec!["out".to_string()]));
    }
}
