//! Mixtral: Mistral with experts in place of the feed-forward block.

use super::{Architecture, LmHead, Tied};
use crate::blocks::{Decoder, Layer, Windows};
use crate::graph::{Bias, ExpertWeights, Experts, Graph, Norm, SoftmaxOver};
use quince_mil::{Result, Var};
use serde::Deserialize;

/// The fields of `config.json` that change the program.
#[derive(Deserialize)]
pub struct Mixtral {
    #[serde(flatten)]
    decoder: Decoder,
    rms_norm_eps: f32,
    num_local_experts: usize,
    num_experts_per_tok: usize,
}

impl Architecture for Mixtral {
    const MODEL_TYPES: &'static [&'static str] = &["mixtral"];
    const TINY: &'static str = r#"{ "model_type": "mixtral", "vocab_size": 19, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5, "sliding_window": null, "num_local_experts": 3, "num_experts_per_tok": 2 }"#;

    fn build(&self, g: &mut Graph) -> Result<Var> {
        let norm = Norm::Rms { epsilon: self.rms_norm_eps };
        let windows = Windows::from_config(g.config(), self.decoder.num_hidden_layers, |_| true)?;
        let attention = |g: &mut Graph, x, layer: Layer| self.attention(g, x, layer);
        self.decoder.pre_norm(g, norm, windows, attention, |g, x, _| self.mixture(g, x))
    }

    fn head(&self) -> Option<LmHead> {
        Some(self.decoder.lm_head(Tied::Untied))
    }

    fn max_positions(&self) -> usize {
        self.decoder.max_position_embeddings
    }
}

impl Mixtral {
    fn attention(&self, g: &mut Graph, x: Var, layer: Layer) -> Result<Var> {
        let qkv = self.decoder.qkv(g, x, Bias::Absent)?;
        self.decoder.attend(g, qkv, layer, Bias::Absent)
    }
}

impl Mixtral {
    fn mixture(&self, g: &mut Graph, x: Var) -> Result<Var> {
        g.scope("block_sparse_moe", |g| {
            let scores = g.linear("gate", x, self.num_local_experts, Bias::Absent)?;
            let how = Experts {
                number: self.num_local_experts,
                chosen: self.num_experts_per_tok,
                inner: self.decoder.intermediate_size,
                over: SoftmaxOver::Chosen,
                weights: ExpertWeights::Modules(["w1", "w3", "w2"]),
                alpha: 1.0,
                up_offset: 0.0,
                limit: None,
            };
            g.experts(x, scores, how)
        })
    }
}
