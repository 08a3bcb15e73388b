//! How this crate words its errors: file, place in it, what is wrong, and what can be done.

use std::fmt::Display;
use std::io;
use std::path::Path;

pub use quince_tensor::{Error, Result};

/// The content of `file` is wrong at `place`; `problem` says what was found and what was expected.
pub(crate) fn wrong(file: &Path, place: impl Display, problem: impl Into<String>) -> Error {
    Error::new(problem).at(place).at(file.display())
}

/// The system refused to `act` on `file`.
pub(crate) fn refused(act: &str, file: &Path, source: &io::Error) -> Error {
    // Rust adds the number of the error, which tells people nothing.
    let reason = source.to_string();
    let reason = reason.split(" (os error").next().unwrap_or(&reason);
    let error = Error::new(format!("cannot {act}: {reason}")).at(file.display());
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            error.hint("free some space or write to another disk")
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            error.hint("check the owner and the permissions, or choose another place")
        }
        io::ErrorKind::NotFound if act.starts_with("create") => {
            error.hint("the directory around it is not there: make it first")
        }
        io::ErrorKind::NotFound => error.hint("check the path"),
        _ => error,
    }
}
