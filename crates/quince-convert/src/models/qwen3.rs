//! Qwen3, dense: grouped-query attention with a norm on each head's query and key, SwiGLU.

use super::{Architecture, LmHead, Tied};
use crate::blocks::{Activation, Decoder, Layer, Windows};
use crate::graph::{Bias, Graph, Norm};
use quince_mil::{Result, Var};
use serde::Deserialize;

/// The fields of `config.json` that change the program.
#[derive(Deserialize)]
pub struct Qwen3 {
    #[serde(flatten)]
    decoder: Decoder,
    rms_norm_eps: f32,
    #[serde(default)]
    hidden_act: Activation,
    #[serde(default)]
    attention_bias: Bias,
}

impl Architecture for Qwen3 {
    const MODEL_TYPES: &'static [&'static str] = &["qwen3"];
    const TINY: &'static str = r#"{ "model_type": "qwen3", "vocab_size": 19, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 6,
        "max_position_embeddings": 32, "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
        "rope_parameters": { "rope_type": "default", "rope_theta": 100.0 } }"#;

    fn build(&self, g: &mut Graph) -> Result<Var> {
        let norm = Norm::Rms { epsilon: self.rms_norm_eps };
        let windows = Windows::if_used(g.config(), self.decoder.num_hidden_layers)?;
        let attention = |g: &mut Graph, x, layer: Layer| self.attention(g, x, layer);
        self.decoder.pre_norm(g, norm, windows, attention, |g, x, _| {
            self.decoder.gated_mlp(g, x, self.hidden_act, Bias::Absent)
        })
    }

    fn head(&self) -> Option<LmHead> {
        Some(self.decoder.lm_head(Tied::Untied))
    }

    fn max_positions(&self) -> usize {
        self.decoder.max_position_embeddings
    }
}

impl Qwen3 {
    fn attention(&self, g: &mut Graph, x: Var, layer: Layer) -> Result<Var> {
        let qkv = self.decoder.qkv(g, x, self.attention_bias)?;
        let qkv = qkv.normed(g, ["q_norm", "k_norm"], Norm::Rms { epsilon: self.rms_norm_eps })?;
        self.decoder.attend(g, qkv, layer, self.attention_bias)
    }
}
