//! What most decoders have in common: the usual fields of `config.json`, the usual names.

use super::{Activation, Heads, gated_mlp};
use crate::graph::{Bias, Graph};
use crate::models::{LmHead, Tied};
use quince_mil::{Result, Var};
use serde::Deserialize;

/// The fields of `config.json` that most decoders have.
#[derive(Deserialize)]
pub struct Decoder {
    /// V.
    pub vocab_size: usize,
    /// D.
    pub hidden_size: usize,
    /// The width of feed-forward blocks.
    pub intermediate_size: usize,
    /// How many layers there are.
    pub num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    /// The longest text that the model was made for, in tokens.
    pub max_position_embeddings: usize,
    tie_word_embeddings: Option<bool>,
}

impl Decoder {
    /// The heads of each layer.
    pub fn heads(&self) -> Heads {
        let heads = self.num_attention_heads;
        let dim = self.head_dim.unwrap_or(self.hidden_size / heads.max(1));
        Heads { heads, kv_heads: self.num_key_value_heads.unwrap_or(heads), dim }
    }

    /// The embeddings of the tokens.
    pub fn embed(&self, g: &mut Graph) -> Result<Var> {
        g.embedding("model.embed_tokens", self.vocab_size, self.hidden_size)
    }

    /// The layers, one after the other.
    pub fn layers(
        &self,
        g: &mut Graph,
        mut x: Var,
        mut layer: impl FnMut(&mut Graph, usize, Var) -> Result<Var>,
    ) -> Result<Var> {
        for i in 0..self.num_hidden_layers {
            x = g.scope(&format!("model.layers.{i}"), |g| layer(g, i, x))?;
        }
        Ok(x)
    }

    /// The usual feed-forward block.
    pub fn gated_mlp(&self, g: &mut Graph, x: Var, activation: Activation, bias: Bias) -> Result<Var> {
        gated_mlp(g, x, self.intermediate_size, activation, bias)
    }

    /// The usual head; `otherwise` is whether it is tied where the configuration does not say.
    pub fn lm_head(&self, otherwise: Tied) -> LmHead {
        LmHead::usual(self.vocab_size, self.tie_word_embeddings.map_or(otherwise, Tied::from))
    }
}
