//! Llama: grouped-query attention, rotary positions, SwiGLU, RMS norms before both.

use super::{Architecture, LmHead, Tied};
use crate::blocks::{Activation, Decoder, PreNorm, pre_norm};
use crate::graph::{Attention, Bias, Graph, Norm};
use crate::rope::Rope;
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
        let rope = Rope::from_config(g.config(), self.decoder.heads().dim)?;
        let x = self.decoder.embed(g)?;
        let x = self.decoder.layers(g, x, |g, _, x| {
            let attention = |g: &mut Graph, x| self.attention(g, x, &rope);
            let mlp = |g: &mut Graph, x| self.decoder.gated_mlp(g, x, self.hidden_act, self.mlp_bias);
            pre_norm(g, x, PreNorm::USUAL, norm, attention, mlp)
        })?;
        g.norm("model.norm", x, norm)
    }

    fn head(&self) -> Option<LmHead> {
        Some(self.decoder.lm_head(Tied::Untied))
    }

    fn max_positions(&self) -> usize {
        self.decoder.max_position_embeddings
    }
}

impl Llama {
    fn attention(&self, g: &mut Graph, x: Var, rope: &Rope) -> Result<Var> {
        let qkv = self.decoder.heads().project(g, x, ["q_proj", "k_proj", "v_proj"], self.attention_bias)?;
        let out = qkv.rotated(g, rope)?.attend(g, Attention::default())?;
        g.linear("o_proj", out, self.decoder.hidden_size, self.attention_bias)
    }
}
