//! Decoders with one feed-forward network in a layer.

use super::super::{facts::Facts, rope};
use super::{Architecture, Name, Undo, changed, constants, experts, name};
use quince_tensor::Result;
use serde_json::{Map, Value};

/// What comes before and after the layers.
pub(super) const ENDS: &[Name] = &[
    name("token_embd", "model.embed_tokens"),
    name("output_norm", "model.norm"),
    name("output", "lm_head"),
    changed("rope_freqs", "", Undo::InConfig),
    changed("rope_factors_long", "", Undo::InConfig),
    changed("rope_factors_short", "", Undo::InConfig),
    changed("blk.{i}.rope_freqs", "", Undo::InConfig),
    changed("blk.{i}.attn_rot_embd", "", Undo::InConfig),
];

/// Attention with a projection each, and the norms before it and before the feed-forward network.
pub(super) const ATTENTION: &[Name] = &[
    name("blk.{i}.attn_norm", "model.layers.{i}.input_layernorm"),
    name("blk.{i}.attn_q", "model.layers.{i}.self_attn.q_proj"),
    name("blk.{i}.attn_k", "model.layers.{i}.self_attn.k_proj"),
    name("blk.{i}.attn_v", "model.layers.{i}.self_attn.v_proj"),
    name("blk.{i}.attn_output", "model.layers.{i}.self_attn.o_proj"),
    name("blk.{i}.attn_q_norm", "model.layers.{i}.self_attn.q_norm"),
    name("blk.{i}.attn_k_norm", "model.layers.{i}.self_attn.k_norm"),
    name("blk.{i}.ffn_norm", "model.layers.{i}.post_attention_layernorm"),
];

/// A gated feed-forward network.
pub(super) const GATED: &[Name] = &[
    name("blk.{i}.ffn_gate", "model.layers.{i}.mlp.gate_proj"),
    name("blk.{i}.ffn_up", "model.layers.{i}.mlp.up_proj"),
    name("blk.{i}.ffn_down", "model.layers.{i}.mlp.down_proj"),
];

/// What llama.cpp rotates side by side, and Hugging Face by halves.
const ROTATED: &[Name] = &[
    changed("blk.{i}.attn_q", "model.layers.{i}.self_attn.q_proj", Undo::QueryHeads),
    changed("blk.{i}.attn_k", "model.layers.{i}.self_attn.k_proj", Undo::KeyHeads),
];

pub(super) const LLAMA: Architecture =
    Architecture { name: "llama", names: &[ROTATED, ENDS, ATTENTION, GATED, experts::MIXTRAL], config: llama };
pub(super) const QWEN2: Architecture = Architecture { name: "qwen2", names: &[ENDS, ATTENTION, GATED], config: qwen2 };
pub(super) const QWEN3: Architecture = Architecture { name: "qwen3", names: &[ENDS, ATTENTION, GATED], config: qwen3 };
pub(super) const PHI2: Architecture = Architecture {
    name: "phi2",
    names: &[&[
        name("token_embd", "model.embed_tokens"),
        name("output_norm", "model.final_layernorm"),
        name("output", "lm_head"),
        name("blk.{i}.attn_norm", "model.layers.{i}.input_layernorm"),
        name("blk.{i}.attn_q", "model.layers.{i}.self_attn.q_proj"),
        name("blk.{i}.attn_k", "model.layers.{i}.self_attn.k_proj"),
        name("blk.{i}.attn_v", "model.layers.{i}.self_attn.v_proj"),
        name("blk.{i}.attn_output", "model.layers.{i}.self_attn.dense"),
        name("blk.{i}.ffn_up", "model.layers.{i}.mlp.fc1"),
        name("blk.{i}.ffn_down", "model.layers.{i}.mlp.fc2"),
    ]],
    config: phi2,
};
pub(super) const PHI3: Architecture = Architecture {
    name: "phi3",
    names: &[
        &[
            name("blk.{i}.attn_qkv", "model.layers.{i}.self_attn.qkv_proj"),
            name("blk.{i}.ffn_up", "model.layers.{i}.mlp.gate_up_proj"),
            name("blk.{i}.ffn_down", "model.layers.{i}.mlp.down_proj"),
        ],
        ENDS,
        ATTENTION,
    ],
    config: phi3,
};
pub(super) const GPT2: Architecture = Architecture {
    name: "gpt2",
    names: &[&[
        name("token_embd", "transformer.wte"),
        name("position_embd", "transformer.wpe"),
        name("output_norm", "transformer.ln_f"),
        name("output", "lm_head"),
        name("blk.{i}.attn_norm", "transformer.h.{i}.ln_1"),
        changed("blk.{i}.attn_qkv", "transformer.h.{i}.attn.c_attn", Undo::Transposed),
        changed("blk.{i}.attn_output", "transformer.h.{i}.attn.c_proj", Undo::Transposed),
        name("blk.{i}.ffn_norm", "transformer.h.{i}.ln_2"),
        changed("blk.{i}.ffn_up", "transformer.h.{i}.mlp.c_fc", Undo::Transposed),
        changed("blk.{i}.ffn_down", "transformer.h.{i}.mlp.c_proj", Undo::Transposed),
    ]],
    config: gpt2,
};
pub(super) const GPT_NEOX: Architecture = Architecture {
    name: "gptneox",
    names: &[&[
        name("token_embd", "gpt_neox.embed_in"),
        name("output_norm", "gpt_neox.final_layer_norm"),
        name("output", "embed_out"),
        name("blk.{i}.attn_norm", "gpt_neox.layers.{i}.input_layernorm"),
        changed("blk.{i}.attn_qkv", "gpt_neox.layers.{i}.attention.query_key_value", Undo::ByHead),
        name("blk.{i}.attn_output", "gpt_neox.layers.{i}.attention.dense"),
        name("blk.{i}.ffn_norm", "gpt_neox.layers.{i}.post_attention_layernorm"),
        name("blk.{i}.ffn_up", "gpt_neox.layers.{i}.mlp.dense_h_to_4h"),
        name("blk.{i}.ffn_down", "gpt_neox.layers.{i}.mlp.dense_4h_to_h"),
    ]],
    config: gpt_neox,
};
pub(super) const STABLELM: Architecture =
    Architecture { name: "stablelm", names: &[ENDS, ATTENTION, GATED], config: stablelm };

fn llama(facts: &Facts, config: &mut Map<String, Value>) -> Result<()> {
    rope::into_config(facts, config)?;
    let attention_bias = facts.has("blk.0.attn_q.bias").into();
    constants(config, [("hidden_act", "silu".into()), ("attention_bias", attention_bias)]);
    if experts::mixtral(facts, config)? {
        return Ok(());
    }
    constants(config, [("model_type", "llama".into()), ("mlp_bias", facts.has("blk.0.ffn_up.bias").into())]);
    Ok(())
}

fn qwen2(facts: &Facts, config: &mut Map<String, Value>) -> Result<()> {
    rope::into_config(facts, config)?;
    constants(config, [("model_type", "qwen2".into()), ("hidden_act", "silu".into())]);
    Ok(())
}

fn qwen3(facts: &Facts, config: &mut Map<String, Value>) -> Result<()> {
    rope::into_config(facts, config)?;
    let attention_bias = facts.has("blk.0.attn_q.bias").into();
    let fixed = [("model_type", "qwen3".into()), ("hidden_act", "silu".into()), ("attention_bias", attention_bias)];
    constants(config, fixed);
    Ok(())
}

fn phi2(facts: &Facts, config: &mut Map<String, Value>) -> Result<()> {
    rope::into_config(facts, config)?;
    constants(config, [("model_type", "phi".into()), ("hidden_act", "gelu_new".into())]);
    Ok(())
}

fn phi3(facts: &Facts, config: &mut Map<String, Value>) -> Result<()> {
    rope::into_config(facts, config)?;
    constants(config, [("model_type", "phi3".into()), ("hidden_act", "silu".into())]);
    if let Some(original) = facts.unsigned("rope.scaling.original_context_length")? {
        config.insert("original_max_position_embeddings".into(), original.into());
    }
    // Phi-4 has the key with 0.
    if let Some(window) = facts.unsigned("attention.sliding_window")?.filter(|&window| window > 0) {
        config.insert("sliding_window".into(), window.into());
    }
    Ok(())
}

fn gpt2(_: &Facts, config: &mut Map<String, Value>) -> Result<()> {
    let names = [
        ("max_position_embeddings", "n_positions"),
        ("hidden_size", "n_embd"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("intermediate_size", "n_inner"),
        ("layer_norm_eps", "layer_norm_epsilon"),
    ];
    for (common, own) in names {
        if let Some(value) = config.remove(common) {
            config.insert(own.into(), value);
        }
    }
    constants(config, [("model_type", "gpt2".into()), ("activation_function", "gelu_new".into())]);
    // The file has a copy of the embedding where the model has one weight for both.
    config.insert("tie_word_embeddings".into(), true.into());
    Ok(())
}

fn gpt_neox(facts: &Facts, config: &mut Map<String, Value>) -> Result<()> {
    rope::into_config(facts, config)?;
    let parallel = facts.metadata.flag(&facts.key("use_parallel_residual"))?.unwrap_or(true);
    let fraction = config.remove("partial_rotary_factor").unwrap_or(1.0.into());
    constants(
        config,
        [
            ("model_type", "gpt_neox".into()),
            ("hidden_act", "gelu".into()),
            ("use_parallel_residual", parallel.into()),
            ("attention_bias", true.into()),
            ("rotary_pct", fraction),
        ],
    );
    Ok(())
}

fn stablelm(facts: &Facts, config: &mut Map<String, Value>) -> Result<()> {
    rope::into_config(facts, config)?;
    let parallel = facts.metadata.flag(&facts.key("use_parallel_residual"))?.unwrap_or(true);
    constants(
        config,
        [
            ("model_type", "stablelm".into()),
            ("hidden_act", "silu".into()),
            ("use_parallel_residual", parallel.into()),
            ("use_qkv_bias", facts.has("blk.0.attn_q.bias").into()),
            ("qk_layernorm", facts.has("blk.0.attn_q_norm.weight").into()),
        ],
    );
    Ok(())
}
