//! The semantic program: the model as its file in `models/` says it, in float32, without cache, compression or target.
//!
//! It is what lowerings start from, and it is the reference that they, and the packages made of them, are compared with.

use crate::graph::{Graph, UsedWeights, Weights};
use crate::models::{Described, Model};
use crate::pooling::Embedding;
use quince_checkpoint::{Checkpoint, Config};
use quince_mil::{
    Arg, Builder, DType, Dim, Error, Flexibility, Function, Opset, Program, Result, TensorType, Value, Weight, bail,
};
use std::collections::HashMap;

/// What is read from a text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reading {
    /// How likely each token comes next: `input_ids` int32 [1, S] to `logits` float32 [1, S, V].
    Logits,
    /// What several texts mean: `input_ids` and `attention_mask` int32 [B, S] to `embedding` float32 [B, D], or without
    /// pooling to `last_hidden_state` float32 [B, S, D]. The mask is 1 for a token and 0 for padding.
    Embedding(Embedding),
}

/// A model as a program of semantic operations, and what a lowering must know beside it.
#[derive(Clone)]
pub struct Semantic {
    /// A function for each reading, S from 1 to `max_positions`. A single one is called `main`; of two, the embedding is
    /// called `encode`.
    pub program: Program,
    /// The architecture: an entry of `model_type`'s table.
    pub architecture: &'static str,
    /// The longest text that the model was made for, in tokens.
    pub max_positions: usize,
    /// V, the number of tokens; 0 without logits.
    pub vocab_size: usize,
    /// What is read, in the order of the functions.
    pub readings: Vec<Reading>,
    /// By identity of a float32 weight of the program: the weight as the checkpoint has it.
    stored: HashMap<usize, Weight>,
}

/// The semantic program of a checkpoint, for what it was made for: logits, or an embedding.
///
/// # Errors
/// When the architecture is not known, a key of the configuration is absent or asks for what is not supported, or a
/// weight is absent or of another shape.
pub fn semantic(checkpoint: &Checkpoint) -> Result<Semantic> {
    let config = checkpoint.config();
    let model = Model::of_config(config)?;
    let reading = match has_head(model.read(config)?.as_ref(), config, checkpoint) {
        true => Reading::Logits,
        false => Reading::Embedding(Embedding::of_checkpoint(checkpoint)?),
    };
    semantic_with(model, config, checkpoint, &[reading])
}

/// The semantic program of an architecture, which need not be in the table, with weights from anywhere.
///
/// # Errors
/// As for [`semantic`], and when logits are asked of a model without a head.
pub fn semantic_with(model: &Model, config: &Config, weights: &dyn Weights, readings: &[Reading]) -> Result<Semantic> {
    let described = model.read(config)?;
    let max_positions = described.max_positions();
    if max_positions == 0 || i32::try_from(max_positions).is_err() {
        bail!("{}: found a context of {max_positions} tokens, expected 1 to 2^31 - 1", config.path().display());
    }
    let (mut program, mut used) = (Program::default(), UsedWeights::default());
    for &reading in readings {
        let name = match reading {
            Reading::Embedding(_) if readings.len() > 1 => "encode",
            _ => "main",
        };
        let (function, used_now) = function(name, reading, described.as_ref(), config, weights, used)?;
        program.functions.push(function);
        used = used_now;
    }
    Ok(Semantic {
        program,
        architecture: model.model_types[0],
        max_positions,
        vocab_size: described.head().map_or(0, |head| head.vocab_size),
        readings: readings.to_vec(),
        stored: used.stored,
    })
}

/// Whether a checkpoint can give logits: the model has a head, and its weight is there.
pub(crate) fn has_head(described: &dyn Described, config: &Config, weights: &dyn Weights) -> bool {
    let Some(head) = described.head() else { return false };
    let architectures = config.optional::<Vec<String>>("architectures").ok().flatten().unwrap_or_default();
    let bare = |name: &String| name.ends_with("Model") && !name.ends_with("LMHeadModel");
    // A model saved without its head says so; where its head is tied, no weight is missing.
    !architectures.iter().any(bare) && weights.has(&format!("{}.weight", head.module))
}

fn function(
    name: &str,
    reading: Reading,
    described: &dyn Described,
    config: &Config,
    weights: &dyn Weights,
    used: UsedWeights,
) -> Result<(Function, UsedWeights)> {
    let mut builder = Builder::new(Function::new(name, Opset::Semantic));
    let batch = if reading == Reading::Logits { Dim::Fixed(1) } else { Dim::Unknown };
    let ty = TensorType { dtype: DType::I32, shape: vec![batch, Dim::Unknown] };
    let ids = builder.input("input_ids", ty.clone().into(), Flexibility::Fixed);
    let mask = match reading {
        Reading::Logits => None,
        Reading::Embedding(_) => Some(builder.input("attention_mask", ty.into(), Flexibility::Fixed)),
    };
    let mut g = Graph::new(config, weights, used, builder, ids, mask);
    let hidden = described.build(&mut g)?;
    let output = match (reading, described.head()) {
        (Reading::Logits, Some(head)) => g.logits(&head, hidden)?,
        (Reading::Logits, None) => bail!(
            "{}: found an encoder, expected a model with logits", config.path().display();
            hint: "ask for the function `encode`"
        ),
        (Reading::Embedding(embedding), _) => embedding.write(&mut g, hidden)?,
    };
    let (mut function, used) = g.finish(vec![output]);
    let max_positions = described.max_positions();
    for input in &mut function.inputs {
        input.flexibility = match reading {
            Reading::Logits => lengths(max_positions),
            Reading::Embedding(_) => Flexibility::Range {
                bounds: vec![(1, None), (1, Some(max_positions))],
                default: vec![1, max_positions.min(64)],
            },
        };
    }
    Ok((function, used))
}

/// The shapes [1, S] for S from one to `longest`; 64 if none is asked for.
pub(crate) fn lengths(longest: usize) -> Flexibility {
    Flexibility::Range { bounds: vec![(1, Some(1)), (1, Some(longest))], default: vec![1, longest.min(64)] }
}

impl Semantic {
    /// The first function.
    pub fn main(&self) -> &Function {
        &self.program.functions[0]
    }

    /// The function that gives logits, or that which gives embeddings.
    pub(crate) fn function_with(&self, is: impl Fn(&Reading) -> bool) -> Result<&Function> {
        let place = self.readings.iter().position(is);
        let found = place.and_then(|place| self.program.functions.get(place));
        found.ok_or_else(|| {
            Error::new("the semantic program has no such function, expected one for each that is lowered")
        })
    }

    /// From how many tokens on positions turn otherwise, if they do.
    pub(crate) fn long_from(&self) -> Option<usize> {
        let operations = self.program.functions.iter().flat_map(|function| &function.block.operations);
        let mut rotations = operations.filter(|operation| operation.arg("long_inverse_frequencies").is_some());
        match rotations.find_map(|operation| operation.arg("long_from"))? {
            Arg::Value(Value::Tensor(from)) => usize::try_from(*from.to_i64().ok()?.first()?).ok(),
            _ => None,
        }
    }

    /// The weight as the checkpoint has it, of which `weight` is the float32 form: to be converted once, not twice.
    pub fn stored(&self, weight: &Weight) -> Weight {
        self.stored.get(&weight.id()).unwrap_or(weight).clone()
    }
}
