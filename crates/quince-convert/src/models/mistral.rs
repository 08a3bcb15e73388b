//! Mistral: Llama with a window of tokens in every layer, if asked for.

use super::{Architecture, LmHead, Tied};
use crate::blocks::{Activation, Decoder, Layer, Windows};
use crate::graph::{Bias, Graph, Norm};
use quince_mil::{Result, Var};
use serde::Deserialize;

/// The fields of `config.json` that change the program.
#[derive(Deserialize)]
pub struct Mistral {
    #[serde(flatten)]
    decoder: Decoder,
    rms_norm_eps: f32,
    #[serde(default)]
    hidden_act: Activation,
}

impl Architecture for Mistral {
    const MODEL_TYPES: &'static [&'static str] = &["mistral"];
    const TINY: &'static str = r#"{ "model_type": "mistral", "vocab_size": 19, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
        "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "sliding_window": 3 }"#;

    fn build(&self, g: &mut Graph) -> Result<Var> {
        let norm = Norm::Rms { epsilon: self.rms_norm_eps };
        let windows = Windows::from_config(g.config(), self.decoder.num_hidden_layers, |_| true)?;
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

impl Mistral {
    fn attention(&self, g: &mut Graph, x: Var, layer: Layer) -> Result<Var> {
        let qkv = self.decoder.qkv(g, x, Bias::Absent)?;
        self.decoder.attend(g, qkv, layer, Bias::Absent)
    }
}
