//! ModernBERT: rotary positions, norms before both blocks, a gate, windows in all but every third layer.

use super::{Architecture, LmHead};
use crate::blocks::{Activation, Heads, Layer, Layers, Windows, fused_gated_mlp};
use crate::graph::{Attention, Bias, Graph, Norm, Sees};
use crate::rope::{Rope, RopeKeys};
use quince_mil::{Result, Var};
use serde::Deserialize;

/// The fields of `config.json` that change the program.
#[derive(Deserialize)]
pub struct ModernBert {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    hidden_activation: Option<Activation>,
    norm_eps: f32,
    #[serde(default)]
    norm_bias: Bias,
    #[serde(default)]
    attention_bias: Bias,
    #[serde(default)]
    mlp_bias: Bias,
    local_attention: Option<usize>,
    global_attn_every_n_layers: Option<usize>,
}

impl Architecture for ModernBert {
    const MODEL_TYPES: &'static [&'static str] = &["modernbert"];
    const TINY: &'static str = r#"{ "model_type": "modernbert", "vocab_size": 19, "hidden_size": 8,
        "intermediate_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 32,
        "norm_eps": 1e-5, "local_attention": 4, "global_attn_every_n_layers": 2, "global_rope_theta": 900.0,
        "local_rope_theta": 50.0 }"#;

    fn build(&self, g: &mut Graph) -> Result<Var> {
        let norm = Norm::Layer { epsilon: self.norm_eps, bias: self.norm_bias };
        let layers = self.kinds(g)?;
        g.scope("model", |g| {
            let x = g.embedding("embeddings.tok_embeddings", self.vocab_size, self.hidden_size)?;
            let mut x = g.norm("embeddings.norm", x, norm)?;
            for i in 0..self.num_hidden_layers {
                x = g.scope(&format!("layers.{i}"), |g| self.layer(g, x, i, norm, layers.of(i)))?;
            }
            g.norm("final_norm", x, norm)
        })
    }

    fn head(&self) -> Option<LmHead> {
        None
    }

    fn max_positions(&self) -> usize {
        self.max_position_embeddings
    }
}

impl ModernBert {
    fn heads(&self) -> Heads {
        Heads::sharing(self.hidden_size, self.num_attention_heads)
    }

    fn kinds(&self, g: &Graph) -> Result<Layers> {
        let (config, dim, every) = (g.config(), self.heads().dim, self.global_attn_every_n_layers.unwrap_or(3).max(1));
        // The window is on both sides, and has the token itself besides.
        let size = Some(self.local_attention.unwrap_or(128) / 2 + 1);
        let global = RopeKeys {
            layer_type: Some("full_attention"),
            theta: "global_rope_theta",
            usual_theta: 160_000.0,
            ..RopeKeys::default()
        };
        let local =
            RopeKeys { layer_type: Some("sliding_attention"), theta: "local_rope_theta", ..RopeKeys::default() };
        Ok(Layers {
            windows: Windows::of_size(config, size, self.num_hidden_layers, |i| i % every != 0)?,
            full: Rope::with_keys(config, dim, &global)?,
            sliding: Rope::with_keys(config, dim, &local)?,
        })
    }

    fn layer(&self, g: &mut Graph, x: Var, number: usize, norm: Norm, layer: Layer) -> Result<Var> {
        // The embeddings are normed already.
        let normed = if number == 0 { x } else { g.norm("attn_norm", x, norm)? };
        let attended = g.scope("attn", |g| self.attention(g, normed, layer))?;
        let x = g.add(x, attended)?;
        let normed = g.norm("mlp_norm", x, norm)?;
        let activation = self.hidden_activation.unwrap_or(Activation::Gelu);
        let y = fused_gated_mlp(g, normed, ["Wi", "Wo"], self.intermediate_size, activation, self.mlp_bias)?;
        g.add(x, y)
    }

    fn attention(&self, g: &mut Graph, x: Var, layer: Layer) -> Result<Var> {
        let all = g.linear("Wqkv", x, self.heads().fused_width(), self.attention_bias)?;
        let how = Attention { sees: Sees::All, window: layer.window, ..Attention::default() };
        let out = self.heads().fused(g, all)?.rotated(g, layer.rope)?.attend(g, how)?;
        g.linear("Wo", out, self.hidden_size, self.attention_bias)
    }
}
