//! The table of architectures of GGUF: which `model_type` each is at Hugging Face, what its tensors are called there, and
//! what llama.cpp's conversion did to them, so that it can be undone.

mod decoders;
mod encoders;
mod experts;
mod gemma;

use super::facts::Facts;
use quince_tensor::{Result, bail};
use serde_json::{Map, Value};

pub(super) use encoders::{ROBERTA_FIRST_POSITION, is_roberta};

/// An architecture.
pub(super) struct Architecture {
    /// `general.architecture`.
    pub name: &'static str,
    /// What its tensors are called, in groups that architectures share.
    pub names: &'static [&'static [Name]],
    /// Fills in `config.json`, in which there is what [`common`] finds.
    pub config: fn(&Facts, &mut Map<String, Value>) -> Result<()>,
}

/// One name in both worlds, without `.weight` and `.bias`; `{i}` is the number of the layer.
pub(super) struct Name {
    pub gguf: &'static str,
    pub hugging_face: &'static str,
    pub undo: Undo,
}

/// What is to be done to a tensor so that it is as at Hugging Face.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Undo {
    /// Nothing.
    Nothing,
    /// The rows of each query head were put in another order: element i and i + half of a head lie side by side.
    QueryHeads,
    /// The same of key heads.
    KeyHeads,
    /// One was added.
    PlusOne,
    /// Rows and columns were exchanged.
    Transposed,
    /// Queries, keys and values of each head (GPT-NeoX) were put into three parts.
    ByHead,
    /// All experts were put into one tensor; `{e}` in the name is the number of one.
    Experts,
    /// Rows for positions that are never used were left out before the others.
    FirstPositions,
    /// Half of the rows of `gate_up_proj` of gpt-oss: the even ones are the gate.
    Gate,
    /// The odd ones.
    Up,
    /// A matrix for each expert with its axes exchanged, and no `.weight` in the name.
    ExpertMatrices,
    /// No `.weight` in the name.
    Bare,
    /// It is no weight of the model: the configuration says it.
    InConfig,
}

/// A name whose tensor is as it was.
const fn name(gguf: &'static str, hugging_face: &'static str) -> Name {
    Name { gguf, hugging_face, undo: Undo::Nothing }
}

/// A name whose tensor was changed.
const fn changed(gguf: &'static str, hugging_face: &'static str, undo: Undo) -> Name {
    Name { gguf, hugging_face, undo }
}

/// Every architecture.
const ARCHITECTURES: &[Architecture] = &[
    decoders::LLAMA,
    decoders::QWEN2,
    decoders::QWEN3,
    decoders::PHI2,
    decoders::PHI3,
    decoders::GPT2,
    decoders::GPT_NEOX,
    decoders::STABLELM,
    experts::QWEN3_MOE,
    experts::GPT_OSS,
    gemma::GEMMA,
    gemma::GEMMA2,
    gemma::GEMMA3,
    encoders::BERT,
    encoders::MODERN_BERT,
];

/// The architecture with this name.
///
/// # Errors
/// When there is none; the error lists those that there are.
pub(super) fn find(name: &str) -> Result<&'static Architecture> {
    match ARCHITECTURES.iter().find(|architecture| architecture.name == name) {
        Some(architecture) => Ok(architecture),
        None => {
            let known: Vec<&str> = ARCHITECTURES.iter().map(|architecture| architecture.name).collect();
            bail!(
                "key `general.architecture`: found `{}`, expected one of {}", crate::suggest::shown(name), known.join(", ");
                hint: "use the Hugging Face directory that the file was made from"
            )
        }
    }
}

/// What most architectures have under the same keys in both worlds: GGUF's, after the architecture's name, and those of
/// `config.json`.
const COMMON: &[(&str, &str)] = &[
    ("context_length", "max_position_embeddings"),
    ("embedding_length", "hidden_size"),
    ("block_count", "num_hidden_layers"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("attention.layer_norm_epsilon", "layer_norm_eps"),
    ("rope.freq_base", "rope_theta"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
];

/// The keys of [`COMMON`], the size of the vocabulary, and whether embedding and logits share a weight.
///
/// # Errors
/// When a value is no number.
pub(super) fn common(facts: &Facts) -> Result<Map<String, Value>> {
    let mut config = Map::new();
    for (gguf, key) in COMMON {
        let wanted = facts.key(gguf);
        let value = match facts.metadata.get(&wanted) {
            // One number for each layer, which must be the same for all.
            Some(super::metadata::Value::List { .. }) => facts.metadata.unsigned(&wanted)?.map(Value::from),
            Some(value) if value.number().is_some() => Some(value.json()),
            Some(_) => return facts.metadata.number(&wanted).map(|_| config),
            None => None,
        };
        if let Some(value) = value {
            config.insert((*key).to_string(), value);
        }
    }
    if let Some(&vocabulary) = facts.shape("token_embd.weight").and_then(<[usize]>::first) {
        config.insert("vocab_size".into(), vocabulary.into());
    }
    config.insert("tie_word_embeddings".into(), (!facts.has("output.weight")).into());
    Ok(config)
}

/// Inserts values that are always the same.
fn constants<const N: usize>(config: &mut Map<String, Value>, values: [(&str, Value); N]) {
    config.extend(values.map(|(key, value)| (key.to_string(), value)));
}
