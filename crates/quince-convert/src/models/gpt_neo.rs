//! GPT-Neo and TinyStories: learned positions, scores that are not scaled, windows in some layers.

use super::{Architecture, LmHead, Tied};
use crate::blocks::{Activation, Heads, PreNorm, Windows, plain_mlp, pre_norm};
use crate::graph::{Attention, Bias, Graph, Norm};
use quince_mil::{Result, Var};
use serde::Deserialize;

/// The fields of `config.json` that change the program.
#[derive(Deserialize)]
pub struct GptNeo {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: Option<usize>,
    num_layers: usize,
    num_heads: usize,
    max_position_embeddings: usize,
    layer_norm_epsilon: f32,
    activation_function: Option<Activation>,
    window_size: Option<usize>,
    tie_word_embeddings: Option<bool>,
    /// Runs of layers: types in turn, and how often they are repeated.
    attention_types: Option<Vec<(Vec<String>, usize)>>,
}

const NAMES: PreNorm = PreNorm { first: "ln_1", attention: "attn.attention", second: "ln_2" };

impl Architecture for GptNeo {
    const MODEL_TYPES: &'static [&'static str] = &["gpt_neo"];
    const TINY: &'static str = r#"{ "model_type": "gpt_neo", "vocab_size": 19, "hidden_size": 8, "num_layers": 2,
        "num_heads": 2, "max_position_embeddings": 32, "layer_norm_epsilon": 1e-5, "window_size": 3,
        "attention_types": [[["global", "local"], 1]] }"#;

    fn build(&self, g: &mut Graph) -> Result<Var> {
        let norm = Norm::Layer { epsilon: self.layer_norm_epsilon, bias: Bias::Present };
        let size = Some(self.window_size.unwrap_or(256));
        let windows = Windows::of_size(g.config(), size, self.num_layers, |layer| self.is_local(layer))?;
        let x = g.embedding("transformer.wte", self.vocab_size, self.hidden_size)?;
        let mut x = g.add_positions("transformer.wpe", x, self.max_position_embeddings, 0)?;
        for i in 0..self.num_layers {
            let attention = |g: &mut Graph, x| self.attention(g, x, windows.of_layer(i));
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
        self.max_position_embeddings
    }
}

impl GptNeo {
    /// Whether a layer has a window: every second one, if the configuration does not say.
    fn is_local(&self, layer: usize) -> bool {
        let Some(runs) = &self.attention_types else { return layer % 2 == 1 };
        let mut first = 0;
        for (kinds, times) in runs {
            let count = kinds.len().saturating_mul(*times);
            if layer - first < count {
                return kinds[(layer - first) % kinds.len()] == "local";
            }
            first += count;
        }
        false
    }

    fn attention(&self, g: &mut Graph, x: Var, window: Option<usize>) -> Result<Var> {
        let heads = Heads::sharing(self.hidden_size, self.num_heads);
        let qkv = heads.project(g, x, ["q_proj", "k_proj", "v_proj"], Bias::Absent)?;
        let out = qkv.attend(g, Attention { window, scale: Some(1.0), ..Attention::default() })?;
        g.linear("out_proj", out, self.hidden_size, Bias::Present)
    }

    fn mlp(&self, g: &mut Graph, x: Var) -> Result<Var> {
        let inner = self.intermediate_size.unwrap_or(self.hidden_size.saturating_mul(4));
        let activation = self.activation_function.unwrap_or(Activation::GeluTanh);
        g.scope("mlp", |g| plain_mlp(g, x, ["c_fc", "c_proj"], inner, activation))
    }
}
