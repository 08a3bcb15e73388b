//! The table of architectures. A new one is one file here, one line in [`MODELS`] and one golden file.
//!
//! A model file says which fields of `config.json` change the program, names weights as Hugging Face does, and states
//! their shapes. It says nothing of cache, prefill or decode, precision, compression or target.

use crate::graph::{Bias, Graph};
use quince_checkpoint::Config;
use quince_mil::{Result, Var, bail};
use serde::{Deserialize, de::DeserializeOwned};

mod llama;
mod qwen2;
mod qwen3;

/// Every architecture.
pub const MODELS: &[Model] = &[
    Model::of::<llama::Llama>("Llama 2, 3, 3.1, 3.2 and what is built like them"),
    Model::of::<qwen2::Qwen2>("Qwen2 and Qwen2.5, dense"),
    Model::of::<qwen3::Qwen3>("Qwen3, dense"),
];

/// A transformer: the fields of its configuration, deserialised, and the program that they describe.
pub trait Architecture: DeserializeOwned {
    /// The values of `model_type` that mean this architecture.
    const MODEL_TYPES: &'static [&'static str];

    /// A configuration of a model so small that tests run it with random weights. It should turn on whatever sets the
    /// architecture apart.
    const TINY: &'static str;

    /// Appends the model to the graph: from token ids to hidden states [B, S, D], after the last norm.
    fn build(&self, g: &mut Graph) -> Result<Var>;

    /// How logits are made of the hidden states.
    fn head(&self) -> LmHead;

    /// The longest text that the model was made for, in tokens.
    fn max_positions(&self) -> usize;
}

/// How logits are made of hidden states.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LmHead {
    /// The module whose weight [V, D] the hidden states are multiplied with: the embedding, where the two are tied.
    pub module: &'static str,
    /// V, the number of tokens.
    pub vocab_size: usize,
    /// Whether the module has a bias.
    pub bias: Bias,
}

/// Whether the logits are made with the weight of the embedding: `tie_word_embeddings`.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Default, Debug)]
#[serde(from = "bool")]
pub enum Tied {
    /// They have a weight of their own.
    #[default]
    Untied,
    /// They use that of the embedding.
    Tied,
}

impl From<bool> for Tied {
    fn from(tied: bool) -> Tied {
        if tied { Tied::Tied } else { Tied::Untied }
    }
}

impl LmHead {
    /// `model.embed_tokens` if tied, else `lm_head`, without a bias.
    pub fn usual(vocab_size: usize, tied: Tied) -> LmHead {
        let module = match tied {
            Tied::Tied => "model.embed_tokens",
            Tied::Untied => "lm_head",
        };
        LmHead { module, vocab_size, bias: Bias::Absent }
    }
}

/// An entry of the table of architectures.
pub struct Model {
    /// The values of `model_type` that mean it.
    pub model_types: &'static [&'static str],
    /// Which models these are, for people.
    pub doc: &'static str,
    /// See [`Architecture::TINY`].
    pub tiny: &'static str,
    build: fn(&Config, &mut Graph) -> Result<Built>,
}

/// What building an architecture gives.
pub(crate) struct Built {
    pub hidden: Var,
    pub head: LmHead,
    pub max_positions: usize,
}

impl Model {
    /// The entry of an architecture.
    pub const fn of<A: Architecture>(doc: &'static str) -> Model {
        Model { model_types: A::MODEL_TYPES, doc, tiny: A::TINY, build: build::<A> }
    }

    /// The architecture that `model_type` of the configuration names.
    ///
    /// # Errors
    /// When there is no such key, or no such architecture; the error lists those that there are.
    pub fn of_config(config: &Config) -> Result<&'static Model> {
        let found = config.model_type()?;
        if let Some(model) = MODELS.iter().find(|model| model.model_types.contains(&found.as_str())) {
            return Ok(model);
        }
        let known: Vec<&str> = MODELS.iter().flat_map(|model| model.model_types).copied().collect();
        bail!(
            "{}: key `model_type`: found `{found}`, expected one of {}", config.path().display(), known.join(", ");
            hint: "a model that is built like one of these converts when `model_type` says so"
        )
    }

    pub(crate) fn build(&self, config: &Config, g: &mut Graph) -> Result<Built> {
        (self.build)(config, g)
    }
}

/// The largest integer in a configuration: no size comes near, and products of two still fit.
const MAX_SIZE: u64 = u32::MAX as u64;

fn build<A: Architecture>(config: &Config, g: &mut Graph) -> Result<Built> {
    for (key, value) in config.value().as_object().into_iter().flatten() {
        if let Some(found) = value.as_u64().filter(|&found| found > MAX_SIZE) {
            bail!("{}: key `{key}`: found {found}, expected at most {MAX_SIZE}", config.path().display());
        }
    }
    let model: A = config.parse()?;
    Ok(Built { hidden: model.build(g)?, head: model.head(), max_positions: model.max_positions() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_model_type_lists_the_known_ones() {
        let config = Config::from_text("m/config.json", r#"{"model_type": "mamba"}"#).unwrap();
        let error = Model::of_config(&config).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(
            error.starts_with("m/config.json: key `model_type`: found `mamba`, expected one of llama, "),
            "{error}"
        );
    }

    #[test]
    fn a_model_type_means_one_architecture() {
        let mut types: Vec<&str> = MODELS.iter().flat_map(|model| model.model_types).copied().collect();
        let count = types.len();
        types.sort_unstable();
        types.dedup();
        assert_eq!(types.len(), count);
    }
}
