//! An opened checkpoint.

use crate::adapter::{Adapted, Mode, Weighted};
use crate::config::Config;
use crate::format::{self, Beside, Contents, Exact, Found};
use crate::safetensors::not_found;
use crate::suggest::{near, shown};
use quince_tensor::{DType, Error, Result, Weight, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A model as it was published: configuration, weights by Hugging Face name, and the files beside them.
///
/// ```no_run
/// # fn main() -> quince_tensor::Result<()> {
/// let checkpoint = quince_checkpoint::Checkpoint::open("models/tiny-llama")?;
/// let hidden: usize = checkpoint.config().field("hidden_size")?;
/// let vocab: usize = checkpoint.config().field("vocab_size")?;
/// let embedding = checkpoint.weight_with_shape("model.embed_tokens.weight", &[vocab, hidden])?;
/// let first = embedding.rows(0..1)?; // One row of the mapped file, not copied.
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Checkpoint {
    format: &'static str,
    config: Config,
    weights: BTreeMap<String, Stored>,
    sources: Vec<PathBuf>,
    beside: Option<Beside>,
    /// The names of the weights that adapters changed.
    changed: Vec<String>,
}

/// A weight and how it is stored; nothing is stored of one made in memory.
#[derive(Clone)]
struct Stored {
    weight: Weight,
    found: Option<Found>,
}

/// One tensor of a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Name, element type, shape and bytes, as they are asked for.
    pub weight: &'a Weight,
    found: Option<&'a Found>,
}

impl<'a> Entry<'a> {
    /// The Hugging Face name.
    pub fn name(&self) -> &'a str {
        self.weight.name()
    }

    /// The element type of the weight: float32 where the file has something that is decoded.
    pub fn dtype(&self) -> DType {
        self.weight.dtype()
    }

    /// The element type in the file, as its format calls it: `fp16`, `Q4_K`, ...
    pub fn form(&self) -> &'a str {
        self.found.map_or(self.weight.dtype().name(), |found| found.form.as_ref())
    }

    /// The file that holds it; `None` for a weight made in memory.
    pub fn file(&self) -> Option<&'a Path> {
        self.found.map(|found| found.file.as_path())
    }

    /// The size along each axis.
    pub fn shape(&self) -> &'a [usize] {
        self.weight.shape()
    }

    /// The number of bytes in the file.
    pub fn byte_len(&self) -> u64 {
        self.found.map_or(self.weight.byte_len() as u64, |found| found.bytes)
    }
}

impl Checkpoint {
    /// Opens a checkpoint of any format of [`FORMATS`](crate::FORMATS). Weights are mapped, not read.
    ///
    /// # Errors
    /// When the path is no checkpoint, is of a format that is not read, or breaks the rules of its format.
    pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint> {
        let path = path.as_ref();
        let format = format::recognize(path)?;
        let Contents { config, weights: found, sources, beside } = (format.open)(path)?;
        if found.is_empty() {
            let error = Error::new("found a checkpoint without tensors, expected weights");
            return Err(error.hint("download it again").at(path.display()));
        }
        let mut weights = BTreeMap::new();
        for found in found {
            let weight = found.weight.clone();
            let name = weight.name().to_string();
            if weights.insert(name, Stored { weight, found: Some(found) }).is_some() {
                return Err(Error::new("found two tensors for one weight, expected one").at(path.display()));
            }
        }
        Ok(Checkpoint { format: format.name, config, weights, sources, beside: Some(beside), changed: Vec::new() })
    }

    /// Whether a path looks like a checkpoint, judged by little more than file names.
    pub fn recognizes(path: impl AsRef<Path>) -> bool {
        format::FORMATS.iter().any(|format| (format.recognizes)(path.as_ref()))
    }

    /// A checkpoint of weights made in memory, such as random ones for a test.
    ///
    /// # Errors
    /// When two weights have one name.
    pub fn from_weights(config: Config, weights: Vec<Weight>) -> Result<Checkpoint> {
        let mut named = BTreeMap::new();
        for weight in weights {
            let stored = Stored { weight: weight.clone(), found: None };
            if named.insert(weight.name().to_string(), stored).is_some() {
                bail!("found two weights named `{}`, expected different names", shown(weight.name()));
            }
        }
        Ok(Checkpoint {
            format: "memory",
            config,
            weights: named,
            sources: Vec::new(),
            beside: None,
            changed: Vec::new(),
        })
    }

    /// Puts adapters into the weights, one after the other. Nothing is computed before a weight is asked for.
    ///
    /// # Errors
    /// As [`Adapted::new`].
    pub fn merge(&mut self, adapters: &[Weighted]) -> Result<()> {
        let adapted = Adapted::new(self, adapters, Mode::Merge)?;
        let config = adapted.config().clone();
        let own: Vec<(String, Weight)> =
            adapted.own().map(|(name, weight)| (name.to_owned(), weight.clone())).collect();
        for (name, weight) in own {
            let found = self.weights.remove(&name).and_then(|stored| stored.found);
            // What was stored as integers is not what the weight is now.
            let found = found.map(|found| Found { exact: None, weight: weight.clone(), ..found });
            self.changed.push(name.clone());
            self.weights.insert(name, Stored { weight, found });
        }
        self.config = config;
        Ok(())
    }

    /// The names of the weights that adapters changed, in the order in which they did.
    pub fn changed(&self) -> &[String] {
        &self.changed
    }

    /// The name of the format that it was read from.
    pub fn format(&self) -> &'static str {
        self.format
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.weights.contains_key(name)
    }

    /// The tensor of this name. Asked twice, it gives weights of one [`id`](Weight::id).
    ///
    /// # Errors
    /// When there is none; the error lists names that are like it.
    pub fn weight(&self, name: &str) -> Result<Weight> {
        match self.weights.get(name) {
            Some(stored) => Ok(stored.weight.clone()),
            None => Err(not_found(name, &near(name, self.names())).at(self.place())),
        }
    }

    /// The tensor of this name, which must have the shape that the architecture gives it.
    ///
    /// # Errors
    /// When there is no such tensor, or its shape is another; the error names both shapes, the file, and the keys of
    /// the configuration that the expected sizes may have come from.
    pub fn weight_with_shape(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        let weight = self.weight(name)?;
        if weight.shape() == shape {
            return Ok(weight);
        }
        let found = weight.shape();
        let message = format!("found the shape {found:?}, expected {shape:?}");
        let differs = |axis: usize, size: &usize| found.len() != shape.len() || found.get(axis) != Some(size);
        let sizes = shape.iter().enumerate().filter(|(axis, size)| differs(*axis, size));
        let mut says: Vec<String> = sizes
            .flat_map(|(_, &size)| self.config.keys_with(size).into_iter().map(move |key| format!("{key} = {size}")))
            .collect();
        says.dedup();
        says.truncate(4);
        let error = Error::new(message).at(format!("tensor `{}`", shown(name)));
        let error = match says.is_empty() {
            true => error.hint(format_args!("do {} and the weights belong together?", self.config.path().display())),
            false => {
                let config = self.config.path().display();
                error.hint(format_args!("{config} says {}: does it belong to these weights?", says.join(", ")))
            }
        };
        let file = self.weights.get(name).and_then(|stored| stored.found.as_ref()).map(|found| &found.file);
        Err(error.at(file.map_or(self.place(), |file| file.display().to_string())))
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.weights.keys().map(String::as_str)
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = Entry<'_>> {
        self.weights.values().map(|stored| Entry { weight: &stored.weight, found: stored.found.as_ref() })
    }

    /// The number of elements of all tensors.
    pub fn parameters(&self) -> u64 {
        self.weights.values().map(|stored| stored.weight.len() as u64).sum()
    }

    /// The number of bytes of all tensors in the files.
    pub fn byte_len(&self) -> u64 {
        self.tensors().map(|entry| entry.byte_len()).sum()
    }

    /// The integers and scales of a tensor, where it is stored as such and Core ML can keep them.
    pub fn exact(&self, name: &str) -> Option<&Exact> {
        self.weights.get(name)?.found.as_ref()?.exact.as_ref()
    }

    /// The directory of the tokenizer's and other files: `tokenizer.json`, `chat_template.jinja`, ...; `None` where the
    /// model's file holds them, and [`Checkpoint::made_files`] has them.
    pub fn directory(&self) -> Option<&Path> {
        match self.beside.as_ref()? {
            Beside::Directory(path) => Some(path),
            Beside::Made(_) => None,
        }
    }

    /// A file of the [`Checkpoint::directory`]; `None` if it is not there.
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        let path = self.directory()?.join(name);
        path.is_file().then_some(path)
    }

    /// The files that a Hugging Face directory would have and this format keeps otherwise, by name with their text; they
    /// are made anew each time. None where they lie in the [`Checkpoint::directory`].
    ///
    /// # Errors
    /// When what the format keeps is not what a tokenizer needs.
    pub fn made_files(&self) -> Result<BTreeMap<String, String>> {
        match &self.beside {
            Some(Beside::Made(make)) => make().map_err(|error| error.at(self.place())),
            _ => Ok(BTreeMap::new()),
        }
    }

    /// What the model is called: the name of its directory or file.
    pub fn name(&self) -> String {
        let path = match self.directory() {
            Some(directory) => std::fs::canonicalize(directory).unwrap_or_else(|_| directory.to_path_buf()),
            None => self.config.path().with_extension(""),
        };
        // In the cache of huggingface_hub a directory has the name of a commit, two below that of the model.
        let above = path.ancestors().nth(2).and_then(|path| path.file_name()?.to_str()?.strip_prefix("models--"));
        if let Some(model) = above.filter(|_| path.parent().is_some_and(|parent| parent.ends_with("snapshots"))) {
            return model.rsplit("--").next().unwrap_or(model).to_string();
        }
        path.file_name().map_or("model".to_string(), |name| name.to_string_lossy().into_owned())
    }

    /// The files that configuration and weights were read from, to be named in a manifest with their
    /// [`sha256`](crate::sha256).
    pub fn sources(&self) -> &[PathBuf] {
        &self.sources
    }

    /// Where it came from, for errors.
    fn place(&self) -> String {
        self.directory().unwrap_or(self.config.path()).display().to_string()
    }
}
