//! Models to run: a bundle or a package as it was shipped, or a checkpoint converted in memory.

use crate::failure::{Failure, Result};
use quince_checkpoint::Checkpoint;
use quince_convert::lower::Precision;
use quince_convert::{Options as Conversion, convert, semantic};
use quince_engine::{Engine, Options};
use quince_mil::Program;
use quince_runtime::{Bundle, Decoder, Tokenizer, part_of};
use quince_tensor::Error;
use std::path::Path;
use std::sync::Arc;

/// A model that is ready to run.
pub struct Model {
    /// The model with an empty cache.
    pub decoder: Decoder,
    /// Its tokenizer; none if there is no tokenizer.json.
    pub tokenizer: Option<Tokenizer>,
}

/// What a checkpoint is run for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To continue texts: functions with a KV cache, in float32.
    Continue,
    /// To score texts: the reference itself, without cache.
    Score,
}

/// Whether a path is a checkpoint, and not a bundle or a package.
pub fn is_checkpoint(path: &Path) -> bool {
    !Bundle::recognizes(path) && (path.join("config.json").is_file() || Checkpoint::recognizes(path))
}

/// Loads a bundle, a package or a checkpoint; of a package, the functions of an adapter if one is named.
///
/// # Errors
/// When it is none of them, cannot be run, or has no such adapter.
pub fn load(path: &Path, purpose: Purpose, adapter: Option<&str>, options: Options) -> Result<Model> {
    if !is_checkpoint(path) {
        let bundle = Bundle::open(path)?;
        let package = bundle.read_package()?;
        if let Some((part, _)) = part_of(&package.metadata) {
            let error = Error::new(format!("found {part} of a model, expected the bundle with all of them"));
            return Err(error.hint("name the directory that it lies in").at(path.display()).into());
        }
        let engine = Arc::new(Engine::load(package.program, options).map_err(|e| e.at(path.display()))?);
        let decoder = Decoder::with_adapter(engine, adapter).map_err(|e| e.at(path.display()))?;
        return Ok(Model { decoder, tokenizer: tokenizer(bundle.directory())? });
    }
    if let Some(adapter) = adapter {
        return Err(Failure::usage_hint(
            format!("--adapter {adapter}: found a checkpoint, expected a package that keeps adapters apart"),
            "`quince convert MODEL -o BUNDLE --lora-checkpoint DIR --adapters keep` makes one",
        ));
    }
    let checkpoint = Checkpoint::open(path)?;
    let program = match purpose {
        Purpose::Score => semantic(&checkpoint)?.program,
        Purpose::Continue => {
            let exact = Conversion { precision: Precision::Float32, ..Conversion::default() };
            convert(&checkpoint, &exact)?.program
        }
    };
    Ok(Model { decoder: decoder(program, options)?, tokenizer: tokenizer_of(&checkpoint)? })
}

/// The tokenizer of a checkpoint, if it has one: of its directory, or made of what its file says.
///
/// # Errors
/// When it has one that cannot be read.
pub fn tokenizer_of(checkpoint: &Checkpoint) -> Result<Option<Tokenizer>> {
    if let Some(directory) = checkpoint.directory() {
        return tokenizer(directory);
    }
    let files = checkpoint.made_files()?;
    let there = files.contains_key("tokenizer.json");
    Ok(there.then(|| Tokenizer::from_texts(checkpoint.config().path(), &files)).transpose()?)
}

/// The tokenizer of a directory, if it has one.
///
/// # Errors
/// When it has one that cannot be read.
pub fn tokenizer(directory: &Path) -> Result<Option<Tokenizer>> {
    let there = directory.join("tokenizer.json").is_file();
    Ok(there.then(|| Tokenizer::from_dir(directory)).transpose()?)
}

fn decoder(program: Program, options: Options) -> quince_tensor::Result<Decoder> {
    Decoder::new(Arc::new(Engine::load(program, options)?))
}
