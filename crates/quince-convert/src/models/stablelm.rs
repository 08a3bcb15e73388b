//! StableLM: Llama with layer norms and a part of each head rotated; both blocks at once if asked for.

use super::{Architecture, LmHead, Tied};
use crate::blocks::{Activation, Decoder, PreNorm, parallel, pre_norm};
use crate::graph::{Attention, Bias, Graph, Norm};
use crate::rope::{Rope, RopeKeys};
use quince_mil::{Result, Var, bail};
use serde::Deserialize;

/// The fields of `config.json` that change the program.
#[derive(Deserialize)]
pub struct StableLm {
    #[serde(flatten)]
    decoder: Decoder,
    #[serde(alias = "norm_eps")]
    layer_norm_eps: f32,
    #[serde(default)]
    hidden_act: Activation,
    #[serde(default)]
    use_qkv_bias: Bias,
    #[serde(default)]
    use_parallel_residual: bool,
    #[serde(default)]
    qk_layernorm: bool,
}

impl Architecture for StableLm {
    const MODEL_TYPES: &'static [&'static str] = &["stablelm"];
    const TINY: &'static str = r#"{ "model_type": "stablelm", "vocab_size": 19, "hidden_size": 16,
        "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 32, "layer_norm_eps": 1e-5, "use_qkv_bias": true, "partial_rotary_factor": 0.5,
        "use_parallel_residual": true }"#;

    fn build(&self, g: &mut Graph) -> Result<Var> {
        if self.qk_layernorm {
            bail!("{}: key `qk_layernorm`: found true, expected false", g.config().path().display());
        }
        let norm = Norm::Layer { epsilon: self.layer_norm_eps, bias: Bias::Present };
        let keys = RopeKeys { usual_fraction: 0.25, ..RopeKeys::default() };
        let rope = Rope::with_keys(g.config(), self.decoder.heads().dim, &keys)?;
        let x = self.decoder.embed(g)?;
        let x = self.decoder.layers(g, x, |g, _, x| {
            let attention = |g: &mut Graph, x| self.attention(g, x, &rope);
            let mlp = |g: &mut Graph, x| self.decoder.gated_mlp(g, x, self.hidden_act, Bias::Absent);
            match self.use_parallel_residual {
                true => {
                    parallel(g, x, PreNorm { second: PreNorm::USUAL.first, ..PreNorm::USUAL }, norm, attention, mlp)
                }
                false => pre_norm(g, x, PreNorm::USUAL, norm, attention, mlp),
            }
        })?;
        g.norm("model.norm", x, norm)
    }

    fn head(&self) -> Option<LmHead> {
        Some(self.decoder.lm_head(Tied::Untied))
    }

    fn max_positions(&self) -> usize {
        self.decoder.max_position_embeddings
    }
}

impl StableLm {
    fn attention(&self, g: &mut Graph, x: Var, rope: &Rope) -> Result<Var> {
        let qkv = self.decoder.heads().project(g, x, ["q_proj", "k_proj", "v_proj"], self.use_qkv_bias)?;
        let out = qkv.rotated(g, rope)?.attend(g, Attention::default())?;
        g.linear("o_proj", out, self.decoder.hidden_size, Bias::Absent)
    }
}
