//! Qwen3 with experts in place of the feed-forward block, in all layers or in some.

use super::{Architecture, LmHead, Tied};
use crate::blocks::{Activation, Decoder, Layer, Windows};
use crate::graph::{Bias, ExpertWeights, Experts, Graph, Norm, SoftmaxOver};
use quince_mil::{Result, Var};
use serde::Deserialize;

/// The fields of `config.json` that change the program.
#[derive(Deserialize)]
pub struct Qwen3Moe {
    #[serde(flatten)]
    decoder: Decoder,
    rms_norm_eps: f32,
    #[serde(default)]
    hidden_act: Activation,
    #[serde(default)]
    attention_bias: Bias,
    #[serde(alias = "num_local_experts")]
    num_experts: usize,
    num_experts_per_tok: usize,
    moe_intermediate_size: usize,
    #[serde(default)]
    norm_topk_prob: bool,
    #[serde(default)]
    decoder_sparse_step: Option<usize>,
    #[serde(default)]
    mlp_only_layers: Vec<usize>,
}

impl Architecture for Qwen3Moe {
    const MODEL_TYPES: &'static [&'static str] = &["qwen3_moe"];
    const TINY: &'static str = r#"{ "model_type": "qwen3_moe", "vocab_size": 19, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
        "max_position_embeddings": 32, "rms_norm_eps": 1e-6, "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 6, "norm_topk_prob": false, "mlp_only_layers": [1] }"#;

    fn build(&self, g: &mut Graph) -> Result<Var> {
        let norm = Norm::Rms { epsilon: self.rms_norm_eps };
        let windows = Windows::if_used(g.config(), self.decoder.num_hidden_layers)?;
        let attention = |g: &mut Graph, x, layer: Layer| self.attention(g, x, layer);
        self.decoder.pre_norm(g, norm, windows, attention, |g, x, i| self.mlp(g, i, x))
    }

    fn head(&self) -> Option<LmHead> {
        Some(self.decoder.lm_head(Tied::Untied))
    }

    fn max_positions(&self) -> usize {
        self.decoder.max_position_embeddings
    }
}

impl Qwen3Moe {
    fn attention(&self, g: &mut Graph, x: Var, layer: Layer) -> Result<Var> {
        let qkv = self.decoder.qkv(g, x, self.attention_bias)?;
        let qkv = qkv.normed(g, ["q_norm", "k_norm"], Norm::Rms { epsilon: self.rms_norm_eps })?;
        self.decoder.attend(g, qkv, layer, self.attention_bias)
    }
}

impl Qwen3Moe {
    fn mlp(&self, g: &mut Graph, layer: usize, x: Var) -> Result<Var> {
        let step = self.decoder_sparse_step.unwrap_or(1).max(1);
        if self.mlp_only_layers.contains(&layer) || self.num_experts == 0 || !(layer + 1).is_multiple_of(step) {
            return self.decoder.gated_mlp(g, x, self.hidden_act, Bias::Absent);
        }
        g.scope("mlp", |g| {
            let scores = g.linear("gate", x, self.num_experts, Bias::Absent)?;
            let how = Experts {
                number: self.num_experts,
                chosen: self.num_experts_per_tok,
                inner: self.moe_intermediate_size,
                over: if self.norm_topk_prob { SoftmaxOver::Chosen } else { SoftmaxOver::All },
                weights: ExpertWeights::Modules(["gate_proj", "up_proj", "down_proj"]),
                alpha: 1.0,
                up_offset: 0.0,
                limit: None,
            };
            g.experts(x, scores, how)
        })
    }
}
