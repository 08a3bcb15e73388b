//! The one table of checkpoint formats.

use crate::config::Config;
use crate::{gguf, huggingface, packed, refused};
use quince_tensor::{Error, Result, Weight};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
pub const FORMATS: &[Format] = &[
    gguf::GGUF,
    packed::MLX,
    packed::GPT_OSS,
    packed::FLOAT8,
    refused::QUANTIZED,
    refused::ADAPTER,
    huggingface::SAFETENSORS,
    refused::PICKLE,
];

/// What a format finds at a path.
pub(crate) struct Contents {
    /// The configuration, in the words of Hugging Face.
    pub config: Config,
    /// Every tensor.
    pub weights: Vec<Found>,
    /// The files that the configuration and the weights were read from.
    pub sources: Vec<PathBuf>,
    /// Where the tokenizer's and other files are.
    pub beside: Beside,
}

/// A tensor, and how it is stored.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub weight: Weight,
    /// The file that holds it.
    pub file: PathBuf,
    /// What the format calls its element type.
    pub form: Cow<'static, str>,
    /// The number of bytes in the file.
    pub bytes: u64,
    /// Its integers and scales, where Core ML can keep those.
    pub exact: Option<Exact>,
}

impl Found {
    /// A tensor that is stored as it is.
    pub fn plain(weight: Weight, file: PathBuf) -> Found {
        let (form, bytes) = (weight.dtype().name().into(), weight.byte_len() as u64);
        Found { weight, file, form, bytes, exact: None }
    }
}

/// A matrix in integers with scales, as Core ML can keep it: `scale · (data - offset)`, where an element of `scale` and
/// `offset` stands for as many elements of `data` along each axis as the sizes say.
#[derive(Clone, Debug)]
pub struct Exact {
    /// Integers in the shape of the weight.
    pub data: Weight,
    /// What they are multiplied by, in float32.
    pub scale: Weight,
    /// What is taken away before, if anything is, in float32.
    pub offset: Option<Weight>,
}

/// Makes files that are not on disk, by name.
pub(crate) type Make = dyn Fn() -> Result<BTreeMap<String, String>> + Send + Sync;

/// Where the tokenizer's and other files are.
#[derive(Clone)]
pub(crate) enum Beside {
    /// In a directory.
    Directory(PathBuf),
    /// In the model's file; they are made when somebody asks for them.
    Made(Arc<Make>),
}

/// The format of a path.
pub(crate) fn recognize(path: &Path) -> Result<&'static Format> {
    if let Err(error) = std::fs::metadata(path) {
        return Err(crate::files::io_error(path, "open the checkpoint", &error)
            .hint("give a directory with config.json and model.safetensors, or a .gguf file"));
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
