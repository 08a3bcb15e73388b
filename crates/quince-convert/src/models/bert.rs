//! BERT, and MiniLM: learned positions, norms after attention and after the feed-forward block.

use super::{Architecture, LmHead};
use crate::blocks::Encoder;
use crate::graph::Graph;
use quince_mil::{Result, Var};
use serde::Deserialize;

/// The fields of `config.json` that change the program.
#[derive(Deserialize)]
pub struct Bert {
    #[serde(flatten)]
    encoder: Encoder,
    type_vocab_size: usize,
}

impl Architecture for Bert {
    const MODEL_TYPES: &'static [&'static str] = &["bert"];
    const TINY: &'static str = r#"{ "model_type": "bert", "vocab_size": 19, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "hidden_act": "gelu" }"#;

    fn build(&self, g: &mut Graph) -> Result<Var> {
        g.scope("bert", |g| {
            let x = self.encoder.embed(g, 0, self.type_vocab_size)?;
            self.encoder.layers(g, x)
        })
    }

    fn head(&self) -> Option<LmHead> {
        None
    }

    fn max_positions(&self) -> usize {
        self.encoder.max_position_embeddings
    }
}
