//! The cache that huggingface_hub keeps, in its layout:
//!
//! ```text
//! models--organisation--name/
//!   refs/main                      the commit that a branch or tag meant when it was last asked for
//!   blobs/<etag>                   contents; <etag>.incomplete while one is being downloaded
//!   snapshots/<commit>/<file>      links to blobs: the model as it was
//! .locks/models--organisation--name/<etag>.lock
//! ```

use crate::fetch::Event;
use quince_tensor::{Error, Result};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a lock of another process is looked at.
const LOCK_PAUSE: Duration = Duration::from_millis(100);
/// The longest name that a server may give a blob.
const MAX_ETAG: usize = 128;

/// What the cache has of one repository.
pub(crate) struct Repository {
    directory: PathBuf,
    locks: PathBuf,
}

impl Repository {
    pub fn new(cache: &Path, repository: &str) -> Repository {
        let folder = format!("models--{}", repository.replace('/', "--"));
        Repository { directory: cache.join(&folder), locks: cache.join(".locks").join(folder) }
    }

    /// The commit that is cached for a revision; a commit is cached for itself.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_string());
        }
        let text = fs::read_to_string(self.directory.join("refs").join(inside(revision).ok()?)).ok()?;
        Some(text.trim().to_string()).filter(|commit| is_etag(commit))
    }

    /// Notes which commit a revision means.
    pub fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.directory.join("refs").join(inside(revision)?);
        make_directory_of(&path)?;
        fs::write(&path, commit).map_err(|e| refused("write", &path, &e))
    }

    /// The directory of a commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.directory.join("snapshots").join(commit)
    }

    /// The names of the files of a commit that are whole.
    pub fn files(&self, commit: &str) -> Vec<String> {
        let mut found = Vec::new();
        list(&self.snapshot(commit), "", &mut found);
        found.sort();
        found
    }

    /// Where a blob is, or is to be.
    pub fn blob(&self, etag: &str) -> Result<PathBuf> {
        if !is_etag(etag) {
            let shown = etag.chars().take(40).collect::<String>();
            return Err(Error::new(format!("found the etag `{}`, expected letters and digits", shown.escape_debug())));
        }
        Ok(self.directory.join("blobs").join(etag))
    }

    /// Links a file of a commit to its blob; where links are not possible it becomes a copy.
    pub fn link(&self, commit: &str, file: &str, blob: &Path) -> Result<()> {
        let path = self.snapshot(commit).join(inside(file)?);
        if path.exists() {
            return Ok(());
        }
        make_directory_of(&path)?;
        // What is there and leads nowhere is a link whose blob was removed.
        drop(fs::remove_file(&path));
        let ups = "../".repeat(2 + file.matches('/').count());
        let etag = blob.file_name().unwrap_or_default().to_string_lossy();
        let linked = symlink(Path::new(&format!("{ups}blobs/{etag}")), &path);
        match linked.or_else(|_| fs::hard_link(blob, &path)).or_else(|_| fs::copy(blob, &path).map(drop)) {
            // Another process was faster.
            Err(_) if path.exists() => Ok(()),
            other => other.map_err(|e| refused("link", &path, &e)),
        }
    }

    /// Waits until no other process downloads a blob; as long as the file lives, none does. Locks are those of `flock`,
    /// as huggingface_hub takes them, and end with their process.
    pub fn lock(&self, etag: &str, tell: &dyn Fn(Event) -> Result<()>) -> Result<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        make_directory_of(&path)?;
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|e| refused("write", &path, &e))?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if !told => {
                    tell(Event::Locked { lock: &path })?;
                    told = true;
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
                // A file system without locks: two processes may download the same, neither breaks the other's.
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => return Ok(file),
                Err(TryLockError::Error(error)) => return Err(refused("lock", &path, &error)),
            }
        }
    }
}

/// Whether a revision is a whole commit, which never means another.
pub(crate) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A name that a server gave, if it leads nowhere else.
pub(crate) fn inside(name: &str) -> Result<&Path> {
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', ':', '\0']);
    if name.len() > 1000 || !name.split('/').all(plain) {
        let shown: String = name.chars().take(100).collect();
        return Err(Error::new(format!(
            "found the name `{}`, expected one inside the repository",
            shown.escape_debug()
        )));
    }
    Ok(Path::new(name))
}

fn is_etag(etag: &str) -> bool {
    let letters = etag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    letters && !etag.starts_with('.') && (1..=MAX_ETAG).contains(&etag.len())
}

/// An error of the operating system, at a path.
pub(crate) fn refused(what: &str, path: &Path, error: &io::Error) -> Error {
    let found = Error::new(format!("cannot {what} it: {error}")).at(path.display());
    match error.kind() {
        io::ErrorKind::StorageFull => found.hint("free some space, or name another disk in HF_HOME; what came is kept"),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            found.hint("name a directory in HF_HOME that you may write to")
        }
        _ => found,
    }
}

pub(crate) fn make_directory_of(path: &Path) -> Result<()> {
    let Some(directory) = path.parent() else { return Ok(()) };
    fs::create_dir_all(directory).map_err(|e| refused("make", directory, &e))
}

/// Every file below a directory that can be opened; what cannot be listed has none.
fn list(directory: &Path, prefix: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let (path, name) = (entry.path(), format!("{prefix}{name}"));
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => list(&path, &format!("{name}/"), found),
            Ok(_) => found.push(name),
            Err(_) => {}
        }
    }
}

#[cfg(unix)]
fn symlink(target: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

#[cfg(windows)]
fn symlink(target: &Path, path: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_else() {
        for name in ["", "/a", "a/", "../a", "a/../b", ".", "a\\b", "C:a", "a//b"] {
            assert!(inside(name).is_err(), "{name}");
        }
        assert!(inside("refs/pr/1").is_ok());
        let repository = Repository::new(Path::new("/cache"), "o/n");
        assert!(["..", "a/b", "", ".x"].iter().all(|etag| repository.blob(etag).is_err()));
        assert_eq!(repository.blob("ab12-3").unwrap(), Path::new("/cache/models--o--n/blobs/ab12-3"));
    }

    #[test]
    fn files_are_links_to_blobs() {
        let cache = tempfile::tempdir().unwrap();
        let repository = Repository::new(cache.path(), "o/n");
        let blob = repository.blob("abc").unwrap();
        make_directory_of(&blob).unwrap();
        fs::write(&blob, "text").unwrap();
        for file in ["config.json", "1_Pooling/config.json"] {
            repository.link("c0", file, &blob).unwrap();
            assert_eq!(fs::read_to_string(repository.snapshot("c0").join(file)).unwrap(), "text");
        }
        #[cfg(unix)]
        assert_eq!(
            fs::read_link(repository.snapshot("c0").join("1_Pooling/config.json")).unwrap(),
            Path::new("../../../blobs/abc")
        );
        assert_eq!(repository.files("c0"), ["1_Pooling/config.json", "config.json"]);
        fs::remove_file(&blob).unwrap();
        assert!(repository.files("c0").is_empty());
    }

    #[test]
    fn a_branch_means_the_commit_that_it_meant_last() {
        let cache = tempfile::tempdir().unwrap();
        let repository = Repository::new(cache.path(), "o/n");
        assert_eq!(repository.commit("refs/pr/1"), None);
        repository.set_commit("refs/pr/1", "c1").unwrap();
        assert_eq!(repository.commit("refs/pr/1").as_deref(), Some("c1"));
        assert_eq!(repository.commit(&"a".repeat(40)), Some("a".repeat(40)));
    }
}
