//! Gemma 2: Gemma with norms on both sides, soft caps, and windows in every other layer.

use super::{Architecture, LmHead, Tied};
use crate::blocks::{Activation, Decoder, Layer, Layers, Windows, sandwich};
use crate::graph::{Attention, Bias, Graph, Norm};
use crate::rope::Rope;
use quince_mil::{Result, Var};
use serde::Deserialize;

/// The fields of `config.json` that change the program.
#[derive(Deserialize)]
pub struct Gemma2 {
    #[serde(flatten)]
    decoder: Decoder,
    rms_norm_eps: f32,
    hidden_activation: Option<Activation>,
    query_pre_attn_scalar: f32,
    attn_logit_softcapping: Option<f32>,
    final_logit_softcapping: Option<f32>,
}

impl Architecture for Gemma2 {
    const MODEL_TYPES: &'static [&'static str] = &["gemma2"];
    const TINY: &'static str = r#"{ "model_type": "gemma2", "vocab_size": 19, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
        "max_position_embeddings": 32, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 5, "sliding_window": 3,
        "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0 }"#;

    fn build(&self, g: &mut Graph) -> Result<Var> {
        let norm = Norm::RmsPlusOne { epsilon: self.rms_norm_eps };
        let windows = Windows::from_config(g.config(), self.decoder.num_hidden_layers, |i| i % 2 == 0)?;
        let layers = Layers::alike(windows, Rope::from_config(g.config(), self.decoder.heads().dim)?);
        let x = self.decoder.embed(g)?;
        let x = g.scaled(x, (self.decoder.hidden_size as f32).sqrt())?;
        let activation = self.hidden_activation.unwrap_or(Activation::GeluTanh);
        let x = self.decoder.layers(g, x, |g, i, x| {
            let attention = |g: &mut Graph, x| self.attention(g, x, layers.of(i));
            let mlp = |g: &mut Graph, x| self.decoder.gated_mlp(g, x, activation, Bias::Absent);
            sandwich(g, x, norm, attention, mlp)
        })?;
        g.norm("model.norm", x, norm)
    }

    fn head(&self) -> Option<LmHead> {
        Some(LmHead { softcap: self.final_logit_softcapping, ..self.decoder.lm_head(Tied::Tied) })
    }

    fn max_positions(&self) -> usize {
        self.decoder.max_position_embeddings
    }
}

impl Gemma2 {
    fn attention(&self, g: &mut Graph, x: Var, layer: Layer) -> Result<Var> {
        let qkv = self.decoder.heads().project(g, x, ["q_proj", "k_proj", "v_proj"], Bias::Absent)?;
        let scale = Some(1.0 / self.query_pre_attn_scalar.sqrt());
        let how =
            Attention { window: layer.window, scale, softcap: self.attn_logit_softcapping, ..Attention::default() };
        let out = qkv.rotated(g, layer.rope)?.attend(g, how)?;
        g.linear("o_proj", out, self.decoder.hidden_size, Bias::Absent)
    }
}
