//! GGUF: one file, or several, with configuration, tokenizer and weights of a model of llama.cpp.
//!
//! Names become Hugging Face's, what llama.cpp's conversion changed is put back, and elements in blocks are decoded a few
//! rows at a time when somebody asks for them.

mod architectures;
mod facts;
mod header;
mod metadata;
mod model;
mod rope;
mod split;
mod types;
mod vocabulary;

use crate::config::Config;
use crate::format::{Beside, Contents, Format};
use facts::Facts;
use quince_tensor::{Error, Result};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use header::GgufHeader;

pub(crate) const GGUF: Format = Format {
    name: "GGUF",
    looks_like: "a .gguf file",
    recognizes: |path| split::is_gguf(path) || (is_bare_directory(path) && !split::files_of(path).is_empty()),
    open,
};

fn open(path: &Path) -> Result<Contents> {
    let file = if path.is_dir() { split::only_model(path)? } else { path.to_path_buf() };
    let model = split::read(&file)?;
    let at = |error: Error| error.at(model.first.display());
    let name = model.metadata.text("general.architecture").map_err(at)?.unwrap_or_default().to_string();
    if let Some(kind) = model.metadata.text("general.type").map_err(at)?.filter(|&kind| kind != "model") {
        let error = Error::new(format!("found a file of type `{}`, expected a model", crate::suggest::shown(kind)));
        return Err(at(error.hint("give the file of the model itself")));
    }
    let architecture = architectures::find(&name).map_err(at)?;
    let facts = Facts { metadata: &model.metadata, tensors: &model.tensors, architecture: &name };
    let mut config = architectures::common(&facts).map_err(at)?;
    (architecture.config)(&facts, &mut config).map_err(at)?;
    ids_into(&facts, &mut config).map_err(at)?;
    let weights = model::weights(&facts, architecture)?;
    let config = Config::from_text(&model.first, Value::Object(config).to_string())?;
    let sources = model.sources;
    let (metadata, text) = (model.metadata, config.value().to_string());
    let beside = Beside::Made(Arc::new(move || {
        let mut files = vocabulary::files(&metadata)?;
        files.insert("config.json".to_string(), text.clone());
        Ok(files)
    }));
    Ok(Contents { config, weights, sources, beside })
}

/// The files of a tokenizer (`tokenizer.json`, `tokenizer_config.json`, `generation_config.json`) by name with their text,
/// made of the vocabulary of a GGUF file, which need not hold anything else.
///
/// # Errors
/// When the file is no GGUF file, or its vocabulary is of a kind that is not known or contradicts itself.
pub fn gguf_vocabulary(path: &Path) -> Result<BTreeMap<String, String>> {
    let model = split::read(path)?;
    vocabulary::files(&model.metadata).map_err(|error| error.at(path.display()))
}

/// The tokens that begin and end texts, as `config.json` has them.
fn ids_into(facts: &Facts, config: &mut Map<String, Value>) -> Result<()> {
    for (key, value) in vocabulary::generation_ids(facts.metadata)? {
        config.insert(key, value);
    }
    Ok(())
}

/// Whether a directory has no safetensors, so that GGUF files in it are the model.
fn is_bare_directory(path: &Path) -> bool {
    let ending = |path: PathBuf| path.extension().is_some_and(|ending| ending == "safetensors");
    std::fs::read_dir(path).is_ok_and(|entries| !entries.flatten().any(|entry| ending(entry.path())))
}
