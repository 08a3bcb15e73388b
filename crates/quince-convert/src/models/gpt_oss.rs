//! gpt-oss: experts with a clamped SwiGLU, attention sinks, windows in every other layer, YaRN.

use super::{Architecture, LmHead, Tied};
use crate::blocks::{Decoder, Layer, Layers, PreNorm, Windows, pre_norm};
use crate::graph::{Attention, Bias, ExpertWeights, Experts, Graph, Norm, SoftmaxOver};
use crate::rope::{Rope, RopeKeys};
use quince_mil::{Result, Var};
use serde::Deserialize;

/// The fields of `config.json` that change the program.
#[derive(Deserialize)]
pub struct GptOss {
    #[serde(flatten)]
    decoder: Decoder,
    rms_norm_eps: f32,
    num_local_experts: usize,
    num_experts_per_tok: usize,
    swiglu_alpha: Option<f32>,
    swiglu_limit: Option<f32>,
}

impl Architecture for GptOss {
    const MODEL_TYPES: &'static [&'static str] = &["gpt_oss"];
    const TINY: &'static str = r#"{ "model_type": "gpt_oss", "vocab_size": 19, "hidden_size": 8, "intermediate_size": 6,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
        "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "num_local_experts": 3, "num_experts_per_tok": 2,
        "sliding_window": 3, "swiglu_limit": 0.2, "rope_theta": 150.0, "rope_scaling": { "rope_type": "yarn",
        "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
        "original_max_position_embeddings": 8 } }"#;

    fn build(&self, g: &mut Graph) -> Result<Var> {
        let norm = Norm::Rms { epsilon: self.rms_norm_eps };
        let windows = Windows::from_config(g.config(), self.decoder.num_hidden_layers, |i| i % 2 == 0)?;
        let keys = RopeKeys { usual_theta: 150_000.0, ..RopeKeys::default() };
        let layers = Layers::alike(windows, Rope::with_keys(g.config(), self.decoder.heads().dim, &keys)?);
        let x = self.decoder.embed(g)?;
        let x = self.decoder.layers(g, x, |g, i, x| {
            let attention = |g: &mut Graph, x| self.attention(g, x, layers.of(i));
            pre_norm(g, x, PreNorm::USUAL, norm, attention, |g, x| self.mixture(g, x))
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

impl GptOss {
    fn attention(&self, g: &mut Graph, x: Var, layer: Layer) -> Result<Var> {
        let heads = self.decoder.heads();
        let qkv = heads.project(g, x, ["q_proj", "k_proj", "v_proj"], Bias::Present)?;
        let sinks = Some(g.vector("sinks", heads.heads)?);
        let how = Attention { window: layer.window, sinks, ..Attention::default() };
        let out = qkv.rotated(g, layer.rope)?.attend(g, how)?;
        g.linear("o_proj", out, self.decoder.hidden_size, Bias::Present)
    }

    fn mixture(&self, g: &mut Graph, x: Var) -> Result<Var> {
        g.scope("mlp", |g| {
            let scores = g.linear("router", x, self.num_local_experts, Bias::Present)?;
            let how = Experts {
                number: self.num_local_experts,
                chosen: self.num_experts_per_tok,
                inner: self.decoder.intermediate_size,
                over: SoftmaxOver::Chosen,
                weights: ExpertWeights::InTurn,
                alpha: self.swiglu_alpha.unwrap_or(1.702),
                up_offset: 1.0,
                limit: Some(self.swiglu_limit.unwrap_or(7.0)),
            };
            g.experts(x, scores, how)
        })
    }
}
