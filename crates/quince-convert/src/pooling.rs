//! From the hidden states of a text to one vector, as the user or the files of sentence-transformers say.

use crate::graph::{Bias, Graph, Pooled};
use quince_checkpoint::{Checkpoint, Config};
use quince_mil::{Error, Result, Var, bail};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// How one vector is made of the hidden states of a text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Embedding {
    /// Which tokens it is made of.
    pub pooling: Pooling,
    /// What it goes through then, in order.
    pub dense: [Option<Dense>; MOST_DENSE],
    /// Whether it is divided by its length.
    pub length: VectorLength,
    /// What becomes of an instruction before the text.
    pub instruction: Instruction,
}

/// What becomes of an instruction before the text that an embedding is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Instruction {
    /// It is a part of the text.
    InText,
    /// The text sees it, but no vector is made of it: its tokens are 2 in the mask. All tokens see each other, whatever
    /// the model was made for. That is LLM2Vec (BehnamGhader et al. 2024, arXiv:2404.05961), whose `embed_mask` marks the
    /// tokens that are 1 here.
    SetApart,
}

/// What LLM2Vec keeps beside its weights.
const LLM2VEC: &str = "llm2vec_config.json";

/// The most layers after the pooling; EmbeddingGemma has two.
pub const MOST_DENSE: usize = 4;

/// A layer that sentence-transformers puts after the pooling: its module `Dense`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dense {
    /// The number that its directory begins with: the weights are called `2_Dense.linear.weight` and so on.
    pub module: usize,
    /// Elements of what it gives.
    pub outputs: usize,
    /// Whether it adds a bias.
    pub bias: Bias,
    /// What comes after it.
    pub activation: DenseActivation,
}

/// What comes after a [`Dense`] layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DenseActivation {
    /// Nothing.
    Identity,
    /// The hyperbolic tangent.
    Tanh,
}

/// Which tokens' hidden states an embedding is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pooling {
    /// The mean of all.
    Mean,
    /// The first, which encoders train to stand for the text.
    Cls,
    /// The last, which alone has seen all the text in a decoder.
    Last,
    /// Each for itself: no embedding, but the hidden states.
    None,
}

/// The length of an embedding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VectorLength {
    /// As it comes.
    Any,
    /// One.
    One,
}

impl Embedding {
    /// The mean of all tokens.
    pub const MEAN: Embedding = Embedding {
        pooling: Pooling::Mean,
        dense: [None; MOST_DENSE],
        length: VectorLength::Any,
        instruction: Instruction::InText,
    };

    /// What `modules.json` of sentence-transformers says, or `llm2vec_config.json`; without them the mean, as
    /// sentence-transformers does it.
    ///
    /// # Errors
    /// When a file cannot be read, or asks for what is not supported.
    pub fn of_checkpoint(checkpoint: &Checkpoint) -> Result<Embedding> {
        if let (Some(_), Some(directory)) = (checkpoint.file(LLM2VEC), checkpoint.directory()) {
            return Embedding::of_llm2vec(directory);
        }
        let mut embedding = Embedding::MEAN;
        let Some(path) = checkpoint.file("modules.json") else { return Ok(embedding) };
        // The reader of configurations wants an object, and this file is a list.
        let text =
            std::fs::read_to_string(&path).map_err(|e| Error::new(format!("cannot read: {e}")).at(path.display()))?;
        let config = Config::from_text(path, format!("{{\"modules\": {text}}}"))?;
        for module in config.field::<Vec<Module>>("modules")? {
            match module.kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" => {}
                "Pooling" => embedding.pooling = pooling(checkpoint, &module.path)?,
                "Dense" if embedding.length == VectorLength::Any => {
                    let Some(free) = embedding.dense.iter_mut().find(|dense| dense.is_none()) else {
                        bail!("{}: found more than {MOST_DENSE} modules `Dense`", config.path().display());
                    };
                    *free = Some(dense(checkpoint, &module.path)?);
                }
                "Normalize" => embedding.length = VectorLength::One,
                other => bail!(
                    "{}: found the module `{other}`, expected Transformer, Pooling, Dense and, last, Normalize",
                    config.path().display()
                ),
            }
        }
        Ok(embedding)
    }

    /// What `llm2vec_config.json` says in the directory of a model or an adapter; the mean if it is not there.
    ///
    /// # Errors
    /// When the file cannot be read, or asks for what is not supported.
    pub fn of_llm2vec(directory: &Path) -> Result<Embedding> {
        let mut embedding = Embedding { instruction: Instruction::SetApart, ..Embedding::MEAN };
        let path = directory.join(LLM2VEC);
        if !path.is_file() {
            return Ok(embedding);
        }
        let config = Config::read(&path)?;
        let mode: Option<String> = config.optional("pooling_mode")?;
        embedding.pooling = match mode.as_deref() {
            None | Some("mean") => Pooling::Mean,
            Some("eos_token" | "last_token") => Pooling::Last,
            Some("bos_token") => Pooling::Cls,
            Some(other) => bail!(
                "{}: key `pooling_mode`: found `{other}`, expected mean, eos_token, last_token or bos_token", path.display();
                hint: "--pooling none gives the hidden states, to be pooled by who asks for them"
            ),
        };
        Ok(embedding)
    }

    pub(crate) fn write(self, g: &mut Graph, hidden: Var) -> Result<Var> {
        let mode = match self.pooling {
            Pooling::None => return g.named("last_hidden_state", hidden),
            Pooling::Mean => "mean",
            Pooling::Cls => "first",
            Pooling::Last => "last",
        };
        // The first token, which stands for all, may be one of an instruction.
        let tokens = match self.instruction {
            Instruction::SetApart if self.pooling != Pooling::Cls => Pooled::Ones,
            _ => Pooled::Seen,
        };
        let layers = self.dense.into_iter().flatten().count();
        let is_last = |layer: usize| layer == layers && self.length == VectorLength::Any;
        let mut vector = g.pool(if is_last(0) { "embedding" } else { "pooled" }, hidden, mode, tokens)?;
        for (i, dense) in self.dense.into_iter().flatten().enumerate() {
            vector = g.linear(&format!("{}_Dense.linear", dense.module), vector, dense.outputs, dense.bias)?;
            if dense.activation == DenseActivation::Tanh {
                vector = g.tanh(vector)?;
            }
            if is_last(i + 1) {
                vector = g.named("embedding", vector)?;
            }
        }
        match self.length {
            VectorLength::Any => Ok(vector),
            VectorLength::One => g.normalized("embedding", vector),
        }
    }
}

/// A `Dense` module, as the configuration in its directory says.
fn dense(checkpoint: &Checkpoint, directory: &str) -> Result<Dense> {
    let name = format!("{directory}/config.json");
    let Some(path) = checkpoint.file(&name) else { bail!("{name}: found no such file, expected a layer") };
    let config = Config::read(&path)?;
    let number = directory.split_once('_').and_then(|(number, _)| number.parse().ok());
    let Some(module) = number else { bail!("found the module directory `{directory}`, expected one like 2_Dense") };
    let activation = config.optional::<String>("activation_function")?;
    let activation = match activation.as_deref().and_then(|name| name.rsplit('.').next()) {
        None | Some("Tanh") => DenseActivation::Tanh,
        Some("Identity") => DenseActivation::Identity,
        Some(other) => {
            bail!("{}: found the activation function `{other}`, expected Tanh or Identity", path.display())
        }
    };
    Ok(Dense {
        module,
        outputs: config.field("out_features")?,
        bias: config.optional::<bool>("bias")?.unwrap_or(true).into(),
        activation,
    })
}

#[derive(serde::Deserialize)]
struct Module {
    #[serde(rename = "type")]
    kind: String,
    path: String,
}

fn pooling(checkpoint: &Checkpoint, directory: &str) -> Result<Pooling> {
    let name = format!("{directory}/config.json");
    let Some(path) = checkpoint.file(&name) else {
        bail!("{name}: found no such file, expected how tokens are pooled")
    };
    let config = Config::read(&path)?;
    let modes = [
        ("pooling_mode_mean_tokens", Pooling::Mean),
        ("pooling_mode_cls_token", Pooling::Cls),
        ("pooling_mode_lasttoken", Pooling::Last),
    ];
    let object = config.value().as_object();
    let asked = object.into_iter().flatten().filter(|(key, value)| key.starts_with("pooling_mode_") && **value == true);
    let asked: Vec<&str> = asked.map(|(key, _)| key.as_str()).collect();
    match (&asked[..], modes.iter().find(|(key, _)| asked.contains(key))) {
        ([_], Some((_, pooling))) => Ok(*pooling),
        _ => {
            bail!("{}: found the modes {}, expected one of mean, cls and last tokens", path.display(), asked.join(", "))
        }
    }
}

impl FromStr for Pooling {
    type Err = Error;

    fn from_str(name: &str) -> Result<Pooling> {
        let all = [Pooling::Mean, Pooling::Cls, Pooling::Last, Pooling::None];
        let found = all.into_iter().find(|pooling| pooling.to_string() == name);
        found.ok_or_else(|| Error::new(format!("found the pooling `{name}`, expected mean, cls, last or none")))
    }
}

impl fmt::Display for Pooling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Pooling::Mean => "mean",
            Pooling::Cls => "cls",
            Pooling::Last => "last",
            Pooling::None => "none",
        })
    }
}
