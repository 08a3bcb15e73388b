//! A Hugging Face directory: `config.json` and safetensors, in one file or in shards with an index.

use crate::config::Config;
use crate::files;
use crate::format::{Beside, Contents, Format, Found};
use crate::safetensors::{SafetensorsFile, not_found};
use crate::suggest::{near, shown};
use quince_tensor::{Error, Result, Weight};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The longest index that is read, in bytes; one of a thousand billion parameters has some ten million.
const MAX_INDEX: u64 = 100_000_000;

pub(crate) const SAFETENSORS: Format = Format {
    name: "Hugging Face safetensors",
    looks_like: "a directory with config.json and model.safetensors (or its shards and index)",
    recognizes: |path| {
        let weights = [SINGLE, INDEX].iter().any(|name| path.join(name).is_file());
        weights || (path.join("config.json").is_file() && !loose(path).is_empty())
    },
    open: read,
};

/// The configuration and the tensors as they are in the files.
pub(crate) fn read(path: &Path) -> Result<Contents> {
    let config = Config::read(&path.join("config.json"))
        .map_err(|error| error.hint("config.json must lie beside the weights, as on the Hub"))?;
    let mut sources = vec![config.path().to_path_buf()];
    // As transformers does: a single file wins over an index.
    let mut weights: Vec<Found> = if path.join(SINGLE).is_file() {
        let file = path.join(SINGLE);
        let weights = SafetensorsFile::open(&file)?.weights()?;
        sources.push(file.clone());
        weights.into_iter().map(|weight| Found::plain(weight, file.clone())).collect()
    } else if path.join(INDEX).is_file() {
        let index = Index::read(path)?;
        sources.push(index.path.clone());
        sources.extend(index.shards.iter().cloned());
        index.weights()?.into_iter().map(|(weight, file)| Found::plain(weight, file)).collect()
    } else {
        let found = loose(path).join(", ");
        let error = Error::new(format!("found {found}, expected {SINGLE} or {INDEX}"));
        return Err(error.hint(format_args!("rename a single file to {SINGLE}")).at(path.display()));
    };
    for (number, file) in modules(path) {
        for weight in SafetensorsFile::open(&file)?.weights()? {
            let name = format!("{number}_Dense.{}", weight.name());
            weights.push(Found::plain(weight.renamed(&name), file.clone()));
        }
        sources.push(file);
    }
    Ok(Contents { config, weights, sources, beside: Beside::Directory(path.to_path_buf()) })
}

/// The layers that sentence-transformers keeps in directories of their own, such as `2_Dense`, by number.
fn modules(path: &Path) -> BTreeMap<usize, PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let module = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let (number, _) = name.split_once('_').filter(|(_, kind)| kind.starts_with("Dense"))?;
        let file = entry.path().join(SINGLE);
        Some((number.parse().ok()?, file.is_file().then_some(file)?))
    };
    entries.filter_map(module).collect()
}

/// The safetensors files of a directory, by any name.
fn loose(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| name.ends_with(".safetensors"));
    names.sort();
    names.truncate(5);
    names
}

/// An index: which shard holds which tensor.
struct Index {
    path: PathBuf,
    shard_of: BTreeMap<String, PathBuf>,
    shards: BTreeSet<PathBuf>,
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: BTreeMap<String, String>,
}

impl Index {
    fn read(directory: &Path) -> Result<Index> {
        let path = directory.join(INDEX);
        let text = files::read_text(&path, MAX_INDEX)?;
        let raw: RawIndex = serde_json::from_str(&text)
            .map_err(|error| Error::new(format!("found a bad index: {error}")).at(path.display()))?;
        let mut index = Index { path, shard_of: BTreeMap::new(), shards: BTreeSet::new() };
        for (name, file) in raw.weight_map {
            let place = |error: Error| error.at(format!("tensor `{}`", shown(&name))).at(index.path.display());
            let shard = files::inside(directory, &file).map_err(place)?;
            if !shard.is_file() && !index.shards.contains(&shard) {
                let error = Error::new(format!("found no file `{}`, which the index names", shown(&file)));
                return Err(place(error.hint("a shard is missing; download it again")));
            }
            index.shards.insert(shard.clone());
            index.shard_of.insert(name, shard);
        }
        Ok(index)
    }

    /// The tensors of all shards, each checked to lie where the index says, and nowhere else.
    fn weights(&self) -> Result<Vec<(Weight, PathBuf)>> {
        let mut found: BTreeMap<String, (Weight, PathBuf)> = BTreeMap::new();
        for shard in &self.shards {
            for weight in SafetensorsFile::open(shard)?.weights()? {
                let name = weight.name().to_string();
                if let Some((_, other)) = found.insert(name.clone(), (weight, shard.clone())) {
                    let message =
                        format!("found tensor `{}` here and in {}, expected it once", shown(&name), other.display());
                    return Err(Error::new(message).at(shard.display()));
                }
            }
        }
        for (name, shard) in &self.shard_of {
            match found.get(name) {
                Some((_, file)) if file == shard => {}
                Some((_, file)) => {
                    let message = format!("found tensor `{}` in {}", shown(name), file.display());
                    let error = Error::new(format!("{message}, expected it in {}", shard.display()));
                    return Err(error.hint("index and shards are not of one checkpoint").at(self.path.display()));
                }
                None => {
                    let near = near(name, found.keys().map(String::as_str));
                    let error = not_found(name, &near).hint(format_args!("{} says it is here", self.path.display()));
                    return Err(error.at(shard.display()));
                }
            }
        }
        Ok(found.into_values().collect())
    }
}
