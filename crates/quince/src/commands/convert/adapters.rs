//! Adapters of a conversion: which, how much of each, and what becomes of them.

use crate::bundling;
use crate::failure::{Failure, Result};
use clap::ValueEnum;
use quince_checkpoint::{Adapted, Adapter, Checkpoint, Mode, Weighted};
use quince_convert::lower::{FunctionKind, FunctionSpec};
use quince_convert::{Adapters, Embedding, FunctionName};
use quince_runtime::{AdapterEntry, AdapterUse};
use serde::Serialize;
use std::path::PathBuf;
use std::str::FromStr;

/// As typed.
#[derive(clap::Args)]
pub struct AdapterArgs {
    /// The directory of a PEFT adapter (LoRA, rsLoRA, DoRA); DIR=0.5 for half of it. Repeatable: one after the other
    #[arg(long = "lora-checkpoint", value_name = "DIR[=WEIGHT]", help_heading = "Adapters")]
    loras: Vec<Source>,
    /// Merge adapters into the weights, or keep them apart: each as functions of its own (init_NAME, decode_NAME, NAME
    /// being that of its directory), which share the model's weights
    #[arg(long, value_name = "HOW", default_value = "merge", help_heading = "Adapters")]
    adapters: How,
    /// The directory of an LLM2Vec adapter for the function encode, in which all tokens see each other; mean over the text
    /// after the instruction, whose tokens are 2 in attention_mask. Repeatable: MNTP, then supervised
    #[arg(long = "llm2vec-checkpoint", value_name = "DIR[=WEIGHT]", help_heading = "Adapters")]
    llm2vec: Vec<Source>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum How {
    Merge,
    Keep,
}

/// A directory, and how much of the adapter in it is wanted.
#[derive(Clone)]
struct Source {
    path: PathBuf,
    strength: f64,
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Source, String> {
        let whole = Source { path: text.into(), strength: 1.0 };
        // A directory may have the sign in its name.
        let Some((path, number)) = text.rsplit_once('=').filter(|_| !whole.path.exists()) else { return Ok(whole) };
        match number.parse::<f64>() {
            Ok(strength) if strength.is_finite() => Ok(Source { path: path.into(), strength }),
            _ => Err(format!("found the weight `{number}`, expected a number as in DIR=0.5")),
        }
    }
}

/// The adapters of a conversion, opened.
pub struct Opened {
    how: How,
    loras: Vec<(Adapter, f64)>,
    llm2vec: Vec<(Adapter, f64)>,
}

/// What a report says of an adapter.
#[derive(Serialize)]
pub struct Reported {
    name: String,
    /// `merged` or `kept`.
    how: AdapterUse,
    weight: f64,
    functions: Vec<String>,
    bytes: u64,
}

impl AdapterArgs {
    /// The functions that are asked for if nobody says which.
    pub fn default_functions(&self) -> Vec<FunctionName> {
        match self.llm2vec.is_empty() {
            true => Vec::new(),
            false => vec![FunctionName::Init, FunctionName::Decode, FunctionName::Encode],
        }
    }

    /// Opens all of them.
    ///
    /// # Errors
    /// When one cannot be read, when two that are kept have one name, or when one would have no effect.
    pub fn open(&self, functions: &[FunctionName]) -> Result<Opened> {
        let encodes = functions.contains(&FunctionName::Encode);
        if !self.llm2vec.is_empty() && !encodes {
            return Err(Failure::usage("--llm2vec-checkpoint: found no function encode, expected it in --functions"));
        }
        if !self.llm2vec.is_empty() && !self.loras.is_empty() && functions == [FunctionName::Encode] {
            return Err(Failure::usage(
                "--lora-checkpoint: encode is made of --llm2vec-checkpoint, and nothing else is made",
            ));
        }
        if self.adapters == How::Keep && self.loras.is_empty() && self.llm2vec.is_empty() {
            return Err(Failure::usage("--adapters keep: found no adapter, expected --lora-checkpoint"));
        }
        let open = |source: &Source| Ok((Adapter::open(&source.path)?, source.strength));
        let all = |sources: &[Source]| sources.iter().map(open).collect::<Result<Vec<_>>>();
        let opened = Opened { how: self.adapters, loras: all(&self.loras)?, llm2vec: all(&self.llm2vec)? };
        if self.adapters == How::Keep {
            opened.check_names()?;
        }
        Ok(opened)
    }
}

impl Opened {
    /// Puts adapters into the weights where they are not kept apart, and gives what is beside the checkpoint: `original`
    /// is the same without adapters.
    ///
    /// # Errors
    /// When an adapter does not fit the checkpoint.
    pub fn apply<'a>(&self, original: &'a Checkpoint, checkpoint: &mut Checkpoint) -> Result<Adapters<'a>> {
        let mut adapters = Adapters::default();
        match self.how {
            How::Merge => checkpoint.merge(&weighted(&self.loras))?,
            How::Keep => {
                for lora in &self.loras {
                    let adapted = Adapted::new(original, &weighted(std::slice::from_ref(lora)), Mode::Keep)?;
                    adapters.kept.push((lora.0.name(), adapted));
                }
            }
        }
        if let Some((last, _)) = self.llm2vec.last() {
            let mode = if self.how == How::Keep { Mode::Keep } else { Mode::Merge };
            let adapted = Adapted::new(original, &weighted(&self.llm2vec), mode)?;
            adapters.encoder = Some((adapted, Embedding::of_llm2vec(last.path())?));
        }
        Ok(adapters)
    }

    /// What the manifest says of them.
    ///
    /// # Errors
    /// When a file of them cannot be read.
    pub fn entries(&self, functions: &[FunctionSpec]) -> Result<Vec<AdapterEntry>> {
        let entry = |(adapter, weight, functions): (&Adapter, f64, Vec<String>)| {
            let files = bundling::sources(adapter.sources())?;
            Ok(AdapterEntry { name: adapter.name(), how: self.how.into(), weight, functions, files })
        };
        self.uses(functions).into_iter().map(entry).collect()
    }

    /// What the report says of them.
    pub fn reported(&self, functions: &[FunctionSpec]) -> Vec<Reported> {
        let reported = |(adapter, weight, functions): (&Adapter, f64, Vec<String>)| Reported {
            name: adapter.name(),
            how: self.how.into(),
            weight,
            functions,
            bytes: adapter.byte_len(),
        };
        self.uses(functions).into_iter().map(reported).collect()
    }

    /// Each adapter with how much of it there is, and the functions that it is in.
    fn uses(&self, functions: &[FunctionSpec]) -> Vec<(&Adapter, f64, Vec<String>)> {
        let encodes =
            |function: &&FunctionSpec| matches!(function.kind, FunctionKind::Encode(_)) && !self.llm2vec.is_empty();
        let (encoders, others): (Vec<&FunctionSpec>, Vec<&FunctionSpec>) = functions.iter().partition(encodes);
        let ends = |function: &FunctionSpec, end: &str| {
            let bucket = function.context.map_or(String::new(), |context| format!("_{context}"));
            function.name.strip_suffix(&bucket).is_some_and(|name| name.ends_with(end))
        };
        let names = |functions: &[&FunctionSpec], end: &str| -> Vec<String> {
            functions.iter().filter(|function| ends(function, end)).map(|function| function.name.clone()).collect()
        };
        let loras = self.loras.iter().map(|(adapter, weight)| {
            let end = if self.how == How::Keep { format!("_{}", adapter.name()) } else { String::new() };
            (adapter, *weight, names(&others, &end))
        });
        loras.chain(self.llm2vec.iter().map(|(adapter, weight)| (adapter, *weight, names(&encoders, "")))).collect()
    }

    fn check_names(&self) -> Result<()> {
        for (i, (adapter, _)) in self.loras.iter().enumerate() {
            if let Some((other, _)) = self.loras[..i].iter().find(|(other, _)| other.name() == adapter.name()) {
                return Err(Failure::usage(format!(
                    "--lora-checkpoint: found {} and {}, both called `{}`, expected directories of different names",
                    other.path().display(),
                    adapter.path().display(),
                    adapter.name()
                )));
            }
        }
        Ok(())
    }
}

impl Reported {
    /// For people.
    pub fn text(&self) -> String {
        let how = match self.how {
            AdapterUse::Merged => "merged into",
            AdapterUse::Kept => "kept apart in",
        };
        let share = if self.weight == 1.0 { String::new() } else { format!(" ({} of it)", self.weight) };
        format!("adapter {}{share}: {how} {}\n", self.name, self.functions.join(", "))
    }
}

impl From<How> for AdapterUse {
    fn from(how: How) -> AdapterUse {
        match how {
            How::Merge => AdapterUse::Merged,
            How::Keep => AdapterUse::Kept,
        }
    }
}

fn weighted(adapters: &[(Adapter, f64)]) -> Vec<Weighted<'_>> {
    adapters.iter().map(|(adapter, strength)| Weighted { adapter, strength: *strength }).collect()
}
