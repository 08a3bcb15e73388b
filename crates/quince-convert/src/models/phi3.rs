//! Phi-3, Phi-3.5 and Phi-4-mini: Llama with query, key and value in one module, gate and up in another.

use super::{Architecture, LmHead, Tied};
use crate::blocks::{Activation, Decoder, Layer, Windows, fused_gated_mlp};
use crate::graph::{Bias, Graph, Norm};
use quince_mil::{Result, Var};
use serde::Deserialize;

/// The fields of `config.json` that change the program.
#[derive(Deserialize)]
pub struct Phi3 {
    #[serde(flatten)]
    decoder: Decoder,
    rms_norm_eps: f32,
    #[serde(default)]
    hidden_act: Activation,
}

impl Architecture for Phi3 {
    const MODEL_TYPES: &'static [&'static str] = &["phi3"];
    const TINY: &'static str = r#"{ "model_type": "phi3", "vocab_size": 19, "hidden_size": 16, "intermediate_size": 12,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32,
        "original_max_position_embeddings": 16, "rms_norm_eps": 1e-5, "sliding_window": 5, "partial_rotary_factor": 0.5,
        "rope_scaling": { "type": "longrope", "short_factor": [1.0, 1.25], "long_factor": [1.5, 3.0] } }"#;

    fn build(&self, g: &mut Graph) -> Result<Var> {
        let norm = Norm::Rms { epsilon: self.rms_norm_eps };
        let windows = Windows::from_config(g.config(), self.decoder.num_hidden_layers, |_| true)?;
        let (inner, act) = (self.decoder.intermediate_size, self.hidden_act);
        let attention = |g: &mut Graph, x, layer: Layer| self.attention(g, x, layer);
        self.decoder.pre_norm(g, norm, windows, attention, |g, x, _| {
            fused_gated_mlp(g, x, ["gate_up_proj", "down_proj"], inner, act, Bias::Absent)
        })
    }

    fn head(&self) -> Option<LmHead> {
        Some(self.decoder.lm_head(Tied::Untied))
    }

    fn max_positions(&self) -> usize {
        self.decoder.max_position_embeddings
    }
}

impl Phi3 {
    fn attention(&self, g: &mut Graph, x: Var, layer: Layer) -> Result<Var> {
        let heads = self.decoder.heads();
        let all = g.linear("qkv_proj", x, heads.fused_width(), Bias::Absent)?;
        let qkv = heads.fused(g, all)?;
        self.decoder.attend(g, qkv, layer, Bias::Absent)
    }
}
