//! DistilBERT: BERT under other names, without kinds of text.

use super::{Architecture, LmHead};
use crate::blocks::{Activation, Heads, plain_mlp, post_norm};
use crate::graph::{Attention, Bias, Graph, Norm, Sees};
use quince_mil::{Result, Var};
use serde::Deserialize;

/// The fields of `config.json` that change the program.
#[derive(Deserialize)]
pub struct DistilBert {
    vocab_size: usize,
    dim: usize,
    hidden_dim: usize,
    n_layers: usize,
    n_heads: usize,
    max_position_embeddings: usize,
    activation: Activation,
}

const NORM: Norm = Norm::Layer { epsilon: 1e-12, bias: Bias::Present };

impl Architecture for DistilBert {
    const MODEL_TYPES: &'static [&'static str] = &["distilbert"];
    const TINY: &'static str = r#"{ "model_type": "distilbert", "vocab_size": 19, "dim": 8, "hidden_dim": 12,
        "n_layers": 2, "n_heads": 2, "max_position_embeddings": 32, "activation": "gelu" }"#;

    fn build(&self, g: &mut Graph) -> Result<Var> {
        g.scope("distilbert", |g| {
            let mut x = g.scope("embeddings", |g| {
                let x = g.embedding("word_embeddings", self.vocab_size, self.dim)?;
                let x = g.add_positions("position_embeddings", x, self.max_position_embeddings, 0)?;
                g.norm("LayerNorm", x, NORM)
            })?;
            let norms = ["sa_layer_norm", "output_layer_norm"];
            for i in 0..self.n_layers {
                let layer =
                    |g: &mut Graph| post_norm(g, x, norms, NORM, |g, x| self.attention(g, x), |g, x| self.mlp(g, x));
                x = g.scope(&format!("transformer.layer.{i}"), layer)?;
            }
            Ok(x)
        })
    }

    fn head(&self) -> Option<LmHead> {
        None
    }

    fn max_positions(&self) -> usize {
        self.max_position_embeddings
    }
}

impl DistilBert {
    fn attention(&self, g: &mut Graph, x: Var) -> Result<Var> {
        g.scope("attention", |g| {
            let heads = Heads::sharing(self.dim, self.n_heads);
            let qkv = heads.project(g, x, ["q_lin", "k_lin", "v_lin"], Bias::Present)?;
            let out = qkv.attend(g, Attention { sees: Sees::All, ..Attention::default() })?;
            g.linear("out_lin", out, self.dim, Bias::Present)
        })
    }

    fn mlp(&self, g: &mut Graph, x: Var) -> Result<Var> {
        g.scope("ffn", |g| plain_mlp(g, x, ["lin1", "lin2"], self.hidden_dim, self.activation))
    }
}
