//! Decoders whose feed-forward network is one of several experts.

use super::super::{facts::Facts, rope};
use super::{Architecture, Name, Undo, changed, constants, decoders, name};
use quince_tensor::Result;
use serde_json::{Map, Value};

/// The experts of a Mixtral, which is a `llama` in GGUF.
pub(super) const MIXTRAL: &[Name] = &[
    name("blk.{i}.ffn_gate_inp", "model.layers.{i}.block_sparse_moe.gate"),
    changed("blk.{i}.ffn_gate_exps", "model.layers.{i}.block_sparse_moe.experts.{e}.w1", Undo::Experts),
    changed("blk.{i}.ffn_down_exps", "model.layers.{i}.block_sparse_moe.experts.{e}.w2", Undo::Experts),
    changed("blk.{i}.ffn_up_exps", "model.layers.{i}.block_sparse_moe.experts.{e}.w3", Undo::Experts),
];

pub(super) const QWEN3_MOE: Architecture = Architecture {
    name: "qwen3moe",
    names: &[
        &[
            name("blk.{i}.ffn_gate_inp", "model.layers.{i}.mlp.gate"),
            changed("blk.{i}.ffn_gate_exps", "model.layers.{i}.mlp.experts.{e}.gate_proj", Undo::Experts),
            changed("blk.{i}.ffn_up_exps", "model.layers.{i}.mlp.experts.{e}.up_proj", Undo::Experts),
            changed("blk.{i}.ffn_down_exps", "model.layers.{i}.mlp.experts.{e}.down_proj", Undo::Experts),
        ],
        decoders::ENDS,
        decoders::ATTENTION,
    ],
    config: qwen3_moe,
};

pub(super) const GPT_OSS: Architecture = Architecture {
    name: "gpt-oss",
    names: &[
        &[
            changed("blk.{i}.attn_sinks", "model.layers.{i}.self_attn.sinks", Undo::Bare),
            name("blk.{i}.post_attention_norm", "model.layers.{i}.post_attention_layernorm"),
            name("blk.{i}.ffn_gate_inp", "model.layers.{i}.mlp.router"),
            changed("blk.{i}.ffn_gate_exps", "model.layers.{i}.mlp.experts.gate_up_proj", Undo::Gate),
            changed("blk.{i}.ffn_up_exps", "model.layers.{i}.mlp.experts.gate_up_proj", Undo::Up),
            changed("blk.{i}.ffn_down_exps", "model.layers.{i}.mlp.experts.down_proj", Undo::ExpertMatrices),
        ],
        decoders::ENDS,
        decoders::ATTENTION,
    ],
    config: gpt_oss,
};

/// Makes the configuration that of a Mixtral, if there are experts; tells whether there are.
pub(super) fn mixtral(facts: &Facts, config: &mut Map<String, Value>) -> Result<bool> {
    let Some(experts) = facts.unsigned("expert_count")?.filter(|&count| count > 0) else { return Ok(false) };
    let used = facts.required("expert_used_count")?;
    let fixed =
        [("model_type", "mixtral".into()), ("num_local_experts", experts.into()), ("num_experts_per_tok", used.into())];
    constants(config, fixed);
    Ok(true)
}

fn qwen3_moe(facts: &Facts, config: &mut Map<String, Value>) -> Result<()> {
    rope::into_config(facts, config)?;
    constants(
        config,
        [
            ("model_type", "qwen3_moe".into()),
            ("hidden_act", "silu".into()),
            ("num_experts", facts.required("expert_count")?.into()),
            ("num_experts_per_tok", facts.required("expert_used_count")?.into()),
            ("moe_intermediate_size", facts.required("expert_feed_forward_length")?.into()),
            ("norm_topk_prob", true.into()),
            ("decoder_sparse_step", 1.into()),
            ("mlp_only_layers", Value::Array(Vec::new())),
            ("attention_bias", facts.has("blk.0.attn_q.bias").into()),
        ],
    );
    Ok(())
}

fn gpt_oss(facts: &Facts, config: &mut Map<String, Value>) -> Result<()> {
    rope::into_config(facts, config)?;
    if let Some(Value::Object(scaling)) = config.get_mut("rope_scaling") {
        scaling.insert("truncate".into(), false.into());
    }
    let layers = facts.required("block_count")?.min(u64::from(u16::MAX));
    let kind = |layer: u64| if layer.is_multiple_of(2) { "sliding_attention" } else { "full_attention" };
    let intermediate = match facts.unsigned("expert_feed_forward_length")? {
        Some(size) => size,
        None => facts.required("feed_forward_length")?,
    };
    constants(
        config,
        [
            ("model_type", "gpt_oss".into()),
            ("hidden_act", "silu".into()),
            ("intermediate_size", intermediate.into()),
            ("num_local_experts", facts.required("expert_count")?.into()),
            ("num_experts_per_tok", facts.required("expert_used_count")?.into()),
            ("sliding_window", facts.required("attention.sliding_window")?.into()),
            ("layer_types", (0..layers).map(|layer| Value::from(kind(layer))).collect()),
            ("attention_bias", facts.has("blk.0.attn_q.bias").into()),
            ("swiglu_alpha", 1.702.into()),
            ("swiglu_limit", 7.0.into()),
        ],
    );
    Ok(())
}
