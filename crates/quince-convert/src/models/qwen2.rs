//! Qwen2 and Qwen2.5, dense: Llama with a bias on query, key and value, and windows in the later layers if asked for.

use super::{Architecture, LmHead, Tied};
use crate::blocks::{Activation, Decoder, Layer, Windows};
use crate::graph::{Bias, Graph, Norm};
use quince_mil::{Result, Var};
use serde::Deserialize;

/// The fields of `config.json` that change the program.
#[derive(Deserialize)]
pub struct Qwen2 {
    #[serde(flatten)]
    decoder: Decoder,
    rms_norm_eps: f32,
    #[serde(default)]
    hidden_act: Activation,
}

impl Architecture for Qwen2 {
    const MODEL_TYPES: &'static [&'static str] = &["qwen2"];
    const TINY: &'static str = r#"{ "model_type": "qwen2", "vocab_size": 19, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32,
        "rms_norm_eps": 1e-6, "use_sliding_window": true, "sliding_window": 3, "max_window_layers": 1,
        "tie_word_embeddings": true }"#;

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

impl Qwen2 {
    fn attention(&self, g: &mut Graph, x: Var, layer: Layer) -> Result<Var> {
        let qkv = self.decoder.qkv(g, x, Bias::Present)?;
        self.decoder.attend(g, qkv, layer, Bias::Absent)
    }
}
