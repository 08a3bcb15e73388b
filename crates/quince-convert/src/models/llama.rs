//! Llama: grouped-query attention, rotary positions, SwiGLU, RMS norms before both.

use super::{Architecture, LmHead, Tied};
use crate::blocks::{Activation, gated_mlp, pre_norm};
use crate::graph::{Attention, Bias, Graph};
use crate::rope::Rope;
use quince_mil::{Result, Var};
use serde::Deserialize;

/// The fields of `config.json` that change the program.
#[derive(Deserialize)]
pub struct Llama {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    #[serde(default)]
    hidden_act: Activation,
    #[serde(default)]
    attention_bias: Bias,
    #[serde(default)]
    mlp_bias: Bias,
    #[serde(default)]
    tie_word_embeddings: Tied,
}

impl Architecture for Llama {
    const MODEL_TYPES: &'static [&'static str] = &["llama"];
    const TINY: &'static str = r#"{ "model_type": "llama", "vocab_size": 19, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5, "rope_theta": 500.0, "attention_bias": true, "mlp_bias": true,
        "rope_scaling": { "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16 } }"#;

    fn build(&self, g: &mut Graph) -> Result<Var> {
        let dim = self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1));
        let rope = Rope::from_config(g.config(), dim)?;
        let mut x = g.embedding("model.embed_tokens", self.vocab_size, self.hidden_size)?;
        for i in 0..self.num_hidden_layers {
            let attention = |g: &mut Graph, x| self.attention(g, x, dim, &rope);
            let mlp = |g: &mut Graph, x| gated_mlp(g, x, self.intermediate_size, self.hidden_act, self.mlp_bias);
            x = g.scope(&format!("model.layers.{i}"), |g| pre_norm(g, x, self.rms_norm_eps, attention, mlp))?;
        }
        g.rms_norm("model.norm", x, self.rms_norm_eps)
    }

    fn head(&self) -> LmHead {
        LmHead::usual(self.vocab_size, self.tie_word_embeddings)
    }

    fn max_positions(&self) -> usize {
        self.max_position_embeddings
    }
}

impl Llama {
    fn attention(&self, g: &mut Graph, x: Var, dim: usize, rope: &Rope) -> Result<Var> {
        let (heads, bias) = (self.num_attention_heads, self.attention_bias);
        let kv_heads = self.num_key_value_heads.unwrap_or(heads);
        let q = g.linear("q_proj", x, heads * dim, bias)?;
        let k = g.linear("k_proj", x, kv_heads * dim, bias)?;
        let v = g.linear("v_proj", x, kv_heads * dim, bias)?;
        let (q, k, v) = (g.split_heads(q, heads)?, g.split_heads(k, kv_heads)?, g.split_heads(v, kv_heads)?);
        let (q, k) = (g.rope(q, rope)?, g.rope(k, rope)?);
        let out = g.attention(q, k, v, Attention::default())?;
        g.linear("o_proj", out, self.hidden_size, bias)
    }
}
