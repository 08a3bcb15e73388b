//! Encoders: BERT and its kin, which are all `bert` in GGUF and are told apart by their tensors and vocabularies.

use super::super::facts::Facts;
use super::{Architecture, Name, Undo, changed, constants, name};
use quince_tensor::Result;
use serde_json::{Map, Value};

/// BERT and RoBERTa.
const NAMES: &[Name] = &[
    name("token_embd", "embeddings.word_embeddings"),
    name("token_types", "embeddings.token_type_embeddings"),
    changed("position_embd", "embeddings.position_embeddings", Undo::FirstPositions),
    name("token_embd_norm", "embeddings.LayerNorm"),
    name("blk.{i}.attn_q", "encoder.layer.{i}.attention.self.query"),
    name("blk.{i}.attn_k", "encoder.layer.{i}.attention.self.key"),
    name("blk.{i}.attn_v", "encoder.layer.{i}.attention.self.value"),
    name("blk.{i}.attn_output", "encoder.layer.{i}.attention.output.dense"),
    name("blk.{i}.attn_output_norm", "encoder.layer.{i}.attention.output.LayerNorm"),
    name("blk.{i}.ffn_up", "encoder.layer.{i}.intermediate.dense"),
    name("blk.{i}.ffn_down", "encoder.layer.{i}.output.dense"),
    name("blk.{i}.layer_output_norm", "encoder.layer.{i}.output.LayerNorm"),
    name("cls", "classifier.dense"),
    name("cls.output", "classifier.out_proj"),
];

pub(super) const BERT: Architecture = Architecture { name: "bert", names: &[NAMES], config: bert };

pub(super) const MODERN_BERT: Architecture = Architecture {
    name: "modern-bert",
    names: &[&[
        name("token_embd", "embeddings.tok_embeddings"),
        name("token_embd_norm", "embeddings.norm"),
        name("output_norm", "final_norm"),
        name("blk.{i}.attn_norm", "layers.{i}.attn_norm"),
        name("blk.{i}.attn_qkv", "layers.{i}.attn.Wqkv"),
        name("blk.{i}.attn_output", "layers.{i}.attn.Wo"),
        name("blk.{i}.ffn_norm", "layers.{i}.mlp_norm"),
        name("blk.{i}.ffn_up", "layers.{i}.mlp.Wi"),
        name("blk.{i}.ffn_down", "layers.{i}.mlp.Wo"),
    ]],
    config: modern_bert,
};

/// Positions of RoBERTa begin behind that of padding, 1; llama.cpp leaves out the rows before.
pub(in super::super) const ROBERTA_FIRST_POSITION: usize = 2;

/// Whether a `bert` is a RoBERTa: its vocabulary is not that of BERT.
pub(in super::super) fn is_roberta(facts: &Facts) -> bool {
    let vocabulary = facts.metadata.text("tokenizer.ggml.model").ok().flatten();
    matches!(vocabulary, Some("gpt2" | "t5"))
}

fn bert(facts: &Facts, config: &mut Map<String, Value>) -> Result<()> {
    let types = facts.shape("token_types.weight").and_then(<[usize]>::first).copied().unwrap_or(2);
    constants(
        config,
        [
            ("model_type", "bert".into()),
            ("hidden_act", "gelu".into()),
            ("type_vocab_size", types.into()),
            ("position_embedding_type", "absolute".into()),
        ],
    );
    if is_roberta(facts) {
        let multilingual = facts.metadata.text("tokenizer.ggml.model")? == Some("t5");
        let model_type = if multilingual { "xlm-roberta" } else { "roberta" };
        let positions = facts.required("context_length")?.saturating_add(ROBERTA_FIRST_POSITION as u64);
        constants(
            config,
            [
                ("model_type", model_type.into()),
                ("max_position_embeddings", positions.into()),
                ("pad_token_id", 1.into()),
            ],
        );
    }
    Ok(())
}

fn modern_bert(facts: &Facts, config: &mut Map<String, Value>) -> Result<()> {
    let number = |key: &str, default: f64| facts.metadata.number(&facts.key(key)).map(|n| n.unwrap_or(default));
    let global = number("rope.freq_base", 160_000.0)?;
    let local = number("rope.freq_base_swa", 10_000.0)?;
    let every = facts.unsigned("attention.sliding_window_pattern")?.unwrap_or(3);
    // Half of it lies on either side of a token.
    let window = facts.unsigned("attention.sliding_window")?.unwrap_or(128);
    config.remove("rope_theta");
    if let Some(epsilon) = config.remove("layer_norm_eps") {
        config.insert("norm_eps".into(), epsilon);
    }
    constants(
        config,
        [
            ("model_type", "modernbert".into()),
            ("hidden_activation", "gelu".into()),
            ("global_rope_theta", global.into()),
            ("local_rope_theta", local.into()),
            ("global_attn_every_n_layers", every.into()),
            ("local_attention", window.into()),
        ],
    );
    Ok(())
}
