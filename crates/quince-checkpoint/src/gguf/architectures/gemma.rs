//! Gemma: norms whose weights say how far they are from one, which llama.cpp adds.

use super::super::{facts::Facts, rope};
use super::{Architecture, Name, Undo, changed, constants, decoders, name};
use quince_tensor::Result;
use serde_json::{Map, Value};

const ATTENTION: &[Name] = &[
    name("token_embd", "model.embed_tokens"),
    name("output", "lm_head"),
    changed("output_norm", "model.norm", Undo::PlusOne),
    changed("blk.{i}.attn_norm", "model.layers.{i}.input_layernorm", Undo::PlusOne),
    name("blk.{i}.attn_q", "model.layers.{i}.self_attn.q_proj"),
    name("blk.{i}.attn_k", "model.layers.{i}.self_attn.k_proj"),
    name("blk.{i}.attn_v", "model.layers.{i}.self_attn.v_proj"),
    name("blk.{i}.attn_output", "model.layers.{i}.self_attn.o_proj"),
    changed("blk.{i}.attn_q_norm", "model.layers.{i}.self_attn.q_norm", Undo::PlusOne),
    changed("blk.{i}.attn_k_norm", "model.layers.{i}.self_attn.k_norm", Undo::PlusOne),
];

/// The norms of Gemma 2 and 3, around attention and feed-forward network.
const AROUND: &[Name] = &[
    changed("blk.{i}.post_attention_norm", "model.layers.{i}.post_attention_layernorm", Undo::PlusOne),
    changed("blk.{i}.ffn_norm", "model.layers.{i}.pre_feedforward_layernorm", Undo::PlusOne),
    changed("blk.{i}.post_ffw_norm", "model.layers.{i}.post_feedforward_layernorm", Undo::PlusOne),
];

/// The norm of Gemma 1 before the feed-forward network.
const BEFORE: &[Name] = &[changed("blk.{i}.ffn_norm", "model.layers.{i}.post_attention_layernorm", Undo::PlusOne)];

pub(super) const GEMMA: Architecture =
    Architecture { name: "gemma", names: &[ATTENTION, BEFORE, decoders::GATED], config: gemma };
pub(super) const GEMMA2: Architecture =
    Architecture { name: "gemma2", names: &[ATTENTION, AROUND, decoders::GATED], config: gemma2 };
pub(super) const GEMMA3: Architecture =
    Architecture { name: "gemma3", names: &[ATTENTION, AROUND, decoders::GATED], config: gemma3 };

fn gemma(facts: &Facts, config: &mut Map<String, Value>) -> Result<()> {
    rope::into_config(facts, config)?;
    let act = "gelu_pytorch_tanh";
    constants(config, [("model_type", "gemma".into()), ("hidden_act", act.into()), ("hidden_activation", act.into())]);
    Ok(())
}

/// What 2 and 3 have alike. llama.cpp keeps no `query_pre_attn_scalar`: it is the head's length but for the largest
/// model of each, which is told by its number of layers.
fn windowed(facts: &Facts, config: &mut Map<String, Value>, largest: u64, window: u64) -> Result<()> {
    rope::into_config(facts, config)?;
    let scalar = match facts.required("block_count")? == largest {
        true => facts.required("embedding_length")? / facts.required("attention.head_count")?.max(1),
        false => facts.required("attention.key_length")?,
    };
    constants(
        config,
        [
            ("hidden_activation", "gelu_pytorch_tanh".into()),
            ("query_pre_attn_scalar", scalar.into()),
            ("sliding_window", facts.unsigned("attention.sliding_window")?.unwrap_or(window).into()),
        ],
    );
    Ok(())
}

/// The kinds of layers: each `period`th attends to all tokens, or what the file says of each layer.
fn layer_types(facts: &Facts, period: u64) -> Result<Value> {
    let layers = facts.required("block_count")?.min(u64::from(u16::MAX));
    let key = facts.key("attention.sliding_window_pattern");
    let sliding: Vec<bool> = match facts.metadata.get(&key) {
        Some(super::super::metadata::Value::List { .. }) => {
            facts.metadata.numbers(&key)?.unwrap_or_default().into_iter().map(|flag| flag != 0.0).collect()
        }
        _ => {
            let period = facts.metadata.unsigned(&key)?.unwrap_or(period).max(1);
            (0..layers).map(|layer| (layer + 1) % period != 0).collect()
        }
    };
    let kind = |sliding| Value::from(if sliding { "sliding_attention" } else { "full_attention" });
    Ok(sliding.into_iter().map(kind).collect())
}

fn gemma2(facts: &Facts, config: &mut Map<String, Value>) -> Result<()> {
    windowed(facts, config, 46, 4096)?;
    let softcaps = [("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)];
    for (key, default) in softcaps {
        config.entry(key).or_insert(default.into());
    }
    constants(config, [("model_type", "gemma2".into()), ("layer_types", layer_types(facts, 2)?)]);
    Ok(())
}

fn gemma3(facts: &Facts, config: &mut Map<String, Value>) -> Result<()> {
    windowed(facts, config, 62, 1024)?;
    let local = facts.metadata.number(&facts.key("rope.freq_base_swa"))?.unwrap_or(10_000.0);
    config.entry("rope_theta").or_insert(1e6.into());
    constants(
        config,
        [
            ("model_type", "gemma3_text".into()),
            ("rope_local_base_freq", local.into()),
            ("layer_types", layer_types(facts, 6)?),
        ],
    );
    Ok(())
}
