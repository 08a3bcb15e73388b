//! Gemma: Llama with embeddings scaled by √D, norms by one more than their weights, and GELU in the gate.

use super::{Architecture, LmHead, Tied};
use crate::blocks::{Activation, Decoder, PreNorm, pre_norm};
use crate::graph::{Attention, Bias, Graph, Norm};
use crate::rope::Rope;
use quince_mil::{Result, Var};
use serde::Deserialize;

/// The fields of `config.json` that change the program.
#[derive(Deserialize)]
pub struct Gemma {
    #[serde(flatten)]
    decoder: Decoder,
    rms_norm_eps: f32,
    hidden_activation: Option<Activation>,
}

impl Architecture for Gemma {
    const MODEL_TYPES: &'static [&'static str] = &["gemma"];
    const TINY: &'static str = r#"{ "model_type": "gemma", "vocab_size": 19, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 6,
        "max_position_embeddings": 32, "rms_norm_eps": 1e-6, "hidden_act": "gelu" }"#;

    fn build(&self, g: &mut Graph) -> Result<Var> {
        let norm = Norm::RmsPlusOne { epsilon: self.rms_norm_eps };
        let rope = Rope::from_config(g.config(), self.decoder.heads().dim)?;
        let x = self.decoder.embed(g)?;
        let x = g.scaled(x, (self.decoder.hidden_size as f32).sqrt())?;
        let activation = self.hidden_activation.unwrap_or(Activation::GeluTanh);
        let x = self.decoder.layers(g, x, |g, _, x| {
            let attention = |g: &mut Graph, x| self.attention(g, x, &rope);
            let mlp = |g: &mut Graph, x| self.decoder.gated_mlp(g, x, activation, Bias::Absent);
            pre_norm(g, x, PreNorm::USUAL, norm, attention, mlp)
        })?;
        g.norm("model.norm", x, norm)
    }

    fn head(&self) -> Option<LmHead> {
        Some(self.decoder.lm_head(Tied::Tied))
    }

    fn max_positions(&self) -> usize {
        self.decoder.max_position_embeddings
    }
}

impl Gemma {
    fn attention(&self, g: &mut Graph, x: Var, rope: &Rope) -> Result<Var> {
        let qkv = self.decoder.heads().project(g, x, ["q_proj", "k_proj", "v_proj"], Bias::Absent)?;
        let out = qkv.rotated(g, rope)?.attend(g, Attention::default())?;
        g.linear("o_proj", out, self.decoder.hidden_size, Bias::Absent)
    }
}
