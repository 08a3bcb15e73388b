//! RoBERTa and XLM-R: BERT with positions counted from the row after that of padding.

use super::{Architecture, LmHead};
use crate::blocks::Encoder;
use crate::graph::Graph;
use quince_mil::{Result, Var};
use serde::Deserialize;

/// The fields of `config.json` that change the program.
#[derive(Deserialize)]
pub struct Roberta {
    #[serde(flatten)]
    encoder: Encoder,
    type_vocab_size: usize,
    pad_token_id: Option<usize>,
}

impl Architecture for Roberta {
    const MODEL_TYPES: &'static [&'static str] = &["roberta", "xlm-roberta", "camembert"];
    const TINY: &'static str = r#"{ "model_type": "roberta", "vocab_size": 19, "hidden_size": 8,
        "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 34,
        "type_vocab_size": 1, "layer_norm_eps": 1e-5, "hidden_act": "gelu", "pad_token_id": 1 }"#;

    fn build(&self, g: &mut Graph) -> Result<Var> {
        g.scope("roberta", |g| {
            let x = self.encoder.embed(g, self.first_position(), self.type_vocab_size)?;
            self.encoder.layers(g, x)
        })
    }

    fn head(&self) -> Option<LmHead> {
        None
    }

    fn max_positions(&self) -> usize {
        self.encoder.max_position_embeddings.saturating_sub(self.first_position())
    }
}

impl Roberta {
    fn first_position(&self) -> usize {
        self.pad_token_id.unwrap_or(1).saturating_add(1)
    }
}
