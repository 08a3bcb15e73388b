//! Qwen2 and Qwen2.5, dense: Llama with a bias on query, key and value, and windows in the later layers if asked for.

use super::{Architecture, LmHead, Tied};
use crate::blocks::{Activation, Windows, gated_mlp, pre_norm};
use crate::graph::{Attention, Bias, Graph};
use crate::rope::Rope;
use quince_mil::{Result, Var};
use serde::Deserialize;

/// The fields of `config.json` that change the program.
#[derive(Deserialize)]
pub struct Qwen2 {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    #[serde(default)]
    hidden_act: Activation,
    #[serde(default)]
    tie_word_embeddings: Tied,
}

impl Architecture for Qwen2 {
    const MODEL_TYPES: &'static [&'static str] = &["qwen2"];
    const TINY: &'static str = r#"{ "model_type": "qwen2", "vocab_size": 19, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32,
        "rms_norm_eps": 1e-6, "use_sliding_window": true, "sliding_window": 3, "max_window_layers": 1,
        "tie_word_embeddings": true }"#;

    fn build(&self, g: &mut Graph) -> Result<Var> {
        let dim = self.hidden_size / self.num_attention_heads.max(1);
        let rope = Rope::from_config(g.config(), dim)?;
        let windows = Windows::from_config(g.config())?;
        let mut x = g.embedding("model.embed_tokens", self.vocab_size, self.hidden_size)?;
        for i in 0..self.num_hidden_layers {
            let window = windows.of_layer(i);
            let attention = |g: &mut Graph, x| self.attention(g, x, dim, &rope, window);
            let mlp = |g: &mut Graph, x| gated_mlp(g, x, self.intermediate_size, self.hidden_act, Bias::Absent);
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

impl Qwen2 {
    fn attention(&self, g: &mut Graph, x: Var, dim: usize, rope: &Rope, window: Option<usize>) -> Result<Var> {
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        let q = g.linear("q_proj", x, heads * dim, Bias::Present)?;
        let k = g.linear("k_proj", x, kv_heads * dim, Bias::Present)?;
        let v = g.linear("v_proj", x, kv_heads * dim, Bias::Present)?;
        let (q, k, v) = (g.split_heads(q, heads)?, g.split_heads(k, kv_heads)?, g.split_heads(v, kv_heads)?);
        let (q, k) = (g.rope(q, rope)?, g.rope(k, rope)?);
        let out = g.attention(q, k, v, Attention { window, ..Attention::default() })?;
        g.linear("o_proj", out, self.hidden_size, Bias::Absent)
    }
}
