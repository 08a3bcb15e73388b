//! Phi-1, 1.5 and 2: attention and feed-forward block at once after one norm, a part of each head rotated.

use super::{Architecture, LmHead};
use crate::blocks::{Activation, Decoder, Heads, PreNorm, parallel, plain_mlp};
use crate::graph::{Attention, Bias, Graph, Norm};
use crate::rope::{Rope, RopeKeys};
use quince_mil::{Result, Var, bail};
use serde::Deserialize;

/// The fields of `config.json` that change the program.
#[derive(Deserialize)]
pub struct Phi {
    #[serde(flatten)]
    decoder: Decoder,
    layer_norm_eps: f32,
    hidden_act: Option<Activation>,
    #[serde(default)]
    qk_layernorm: bool,
}

const NAMES: PreNorm = PreNorm { first: "input_layernorm", attention: "self_attn", second: "input_layernorm" };

impl Architecture for Phi {
    const MODEL_TYPES: &'static [&'static str] = &["phi"];
    const TINY: &'static str = r#"{ "model_type": "phi", "vocab_size": 19, "hidden_size": 16, "intermediate_size": 12,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32, "layer_norm_eps": 1e-5,
        "hidden_act": "gelu_new", "partial_rotary_factor": 0.5 }"#;

    fn build(&self, g: &mut Graph) -> Result<Var> {
        if self.qk_layernorm {
            bail!("{}: key `qk_layernorm`: found true, expected false", g.config().path().display());
        }
        let norm = Norm::Layer { epsilon: self.layer_norm_eps, bias: Bias::Present };
        let (heads, keys) = (self.decoder.heads(), RopeKeys { usual_fraction: 0.5, ..RopeKeys::default() });
        let rope = Rope::with_keys(g.config(), heads.dim, &keys)?;
        let x = self.decoder.embed(g)?;
        let x = self.decoder.layers(g, x, |g, _, x| {
            let attention = |g: &mut Graph, x| self.attention(g, x, heads, &rope);
            parallel(g, x, NAMES, norm, attention, |g, x| self.mlp(g, x))
        })?;
        g.norm("model.final_layernorm", x, norm)
    }

    fn head(&self) -> Option<LmHead> {
        Some(LmHead { bias: Bias::Present, ..LmHead::of("lm_head", self.decoder.vocab_size) })
    }

    fn max_positions(&self) -> usize {
        self.decoder.max_position_embeddings
    }
}

impl Phi {
    fn attention(&self, g: &mut Graph, x: Var, heads: Heads, rope: &Rope) -> Result<Var> {
        let qkv = heads.project(g, x, ["q_proj", "k_proj", "v_proj"], Bias::Present)?;
        let out = qkv.rotated(g, rope)?.attend(g, Attention::default())?;
        g.linear("dense", out, self.decoder.hidden_size, Bias::Present)
    }

    fn mlp(&self, g: &mut Graph, x: Var) -> Result<Var> {
        let activation = self.hidden_act.unwrap_or(Activation::GeluTanh);
        g.scope("mlp", |g| plain_mlp(g, x, ["fc1", "fc2"], self.decoder.intermediate_size, activation))
    }
}
