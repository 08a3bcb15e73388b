//! GPT-2: learned positions, query, key and value in one module, weights stored as [inputs, outputs].

use super::{Architecture, LmHead, Tied};
use crate::blocks::{Activation, Heads, PreNorm, pre_norm};
use crate::graph::{Attention, Bias, Graph, Norm};
use quince_mil::{Result, Var};
use serde::Deserialize;

/// The fields of `config.json` that change the program.
#[derive(Deserialize)]
pub struct Gpt2 {
    vocab_size: usize,
    n_embd: usize,
    n_inner: Option<usize>,
    n_layer: usize,
    n_head: usize,
    n_positions: usize,
    layer_norm_epsilon: f32,
    activation_function: Option<Activation>,
    scale_attn_weights: Option<bool>,
    scale_attn_by_inverse_layer_idx: Option<bool>,
    tie_word_embeddings: Option<bool>,
}

const NAMES: PreNorm = PreNorm { first: "ln_1", attention: "attn", second: "ln_2" };

impl Architecture for Gpt2 {
    const MODEL_TYPES: &'static [&'static str] = &["gpt2"];
    const TINY: &'static str = r#"{ "model_type": "gpt2", "vocab_size": 19, "n_embd": 8, "n_layer": 2, "n_head": 2,
        "n_positions": 32, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
        "scale_attn_by_inverse_layer_idx": true }"#;

    fn build(&self, g: &mut Graph) -> Result<Var> {
        let norm = Norm::Layer { epsilon: self.layer_norm_epsilon, bias: Bias::Present };
        let x = g.embedding("transformer.wte", self.vocab_size, self.n_embd)?;
        let mut x = g.add_positions("transformer.wpe", x, self.n_positions, 0)?;
        for i in 0..self.n_layer {
            let attention = |g: &mut Graph, x| self.attention(g, x, i);
            let layer = |g: &mut Graph| pre_norm(g, x, NAMES, norm, attention, |g, x| self.mlp(g, x));
            x = g.scope(&format!("transformer.h.{i}"), layer)?;
        }
        g.norm("transformer.ln_f", x, norm)
    }

    fn head(&self) -> Option<LmHead> {
        let tied = self.tie_word_embeddings.map_or(Tied::Tied, Tied::from);
        Some(LmHead::tied_to("transformer.wte", self.vocab_size, tied))
    }

    fn max_positions(&self) -> usize {
        self.n_positions
    }
}

impl Gpt2 {
    fn attention(&self, g: &mut Graph, x: Var, layer: usize) -> Result<Var> {
        let heads = Heads::sharing(self.n_embd, self.n_head);
        let mut scale = 1.0;
        if self.scale_attn_weights.unwrap_or(true) {
            scale /= (heads.dim as f32).sqrt();
        }
        if self.scale_attn_by_inverse_layer_idx.unwrap_or(false) {
            scale /= (layer + 1) as f32;
        }
        let all = g.linear_transposed("c_attn", x, heads.fused_width(), Bias::Present)?;
        let how = Attention { scale: Some(scale), ..Attention::default() };
        let out = heads.fused(g, all)?.attend(g, how)?;
        g.linear_transposed("c_proj", out, self.n_embd, Bias::Present)
    }

    fn mlp(&self, g: &mut Graph, x: Var) -> Result<Var> {
        g.scope("mlp", |g| {
            let inner = self.n_inner.unwrap_or(self.n_embd.saturating_mul(4));
            let x = g.linear_transposed("c_fc", x, inner, Bias::Present)?;
            let x = g.activation(x, self.activation_function.unwrap_or(Activation::GeluTanh))?;
            g.linear_transposed("c_proj", x, self.n_embd, Bias::Present)
        })
    }
}
