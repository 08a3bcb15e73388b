//! What the first encoders have in common: the usual fields of `config.json`, the usual layers.

use super::{Activation, Heads, plain_mlp, post_norm};
use crate::graph::{Attention, Bias, Graph, Norm, Sees};
use quince_mil::{Result, Var};
use serde::Deserialize;

/// The fields of `config.json` that most encoders have.
#[derive(Deserialize)]
pub struct Encoder {
    /// V.
    pub vocab_size: usize,
    /// D.
    pub hidden_size: usize,
    /// The width of feed-forward blocks.
    pub intermediate_size: usize,
    /// How many layers there are.
    pub num_hidden_layers: usize,
    num_attention_heads: usize,
    /// Rows of the table of positions.
    pub max_position_embeddings: usize,
    layer_norm_eps: f32,
    /// Between the projections of a feed-forward block.
    pub hidden_act: Activation,
}

impl Encoder {
    /// The heads of each layer.
    pub fn heads(&self) -> Heads {
        Heads::sharing(self.hidden_size, self.num_attention_heads)
    }

    /// The norms.
    pub fn norm(&self) -> Norm {
        Norm::Layer { epsilon: self.layer_norm_eps, bias: Bias::Present }
    }

    /// The embeddings of tokens, of their positions from row `first` on, and of the first of `types` kinds of text,
    /// normed; in the scope `embeddings`.
    pub fn embed(&self, g: &mut Graph, first: usize, types: usize) -> Result<Var> {
        g.scope("embeddings", |g| {
            let x = g.embedding("word_embeddings", self.vocab_size, self.hidden_size)?;
            let x = if types > 0 { g.add_row("token_type_embeddings", x, types, 0)? } else { x };
            let x = g.add_positions("position_embeddings", x, self.max_position_embeddings, first)?;
            g.norm("LayerNorm", x, self.norm())
        })
    }

    /// The layers, one after the other, in the scope `encoder`.
    pub fn layers(&self, g: &mut Graph, mut x: Var) -> Result<Var> {
        let norms = ["attention.output.LayerNorm", "output.LayerNorm"];
        for i in 0..self.num_hidden_layers {
            let layer =
                |g: &mut Graph| post_norm(g, x, norms, self.norm(), |g, x| self.attention(g, x), |g, x| self.mlp(g, x));
            x = g.scope(&format!("encoder.layer.{i}"), layer)?;
        }
        Ok(x)
    }

    fn attention(&self, g: &mut Graph, x: Var) -> Result<Var> {
        g.scope("attention", |g| {
            let qkv = self.heads().project(g, x, ["self.query", "self.key", "self.value"], Bias::Present)?;
            let out = qkv.attend(g, Attention { sees: Sees::All, ..Attention::default() })?;
            g.linear("output.dense", out, self.hidden_size, Bias::Present)
        })
    }

    /// The feed-forward block.
    pub fn mlp(&self, g: &mut Graph, x: Var) -> Result<Var> {
        plain_mlp(g, x, ["intermediate.dense", "output.dense"], self.intermediate_size, self.hidden_act)
    }
}
