//! GPT-NeoX and Pythia: attention and feed-forward block at once, a part of each head rotated, query, key and value in one
//! module head by head.

use super::{Architecture, LmHead};
use crate::blocks::{Activation, Heads, PreNorm, parallel, plain_mlp, pre_norm};
use crate::graph::{Attention, Bias, Graph, Norm};
use crate::rope::{Rope, RopeKeys};
use quince_mil::{Result, Var};
use serde::Deserialize;

/// The fields of `config.json` that change the program.
#[derive(Deserialize)]
pub struct GptNeoX {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    layer_norm_eps: f32,
    hidden_act: Activation,
    attention_bias: Option<bool>,
    use_parallel_residual: Option<bool>,
    #[serde(default)]
    tie_word_embeddings: bool,
}

const NAMES: PreNorm = PreNorm { first: "input_layernorm", attention: "attention", second: "post_attention_layernorm" };

impl Architecture for GptNeoX {
    const MODEL_TYPES: &'static [&'static str] = &["gpt_neox"];
    const TINY: &'static str = r#"{ "model_type": "gpt_neox", "vocab_size": 19, "hidden_size": 16,
        "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32,
        "layer_norm_eps": 1e-5, "hidden_act": "gelu", "rotary_pct": 0.5, "rotary_emb_base": 500 }"#;

    fn build(&self, g: &mut Graph) -> Result<Var> {
        let norm = Norm::Layer { epsilon: self.layer_norm_eps, bias: Bias::Present };
        let keys = RopeKeys { usual_fraction: 0.25, ..RopeKeys::default() };
        let rope = Rope::with_keys(g.config(), self.heads().dim, &keys)?;
        let mut x = g.embedding("gpt_neox.embed_in", self.vocab_size, self.hidden_size)?;
        for i in 0..self.num_hidden_layers {
            let attention = |g: &mut Graph, x| self.attention(g, x, &rope);
            let mlp = |g: &mut Graph, x| self.mlp(g, x);
            x = g.scope(&format!("gpt_neox.layers.{i}"), |g| match self.use_parallel_residual.unwrap_or(true) {
                true => parallel(g, x, NAMES, norm, attention, mlp),
                false => pre_norm(g, x, NAMES, norm, attention, mlp),
            })?;
        }
        g.norm("gpt_neox.final_layer_norm", x, norm)
    }

    fn head(&self) -> Option<LmHead> {
        let module = if self.tie_word_embeddings { "gpt_neox.embed_in" } else { "embed_out" };
        Some(LmHead::of(module, self.vocab_size))
    }

    fn max_positions(&self) -> usize {
        self.max_position_embeddings
    }
}

impl GptNeoX {
    fn heads(&self) -> Heads {
        Heads::sharing(self.hidden_size, self.num_attention_heads)
    }

    fn attention(&self, g: &mut Graph, x: Var, rope: &Rope) -> Result<Var> {
        let (heads, bias) = (self.heads(), Bias::from(self.attention_bias.unwrap_or(true)));
        let all = g.linear("query_key_value", x, heads.fused_width(), bias)?;
        let out = heads.fused_by_head(g, all)?.rotated(g, rope)?.attend(g, Attention::default())?;
        g.linear("dense", out, self.hidden_size, bias)
    }

    fn mlp(&self, g: &mut Graph, x: Var) -> Result<Var> {
        let names = ["dense_h_to_4h", "dense_4h_to_h"];
        g.scope("mlp", |g| plain_mlp(g, x, names, self.intermediate_size, self.hidden_act))
    }
}
