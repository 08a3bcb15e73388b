//! The table of architectures. A new one is one file here, one line in [`MODELS`] and one golden file.
//!
//! A model file says which fields of `config.json` change the program, names weights as Hugging Face does, and states
//! their shapes. It says nothing of cache, prefill or decode, precision, compression or target.

use crate::graph::{Bias, Graph};
use quince_checkpoint::Config;
use quince_mil::{Result, Var, bail};
use serde::de::DeserializeOwned;

mod bert;
mod distilbert;
mod gemma;
mod gemma2;
mod gemma3;
mod gpt2;
mod gpt_neo;
mod gpt_neox;
mod gpt_oss;
mod llama;
mod mistral;
mod mixtral;
mod modernbert;
mod mpnet;
mod phi;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod roberta;
mod stablelm;

/// Every architecture.
pub const MODELS: &[Model] = &[
    Model::of::<llama::Llama>("Llama 2, 3, 3.1, 3.2 and what is built like them"),
    Model::of::<mistral::Mistral>("Mistral 7B and what is built like it"),
    Model::of::<mixtral::Mixtral>("Mixtral"),
    Model::of::<qwen2::Qwen2>("Qwen2 and Qwen2.5, dense"),
    Model::of::<qwen3::Qwen3>("Qwen3 and Qwen3-Embedding, dense"),
    Model::of::<qwen3_moe::Qwen3Moe>("Qwen3 with experts"),
    Model::of::<gemma::Gemma>("Gemma"),
    Model::of::<gemma2::Gemma2>("Gemma 2"),
    Model::of::<gemma3::Gemma3>("Gemma 3, text"),
    Model::of::<phi::Phi>("Phi-1, Phi-1.5 and Phi-2"),
    Model::of::<phi3::Phi3>("Phi-3, Phi-3.5 and Phi-4-mini"),
    Model::of::<gpt2::Gpt2>("GPT-2"),
    Model::of::<gpt_neo::GptNeo>("GPT-Neo and TinyStories"),
    Model::of::<gpt_neox::GptNeoX>("GPT-NeoX and Pythia"),
    Model::of::<gpt_oss::GptOss>("gpt-oss"),
    Model::of::<stablelm::StableLm>("StableLM"),
    Model::of::<bert::Bert>("BERT and MiniLM, encoders"),
    Model::of::<roberta::Roberta>("RoBERTa and XLM-R, encoders"),
    Model::of::<mpnet::MpNet>("MPNet, an encoder"),
    Model::of::<distilbert::DistilBert>("DistilBERT, an encoder"),
    Model::of::<modernbert::ModernBert>("ModernBERT, an encoder"),
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

    /// How logits are made of the hidden states; none of an encoder, which sees a text as a whole.
    fn head(&self) -> Option<LmHead>;

    /// The longest text that the model was made for, in tokens.
    fn max_positions(&self) -> usize;
}

/// How logits are made of hidden states.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct LmHead {
    /// The module whose weight [V, D] the hidden states are multiplied with: the embedding, where the two are tied.
    pub module: &'static str,
    /// V, the number of tokens.
    pub vocab_size: usize,
    /// Whether the module has a bias.
    pub bias: Bias,
    /// Logits become `softcap · tanh(logit / softcap)` if given.
    pub softcap: Option<f32>,
}

/// Whether the logits are made with the weight of the embedding: `tie_word_embeddings`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tied {
    /// They have a weight of their own.
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
        LmHead::tied_to("model.embed_tokens", vocab_size, tied)
    }

    /// The embedding `table` if tied, else `lm_head`, without a bias.
    pub fn tied_to(table: &'static str, vocab_size: usize, tied: Tied) -> LmHead {
        let module = match tied {
            Tied::Tied => table,
            Tied::Untied => "lm_head",
        };
        LmHead::of(module, vocab_size)
    }

    /// The weight of a module, without a bias.
    pub fn of(module: &'static str, vocab_size: usize) -> LmHead {
        LmHead { module, vocab_size, bias: Bias::Absent, softcap: None }
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
    read: fn(&Config) -> Result<Box<dyn Described>>,
}

/// An architecture whose configuration is read.
pub(crate) trait Described {
    /// See [`Architecture::build`].
    fn build(&self, g: &mut Graph) -> Result<Var>;
    /// See [`Architecture::head`].
    fn head(&self) -> Option<LmHead>;
    /// See [`Architecture::max_positions`].
    fn max_positions(&self) -> usize;
}

impl<A: Architecture> Described for A {
    fn build(&self, g: &mut Graph) -> Result<Var> {
        Architecture::build(self, g)
    }
    fn head(&self) -> Option<LmHead> {
        Architecture::head(self)
    }
    fn max_positions(&self) -> usize {
        Architecture::max_positions(self)
    }
}

impl Model {
    /// The entry of an architecture.
    pub const fn of<A: Architecture + 'static>(doc: &'static str) -> Model {
        Model { model_types: A::MODEL_TYPES, doc, tiny: A::TINY, read: read::<A> }
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

    pub(crate) fn read(&self, config: &Config) -> Result<Box<dyn Described>> {
        (self.read)(config)
    }
}

/// The largest integer in a configuration: no size comes near, and products of two still fit.
const MAX_SIZE: u64 = u32::MAX as u64;

fn read<A: Architecture + 'static>(config: &Config) -> Result<Box<dyn Described>> {
    for (key, value) in config.value().as_object().into_iter().flatten() {
        if let Some(found) = value.as_u64().filter(|&found| found > MAX_SIZE) {
            bail!("{}: key `{key}`: found {found}, expected at most {MAX_SIZE}", config.path().display());
        }
    }
    Ok(Box::new(config.parse::<A>()?))
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
