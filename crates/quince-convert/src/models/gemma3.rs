//! Gemma 3, text: Gemma 2 with norms on each head's query and key instead of soft caps, and a rotation of its own in layers
//! with a window.

use super::{Architecture, LmHead, Tied};
use crate::blocks::{Activation, Decoder, Layer, Layers, Windows, sandwich};
use crate::graph::{Attention, Bias, Graph, Norm};
use crate::rope::{Rope, RopeKeys};
use quince_mil::{Result, Var};
use serde::Deserialize;

/// The fields of `config.json` that change the program.
#[derive(Deserialize)]
pub struct Gemma3 {
    #[serde(flatten)]
    decoder: Decoder,
    rms_norm_eps: f32,
    hidden_activation: Option<Activation>,
    query_pre_attn_scalar: f32,
    #[serde(alias = "_sliding_window_pattern")]
    sliding_window_pattern: Option<usize>,
    final_logit_softcapping: Option<f32>,
    attn_logit_softcapping: Option<f32>,
}

impl Architecture for Gemma3 {
    const MODEL_TYPES: &'static [&'static str] = &["gemma3_text"];
    const TINY: &'static str = r#"{ "model_type": "gemma3_text", "vocab_size": 19, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
        "max_position_embeddings": 32, "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 5, "sliding_window": 3,
        "sliding_window_pattern": 2, "rope_local_base_freq": 50.0, "rope_theta": 900.0,
        "rope_scaling": { "rope_type": "linear", "factor": 8.0 } }"#;

    fn build(&self, g: &mut Graph) -> Result<Var> {
        let norm = Norm::RmsPlusOne { epsilon: self.rms_norm_eps };
        let layers = self.kinds(g)?;
        let x = self.decoder.embed(g)?;
        let x = g.scaled(x, (self.decoder.hidden_size as f32).sqrt())?;
        let activation = self.hidden_activation.unwrap_or(Activation::GeluTanh);
        let x = self.decoder.layers(g, x, |g, i, x| {
            let attention = |g: &mut Graph, x| self.attention(g, x, norm, layers.of(i));
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

impl Gemma3 {
    /// Every sixth layer sees all tokens, if the configuration does not say otherwise.
    fn kinds(&self, g: &Graph) -> Result<Layers> {
        let (config, dim) = (g.config(), self.decoder.heads().dim);
        let pattern = self.sliding_window_pattern.unwrap_or(6).max(1);
        let full = RopeKeys { layer_type: Some("full_attention"), usual_theta: 1_000_000.0, ..RopeKeys::default() };
        let local = "rope_local_base_freq";
        let sliding = RopeKeys { layer_type: Some("sliding_attention"), theta: local, ..RopeKeys::default() };
        Ok(Layers {
            windows: Windows::from_config(config, self.decoder.num_hidden_layers, |i| (i + 1) % pattern != 0)?,
            full: Rope::with_keys(config, dim, &full)?,
            sliding: Rope::with_keys(config, dim, &sliding)?,
        })
    }

    fn attention(&self, g: &mut Graph, x: Var, norm: Norm, layer: Layer) -> Result<Var> {
        let qkv = self.decoder.heads().project(g, x, ["q_proj", "k_proj", "v_proj"], Bias::Absent)?;
        let qkv = qkv.normed(g, ["q_norm", "k_norm"], norm)?.rotated(g, layer.rope)?;
        let scale = Some(1.0 / self.query_pre_attn_scalar.sqrt());
        let how =
            Attention { window: layer.window, scale, softcap: self.attn_logit_softcapping, ..Attention::default() };
        let out = qkv.attend(g, how)?;
        g.linear("o_proj", out, self.decoder.hidden_size, Bias::Absent)
    }
}
