//! Adapters in the format of PEFT: LoRA, rsLoRA and DoRA, with what else was trained beside them.
//!
//! ```text
//! config.rs   adapter_config.json: ranks and scales by module, and what is refused
//! keys.rs     names of tensors: which module, which part
//! fit.rs      modules of an adapter onto weights of a checkpoint; what is left over is an error
//! delta.rs    the product of two thin matrices, for the rows that are asked for
//! merge.rs    weights with a change in them
//! adapted.rs  a checkpoint with a stack of adapters: merged, or kept apart
//! ```

mod adapted;
mod config;
mod delta;
mod fit;
mod keys;
mod merge;

use crate::files;
use crate::safetensors::SafetensorsFile;
pub use adapted::{Adapted, Mode};
use config::AdapterConfig;
use keys::Tensors;
pub use merge::Step;
use quince_tensor::{Error, Result};
use std::path::{Path, PathBuf};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// An adapter that was opened: thin matrices for some modules of a model, mapped, and what they are multiplied by.
pub struct Adapter {
    path: PathBuf,
    config: AdapterConfig,
    tensors: Tensors,
    sources: Vec<PathBuf>,
    bytes: u64,
}

/// An adapter and how much of it is wanted.
#[derive(Clone, Copy)]
pub struct Weighted<'a> {
    /// The adapter.
    pub adapter: &'a Adapter,
    /// 1 for the whole change, 0.5 for half of it.
    pub strength: f64,
}

impl Adapter {
    /// Opens the directory of an adapter: `adapter_config.json` and `adapter_model.safetensors`.
    ///
    /// # Errors
    /// When the files are not there or broken, when the adapter is of a kind that is not known, or when a tensor of it is
    /// no part of one.
    pub fn open(path: impl AsRef<Path>) -> Result<Adapter> {
        let path = path.as_ref();
        let (config, weights) = (path.join(CONFIG), path.join(WEIGHTS));
        if !config.is_file() || !weights.is_file() {
            return Err(absent(path).at(path.display()));
        }
        let bytes = files::open(&weights)?.1;
        let sorted = SafetensorsFile::open(&weights)?.weights().and_then(Tensors::sort);
        let tensors = sorted.map_err(|error| error.at(weights.display()))?;
        if tensors.products.is_empty() && tensors.whole.is_empty() {
            return Err(Error::new("found no tensors, expected those of an adapter").at(weights.display()));
        }
        let read = AdapterConfig::read(&config)?;
        Ok(Adapter { path: path.to_path_buf(), config: read, tensors, sources: vec![config, weights], bytes })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name of the directory, in the letters of an identifier, so that functions can be named after it.
    pub fn name(&self) -> String {
        let path = std::fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let name = path.file_name().map_or("adapter".into(), |name| name.to_string_lossy().into_owned());
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
    }

    /// The files that it was read from.
    pub fn sources(&self) -> &[PathBuf] {
        &self.sources
    }

    /// The size of its tensors' file.
    pub fn byte_len(&self) -> u64 {
        self.bytes
    }
}

/// Why a directory is no adapter.
fn absent(path: &Path) -> Error {
    let there = |name: &str| path.join(name).is_file();
    if !path.exists() {
        return Error::new("found no such directory, expected an adapter");
    }
    if there("adapter_model.bin") && !there(WEIGHTS) {
        let error = Error::new(format!("found adapter_model.bin, pickled by PyTorch, expected {WEIGHTS}"));
        return error.hint("save it again with PEFT, which writes safetensors: `model.save_pretrained(DIR)`");
    }
    if there("adapters.safetensors") {
        let error = Error::new(format!("found an adapter of MLX, expected one of PEFT with {WEIGHTS}"));
        return error.hint("merge it with `mlx_lm.fuse` and convert the result");
    }
    if there(CONFIG) {
        return Error::new(format!("found {CONFIG} alone, expected {WEIGHTS} beside it")).hint("download it again");
    }
    let error = Error::new(format!("found no {CONFIG}, expected the directory of a PEFT adapter"));
    match there("config.json") {
        true => error.hint("this is a whole model: convert it by itself"),
        false => error,
    }
}
