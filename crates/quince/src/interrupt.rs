//! Ctrl-C and the signals that ask a program to end.
//!
//! A command that ends in good order by itself says so ([`cooperate`]): then the first signal sets a flag that its loops
//! look at, and the second ends the program at once. Without that the first does. However it ends, the temporary
//! outputs that are known ([`guard`]) are removed.

use quince_tensor::{Error, Result};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

/// The exit status after Ctrl-C, as shells have it: 128 and the number of SIGINT.
pub const EXIT_STATUS: u8 = 130;

static REQUESTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
static COOPERATING: AtomicUsize = AtomicUsize::new(0);
static TEMPORARY: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Begins to listen. Where that is not possible, Ctrl-C ends the program as it does without this.
pub fn install() {
    // The handler runs on a thread of its own, where it may lock and remove files.
    let handler = || {
        let again = REQUESTED.swap(true, Ordering::SeqCst);
        if again || COOPERATING.load(Ordering::SeqCst) == 0 {
            temporary().iter().for_each(|path| drop(std::fs::remove_dir_all(path)));
            drop(writeln!(std::io::stderr(), "error: interrupted"));
            std::process::exit(EXIT_STATUS.into());
        }
    };
    drop(ctrlc::set_handler(handler));
}

/// As long as it lives, the first Ctrl-C only sets the flag.
pub struct Cooperating(());

/// Says that what follows looks at the flag.
pub fn cooperate() -> Cooperating {
    COOPERATING.fetch_add(1, Ordering::SeqCst);
    Cooperating(())
}

impl Drop for Cooperating {
    fn drop(&mut self) {
        COOPERATING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether the end was asked for.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// The flag itself, for loops in the libraries.
pub fn flag() -> Arc<AtomicBool> {
    REQUESTED.clone()
}

/// Forgets that the end was asked for: a conversation goes on after an answer that was cut.
pub fn clear() {
    REQUESTED.store(false, Ordering::SeqCst);
}

/// An error if the end was asked for.
///
/// # Errors
/// Only then.
pub fn check() -> Result<()> {
    match requested() {
        true => Err(Error::new("interrupted")),
        false => Ok(()),
    }
}

/// As long as it lives, a directory is removed should the program end at once.
pub struct Guarded(Option<PathBuf>);

/// Has a directory removed should the program end at once.
pub fn guard(path: Option<PathBuf>) -> Guarded {
    temporary().extend(path.clone());
    Guarded(path)
}

impl Drop for Guarded {
    fn drop(&mut self) {
        temporary().retain(|path| Some(path) != self.0.as_ref());
    }
}

fn temporary() -> MutexGuard<'static, Vec<PathBuf>> {
    TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner)
}
