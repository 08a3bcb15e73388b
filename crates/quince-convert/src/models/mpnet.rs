//! MPNet: BERT with a bias in every layer's scores for how far tokens are from each other.

use super::{Architecture, LmHead};
use crate::blocks::{Encoder, post_norm};
use crate::graph::{Attention, Bias, Graph, Sees};
use quince_mil::{Result, Var};
use serde::Deserialize;

/// The fields of `config.json` that change the program.
#[derive(Deserialize)]
pub struct MpNet {
    #[serde(flatten)]
    encoder: Encoder,
    relative_attention_num_buckets: Option<usize>,
}

/// The row of the first token's position: padding has the row before it.
const FIRST_POSITION: usize = 2;

impl Architecture for MpNet {
    const MODEL_TYPES: &'static [&'static str] = &["mpnet"];
    const TINY: &'static str = r#"{ "model_type": "mpnet", "vocab_size": 19, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 34, "layer_norm_eps": 1e-5,
        "hidden_act": "gelu", "relative_attention_num_buckets": 8 }"#;

    fn build(&self, g: &mut Graph) -> Result<Var> {
        g.scope("mpnet", |g| {
            let mut x = self.encoder.embed(g, FIRST_POSITION, 0)?;
            let (buckets, heads) = (self.relative_attention_num_buckets.unwrap_or(32), self.encoder.heads().heads);
            let bias = g.relative_bias("encoder.relative_attention_bias", x, buckets, heads)?;
            let (norms, norm) = (["attention.LayerNorm", "output.LayerNorm"], self.encoder.norm());
            for i in 0..self.encoder.num_hidden_layers {
                let attention = |g: &mut Graph, x| self.attention(g, x, bias);
                let layer = |g: &mut Graph| post_norm(g, x, norms, norm, attention, |g, x| self.encoder.mlp(g, x));
                x = g.scope(&format!("encoder.layer.{i}"), layer)?;
            }
            Ok(x)
        })
    }

    fn head(&self) -> Option<LmHead> {
        None
    }

    fn max_positions(&self) -> usize {
        self.encoder.max_position_embeddings.saturating_sub(FIRST_POSITION)
    }
}

impl MpNet {
    fn attention(&self, g: &mut Graph, x: Var, bias: Var) -> Result<Var> {
        g.scope("attention.attn", |g| {
            let qkv = self.encoder.heads().project(g, x, ["q", "k", "v"], Bias::Present)?;
            let out = qkv.attend(g, Attention { sees: Sees::All, bias: Some(bias), ..Attention::default() })?;
            g.linear("o", out, self.encoder.hidden_size, Bias::Present)
        })
    }
}
