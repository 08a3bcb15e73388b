//! Outputs that are there whole or not at all: made in a hidden directory beside their destination, then renamed.
//!
//! ```text
//! .NAME.unfinished/
//!   lock     locked as long as the output is being made: a second run for the same output is refused
//!   new      what becomes NAME
//!   old      what was NAME, for the moment between two renames
//! ```
//!
//! What a killed run left there is removed by the next one, which first puts back what was being replaced.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use quince_tensor::{Result, bail};

use crate::error::{refused, wrong};

/// A directory that becomes the output when it is finished, and is removed otherwise.
pub struct Staged {
    around: PathBuf,
    destination: PathBuf,
    lock: Option<File>,
}

impl Staged {
    /// Makes an empty directory for what is to be at `destination`, and keeps others from doing the same. What is there
    /// already is replaced only if it is an empty directory or `is_replaceable` says so: nobody's other files are lost
    /// to a slip of the keyboard.
    ///
    /// # Errors
    /// When what is there is not to be replaced, when another process is making the same output, and when the system
    /// refuses.
    pub fn create(destination: &Path, is_replaceable: impl Fn(&Path) -> bool) -> Result<Staged> {
        let Some(around) = Staged::around(destination) else {
            return Err(wrong(destination, "output", "it has no name").hint("give a path such as model.mlpackage"));
        };
        if let Err(e) = fs::create_dir(&around)
            && e.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(refused("create the output", destination, &e));
        }
        let lock = locked(&around.join("lock"), destination)?;
        // From here on the directory is ours, and is removed with `staged`.
        let staged = Staged { around, destination: destination.to_path_buf(), lock: Some(lock) };
        staged.put_back();
        let there = destination.symlink_metadata().is_ok();
        if there && !is_empty_directory(destination) && !is_replaceable(destination) {
            bail!("{}: output: found something that is neither a package nor a bundle, which is not replaced",
                  destination.display(); hint: "choose another name, or remove it yourself");
        }
        let new = staged.path();
        if new.exists() {
            fs::remove_dir_all(&new).map_err(|e| refused("remove what a killed run left", &new, &e))?;
        }
        fs::create_dir(&new).map_err(|e| refused("create the output", destination, &e))?;
        Ok(staged)
    }

    /// Where to write until it is finished.
    pub fn path(&self) -> PathBuf {
        self.around.join("new")
    }

    /// The hidden directory for a destination: what is to be removed when the process ends before the value is dropped.
    /// None for a destination without a name, such as `..`.
    pub fn around(destination: &Path) -> Option<PathBuf> {
        let mut hidden = OsString::from(".");
        hidden.push(destination.file_name()?);
        hidden.push(".unfinished");
        Some(destination.with_file_name(hidden))
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// When the system refuses; what was there before is there again then.
    pub fn finish(self) -> Result<()> {
        if self.destination.symlink_metadata().is_ok() {
            fs::rename(&self.destination, self.old()).map_err(|e| refused("replace", &self.destination, &e))?;
        }
        fs::rename(self.path(), &self.destination).map_err(|e| refused("rename to", &self.destination, &e))
    }

    fn old(&self) -> PathBuf {
        self.around.join("old")
    }

    /// Gives what was being replaced its name again, if nothing came in its place.
    fn put_back(&self) {
        if self.old().exists() && self.destination.symlink_metadata().is_err() {
            drop(fs::rename(self.old(), &self.destination));
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        self.put_back();
        // What could not be put back stays; its name says what it is. So does a directory that cannot be removed.
        if !self.old().exists() || self.destination.symlink_metadata().is_ok() {
            self.lock = None;
            drop(fs::remove_dir_all(&self.around));
        }
    }
}

/// The file, locked until it is closed.
fn locked(path: &Path, destination: &Path) -> Result<File> {
    let file = File::create(path).map_err(|e| refused("create the output", destination, &e))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => bail!("{}: found that another process is making it", destination.display();
                                               hint: "wait until it is done, or choose another name"),
        // Some file systems have no locks; then two runs at once are the user's care.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

fn is_empty_directory(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
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
        let staged = Staged::create(&directory.path().join("out"), |_| false).unwrap();
        fs::write(staged.path().join("half"), "h").unwrap();
        drop(staged);
        assert_eq!(names(directory.path()), Vec::<String>::new());
    }

    #[test]
    fn only_what_is_replaceable_is_replaced_and_only_when_the_new_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("out");
        fs::create_dir(&out).unwrap();
        fs::write(out.join("old"), "o").unwrap();
        let error = Staged::create(&out, |_| false).map(drop).unwrap_err().to_string();
        assert!(error.contains("neither a package nor a bundle"), "{error}");
        assert_eq!((names(&out), names(directory.path())), (vec!["old".into()], vec!["out".to_string()]));
        let staged = Staged::create(&out, |path| path.join("old").is_file()).unwrap();
        fs::write(staged.path().join("new"), "n").unwrap();
        assert_eq!(names(&out), ["old"]);
        staged.finish().unwrap();
        assert_eq!((names(&out), names(directory.path())), (vec!["new".into()], vec!["out".to_string()]));
    }

    #[test]
    fn the_same_output_is_not_made_twice_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("out");
        let first = Staged::create(&out, |_| false).unwrap();
        let error = Staged::create(&out, |_| false).map(drop).unwrap_err().to_string();
        assert!(error.contains("another process is making it"), "{error}");
        fs::write(first.path().join("new"), "n").unwrap();
        first.finish().unwrap();
        assert_eq!(names(&out), ["new"]);
    }

    #[test]
    fn what_a_killed_run_left_is_cleared_and_what_it_was_replacing_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let (out, around) = (directory.path().join("out"), directory.path().join(".out.unfinished"));
        for left in ["new", "old"] {
            fs::create_dir_all(around.join(left)).unwrap();
            fs::write(around.join(left).join(left), "x").unwrap();
        }
        drop(Staged::create(&out, |_| true).unwrap());
        assert_eq!((names(&out), names(directory.path())), (vec!["old".into()], vec!["out".to_string()]));
    }
}
