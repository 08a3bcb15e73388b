//! Llama: grouped-query attention, rotary positions, SwiGLU, RMS norms before both.

use super::{Architecture, LmHead, Tied};
use crate::blocks::{Activation, Decoder, Layer, Windows};
use crate::graph::{Bias, Graph, Norm};
use quince_mil::{Result, Var};
use serde::Deserialize;

/// The fields of `config.json` that change the program.
#[derive(Deserialize)]
pub struct Llama {
    #[serde(flatten)]
    decoder: Decoder,
    rms_norm_eps: f32,
    #[serde(default)]
    hidden_act: Activation,
    #[serde(default)]
    attention_bias: Bias,
    #[serde(default)]
    mlp_bias: Bias,
}

impl Architecture for Llama {
    const MODEL_TYPES: &'static [&'static str] = &["llama"];
    const TINY: &'static str = r#"{ "model_type": "llama", "vocab_size": 19, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5, "rope_theta": 500.0, "attention_bias": true, "mlp_bias": true,
        "rope_scaling": { "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16 } }"#;

    fn build(&self, g: &mut Graph) -> Result<Var> {
        let norm = Norm::Rms { epsilon: self.rms_norm_eps };
        let windows = Windows::none();
        let attention = |g: &mut Graph, x, layer: Layer| self.attention(g, x, layer);
        self.decoder.pre_norm(g, norm, windows, attention, |g, x, _| {
            self.decoder.gated_mlp(g, x, self.hidden_act, self.mlp_bias)
        })
    }

    fn head(&self) -> Option<LmHead> {
        Some(self.decoder.lm_head(Tied::Untied))
    }

    fn max_positions(&self) -> usize {
        self.decoder.max_position_embeddings
    }
}

impl Llama {
    fn attention(&self, g: &mut Graph, x: Var, layer: Layer) -> Result<Var> {
        let qkv = self.decoder.qkv(g, x, self.attention_bias)?;
        self.decoder.attend(g, qkv, layer, self.attention_bias)
    }
}
