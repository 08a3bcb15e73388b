//! The one table of checkpoint formats.

use crate::config::Config;
use crate::{huggingface, refused};
use quince_tensor::{Error, Result, Weight};
use std::path::{Path, PathBuf};

/// A form in which models are published.
pub struct Format {
    /// What it is called.
    pub name: &'static str,
    /// What a path of this format looks like, for the error that lists them all.
    pub looks_like: &'static str,
    /// Whether the path is of this format, judged by little more than file names.
    pub(crate) recognizes: fn(&Path) -> bool,
    /// Opens it. Names become Hugging Face names here, and nowhere else.
    pub(crate) open: fn(&Path) -> Result<Contents>,
}

/// Every format, the more particular before the more general: the first that recognises a path opens it. Those of
/// `refused` are known only well enough to say what they are.
pub const FORMATS: &[Format] =
    &[refused::GGUF, refused::MLX, refused::QUANTIZED, refused::ADAPTER, huggingface::SAFETENSORS, refused::PICKLE];

/// What a format finds at a path.
pub(crate) struct Contents {
    /// The configuration, in the words of Hugging Face.
    pub config: Config,
    /// Every tensor with the file that holds it.
    pub weights: Vec<(Weight, PathBuf)>,
    /// The files that the configuration and the weights were read from.
    pub sources: Vec<PathBuf>,
    /// Where the tokenizer's and other files lie.
    pub directory: PathBuf,
}

/// The format of a path.
pub(crate) fn recognize(path: &Path) -> Result<&'static Format> {
    if let Err(error) = std::fs::metadata(path) {
        return Err(crate::files::io_error(path, "open the checkpoint", &error)
            .hint("give a directory with config.json and model.safetensors"));
    }
    if let Some(format) = FORMATS.iter().find(|format| (format.recognizes)(path)) {
        return Ok(format);
    }
    let known: Vec<&str> = FORMATS.iter().map(|format| format.looks_like).collect();
    let error = Error::new(format!("found no checkpoint, expected one of: {}", known.join("; ")));
    Err(match better_path(path) {
        Some(better) => error.hint(format_args!("did you mean {}?", better.display())),
        None => error,
    }
    .at(path.display()))
}

/// The directory that someone meant who named a file of it, or the cache folder around it.
fn better_path(path: &Path) -> Option<PathBuf> {
    let snapshots = path.join("snapshots");
    if let Ok(entries) = std::fs::read_dir(snapshots) {
        let mut found: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        found.retain(|path| path.join("config.json").is_file());
        found.sort();
        return found.pop();
    }
    let parent = path.parent().filter(|parent| path.is_file() && parent.join("config.json").is_file())?;
    Some(if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent.to_path_buf() })
}
