//! What can end a command early.

use quince_tensor::Error;
use std::fmt;

/// The result of whatever a command does.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// Why a command ended early.
#[derive(Debug)]
pub enum Failure {
    /// Something is wrong: where, what was found, what was expected.
    Error(Error),
    /// What was typed does not go together; exit status 2, as clap's own errors.
    Usage(Error),
    /// Whoever reads the output has gone: nothing is said about it.
    ClosedPipe,
}

impl Failure {
    /// A mistake on the command line.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::Usage(Error::new(message))
    }

    /// A mistake on the command line, and what to type instead.
    pub fn usage_hint(message: impl Into<String>, hint: impl fmt::Display) -> Failure {
        Failure::Usage(Error::new(message).hint(hint))
    }

    /// Adds the place around an error; the others have none.
    #[must_use]
    pub fn at(self, place: impl fmt::Display) -> Failure {
        match self {
            Failure::Error(error) => Failure::Error(error.at(place)),
            other => other,
        }
    }
}

impl Failure {
    /// Adds what to do about an error.
    #[must_use]
    pub fn hint(self, hint: impl fmt::Display) -> Failure {
        match self {
            Failure::Error(error) => Failure::Error(error.hint(hint)),
            other => other,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Error(error)
    }
}

/// An error of the operating system, at a path: `refused("write", path, &error)`.
pub fn refused(what: &str, path: &std::path::Path, error: &std::io::Error) -> Error {
    let reason = error.to_string();
    // Rust adds the number of the error, which tells people nothing.
    let reason = reason.split(" (os error").next().unwrap_or(&reason);
    let mut letters = reason.chars();
    let reason: String = letters.next().map(|c| c.to_lowercase().chain(letters).collect()).unwrap_or_default();
    let found = Error::new(format!("cannot {what}: {reason}")).at(path.display());
    match error.kind() {
        std::io::ErrorKind::StorageFull => found.hint("free some space, or write to another disk"),
        std::io::ErrorKind::PermissionDenied if ["create", "write", "replace"].iter().any(|w| what.starts_with(w)) => {
            found.hint("choose a place that you may write to")
        }
        std::io::ErrorKind::PermissionDenied => found.hint("check the owner and the permissions"),
        std::io::ErrorKind::InvalidData => found.hint("save it as UTF-8"),
        std::io::ErrorKind::NotFound if what.starts_with("create") => {
            found.hint("the directory around it is not there: make it first")
        }
        _ => found,
    }
}
