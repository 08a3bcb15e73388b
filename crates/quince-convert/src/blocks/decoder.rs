//! What most decoders have in common: the usual fields of `config.json`, the usual names.

use super::{Activation, Heads, Layer, Layers, PreNorm, Qkv, Windows, gated_mlp, pre_norm};
use crate::graph::{Attention, Bias, Graph, Norm};
use crate::models::{LmHead, Tied};
use crate::rope::Rope;
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

    /// The usual model, from token ids to hidden states: layers whose two halves follow a norm each and turn alike, and
    /// a last norm. `mlp` is told the number of its layer.
    pub fn pre_norm(
        &self,
        g: &mut Graph,
        norm: Norm,
        windows: Windows,
        attention: impl Fn(&mut Graph, Var, Layer) -> Result<Var>,
        mlp: impl Fn(&mut Graph, Var, usize) -> Result<Var>,
    ) -> Result<Var> {
        let layers = Layers::alike(windows, Rope::from_config(g.config(), self.heads().dim)?);
        let x = self.embed(g)?;
        let x = self.layers(g, x, |g, i, x| {
            let attention = |g: &mut Graph, x| attention(g, x, layers.of(i));
            pre_norm(g, x, PreNorm::USUAL, norm, attention, |g, x| mlp(g, x, i))
        })?;
        g.norm("model.norm", x, norm)
    }

    /// Queries, keys and values by three products.
    pub fn qkv(&self, g: &mut Graph, x: Var, bias: Bias) -> Result<Qkv> {
        self.heads().project(g, x, ["q_proj", "k_proj", "v_proj"], bias)
    }

    /// What is left of attention: rotation, the heads, and the product after them.
    pub fn attend(&self, g: &mut Graph, qkv: Qkv, layer: Layer, bias: Bias) -> Result<Var> {
        let how = Attention { window: layer.window, ..Attention::default() };
        let out = qkv.rotated(g, layer.rope)?.attend(g, how)?;
        g.linear("o_proj", out, self.hidden_size, bias)
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
